"""A CUDA device that is not there, for what only asks which one it is."""

import contextlib
import types as python_types

import pytest
from numba.cuda import codegen, dispatcher


@contextlib.contextmanager
def device(capability):
    """Let numba-cuda think that there is a device."""
    fake = python_types.SimpleNamespace(compute_capability=capability)
    context = python_types.SimpleNamespace(device=fake)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dispatcher, "get_current_device", lambda: fake)
        patch.setattr(
            codegen,
            "devices",
            python_types.SimpleNamespace(get_context=lambda *_: context),
        )
        yield
