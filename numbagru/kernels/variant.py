"""Choosing among the bodies of a kernel when it is compiled, by the type of a value."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from numba import types
from numba.extending import (
    NativeValue,
    models,
    register_model,
    typeof_impl,
    unbox,
)


class VariantType(types.Opaque):
    """The Numba type of a variant; its value carries nothing."""

    def __init__(self, choice: tuple[bool, ...]) -> None:
        self.choice = choice
        super().__init__(name=f"Variant{choice}")


register_model(VariantType)(models.OpaqueModel)


class Variant:
    """What a kernel takes to be compiled as one of its variants."""

    def __init__(self, choice: tuple[bool, ...]) -> None:
        self.type = VariantType(choice)


@functools.cache
def variant(*choice: bool) -> Variant:
    """Return the variant of a choice."""
    return Variant(choice)


@typeof_impl.register(Variant)
def _typeof_variant(value, context):
    return value.type


@unbox(VariantType)
def _unbox_variant(kind, value, context):
    return NativeValue(context.context.get_dummy_value())


def body_of(bodies: Callable[..., Any], kind: types.Type) -> Any:
    """Return the body of a variant's type, which `bodies` makes; else `bodies`."""
    return bodies(*kind.choice) if isinstance(kind, VariantType) else bodies
