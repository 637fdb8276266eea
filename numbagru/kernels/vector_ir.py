"""Vectors in LLVM IR: which ones this CPU has, and what to do with them."""

from __future__ import annotations

import functools
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.registry import cpu_target

from numbagru.scalar import fma_of

INDEX = ir.IntType(64)
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


def most_tile_rows() -> int:
    """Count the rows of the largest tile of three gates.

    Its accumulators, three weights and a broadcast fit into the registers.
    """
    return 8 if vector_registers()[1] == 32 else 4


def lanes(real: types.Float) -> int:
    """Numbers in one vector register."""
    return vector_registers()[0] // (real.bitwidth // 8)


_START = INDEX(0)


class Emitter:
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
            count = INDEX(offset) if isinstance(offset, int) else offset
            base = self.builder.gep(base, [count])
        return base

    def times(self, stride: Any, count: int) -> Any:
        """Multiply a stride by a Python integer."""
        return self.builder.mul(stride, INDEX(count))

    def load(self, base: Any) -> Any:
        """Load a vector, which need not be aligned."""
        wide = self.builder.bitcast(base, self.vector.as_pointer())
        return self.builder.load(wide, align=self.bytes)

    def store(self, value: Any, base: Any) -> None:
        """Store a vector, which need not be aligned."""
        wide = self.builder.bitcast(base, self.vector.as_pointer())
        self.builder.store(value, wide, align=self.bytes)

    def first(self, count: Any) -> Any:
        """Make the mask of the first `count` lanes, of all if there are fewer."""
        kind = ir.VectorType(ir.IntType(32), self.width)
        numbers = ir.Constant(kind, list(range(self.width)))
        counts = self._everywhere(self.builder.trunc(count, kind.element), kind)
        return self.builder.icmp_signed("<", numbers, counts)

    def load_some(self, base: Any, mask: Any) -> Any:
        """Load the lanes of a mask, zeros into others, whose memory is not touched."""
        return self._masked("load", self.vector, base, mask)

    def store_some(self, value: Any, base: Any, mask: Any) -> None:
        """Store the lanes of a mask."""
        self._masked("store", ir.VoidType(), base, mask, value)

    def _masked(self, what: str, result: Any, base: Any, mask: Any, *given: Any) -> Any:
        place, word = self.vector.as_pointer(), ir.IntType(32)
        zero = ir.Constant(self.vector, None)
        types_ = [*(v.type for v in given), place, word, mask.type]
        values = [*given, self.builder.bitcast(base, place), word(self.bytes), mask]
        if what == "load":
            types_, values = [*types_, self.vector], [*values, zero]
        lane = f"v{self.width}f{8 * self.bytes}"
        function = cgutils.get_or_insert_function(
            self.builder.module,
            ir.FunctionType(result, types_),
            f"llvm.masked.{what}.{lane}.p0{lane}",
        )
        return self.builder.call(function, values)

    def broadcast(self, value: Any) -> Any:
        """Make a vector of one number."""
        return self._everywhere(value, self.vector)

    def _everywhere(self, value: Any, kind: ir.VectorType) -> Any:
        undefined = ir.Constant(kind, ir.Undefined)
        first = self.builder.insert_element(undefined, value, ir.IntType(32)(0))
        zeros = ir.Constant(ir.VectorType(ir.IntType(32), self.width), [0] * self.width)
        return self.builder.shuffle_vector(first, undefined, zeros)

    def ask_for(self, address: Any) -> None:
        """Have the cache line at an address, which need not be ours, fetched.

        Into the second level, to be read or written later. With requests for the first
        level, or to write, the loads of the products waited for their turn behind them:
        training 2048x50x16x64 took 68 ms instead of 59, 8x5000x8x64 25 instead of 22
        (Zen 4).
        """
        byte, word = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte, word, word, word])
        function = cgutils.get_or_insert_function(
            self.builder.module, kind, "llvm.prefetch.p0i8"
        )
        reading, second_level, data = word(0), word(2), word(1)
        place = self.builder.bitcast(address, byte)
        self.builder.call(function, [place, reading, second_level, data])

    def row_starts(self, base, stride, rows):
        """Give the pointers of rows `stride` apart.

        LLVM must not see how they come about: it would add the stride from row to row,
        seven times in sequence for eight rows, which took longer than the multiply-adds
        of a tile of one vector (92 GFLOP/s instead of 102).
        """
        starts = [self.move(base, self.times(stride, m)) for m in range(rows)]
        return [self.hidden(start) for start in starts]

    def hidden(self, value):
        """Give a value of which LLVM does not see how it comes about."""
        kind = ir.FunctionType(value.type, [value.type])
        return self.builder.asm(kind, "", "=r,0", [value], side_effect=False)

    def chain(
        self, sums, rows, step, columns, column_step, count, later=None,
        later_step=None, times=1, first=_START, column_first=_START,
    ):  # fmt: skip
        """``sums[m][n] += rows[m][n][k step] * columns[n][k column_step]``, k < count.

        Both start `first` and `column_first` numbers further on. Gives the new sums;
        all of them live in registers over the loop. Where columns share a row, the very
        same value in `rows`, it is loaded once; a pair there is a place and numbers to
        add to the step's. If `later` is an address, each k asks
        for a line (`ask_for`) there, `times` of them for the same, then for that
        later_step numbers further on.
        """
        builder = self.builder
        before = builder.block
        body = builder.append_basic_block("k")
        after = builder.append_basic_block("done")
        builder.cbranch(builder.icmp_signed(">", count, INDEX(0)), body, after)

        builder.position_at_end(body)
        k, a, b = (builder.phi(INDEX) for _ in range(3))
        flat = [value for row in sums for value in row]
        carried = [builder.phi(self.vector) for _ in flat]
        vectors = [self.load(self.move(column, b)) for column in columns]
        if later is not None:
            line = builder.udiv(k, INDEX(times))
            self.ask_for(self.move(later, builder.mul(line, later_step)))
        updated, indices = [], {None: a}
        for m, starts in enumerate(rows):
            values = {}
            for n, (start, vector) in enumerate(zip(starts, vectors, strict=True)):
                if start not in values:
                    place, offset = start if isinstance(start, tuple) else (start, None)
                    if offset not in indices:
                        indices[offset] = self.hidden(builder.add(a, offset))
                    loaded = builder.load(self.move(place, indices[offset]))
                    values[start] = self.broadcast(loaded)
                total = carried[m * len(vectors) + n]
                updated.append(builder.call(self.fma, [values[start], vector, total]))
        following = builder.add(k, INDEX(1))
        for phi, start, end in [
            (k, INDEX(0), following),
            (b, column_first, builder.add(b, column_step)),
            (a, first, builder.add(a, step)),
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
