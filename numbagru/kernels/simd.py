"""Register tiles as Numba intrinsics: the only LLVM IR of the CPU kernels.

A tile is a block of accumulators, rows x vectors, that stays in vector registers over
the whole chain of fused multiply-adds. Every accumulator lane is one output element and
takes its terms one after the other, so tile shape and vector width change no bit.
"""

from __future__ import annotations

import functools
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.registry import cpu_target
from numba.extending import intrinsic

from numbagru.gates import D_BLOCK
from numbagru.scalar import fma_of, outlined

_INDEX = ir.IntType(64)
# A row alone takes four panels at a time: with the three accumulators of one panel the
# multiply-adds would wait for each other.
ALONE = 4
_PROBE = """
target triple = "{triple}"
declare <16 x float> @llvm.fma.v16f32(<16 x float>, <16 x float>, <16 x float>)
define void @probe(<16 x float>* %p) {{
  %a = load <16 x float>, <16 x float>* %p
  %b = call <16 x float> @llvm.fma.v16f32(<16 x float> %a, <16 x float> %a,
                                          <16 x float> %a)
  store <16 x float> %b, <16 x float>* %p
  ret void
}}
"""


def padded(count: int, width: int) -> int:
    """Round up to a multiple."""
    return -(-count // width) * width


@functools.cache
def vector_registers() -> tuple[int, int]:
    """Bytes in a vector register and their number, for the CPU that Numba targets.

    The compiler itself is asked, so NUMBA_CPU_NAME counts.
    """
    machine = cpu_target.target_context.codegen()._tm
    return registers_of(machine)


def registers_of(machine: Any) -> tuple[int, int]:
    """Bytes and number of the registers that an LLVM target machine gives vectors."""
    import llvmlite.binding as llvm

    module = llvm.parse_assembly(_PROBE.format(triple=machine.triple))
    assembly = machine.emit_assembly(module)
    if "zmm" in assembly:
        return 64, 32
    if "ymm" in assembly:
        return 32, 16
    return 16, 32 if machine.triple.startswith(("aarch64", "arm64")) else 16


def lanes(real: types.Float) -> int:
    """Numbers in one vector register."""
    return vector_registers()[0] // (real.bitwidth // 8)


@intrinsic
def pointer(typingctx: Any, array: Any) -> Any:
    """Address of an array's first element."""

    def codegen(context, builder, signature, args):
        return context.make_array(signature.args[0])(context, builder, args[0]).data

    return types.CPointer(array.dtype)(array), codegen


@intrinsic
def hold(typingctx: Any, array: Any) -> Any:
    """Keep the array alive up to here, for those who have its address."""

    def codegen(context, builder, signature, args):
        return context.get_dummy_value()

    return types.void(array), codegen


@intrinsic
def at(typingctx: Any, base: Any, offset: Any) -> Any:
    """Address `offset` elements after `base`."""

    def codegen(context, builder, signature, args):
        return builder.gep(args[0], [args[1]])

    return base(base, types.intp), codegen


@intrinsic
def aligned(typingctx: Any, base: Any) -> Any:
    """First address from `base` on that starts a cache line."""

    def codegen(context, builder, signature, args):
        address = builder.ptrtoint(args[0], _INDEX)
        start = builder.and_(builder.add(address, _INDEX(63)), _INDEX(-64))
        return builder.inttoptr(start, args[0].type)

    return base(base), codegen


def _compile_time(name: str, number: Any) -> Any:
    """Make a function of an array that is a constant once its type is known."""

    @intrinsic
    def constant(typingctx: Any, array: Any) -> Any:
        value = number(array.dtype)

        def codegen(context, builder, signature, args):
            return _INDEX(value)

        return types.intp(array), codegen

    constant.__doc__ = name
    return constant


vector_lanes = _compile_time("Numbers of the array's type in one register.", lanes)
most_rows = _compile_time(
    "Rows of the largest tile of three gates: the accumulators, three weights and a "
    "broadcast fit into the registers.",
    lambda real: _most_rows(),
)
tile_size = _compile_time(
    "Numbers of one gate in the largest tile.",
    lambda real: tile_size_of(real),
)


def _most_rows() -> int:
    return 8 if vector_registers()[1] == 32 else 4


def tile_size_of(real: types.Float) -> int:
    """Count the numbers of one gate in the largest tile: whole blocks of gates.py."""
    return padded(max(_most_rows(), ALONE) * lanes(real), D_BLOCK)


def _copy_of(count: Any) -> Any:
    @intrinsic
    def copy(typingctx: Any, target: Any, source: Any) -> Any:
        real = target.dtype

        def codegen(context, builder, signature, args):
            emit = _Emitter(builder, real, count or lanes(real))
            emit.store(emit.load(args[1]), args[0])
            return context.get_dummy_value()

        return types.void(target, target), codegen

    return copy


# Copies from address to address, target first: one vector, eight numbers.
copy_vector = _copy_of(None)
copy_eight = _copy_of(8)


@intrinsic
def copy(typingctx: Any, target: Any, source: Any, count: Any) -> Any:
    """Copy so many numbers from address to address, which do not overlap."""

    def codegen(context, builder, signature, args):
        size = target.dtype.bitwidth // 8
        cgutils.raw_memcpy(builder, *args, size)
        return context.get_dummy_value()

    return types.void(target, target, types.intp), codegen


@intrinsic
def clear(typingctx: Any, target: Any, count: Any) -> Any:
    """Set so many numbers from an address on to zero."""

    def codegen(context, builder, signature, args):
        start, count = args
        size = builder.mul(count, _INDEX(target.dtype.bitwidth // 8))
        cgutils.memset(builder, start, size, 0)
        return context.get_dummy_value()

    return types.void(target, types.intp), codegen


@intrinsic
def widest_vectors(typingctx: Any) -> Any:
    """Have LLVM vectorise the loops of this function with whole registers.

    For Intel's server CPUs it takes half of one by itself, and then the gates of a step
    take 82 cycles per vector instead of 47.
    """

    def codegen(context, builder, signature, args):
        bits = 8 * vector_registers()[0]
        # llvmlite's own `add` knows no attributes with values.
        attributes = builder.function.attributes
        set.add(attributes, f'"prefer-vector-width"="{bits}"')
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def transpose_block(typingctx: Any, target: Any, source: Any, row: Any) -> Any:
    """Transpose as many numbers of as many rows, `row` apart, as a vector has.

    By rounds of interleaving the first half of the vectors with the second.
    """
    real = target.dtype

    def codegen(context, builder, signature, args):
        target, source, row = args
        emit = _Emitter(builder, real)
        width, half = emit.width, emit.width // 2
        kind = ir.VectorType(ir.IntType(32), width)
        halves = [
            ir.Constant(kind, [first + i // 2 + i % 2 * width for i in range(width)])
            for first in (0, half)
        ]
        vectors = [
            emit.load(emit.move(source, emit.times(row, i))) for i in range(width)
        ]
        for _ in range(width.bit_length() - 1):
            vectors = [
                builder.shuffle_vector(vectors[i], vectors[i + half], places)
                for i in range(half)
                for places in halves
            ]
        for i, vector in enumerate(vectors):
            emit.store(vector, emit.move(target, i * width))
        return context.get_dummy_value()

    return types.void(target, target, types.intp), codegen


def _asking(writing: bool) -> Any:
    @intrinsic
    def ask(typingctx: Any, address: Any) -> Any:
        def codegen(context, builder, signature, args):
            byte, word = ir.IntType(8).as_pointer(), ir.IntType(32)
            kind = ir.FunctionType(ir.VoidType(), [byte, word, word, word])
            function = cgutils.get_or_insert_function(
                builder.module, kind, "llvm.prefetch.p0i8"
            )
            into_all_levels, data = word(3), word(1)
            place = builder.bitcast(args[0], byte)
            builder.call(function, [place, word(int(writing)), into_all_levels, data])
            return context.get_dummy_value()

        return types.void(address), codegen

    return ask


# Have the cache line at an address fetched, which need not be one of ours: to read it,
# to write to it.
ask_for, ask_to_write = _asking(False), _asking(True)


class _Emitter:
    """Vector loads, stores, broadcasts and chains at the end of one IR block."""

    def __init__(
        self, builder: ir.IRBuilder, real: types.Float, width: int | None = None
    ) -> None:
        self.builder = builder
        self.scalar = ir.FloatType() if real.bitwidth == 32 else ir.DoubleType()
        self.width = width or lanes(real)
        self.bytes = real.bitwidth // 8
        self.vector = ir.VectorType(self.scalar, self.width)
        self.fma = fma_of(builder, self.vector)

    def move(self, base: Any, *offsets: Any) -> Any:
        """Advance a pointer by element counts, IR values or Python integers."""
        for offset in offsets:
            count = _INDEX(offset) if isinstance(offset, int) else offset
            base = self.builder.gep(base, [count])
        return base

    def times(self, stride: Any, count: int) -> Any:
        return self.builder.mul(stride, _INDEX(count))

    def load(self, base: Any) -> Any:
        wide = self.builder.bitcast(base, self.vector.as_pointer())
        return self.builder.load(wide, align=self.bytes)

    def store(self, value: Any, base: Any) -> None:
        wide = self.builder.bitcast(base, self.vector.as_pointer())
        self.builder.store(value, wide, align=self.bytes)

    def broadcast(self, value: Any) -> Any:
        undefined = ir.Constant(self.vector, ir.Undefined)
        first = self.builder.insert_element(undefined, value, ir.IntType(32)(0))
        zeros = ir.Constant(ir.VectorType(ir.IntType(32), self.width), [0] * self.width)
        return self.builder.shuffle_vector(first, undefined, zeros)

    def row_starts(self, base, stride, rows):
        """Give the pointers of rows `stride` apart.

        LLVM must not see how they come about: it would add the stride from row to row,
        seven times in sequence for eight rows, which took longer than the multiply-adds
        of a tile of one vector (92 GFLOP/s instead of 102).
        """
        starts = [self.move(base, self.times(stride, m)) for m in range(rows)]
        kind = ir.FunctionType(base.type, [base.type])
        return [
            self.builder.asm(kind, "", "=r,0", [start], side_effect=False)
            for start in starts
        ]

    def chain(self, sums, rows, step, columns, column_step, count):
        """``sums[m][n] += rows[m][n][k step] * columns[n][k column_step]``, k < count.

        Gives the new sums; all of them live in registers over the loop. Where columns
        share a row, the very same value in `rows`, it is loaded once.
        """
        builder = self.builder
        before = builder.block
        body = builder.append_basic_block("k")
        after = builder.append_basic_block("done")
        builder.cbranch(builder.icmp_signed(">", count, _INDEX(0)), body, after)

        builder.position_at_end(body)
        k, a, b = (builder.phi(_INDEX) for _ in range(3))
        flat = [value for row in sums for value in row]
        carried = [builder.phi(self.vector) for _ in flat]
        vectors = [self.load(self.move(column, b)) for column in columns]
        updated = []
        for m, starts in enumerate(rows):
            values = {}
            for n, (start, vector) in enumerate(zip(starts, vectors, strict=True)):
                if start not in values:
                    loaded = builder.load(self.move(start, a))
                    values[start] = self.broadcast(loaded)
                total = carried[m * len(vectors) + n]
                updated.append(builder.call(self.fma, [values[start], vector, total]))
        following = builder.add(k, _INDEX(1))
        for phi, start, end in [
            (k, _INDEX(0), following),
            (b, _INDEX(0), builder.add(b, column_step)),
            (a, _INDEX(0), builder.add(a, step)),
            *zip(carried, flat, updated, strict=True),
        ]:
            phi.add_incoming(start, before)
            phi.add_incoming(end, body)
        again = builder.icmp_signed("<", following, count)
        branch = builder.cbranch(again, body, after)
        branch.set_metadata("llvm.loop", _never_unrolled(builder.module))

        builder.position_at_end(after)
        result = []
        for start, end in zip(flat, updated, strict=True):
            phi = builder.phi(self.vector)
            phi.add_incoming(start, before)
            phi.add_incoming(end, body)
            result.append(phi)
        width = len(columns)
        return [result[m * width : (m + 1) * width] for m in range(len(rows))]


def _never_unrolled(module: ir.Module) -> Any:
    """Describe a loop that LLVM is to keep as it is.

    For some CPUs (Zen 4) it takes several rounds of a large tile together, and then
    the accumulators do not fit into the registers.
    """
    disable = module.add_metadata(["llvm.loop.unroll.disable"])
    loop = module.add_metadata([disable])
    # LLVM knows the description of a loop by its first operand: itself.
    loop.operands = loop, disable
    return loop


@functools.cache
def step_tile(rows: int, panels: int, candidate: bool, per_gate: bool) -> Any:
    """Make the tile of one time step: sums of the three gates, for rows x panels.

    ``tile(x, x_row, x_gate, F, h, h_row, h_gate, U, w, w_panel, bias, s)``: x and h are
    `rows` rows apart by x_row and h_row; with `per_gate`, each gate has its own, apart
    by x_gate and h_gate; w is a packed panel (kernels/panels.py), further panels
    w_panel on; bias (panels, 4, lanes). Writes s in sections of (panels, rows, lanes),
    `tile_size` apart: z, r, the candidate's input part and, when `candidate` is set,
    its recurrent part.
    """

    @intrinsic
    def tile(typingctx, x, x_row, x_gate, F, h, h_row, h_gate, U, w, w_panel, bias, s):
        real = x.dtype
        width = lanes(real)
        n = types.intp
        signature = types.void(x, n, n, n, x, n, n, n, x, n, x, x)

        def codegen(context, builder, signature, args):
            x, x_row, x_gate, F, h, h_row, h_gate, U, w, w_panel, bias, s = args
            emit = _Emitter(builder, real)
            grid = [(p, m) for p in range(panels) for m in range(rows)]

            def spot(gate, p, m):
                return emit.move(s, gate * tile_size_of(real) + (p * rows + m) * width)

            def bias_of(gate):
                return [
                    emit.load(emit.move(bias, (4 * p + gate) * width))
                    for p in range(panels)
                ]

            def row_starts(base, stride, gate_stride, gates):
                if not per_gate:
                    starts = emit.row_starts(base, stride, rows)
                    return [[start] * (gates * panels) for start in starts]
                # Too many for registers: LLVM may derive one from the other.
                return [
                    [
                        emit.move(base, emit.times(stride, m), emit.times(gate_stride, g))
                        for g in range(gates)
                    ]
                    * panels
                    for m in range(rows)
                ]

            def columns(base, gates):
                return [
                    emit.move(base, emit.times(w_panel, p), g * width)
                    for p in range(panels)
                    for g in range(gates)
                ]

            one, three = _INDEX(1), _INDEX(3 * width)
            biases = [bias_of(gate) for gate in range(3)]
            start = [biases[g][p] for p in range(panels) for g in range(3)]
            sums = emit.chain(
                [start] * rows,
                row_starts(x, x_row, x_gate, 3),
                one,
                columns(w, 3),
                three,
                F,
            )
            for p, m in grid:
                emit.store(sums[m][3 * p + 2], spot(2, p, m))
            gates = 3 if candidate else 2
            last = bias_of(3) if candidate else None
            sums = [
                [
                    last[p] if g == 2 else row[3 * p + g]
                    for p in range(panels)
                    for g in range(gates)
                ]
                for row in sums
            ]
            recurrent = emit.move(w, builder.mul(F, three))
            sums = emit.chain(
                sums,
                row_starts(h, h_row, h_gate, gates),
                one,
                columns(recurrent, gates),
                three,
                U,
            )
            for p, m in grid:
                for g in range(gates):
                    section = 3 if g == 2 else g
                    emit.store(sums[m][gates * p + g], spot(section, p, m))
            return context.get_dummy_value()

        return signature, codegen

    return tile


@functools.cache
def product_tile(rows: int, columns: int, apart: bool) -> Any:
    """Make the tile of a product: ``c += a b`` for rows x vectors.

    ``tile(a, a_row, a_k, b, b_k, b_column, K, c, c_row, c_column)``:
    ``c[m c_row + n c_column] += sum_k a[m a_row + k a_k] b[k b_k + n b_column]``, a
    vector of lanes for each of the `columns` n. The sum goes on from c, or is summed up
    `apart` from zero and then added.
    """

    @intrinsic
    def tile(typingctx, a, a_row, a_k, b, b_k, b_column, K, c, c_row, c_column):
        real = a.dtype
        n = types.intp
        signature = types.void(a, n, n, a, n, n, n, a, n, n)

        def emit_body(builder, args):
            a, a_row, a_k, b, b_k, b_column, K, c, c_row, c_column = args
            emit = _Emitter(builder, real)

            def spots(base, row):
                start = emit.move(base, emit.times(c_row, row))
                return [
                    emit.move(start, emit.times(c_column, n)) for n in range(columns)
                ]

            targets = [spots(c, m) for m in range(rows)]
            zero = ir.Constant(emit.vector, None)
            sums = emit.chain(
                [[zero if apart else emit.load(spot) for spot in row] for row in targets],
                [[start] * columns for start in emit.row_starts(a, a_row, rows)],
                a_k,
                [emit.move(b, emit.times(b_column, n)) for n in range(columns)],
                b_k,
                K,
            )
            for row, values in zip(targets, sums, strict=True):
                for spot, value in zip(row, values, strict=True):
                    if apart:
                        value = builder.fadd(emit.load(spot), value)
                    emit.store(value, spot)

        # A backward kernel calls each tile from several places: one function for all.
        def codegen(context, builder, signature, args):
            name = f"numbagru.product.{rows}x{columns}.{apart}.{real}x{lanes(real)}"
            kinds = [arg.type for arg in args]
            builder.call(outlined(builder.module, name, kinds, emit_body), args)
            return context.get_dummy_value()

        return signature, codegen

    return tile
