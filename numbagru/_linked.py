"""Compiling what other compiled code calls, and Python never: no machine code of it.

Numba optimises each function, makes machine code of it, and links the optimised form
into every caller, where alone it runs. A cold first call took 6.1 s with that machine
code and with the passes over single functions before the others, 5.1 s without. Another
machine took 7.6 s, and takes 5.7 s (benchmarks/startup.py) with fewer of Numba's
passes, sections that are merged without copies of their variables, code with one caller
optimised there alone, and no variants for integers that are known (`_jit.routine`).

All other code needs LLVM's passes: with those of its first level and no vectorising,
32 rows of 32 units took twice as long; with those of its second level 32x100x8x32
trained in 1.08 of its time.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from numba.core import typed_passes, untyped_passes
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler
from numba.core.compiler_machinery import PassManager, register_pass


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


class _UnoptimizedLibrary(_LinkedLibrary):
    """The same, with all passes left to the only caller."""

    def _optimize_final_module(self) -> None:
        pass


def _passes(name: str, classes: Iterable[type]) -> PassManager:
    passes = PassManager(name)
    for one in classes:
        passes.add_pass(one, one.__name__)
    passes.finalize()
    return passes


@register_pass(mutates_CFG=True, analysis_only=False)
class _InlineSections(untyped_passes.InlineInlinables):
    """Numba's pass, without a copy of all variables for each block of a section."""

    def _do_work(
        self, state: Any, work: Any, block: Any, i: int, call: Any, worker: Any
    ) -> bool:
        def run_untyped_passes(function: Any) -> Any:
            section = type(worker).run_untyped_passes(worker, function)
            for one in section.blocks.values():
                scope = one.scope
                scope.__deepcopy__ = lambda memo, scope=scope: scope
            return section

        worker._compiler_pipeline = lambda state: _passes("section", _BEFORE_TYPES)
        worker.run_untyped_passes = run_untyped_passes
        return super()._do_work(state, work, block, i, call, worker)


# Those that kernels need: none for closures, context managers, generators, expressions
# of whole arrays, or loops over tuples, which take 5 % of the time.
_BEFORE_TYPES = (
    untyped_passes.TranslateByteCode,
    untyped_passes.FixupArgs,
    untyped_passes.IRProcessing,
    untyped_passes.RewriteSemanticConstants,
    untyped_passes.DeadBranchPrune,
    untyped_passes.GenericRewrites,
    _InlineSections,
    untyped_passes.DeadBranchPrune,
)
_ALL = (
    *_BEFORE_TYPES,
    untyped_passes.ReconstructSSA,
    untyped_passes.DeadBranchPrune,
    typed_passes.NopythonTypeInference,
    typed_passes.PreLowerStripPhis,
    typed_passes.IRLegalization,
    typed_passes.AnnotateTypes,
    typed_passes.NativeLowering,
    typed_passes.NoPythonBackend,
)


class LinkedCompiler(Compiler):
    """Numba's compiler, up to what callers link."""

    library_class: type[_LinkedLibrary] = _LinkedLibrary

    def __init__(
        self, typing_context: Any, target_context: Any, library: Any, *rest: Any
    ) -> None:
        library = self.library_class(target_context.codegen(), "linked")
        super().__init__(typing_context, target_context, library, *rest)

    def define_pipelines(self) -> list[PassManager]:
        """Give the passes."""
        return [_passes("linked", _ALL)]


class BodyCompiler(LinkedCompiler):
    """The same for code with one caller, which optimises it again as a whole."""

    library_class = _UnoptimizedLibrary
