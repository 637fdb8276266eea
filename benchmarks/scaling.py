"""How time grows with the four sizes of a call: ``python benchmarks/scaling.py``.

Rows, steps, features and units are swept one at a time from a middle shape; the
exponent p of time ~ size^p is fitted over the upper half of the sizes.
"""

import argparse
import os
import sys
from pathlib import Path

if not __package__:  # started as a file: Python put this folder on the path
    sys.path[0] = str(Path(__file__).parents[1])

from benchmarks.engines import ENGINES
from benchmarks.remote import environment, machine, restrict, usable_cpus
from benchmarks.shapes import Shape, make_data
from benchmarks.tables import cell, exponent, markdown
from benchmarks.worker import measure

MIDDLE = Shape(32, 100, 32, 128)
# First and last size of a sweep; the others double from the first.
SWEEPS = {
    "batch": (1, 2048),
    "steps": (1, 2048),
    "features": (1, 2048),
    "units": (8, 1024),
}


def sizes(first, last, step=2):
    """Return a geometric sequence that includes the last size if it falls on it."""
    found = [first]
    while found[-1] * step <= last:
        found.append(found[-1] * step)
    return found


def sweep(what, letter, swept, dtype, seconds):
    """Return milliseconds by size."""
    engine, times = ENGINES["numbagru"](), {}
    for size in swept:
        data = make_data(MIDDLE._replace(**{letter: size}), dtype)
        *_, step = getattr(engine, what)(data).values()
        step()
        times[size] = measure(step, seconds)
    return times


def table(what, letter, times):
    """Return the Markdown table of one sweep."""
    found = exponent(list(times), list(times.values()))
    head = [f"{what}, {letter}", *map(str, times), "exponent"]
    return markdown(head, [["ms", *map(cell, times.values()), f"{found:.2f}"]])


def main():
    """Sweep and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dtype", choices=["float32", "float64"], default="float32")
    parser.add_argument("--threads", type=int, default=len(usable_cpus()))
    parser.add_argument("--seconds", type=float, default=0.3, help="of each figure")
    parser.add_argument(
        "--quick", action="store_true", help="every third size, for a moment"
    )
    options = parser.parse_args()
    restrict(options.threads)
    os.environ.update(environment(options.threads))  # Numba is not imported yet
    if options.quick:
        options.seconds = 0.01
    print(f"{machine(options.threads)}; the others as in {MIDDLE} (BxTxFxU)")
    for what in ("inference", "training"):
        for letter, ends in SWEEPS.items():
            swept = sizes(*ends, step=8 if options.quick else 2)
            times = sweep(what, letter, swept, options.dtype, options.seconds)
            print("", table(what, letter, times), sep="\n", flush=True)


if __name__ == "__main__":
    main()
