"""Time numbagru beside other engines: ``python -m benchmarks.peers``.

Prints one Markdown table for inference and one for training (new weights, forward, all
gradients): float32, the whole output sequence, no mask, NumPy in and NumPy out. Each
engine lives in a process of its own and runs while the others sleep; rounds go from
engine to engine, so that a slow minute of the machine meets all of them. A figure is
the median over the rounds of the medians within a round. `engines.py` says how each
engine is set up; one that is not installed is named and left out.
"""

import argparse
import datetime
import json
import math
import os
import platform
import statistics
import subprocess
import sys
from pathlib import Path

from .engines import ENGINES
from .shapes import BY_NAME

OURS = ("numbagru", "prototype")
TRAINERS = ("numbagru", "PyTorch", "Keras/JAX", "Keras/TensorFlow")


class Remote:
    """A process of `worker.py`."""

    def __init__(self, engine, options):
        self.engine = engine
        threads = str(options.threads)
        environment = {
            "PEERS_THREADS": threads,
            "PEERS_PROTOTYPE": options.prototype or "",
            "NUMBA_NUM_THREADS": threads,
            "OMP_NUM_THREADS": threads,
            "TF_NUM_INTRAOP_THREADS": threads,
            "TF_CPP_MIN_LOG_LEVEL": "3",
            "CUDA_VISIBLE_DEVICES": "-1",
            "JAX_PLATFORMS": "cpu",
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker", engine],
            cwd=Path(__file__).parents[1],
            env=os.environ | environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if options.verbose else subprocess.DEVNULL,
            text=True,
        )

    def ask(self, *command):
        """Send a command; return its result, or None after naming the error."""
        try:
            self.process.stdin.write(json.dumps(command) + "\n")
            self.process.stdin.flush()
            answer = json.loads(self.process.stdout.readline())
        except (BrokenPipeError, json.JSONDecodeError):
            answer = {"error": "the worker has died"}
        if "error" in answer:
            note(f"{self.engine} cannot {command[0]}: {answer['error']}")
        return answer.get("result")

    def close(self):
        """End the worker."""
        self.process.stdin.close()
        self.process.wait()


def note(text):
    """Say something about the run, apart from the tables."""
    print(text, file=sys.stderr, flush=True)


def machine(threads):
    """Return one line about the machine."""
    cpu = platform.processor() or platform.machine()
    if (info := Path("/proc/cpuinfo")).exists():
        lines = (line.partition(":") for line in info.read_text().splitlines())
        fields = {key.strip(): value.strip() for key, _, value in lines}
        cpu = fields.get("model name", cpu)
        vectors = [f for f in ("avx512f", "avx2") if f in fields.get("flags", "")]
        cpu = " ".join([cpu, *vectors[:1]])
    today = datetime.datetime.now(datetime.timezone.utc).date()
    return (
        f"{cpu}, {os.cpu_count()} cores, {threads} threads, {platform.system()}, "
        f"Python {platform.python_version()}, {today}"
    )


def start(options):
    """Start the workers that can start; return them and the versions behind them."""
    workers, versions = [], {}
    for engine in options.engines:
        worker = Remote(engine, options)
        if found := worker.ask("versions"):
            versions |= found
            workers.append(worker)
        else:
            worker.close()
    return workers, versions


def run_shape(workers, what, shape, options):
    """Return milliseconds by engine for one shape."""
    rounds = {}
    for worker in workers:
        setting = worker.ask("prepare", what, shape, options.seconds)
        if setting is not None:
            rounds[worker] = []
            note(f"{what} {shape} {worker.engine} {setting}")
    for _ in range(options.rounds):
        for worker, times in rounds.items():
            answer = worker.ask("time", options.seconds)
            if answer is None:
                raise SystemExit(f"{worker.engine} died at {what} {shape}")
            times.append(answer["ms"])
            if not answer["idle"]:
                note(f"{worker.engine} keeps a core busy after its turn")
    return {w.engine: statistics.median(times) for w, times in rounds.items()}


def ratio(times):
    """Return the fastest peer's time over numbagru's, NaN where one is missing."""
    peers = [ms for engine, ms in times.items() if engine not in OURS]
    ours = times.get("numbagru", math.nan)
    return min(peers, default=math.nan) / ours


def geometric_mean(values):
    """Return the geometric mean; NaN if any value is."""
    values = list(values)
    return math.exp(statistics.fmean(map(math.log, values))) if values else math.nan


def cell(number):
    """Format a number with three digits."""
    if math.isnan(number):
        return "-"
    digits = max(0, 2 - math.floor(math.log10(number)))
    return f"{number:.{digits}f}"


def table(what, rows, engines):
    """Return the Markdown table of ``{shape: {engine: ms}}``."""
    title = f"{what}, ms (BxTxFxU)"
    lines = [
        f"| {' | '.join([title, *engines, 'fastest peer / numbagru'])} |",
        f"|{'---|' + '---:|' * (len(engines) + 1)}",
    ]
    for shape, times in rows.items():
        figures = [cell(times.get(engine, math.nan)) for engine in engines]
        lines.append(f"| {' | '.join([str(shape), *figures, cell(ratio(times))])} |")
    means = [
        cell(geometric_mean(t.get(engine, math.nan) for t in rows.values()))
        for engine in engines
    ]
    mean_ratio = cell(geometric_mean(map(ratio, rows.values())))
    lines.append(f"| {' | '.join(['geometric mean', *means, mean_ratio])} |")
    return "\n".join(lines)


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
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers")
    engines = {engine: engine for engine in ENGINES if engine != "prototype"}
    whats = {what: what for what in ("inference", "training")}
    for flag, choices in (("shapes", BY_NAME), ("engines", engines), ("what", whats)):
        parser.add_argument(
            f"--{flag}",
            type=listed(choices),
            default=list(choices.values()),
            metavar="A,B",
            help=f"some of {', '.join(choices)} (default: all)",
        )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.3, help="of each turn")
    parser.add_argument("--quick", action="store_true", help="one very short round")
    parser.add_argument(
        "--prototype", metavar="FOLDER", help="also time cpu_tile.py of that folder"
    )
    parser.add_argument("--verbose", action="store_true", help="show workers' stderr")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.seconds = 1, 0.01
    if options.prototype:
        options.prototype = str(Path(options.prototype).resolve())
        options.engines.insert(1, "prototype")
    return options


def main():
    """Run the comparison and print its tables."""
    options = parse_arguments()
    if hasattr(os, "sched_setaffinity"):  # pools that size themselves read this
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.threads])
    workers, versions = start(options)
    print(machine(options.threads))
    print(", ".join(f"{package} {v}" for package, v in versions.items()))
    for what in options.what:
        able = TRAINERS if what == "training" else ENGINES
        chosen = [worker for worker in workers if worker.engine in able]
        rows = {s: run_shape(chosen, what, s, options) for s in options.shapes}
        print(f"\n{table(what, rows, [w.engine for w in chosen])}", flush=True)
    for worker in workers:
        worker.close()


if __name__ == "__main__":
    main()
