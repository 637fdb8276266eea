"""A named tuple in memory, handed from function to function as one address.

Numba passes a tuple as all of its fields: calls with the forty arrays of a kernel took
a tenth of the backward pass of 32 units, and a third of the compile time.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.typing.templates import AttributeTemplate
from numba.extending import (
    infer_getattr,
    intrinsic,
    lower_getattr_generic,
    models,
    register_model,
)


class Record(types.Type):
    """The Numba type of the address of a named tuple that nobody writes to.

    What the tuple's class has beside the fields are constants: code that depends on
    them is compiled for their values.
    """

    def __init__(self, content: types.BaseNamedTuple) -> None:
        self.content = content
        super().__init__(name=f"Record({content})")

    def field(self, name: str) -> types.Type | None:
        """Give the type of a field or constant, None if there is none of that name."""
        if name in self.content.fields:
            return self.content.types[self.place(name)]
        value = vars(self.content.instance_class).get(name)
        return types.literal(value) if isinstance(value, (bool, int)) else None

    def place(self, name: str) -> int:
        """Give the place of a field."""
        return self.content.fields.index(name)


@register_model(Record)
class _RecordModel(models.PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: Record) -> None:
        content = dmm.lookup(fe_type.content).get_value_type()
        super().__init__(dmm, fe_type, content.as_pointer())


@infer_getattr
class _RecordFields(AttributeTemplate):
    key = Record

    def generic_resolve(self, kind: Record, name: str) -> types.Type | None:
        return kind.field(name)


@lower_getattr_generic(Record)
def _load_field(context, builder, kind, address, name):
    field = kind.field(name)
    if name not in kind.content.fields:
        return context.get_constant_generic(builder, field, field.literal_value)
    value = builder.load(cgutils.gep_inbounds(builder, address, 0, kind.place(name)))
    # So that loops need not load it again after each of their stores.
    value.set_metadata("invariant.load", builder.module.add_metadata([]))
    return value


@intrinsic
def record(typingctx: Any, content: Any) -> Any:
    """Put a named tuple into memory that lives as long as the calling function."""
    if not isinstance(content, types.BaseNamedTuple):
        return None

    def codegen(context, builder, signature, args):
        slot = cgutils.alloca_once_value(builder, args[0])
        # LLVM must not see where the address comes from: what is invariant it would
        # be free to load before it was stored.
        kind = ir.FunctionType(slot.type, [slot.type])
        return builder.asm(kind, "", "=r,0,~{memory}", [slot], side_effect=True)

    return Record(content)(content), codegen
