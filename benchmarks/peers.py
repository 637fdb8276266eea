"""Time numbagru beside other engines: ``python benchmarks/peers.py``.

Prints Markdown tables for inference and for training (new weights, forward, all
gradients): the whole output sequence, no mask, NumPy in and NumPy out. ``--all`` does
so in float32 and float64 for all families of shapes and draws a picture. Each engine
lives in a process of its own and runs while the others sleep; rounds go from engine to
engine, so that a slow minute of the machine meets all of them. A figure is the median
over the rounds of the medians within a round. `engines` says how each engine is set up;
one that is not installed or has no float64 is named and left out. The last columns are
numbagru's: its shares of the FMA peak and of the bandwidth of the nearest cache that
holds the weights, and the least time of `bound.py` over its own. `roofline.py` measures
what they need in the same run.
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
from pathlib import Path

if not __package__:  # started as a file: Python put this folder on the path
    sys.path[0] = str(Path(__file__).parents[1])

from benchmarks import tables
from benchmarks.bound import least_seconds
from benchmarks.engines import ENGINES, able
from benchmarks.remote import ISA, ROOT, environment, machine, note, restrict, start
from benchmarks.shapes import FAMILIES

RESULTS = Path(__file__).parent / "results"


def run_shape(workers, what, shape, options):
    """Return milliseconds by engine for one shape."""
    rounds = {}
    for worker in workers:
        setting = worker.ask("prepare", what, shape, options.seconds)
        if setting is not None:
            rounds[worker] = []
            note(f"{what} {shape} {worker.engine} {setting}")
    for _ in range(options.rounds):
        for worker, times in list(rounds.items()):
            answer = worker.ask("time", options.seconds)
            if answer is None:
                del rounds[worker]
                continue
            times.append(answer["ms"])
            if not answer["idle"]:
                note(f"{worker.engine} keeps a core busy after its turn")
    return {w.engine: statistics.median(times) for w, times in rounds.items()}


def measure_roof(options, variables):
    """Return the roof of a process that is set up as the workers are."""
    command = [sys.executable, "-m", "benchmarks.roofline", "--json"]
    command += ["--dtype", ",".join(options.dtype), "--threads", str(options.threads)]
    command += ["--quick"] if options.quick else []
    run = subprocess.run(
        command, cwd=ROOT, env=variables, check=True, stdout=subprocess.PIPE
    )
    return json.loads(run.stdout)


def chosen_shapes(options):
    """Return the shapes that were asked for, by family."""
    if not options.shapes:
        return {family: FAMILIES[family] for family in options.families}
    found = {
        family: [shape for shape in shapes if shape in options.shapes]
        for family, shapes in FAMILIES.items()
    }
    return {family: shapes for family, shapes in found.items() if shapes}


def compare(report, dtype, options, variables):
    """Run what was asked for in one float type; print and add to the report."""
    workers, versions = start(options.engines, dtype, variables, options.verbose)
    report["versions"] |= versions
    say(", ".join(f"{package} {v}" for package, v in versions.items()))
    for what in options.what:
        names = able(what, dtype)
        chosen = [worker for worker in workers if worker.engine in names]
        engines = [worker.engine for worker in chosen]
        for worker in workers:
            if worker not in chosen:
                say(f"{worker.engine} has no {what} in {dtype}.")
        of_all_families = []
        for family, shapes in chosen_shapes(options).items():
            rows = [
                tables.figures(
                    what,
                    dtype,
                    family,
                    shape,
                    run_shape(chosen, what, shape, options),
                    report["roofline"],
                    least_seconds(what, shape, dtype, report["roofline"]),
                    report["aside"],
                )
                for shape in shapes
            ]
            say(f"{family}:", tables.comparison(rows, engines, report["aside"]))
            of_all_families += rows
            report["results"] += rows
            save(report, options.json)
        say(tables.verdict(of_all_families))
    for worker in workers:
        worker.close()


def say(*paragraphs):
    """Print a part of the report."""
    print(*paragraphs, sep="\n\n", end="\n\n", flush=True)


def save(report, path):
    """Write the report, NaN as null, if a file was asked for."""
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(without_nan(report), indent=1), encoding="utf-8")


def without_nan(value):
    """Return a copy with None for NaN."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def listed(choices):
    """Return an argparse type: comma-separated members of ``{text: value}``."""

    def parse(text):
        unknown = set(text.split(",")) - set(choices)
        if unknown:
            raise argparse.ArgumentTypeError(
                f"expected some of {', '.join(choices)}, got {', '.join(unknown)}"
            )
        return [choices[item] for item in text.split(",")]

    return parse


def parse_arguments():
    """Return the command line's options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    shapes = {str(shape): shape for family in FAMILIES.values() for shape in family}
    whats = ["inference", "training"]
    lists = [  # flag, choices, what is chosen without the flag and without --all
        ("engines", ENGINES, list(ENGINES)),
        ("what", whats, whats),
        ("dtype", ["float32", "float64"], ["float32"]),
        ("families", FAMILIES, ["twelve"]),
    ]
    for flag, choices, default in lists:
        parser.add_argument(
            f"--{flag}",
            type=listed({choice: choice for choice in choices}),
            default=default,
            metavar="A,B",
            help=f"some of {', '.join(choices)} (default: {', '.join(default)})",
        )
    parser.add_argument(
        "--shapes",
        type=listed(shapes),
        metavar="A,B",
        help=f"only these, of any family: {', '.join(shapes)}",
    )
    parser.add_argument(
        "--all",
        action="store_true",
        help="float32 and float64, all families; writes benchmarks/results",
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.15, help="of each turn")
    parser.add_argument("--quick", action="store_true", help="one very short round")
    parser.add_argument(
        "--isa",
        choices=list(ISA),
        default="native",
        help="hold all engines, numbagru too, to an instruction set",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures")
    parser.add_argument(
        "--picture", type=Path, metavar="FOLDER", help="draw PNGs and an HTML page"
    )
    parser.add_argument("--verbose", action="store_true", help="show workers' stderr")
    options = parser.parse_args()
    if options.all:
        options.dtype, options.families = ["float32", "float64"], list(FAMILIES)
        options.picture = options.picture or RESULTS
        options.json = options.json or options.picture / "peers.json"
    if options.quick:
        options.rounds, options.seconds = 1, 0.01
    return options


def main():
    """Run the comparison and print its tables."""
    options = parse_arguments()
    restrict(options.threads)
    variables = environment(options.threads, options.isa)
    unrestricted = [e for e in options.engines if not ENGINES[e].restrictable]
    report = {
        "machine": machine(options.threads),
        "isa": options.isa,
        "threads": options.threads,
        "rounds": options.rounds,
        "seconds": options.seconds,
        "versions": {},
        "roofline": measure_roof(options, variables),
        "aside": unrestricted if options.isa != "native" else [],
        "results": [],
    }
    say(report["machine"], tables.roof_table(report["roofline"]))
    for engine in report["aside"]:
        say(
            f"({engine}) cannot be held to {options.isa}: its column is what it does "
            "with all instructions of this CPU, and the ratios leave it out."
        )
    for dtype in options.dtype:
        compare(report, dtype, options, variables)
    if options.picture:
        from benchmarks.picture import draw

        say(f"Picture: {draw(report, options.picture)}")


if __name__ == "__main__":
    main()
