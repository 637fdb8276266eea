"""Words that threads share, as Numba intrinsics: the other LLVM IR of the CPU kernels.

A word is an int64 at a `words` pointer. Loads acquire and the others release as well:
what one thread wrote before its store, another sees after its load.
"""

from __future__ import annotations

from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.callconv import excinfo_ptr_t
from numba.extending import intrinsic

from numbagru.kernels.variant import body_of
from numbagru.scalar import outlined

_WORD = ir.IntType(64)
_BYTE = ir.IntType(8)
_BIT = ir.IntType(1)
# Status of a call, and what Numba's calling convention says of its exception.
_OUTCOME = ir.LiteralStructType([ir.IntType(32), _BYTE.as_pointer()])
WORDS = types.CPointer(types.int64)


def _intrinsic(arguments: int, result: types.Type, emit: Any) -> Any:
    """Make an operation on a word: `emit(builder, address, *values)`."""

    def codegen(context, builder, signature, args):
        return emit(builder, *args) or context.get_dummy_value()

    if arguments == 0:

        @intrinsic
        def operation(typingctx, words):
            return result(WORDS), codegen

    elif arguments == 1:

        @intrinsic
        def operation(typingctx, words, value):
            return result(WORDS, types.int64), codegen

    else:

        @intrinsic
        def operation(typingctx, words, old, new):
            return result(WORDS, types.int64, types.int64), codegen

    return operation


def _emit_store(builder: ir.IRBuilder, address: Any, value: Any) -> None:
    builder.store_atomic(value, address, "release", 8)


def _emit_replace(builder: ir.IRBuilder, address: Any, old: Any, new: Any) -> Any:
    pair = builder.cmpxchg(address, old, new, "acq_rel", "acquire")
    return builder.zext(builder.extract_value(pair, 1), _WORD)


load = _intrinsic(
    0, types.int64, lambda builder, address: builder.load_atomic(address, "acquire", 8)
)
store = _intrinsic(1, types.void, _emit_store)
# Returns what was there before.
add = _intrinsic(
    1,
    types.int64,
    lambda builder, address, value: builder.atomic_rmw(
        "add", address, value, "acq_rel"
    ),
)
# Stores `new` where `old` is, and returns whether it was.
replace = _intrinsic(2, types.int64, _emit_replace)


@intrinsic
def words_at(typingctx: Any, address: Any) -> Any:
    """Words that start at an address."""

    def codegen(context, builder, signature, args):
        return builder.inttoptr(args[0], _WORD.as_pointer())

    return WORDS(types.int64), codegen


@intrinsic
def address_of(typingctx: Any, words: Any) -> Any:
    """Address of a word or number."""

    def codegen(context, builder, signature, args):
        return builder.ptrtoint(args[0], _WORD)

    return types.int64(words), codegen


@intrinsic
def numbers_at(typingctx: Any, like: Any, address: Any) -> Any:
    """Numbers of the type that `like` points at, starting at an address."""

    def codegen(context, builder, signature, args):
        return builder.inttoptr(args[1], args[0].type)

    return like(like, types.int64), codegen


@intrinsic
def rest(typingctx: Any) -> Any:
    """Tell the CPU that this is a loop of waiting, which costs it less power."""

    def codegen(context, builder, signature, args):
        architecture = llvm.get_default_triple().partition("-")[0]
        if architecture in ("x86_64", "i386", "i686"):
            name, values = "llvm.x86.sse2.pause", []
        elif architecture in ("aarch64", "arm64"):
            name, values = "llvm.aarch64.hint", [ir.IntType(32)(1)]
        else:
            return context.get_dummy_value()
        kind = ir.FunctionType(ir.VoidType(), [value.type for value in values])
        builder.call(cgutils.get_or_insert_function(builder.module, kind, name), values)
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def give_way(typingctx: Any) -> Any:
    """Let another thread have this core, where the system offers that."""
    name = next(
        (n for n in ("sched_yield", "SwitchToThread") if llvm.address_of_symbol(n)),
        None,
    )

    def codegen(context, builder, signature, args):
        if name is not None:
            kind = ir.FunctionType(ir.IntType(32), [])
            builder.call(cgutils.get_or_insert_function(builder.module, kind, name), [])
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def call_address(typingctx: Any, function: Any, data: Any) -> Any:
    """Call what `task_of` made."""

    def codegen(context, builder, signature, args):
        kind = ir.FunctionType(ir.VoidType(), [_BYTE.as_pointer()])
        function = builder.inttoptr(args[0], kind.as_pointer())
        builder.call(function, [builder.inttoptr(args[1], _BYTE.as_pointer())])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


@intrinsic
def raise_failure(typingctx: Any, task: Any) -> Any:
    """Raise what a task of this thread raised, given the address of its argument."""

    def codegen(context, builder, signature, args):
        slot = builder.inttoptr(args[0], _OUTCOME.as_pointer())
        code, info = (
            builder.load(cgutils.gep_inbounds(builder, slot, 0, i)) for i in range(2)
        )
        convention = context.call_conv
        info = builder.bitcast(info, excinfo_ptr_t)
        status = convention._get_return_status(builder, code, info)
        with builder.if_then(status.is_error, likely=False):
            convention.return_status_propagate(builder, status)
        return context.get_dummy_value()

    return types.void(types.int64), codegen


def task_of(bodies: Any) -> Any:
    """Make of ``body(words, helper, data)`` something that any thread can call.

    ``task(kind, words, data)`` gives the addresses of a function, and of its argument
    for helpers and for the thread itself, which live as long as the function that calls
    `task` runs. An exception becomes a 1 in the first word, and see `raise_failure`.
    `bodies` and `kind` are those of `variant.body_of`.

    Made for one jitted function: as an argument of compiled code it would be the
    address of a Python object, and nothing could be cached.
    """

    @intrinsic
    def task(typingctx: Any, kind: Any, words: Any, data: Any) -> Any:
        body = body_of(bodies, kind)
        function_type = typingctx.resolve_value_type(body)
        call = function_type.get_call_type(typingctx, (words, types.boolean, data), {})

        def codegen(context, builder, signature, args):
            compiled = body.overloads[call.args]
            context.add_linking_libs([compiled.library])
            _, words, data = args
            slot_type = ir.LiteralStructType([_OUTCOME, words.type, _BIT, data.type])

            def emit_task(inner, arguments):
                slot = inner.bitcast(arguments[0], slot_type.as_pointer())
                outcome, *parts = (
                    cgutils.gep_inbounds(inner, slot, 0, i) for i in range(4)
                )
                given = [inner.load(part) for part in parts]
                status, _ = context.call_internal_no_propagate(
                    inner, compiled.fndesc, call, given
                )
                code = inner.select(status.is_error, status.code, status.code.type(0))
                inner.store(code, cgutils.gep_inbounds(inner, outcome, 0, 0))
                with inner.if_then(status.is_error, likely=False):
                    info = inner.bitcast(status.excinfoptr, _BYTE.as_pointer())
                    inner.store(info, cgutils.gep_inbounds(inner, outcome, 0, 1))
                    _emit_store(inner, given[0], _WORD(1))

            name = f"{compiled.fndesc.mangled_name}.task"
            function = outlined(builder.module, name, [_BYTE.as_pointer()], emit_task)
            addresses = [builder.ptrtoint(function, _WORD)]
            for helper in (1, 0):
                slot = cgutils.alloca_once(builder, slot_type)
                for i, value in enumerate((words, _BIT(helper), data)):
                    builder.store(value, cgutils.gep_inbounds(builder, slot, 0, i + 1))
                addresses.append(builder.ptrtoint(slot, _WORD))
            return context.make_tuple(builder, signature.return_type, addresses)

        return types.UniTuple(types.int64, 3)(kind, words, data), codegen

    return task
