"""Choosing among the bodies of a kernel when it is compiled, by the type of a value."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

from numba import types
from numba.extending import (
    NativeValue,
    models,
    overload,
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


def choosing(bodies: Mapping[tuple[bool, ...], Any]) -> Callable[..., None]:
    """Make ``run(variant, words, data)`` of a jitted function for each variant."""

    def run(variant, words, data):
        raise TypeError("runs in compiled code only")

    @overload(run, inline="always")
    def _run(variant, words, data):
        body = bodies[variant.choice]
        return lambda variant, words, data: body(words, data)

    return run
