"""Register tiles as Numba intrinsics.

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
from numba.extending import intrinsic

from numbagru.kernels.vector_ir import INDEX, Emitter, lanes, most_tile_rows
from numbagru.scalar import outlined

# Vectors of the widest tile of a product.
MOST_COLUMNS = 3


@functools.cache
def step_tile(rows: int, panels: int, candidate: bool, per_gate: bool) -> Any:
    """Make the tile of one time step: sums of the three gates, for rows x panels.

    ``tile(x, x_row, x_gate, F, h, h_row, h_gate, U, w, w_panel, bias, s, s_gate,
    s_row, s_panel, later, later_step)``: x and h are `rows` rows apart by x_row and
    h_row; with `per_gate`, each gate has its own, apart by x_gate and h_gate; w is a
    packed panel (kernels/panels.py), further panels w_panel on; bias (panels, 4,
    lanes). Writes s in sections s_gate apart, in them rows s_row and panels s_panel
    apart: z, r, the candidate's input part and, when `candidate` is set, its recurrent
    part. For each of the F + U terms the largest tile asks for a line from `later` on,
    later_step apart (64x50x128x512 in 19.6 ms instead of 22.1, 128x20x256x1024 59.3 and
    62.9, Emerald Rapids).
    """

    @intrinsic
    def tile(
        typingctx, x, x_row, x_gate, F, h, h_row, h_gate, U, w, w_panel, bias, s,
        s_gate, s_row, s_panel, later, later_step,
    ):  # fmt: skip
        real = x.dtype
        width = lanes(real)
        n = types.intp
        signature = types.void(x, n, n, n, x, n, n, n, x, n, x, x, n, n, n, x, n)

        def codegen(context, builder, signature, args):
            x, x_row, x_gate, F, h, h_row, h_gate, U, w, w_panel, bias = args[:11]
            s, s_gate, s_row, s_panel, later, later_step = args[11:]
            if rows < most_tile_rows():
                later = None
            emit = Emitter(builder, real)
            grid = [(p, m) for p in range(panels) for m in range(rows)]

            def spot(gate, p, m):
                section = emit.move(s, emit.times(s_gate, gate))
                return emit.move(section, emit.times(s_panel, p), emit.times(s_row, m))

            def bias_of(gate):
                return [
                    emit.load(emit.move(bias, (4 * p + gate) * width))
                    for p in range(panels)
                ]

            def row_starts(base, stride, gate_stride, gates):
                if not per_gate:
                    starts = emit.row_starts(base, stride, rows)
                    return [[start] * (gates * panels) for start in starts]
                # A base for each row, an index for each gate: registers do not take a
                # pointer for both, and with 16 of them loaded again for each k loads
                # took longer than multiply-adds (32x100x32x128 with recurrent dropout
                # 2.14 ms instead of 1.97).
                offsets = [emit.times(gate_stride, g) for g in range(gates)]
                return [
                    [(start, offset) for offset in offsets] * panels
                    for start in emit.row_starts(base, stride, rows)
                ]

            def columns(base, gates):
                return [
                    emit.move(base, emit.times(w_panel, p), g * width)
                    for p in range(panels)
                    for g in range(gates)
                ]

            one, three = INDEX(1), INDEX(3 * width)
            biases = [bias_of(gate) for gate in range(3)]
            start = [biases[g][p] for p in range(panels) for g in range(3)]
            sums = emit.chain(
                [start] * rows,
                row_starts(x, x_row, x_gate, 3),
                one,
                columns(w, 3),
                three,
                F,
                later,
                later_step,
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
            if later is not None:
                later = emit.move(later, builder.mul(F, later_step))
            sums = emit.chain(
                sums,
                row_starts(h, h_row, h_gate, gates),
                one,
                columns(recurrent, gates),
                three,
                U,
                later,
                later_step,
            )
            for p, m in grid:
                for g in range(gates):
                    section = 3 if g == 2 else g
                    emit.store(sums[m][gates * p + g], spot(section, p, m))
            return context.get_dummy_value()

        return signature, codegen

    return tile


@functools.cache
def product_tile(rows: int, columns: int) -> Any:
    """Make the tile of a product: ``c += a b`` for rows x vectors.

    ``tile(a, a_row, a_k, b, b_k, b_column, K, c, c_row, c_column, c_back, onward,
    later, later_step)``: ``c[m c_row + n c_column] += sum_k a[m a_row + k a_k] b[k b_k
    + n b_column]``, a vector of lanes for each of the `columns` n; those after the
    first stand c_back further back. The sum goes on from c if `onward`, else from zero.
    The largest tile asks for a line from `later` on, later_step apart, for every four
    of the K terms.
    """

    @intrinsic
    def tile(
        typingctx, a, a_row, a_k, b, b_k, b_column, K, c, c_row, c_column, c_back,
        onward, later, later_step,
    ):  # fmt: skip
        real = a.dtype
        n = types.intp
        signature = types.void(a, n, n, a, n, n, n, a, n, n, n, types.boolean, a, n)

        def emit_body(builder, args):
            a, a_row, a_k, b, b_k, b_column, K, c, c_row, c_column = args[:10]
            c_back, onward, later, later_step = args[10:]
            emit = Emitter(builder, real)
            targets = _spots(emit, c, rows, c_row, columns, c_column, c_back)
            zero = ir.Constant(emit.vector, None)

            def first_term(spot):
                # Read in any case: a branch for each tile takes longer.
                return builder.select(onward, emit.load(spot), zero)

            sums = emit.chain(
                [[first_term(spot) for spot in row] for row in targets],
                [[start] * columns for start in emit.row_starts(a, a_row, rows)],
                a_k,
                [emit.move(b, emit.times(b_column, n)) for n in range(columns)],
                b_k,
                K,
                *_asked(rows, columns, later, later_step),
                times=4,
            )
            for row, values in zip(targets, sums, strict=True):
                for spot, value in zip(row, values, strict=True):
                    emit.store(value, spot)

        name = f"numbagru.product.{rows}x{columns}.{real}"
        return signature, _apart(name, emit_body)

    return tile


@functools.cache
def sum_tile(rows: int, columns: int, halves: bool = False) -> Any:
    """Make the tile of sums of products that are added to what is there, or to zero.

    ``tile(a, a_row, a_part, b, b_k, b_column, b_part, parts, K, c, c_row, c_column,
    onward, later)``: ``c[m c_row + n c_column] += sum_k a[m a_row + p a_part + k]
    b[k b_k + n b_column + p b_part]`` for each of the `parts` p, one after the other,
    each summed up from zero. Without `onward`, c is 0 before. With `halves`, vectors
    are half of a register. The largest tile asks for K lines from `later` on, b_k
    apart.
    """

    @intrinsic
    def tile(
        typingctx, a, a_row, a_part, b, b_k, b_column, b_part, parts, K, c, c_row,
        c_column, onward, later,
    ):  # fmt: skip
        real = a.dtype
        n = types.intp
        signature = types.void(
            a, n, n, a, n, n, n, n, n, a, n, n, types.boolean, a
        )  # fmt: skip
        width = lanes(real) // (2 if halves else 1)

        def emit_body(builder, args):
            a, a_row, a_part, b, b_k, b_column, b_part, parts, K = args[:9]
            c, c_row, c_column, onward, later = args[9:]
            emit = Emitter(builder, real, width)
            targets = _spots(emit, c, rows, c_row, columns, c_column, INDEX(0))
            zero = ir.Constant(emit.vector, None)
            starts = emit.row_starts(a, a_row, rows)
            with cgutils.for_range(builder, parts) as loop:
                later_part = builder.icmp_signed(">", loop.index, INDEX(0))
                begun = builder.or_(onward, later_part)
                sums = emit.chain(
                    [[zero] * columns] * rows,
                    [[start] * columns for start in starts],
                    INDEX(1),
                    [emit.move(b, emit.times(b_column, n)) for n in range(columns)],
                    b_k,
                    K,
                    *_asked(rows, columns, later, b_k),
                    first=builder.mul(loop.index, a_part),
                    column_first=builder.mul(loop.index, b_part),
                )
                for row, values in zip(targets, sums, strict=True):
                    for spot, value in zip(row, values, strict=True):
                        before = builder.select(begun, emit.load(spot), zero)
                        emit.store(builder.fadd(before, value), spot)

        name = f"numbagru.sums.{rows}x{columns}.{real}x{width}"
        return signature, _apart(name, emit_body)

    return tile


def _asked(rows, columns, later, step):
    """Give what a tile asks for: the largest, whose multiply-adds leave room."""
    largest = rows == most_tile_rows() and columns == MOST_COLUMNS
    return (later, step) if largest else (None, None)


def _spots(emit, base, rows, row_size, columns, column_size, back):
    """Where a tile's sums belong, row by row."""
    return [
        [
            emit.move(
                base,
                emit.times(row_size, m),
                *([emit.builder.sub(emit.times(column_size, n), back)] if n else []),
            )
            for n in range(columns)
        ]
        for m in range(rows)
    ]


def _apart(name, emit_body):
    """Give a codegen that calls a function of its own.

    A backward kernel calls each tile from several places: one function for all.
    """

    def codegen(context, builder, signature, args):
        kinds = [arg.type for arg in args]
        builder.call(outlined(builder.module, name, kinds, emit_body), args)
        return context.get_dummy_value()

    return codegen


@functools.cache
def gates_tile(gates: int, panels: int) -> Any:
    """Make the tile of a row alone, of some panels: the parts of `sum_tile` together.

    ``tile(a, a_part, b, b_panel, b_part, K, c)``. Two panels are too few chains for a
    row to keep the multipliers busy with one part.
    """

    @intrinsic
    def tile(typingctx, a, a_part, b, b_panel, b_part, K, c):
        real = a.dtype
        n = types.intp
        signature = types.void(a, n, a, n, n, n, a)
        width = lanes(real)

        def codegen(context, builder, signature, args):
            a, a_part, b, b_panel, b_part, K, c = args
            emit = Emitter(builder, real)
            starts = [emit.move(a, emit.times(a_part, g)) for g in range(gates)]
            zero = ir.Constant(emit.vector, None)
            (sums,) = emit.chain(
                [[zero] * (panels * gates)],
                [starts * panels],
                INDEX(1),
                [
                    emit.move(b, emit.times(b_panel, p), emit.times(b_part, g))
                    for p in range(panels)
                    for g in range(gates)
                ],
                INDEX(width),
                K,
            )
            for p in range(panels):
                spot = emit.move(c, p * width)
                total = emit.load(spot)
                for value in sums[p * gates : (p + 1) * gates]:
                    total = builder.fadd(total, value)
                emit.store(total, spot)
            return context.get_dummy_value()

        return signature, codegen

    return tile
