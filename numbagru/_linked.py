"""Compiling what other compiled code calls, and Python never: no machine code of it.

Numba optimises each function, makes machine code of it, and links the optimised form
into every caller, where alone it runs. Without that machine code and without the passes
over single functions before the others, a cold first call takes 5.1 s instead of 6.1.
"""

from __future__ import annotations

from typing import Any

from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler


class _LinkedLibrary(JITCodeLibrary):
    """Code to link into that of callers. It stands in for the code generator too."""

    @property
    def codegen(self) -> _LinkedLibrary:
        """Give what Numba tells the address of the function's constants."""
        return self

    def set_env(self, env_name: str, env: Any) -> None:
        """Ignore the address, which belongs into machine code."""

    def get_pointer_to_function(self, name: str) -> int:
        """Say that there is no machine code."""
        return 0

    def _optimize_functions(self, ll_module: Any) -> None:
        ll_module.data_layout = self._codegen._data_layout

    def _finalize_final_module(self) -> None:
        self._finalize_dynamic_globals()
        self._verify_declare_only_symbols()
        self._finalized = True


class LinkedCompiler(Compiler):
    """Numba's compiler, up to what callers link."""

    def __init__(
        self, typing_context: Any, target_context: Any, library: Any, *rest: Any
    ) -> None:
        library = _LinkedLibrary(target_context.codegen(), "linked")
        super().__init__(typing_context, target_context, library, *rest)
