"""Peak memory of a call: ``python benchmarks/memory.py``.

Each figure is from a process of its own: by how much one call raises the peak of
resident memory, less what it returns (outputs; in training gradients too). Inputs are
there before. Engines that compile a program for each shape are left out: their compiler
is in their peak. The targets are for numbagru.
"""

import argparse
import math
import sys
from pathlib import Path

if not __package__:  # started as a file: Python put this folder on the path
    sys.path[0] = str(Path(__file__).parents[1])

from benchmarks.engines import ENGINES, able
from benchmarks.peers import listed
from benchmarks.remote import Remote, environment, machine, restrict
from benchmarks.shapes import BY_NAME
from benchmarks.tables import cell, markdown

MIB = 1 << 20
SMALLEST = MIB  # of output; below, the page tables of the process say more than a call
QUICK = "64x100x64x256"
# Freed memory goes back at once, so that what is resident is what is in use.
STRICT = {
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "65536",
    "NUMPY_MADVISE_HUGEPAGE": "0",
}


def output_bytes(shape, dtype):
    """Return the size of the output sequence."""
    return shape.batch * shape.steps * shape.units * {"float32": 4, "float64": 8}[dtype]


def target(what, shape, dtype, threads):
    """Return what numbagru may use beyond inputs and results, in bytes."""
    if what == "inference":
        return 8 * MIB * threads
    return 6 * output_bytes(shape, dtype)


def measure(engine, what, shape, dtype, threads):
    """Return the bytes of a call beyond inputs and results, NaN if it failed."""
    worker = Remote(engine, dtype, environment(threads) | STRICT)
    found = worker.ask("peak", what, shape)
    worker.close()
    return found["growth"] - found["returned"] if found else math.nan


def table(what, dtype, shapes, threads):
    """Return the Markdown table of all engines."""
    engines = [name for name in able(what, dtype) if not ENGINES[name].traces]
    head = [f"{what} {dtype}, MiB beyond results (BxTxFxU)", "output", "target"]
    rows = []
    for shape in shapes:
        peaks = [measure(engine, what, shape, dtype, threads) for engine in engines]
        sizes = output_bytes(shape, dtype), target(what, shape, dtype, threads)
        figures = [
            "-" if size is None else cell(size / MIB) for size in [*sizes, *peaks]
        ]
        held = peaks[0] is not None and peaks[0] <= sizes[1]
        rows.append([shape, *figures, "yes" if held else "no"])
    return markdown([*head, *engines, "held"], rows)


def main():
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dtype", choices=["float32", "float64"], default="float32")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--shapes",
        type=listed(BY_NAME),
        metavar="A,B",
        help="default: those whose output has at least a MiB",
    )
    parser.add_argument("--quick", action="store_true", help=f"only {QUICK}")
    options = parser.parse_args()
    restrict(options.threads)
    shapes = options.shapes or [
        shape
        for name, shape in BY_NAME.items()
        if output_bytes(shape, options.dtype) >= SMALLEST
        and (name == QUICK or not options.quick)
    ]
    print(machine(options.threads))
    for what in ("inference", "training"):
        print("", table(what, options.dtype, shapes, options.threads), sep="\n")


if __name__ == "__main__":
    main()
