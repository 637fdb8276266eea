"""What the machine can do at most: ``python benchmarks/roofline.py``.

Prints the rate of fused multiply-adds in vector registers for each float type and the
rate of reading out of each cache and out of memory, for one thread and for all threads
of the run, and what `bound.py` needs beside them. Rates are the best of several turns,
each thread on data of its own.
"""

import argparse
import functools
import json
import sys
from pathlib import Path

if not __package__:  # started as a file: Python put this folder on the path
    sys.path[0] = str(Path(__file__).parents[1])

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from benchmarks import tables
from benchmarks.rates import ones, rate, rates
from benchmarks.remote import machine, restrict, usable_cpus
from numbagru.kernels.vector_ir import vector_registers
from numbagru.scalar import fma_of

INDEX = ir.IntType(64)
CPU = Path("/sys/devices/system/cpu")
MEMORY = 128 << 20  # bytes that each thread reads when no cache should hold them
# Where the system does not tell: level, bytes, whether all CPUs share it.
CACHES = (("L1", 32 << 10, False), ("L2", 1 << 20, False), ("L3", 32 << 20, True))
LOADS = 16  # vectors per turn of the reading loop


def chains():
    """Return how many accumulators fit into the registers beside two operands."""
    return vector_registers()[1] - 4


def data_of(context, builder, array_type, array):
    """Return the address of an array's first element."""
    return context.make_array(array_type)(context, builder, array).data


class Loop:
    """A do-while loop in IR: ``count`` turns that carry values along."""

    def __init__(self, builder, count, carried):
        self.builder, self.count, self.before = builder, count, builder.block
        self.body = builder.append_basic_block("body")
        builder.branch(self.body)
        builder.position_at_end(self.body)
        self.index = builder.phi(INDEX)
        self.values = [builder.phi(value.type) for value in carried]
        self.phis = [(self.index, INDEX(0)), *zip(self.values, carried, strict=True)]

    def close(self, updated):
        """End the turn with the values for the next one."""
        following = self.builder.add(self.index, INDEX(1))
        for (phi, start), end in zip(self.phis, [following, *updated], strict=True):
            phi.add_incoming(start, self.before)
            phi.add_incoming(end, self.builder.block)
        after = self.builder.append_basic_block("after")
        more = self.builder.icmp_signed("<", following, self.count)
        self.builder.cbranch(more, self.body, after)
        self.builder.position_at_end(after)


@intrinsic
def _multiply_add(typingctx, array, count):
    """Run `count` turns of one multiply-add per accumulator.

    The array has the factor, the term and the accumulators, a vector each.
    """

    def codegen(context, builder, signature, args):
        real = signature.args[0].dtype
        scalar = ir.FloatType() if real.bitwidth == 32 else ir.DoubleType()
        lanes = vector_registers()[0] * 8 // real.bitwidth
        vector = ir.VectorType(scalar, lanes)
        base = data_of(context, builder, signature.args[0], args[0])
        base = builder.bitcast(base, vector.as_pointer())
        spots = [builder.gep(base, [INDEX(i)]) for i in range(chains() + 2)]
        factor, term, *sums = (
            builder.load(spot, align=real.bitwidth // 8) for spot in spots
        )
        fma = fma_of(builder, vector)
        loop = Loop(builder, args[1], sums)
        updated = [builder.call(fma, [value, factor, term]) for value in loop.values]
        loop.close(updated)
        for value, spot in zip(updated, spots[2:], strict=True):
            builder.store(value, spot, align=real.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(array, types.intp), codegen


@intrinsic
def _read(typingctx, array, groups, count):
    """Read an array of bytes `count` times, `groups` of `LOADS` vectors."""

    def codegen(context, builder, signature, args):
        vector = ir.VectorType(INDEX, vector_registers()[0] // 8)
        base = data_of(context, builder, signature.args[0], args[0])
        base = builder.bitcast(base, vector.as_pointer())
        zeros = [ir.Constant(vector, None)] * LOADS
        outer = Loop(builder, args[2], zeros)
        inner = Loop(builder, args[1], outer.values)
        first = builder.mul(inner.index, INDEX(LOADS))
        updated = []
        for i, value in enumerate(inner.values):
            spot = builder.gep(base, [builder.add(first, INDEX(i))])
            updated.append(builder.or_(value, builder.load(spot, align=8)))
        inner.close(updated)
        outer.close(updated)
        total = updated[0]
        for value in updated[1:]:
            total = builder.or_(total, value)
        builder.store(total, base, align=8)
        return context.get_dummy_value()

    return types.void(array, types.intp, types.intp), codegen


@njit(nogil=True)
def multiply_add(array, count):
    """Call `_multiply_add` from Python."""
    _multiply_add(array, count)


@njit(nogil=True)
def read(array, groups, count):
    """Call `_read` from Python."""
    _read(array, groups, count)


def fma_rate(dtype, threads, seconds, rounds):
    """Return floating point operations per second."""
    width = vector_registers()[0] // np.dtype(dtype).itemsize
    arrays = [np.full((chains() + 2) * width, 0.5, dtype) for _ in range(threads)]
    return rate(
        lambda thread, count: multiply_add(arrays[thread], count),
        2 * width * chains(),
        threads,
        seconds,
        rounds,
    )


def read_rate(size, threads, seconds, rounds):
    """Return bytes per second when each thread reads `size` bytes over and over."""
    group = LOADS * vector_registers()[0]
    groups = max(1, size // group)
    arrays = [ones(groups * group, np.uint8) for _ in range(threads)]
    return rate(
        lambda thread, count: read(arrays[thread], groups, count),
        groups * group,
        threads,
        seconds,
        rounds,
    )


def caches(threads):
    """Return ``(level, bytes that the caches of all threads hold)``, nearest first."""
    found = {}
    for folder in sorted((CPU / f"cpu{usable_cpus()[0]}" / "cache").glob("index*")):
        level, kind, size, sharers = (
            (folder / name).read_text().strip()
            for name in ("level", "type", "size", "shared_cpu_list")
        )
        if kind != "Instruction":
            found[f"L{level}"] = bytes_of(size) * -(-threads // members(sharers))
    if found:
        return list(found.items())
    return [(name, size * (1 if all_ else threads)) for name, size, all_ in CACHES]


def bytes_of(text):
    """Return the bytes of sizes like 32K and 1M."""
    return int(text.rstrip("KMG")) << {"K": 10, "M": 20, "G": 30}.get(text[-1], 0)


def members(text):
    """Return how many CPUs a list like 0-3,8 names."""
    ends = [part.split("-") for part in text.split(",")]
    return sum(int(end[-1]) - int(end[0]) + 1 for end in ends)


def roofline(dtypes, threads, seconds=0.05, rounds=16):
    """Measure the roof: `tables.roof_table` prints it; all in 1e9 per second.

    The last figure of each list is that of all threads. Half of a cache is read, so
    that the rest of the process does not drive it out.
    """
    counts = sorted({1, threads})
    levels = [(name, holds, holds // threads // 2) for name, holds in caches(threads)]
    outermost = levels[-1][1]
    effort = functools.partial(rate, seconds=seconds, rounds=rounds)
    levels.append(("memory", None, max(MEMORY, 2 * outermost // threads)))
    return {
        "threads": counts,
        "vector_bits": 8 * vector_registers()[0],
        "fma": {
            dtype: [fma_rate(dtype, n, seconds, rounds) / 1e9 for n in counts]
            for dtype in dtypes
        },
        "bound": {dtype: rates(dtype, counts, effort) for dtype in dtypes},
        "read": [
            {
                "level": name,
                "holds": holds,
                "bytes": size,
                "GB/s": [read_rate(size, n, seconds, rounds) / 1e9 for n in counts],
            }
            for name, holds, size in levels
        ],
    }


def main():
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dtype", default="float32,float64", metavar="A,B")
    parser.add_argument("--threads", type=int, default=len(usable_cpus()))
    parser.add_argument("--quick", action="store_true", help="two very short turns")
    parser.add_argument("--json", action="store_true", help="print JSON for peers.py")
    options = parser.parse_args()
    restrict(options.threads)
    effort = {"seconds": 0.01, "rounds": 2} if options.quick else {}
    roof = roofline(options.dtype.split(","), options.threads, **effort)
    if options.json:
        print(json.dumps(roof))
    else:
        print(machine(options.threads), tables.roof_table(roof), sep="\n\n")


if __name__ == "__main__":
    main()
