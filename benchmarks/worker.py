"""One engine of `engines.py` in a process of its own.

``python -m benchmarks.worker NAME`` reads one JSON command per line of stdin and writes
one JSON answer per line of stdout.
"""

import gc
import importlib
import json
import os
import sys
import time
import warnings

import numpy as np

from . import reference
from .engines import ENGINES
from .shapes import Shape, make_data


def measure(step, seconds):
    """Return the median time of a step in milliseconds, at least three samples."""
    start = time.perf_counter()
    step()
    once = time.perf_counter() - start
    repeats = max(1, int(2e-5 / once))
    samples, end = [], time.perf_counter() + seconds
    gc.disable()
    while len(samples) < 3 or time.perf_counter() < end:
        start = time.perf_counter()
        for _ in range(repeats):
            step()
        samples.append((time.perf_counter() - start) / repeats)
    gc.enable()
    return 1e3 * float(np.median(samples))


def check(results, data):
    """Raise unless the arrays agree with the NumPy reference to 1e-3."""
    y, saved = reference.forward(data.x, data.weights)
    expected = [y]
    if len(results) > 1:
        expected += reference.backward(data.x, data.weights, saved, data.dy)
    names = ("y", "dx", "dkernel", "drecurrent_kernel", "dbias")[: len(expected)]
    for name, ours, theirs in zip(names, results, expected, strict=True):
        error, scale = np.abs(ours - theirs).max(), np.abs(theirs).max()
        if not error <= 1e-3 * scale:
            raise AssertionError(f"{name} is off by {error:.1e} of {scale:.1e}")


class Worker:
    """One engine and the step that is prepared."""

    def __init__(self, engine):
        self.engine = ENGINES[engine]()
        os.environ["KERAS_BACKEND"] = self.engine.keras_backend
        self.step = None

    def versions(self):
        """Import the engine's packages and return their versions."""
        return {p: importlib.import_module(p).__version__ for p in self.engine.packages}

    def prepare(self, what, shape, seconds):
        """Check all settings on a shape and keep the fastest; return its name."""
        data = make_data(Shape(*shape))
        times, steps = {}, getattr(self.engine, what)(data)
        for name, step in steps.items():
            check(self.engine.keras_layout(step()), data)
            times[name] = measure(step, seconds)
        best = min(times, key=times.get)
        self.step = steps[best]
        return best

    def time(self, seconds):
        """Time the prepared step, then wait for the threads of the engine to sleep."""
        result = measure(self.step, seconds)
        idle = False
        give_up = time.perf_counter() + 2
        while not idle and time.perf_counter() < give_up:
            before = time.process_time()
            time.sleep(0.02)
            idle = time.process_time() - before < 0.002
        return {"ms": result, "idle": idle}


def main(engine):
    """Answer commands until stdin ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries may print; stdout is for answers
    warnings.simplefilter("ignore")
    worker = Worker(engine)
    for line in sys.stdin:
        command, *arguments = json.loads(line)
        try:
            answer = {"result": getattr(worker, command)(*arguments)}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main(sys.argv[1])
