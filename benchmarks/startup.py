"""What a fresh process waits for: ``python benchmarks/startup.py``.

Every figure is the median over fresh processes that take turns, timed inside them, so
that the start of Python itself does not count. The kernel cache of a cold call is an
empty folder; warm calls find what a cold one left there. Python's own compiled files
are written before anything is timed, into a folder of this run.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

if not __package__:  # started as a file: Python put this folder on the path
    sys.path[0] = str(Path(__file__).parents[1])

from benchmarks.remote import ROOT, machine, usable_cpus
from benchmarks.tables import cell, markdown

IMPORT_TARGET = 1.3  # times `import numba`
# Prints the seconds of the import and of what follows it.
PROGRAM = """
import time
start = time.perf_counter()
import {module}
imported = time.perf_counter()
{rest}
print([imported - start, time.perf_counter() - imported])
"""
FIRST_CALL = """
import numpy
x = numpy.ones(({rows}, 100, 8), "float32")
layer = numbagru.GRU(32, return_sequences=True)
"""


class Case(NamedTuple):
    """A first call and what it may take, in seconds."""

    title: str
    rows: int
    call: str
    cold: float | None
    warm: float


CASES = (
    Case("inference, one row", 1, "layer(x)", 6, 0.2),
    Case("inference, 64 rows", 64, "layer(x)", 6, 0.2),
    Case("training, 64 rows", 64, "y, back = layer.vjp(x); back(y)", None, 0.2),
)


def run(module, rest="", cache=None):
    """Return the seconds of an import and of the `rest` in a fresh process."""
    variables = {"PYTHONDONTWRITEBYTECODE": ""}
    variables |= {"NUMBA_CACHE_DIR": cache} if cache else {}
    found = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(module=module, rest=rest)],
        cwd=ROOT,
        env=os.environ | variables,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return json.loads(found.stdout)


def medians(rounds):
    """Return the medians of the columns: one row per round."""
    return [statistics.median(times) for times in zip(*rounds, strict=True)]


def imports(rounds):
    """Return the table of imports."""
    modules = ("numba", "numbagru")
    numba, ours = medians([run(m)[0] for m in modules] for _ in range(rounds))
    return markdown(
        ["import", "s", "times import numba", "target"],
        [
            ["numba", cell(numba), "", ""],
            ["numbagru", cell(ours), cell(ours / numba), IMPORT_TARGET],
        ],
    )


def first_call(case, cache):
    """Return the seconds from the import to the first result."""
    rest = FIRST_CALL.format(rows=case.rows) + case.call
    return run("numbagru", rest, str(cache))[1]


def first_calls(rounds, cold_rounds):
    """Return the table of first calls."""
    with tempfile.TemporaryDirectory() as folder:
        caches = {
            case: [Path(folder, f"{case.title} {n}") for n in range(cold_rounds)]
            for case in CASES
        }
        cold = medians(
            [first_call(case, caches[case][n]) for case in CASES]
            for n in range(cold_rounds)
        )
        warm = medians(
            [first_call(case, caches[case][0]) for case in CASES] for _ in range(rounds)
        )
    rows = [
        [case.title, cell(c), case.cold or "-", cell(w), case.warm]
        for case, c, w in zip(CASES, cold, warm, strict=True)
    ]
    head = ["first call after the import, s", "cold cache", "target", "warm", "target"]
    return markdown(head, rows)


def main():
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--cold-rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one round")
    options = parser.parse_args()
    if options.quick:
        options.rounds = options.cold_rounds = 1
    print(machine(len(usable_cpus())))
    with tempfile.TemporaryDirectory() as folder:
        os.environ["PYTHONPYCACHEPREFIX"] = folder
        run("numbagru")
        print("", imports(options.rounds), sep="\n", flush=True)
        print("", first_calls(options.rounds, options.cold_rounds), sep="\n")


if __name__ == "__main__":
    main()
