"""One engine of `engines` in a process of its own.

``python -m benchmarks.worker NAME DTYPE`` reads one JSON command per line of stdin and
writes one JSON answer per line of stdout.
"""

import functools
import gc
import importlib
import json
import os
import sys
import time
import warnings
from pathlib import Path

import numpy as np

from benchmarks import reference
from benchmarks.engines import ENGINES
from benchmarks.shapes import Shape, make_data

# Of the largest number of an array. Kernels and reference round differently, by some
# 1e-5 in float32 over 5000 steps; an engine that computes float64 in float32 is caught.
TOLERANCE = {"float32": 1e-3, "float64": 1e-9}


def measure(step, seconds):
    """Return the median time of a step in milliseconds.

    At least three samples after a first call; that call alone when it takes much longer
    than the `seconds` there are. (One call after a pause took 327 ms where medians are
    240 to 250: training 128x20x256x1024 on an Emerald Rapids.)
    """
    start = time.perf_counter()
    step()
    once = time.perf_counter() - start
    if once >= 10 * seconds:
        return 1e3 * once
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


@functools.lru_cache(maxsize=1)
def expected(what, shape, dtype):
    """Return the results of the NumPy reference by name."""
    data = make_data(shape, dtype)
    y, saved = reference.forward(data.x, data.weights)
    names, results = ["y"], [y]
    if what == "training":
        names += ["dx", "dkernel", "drecurrent_kernel", "dbias"]
        results += reference.backward(data.x, data.weights, saved, data.dy)
    return dict(zip(names, results, strict=True))


def check(results, what, shape, dtype):
    """Raise unless the arrays agree with the NumPy reference."""
    truth = expected(what, shape, dtype)
    for (name, theirs), ours in zip(truth.items(), results, strict=True):
        error, scale = np.abs(ours - theirs).max(), np.abs(theirs).max()
        if not error <= TOLERANCE[dtype] * scale:
            raise AssertionError(f"{name} is off by {error:.1e} of {scale:.1e}")


def resident(field):
    """Return VmRSS or VmHWM, what is and what was at most resident, in bytes."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition(f"{field}:")[2].split()[0])


class Worker:
    """One engine and the step that is prepared."""

    def __init__(self, engine, dtype):
        self.engine = ENGINES[engine]()
        self.dtype = dtype
        os.environ["KERAS_BACKEND"] = self.engine.keras_backend
        self.step = None

    def versions(self):
        """Import the engine's packages and return their versions."""
        return {p: importlib.import_module(p).__version__ for p in self.engine.packages}

    def prepare(self, what, shape, seconds):
        """Check all settings on a shape and keep the fastest; return its name."""
        self.step = None
        gc.collect()  # traced programs of the shape before hang in cycles
        shape = Shape(*shape)
        data = make_data(shape, self.dtype)
        times, steps = {}, getattr(self.engine, what)(data)
        for name, step in steps.items():
            results = self.engine.keras_layout(step())
            check(results, what, shape, self.dtype)
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

    def peak(self, what, shape):
        """Return by how much a call raises the peak memory and what it returns, bytes.

        The call before it, on the same arrays, loads code; so what an engine keeps from
        call to call counts too, and what it needs to compile does not. Linux forgets
        the peak of that one; elsewhere the peak of the two counts.
        """
        data = make_data(Shape(*shape), self.dtype)
        short = data._replace(x=data.x[:, :2].copy(), dy=data.dy[:, :2].copy())
        settings = getattr(self.engine, what)
        list(settings(short).values())[-1]()
        step = list(settings(data).values())[-1]
        gc.collect()
        linux = Path("/proc/self/clear_refs").exists()
        before = resident("VmRSS") if linux else self._highest()
        step()
        gc.collect()
        if linux:
            Path("/proc/self/clear_refs").write_text("5")
        results = step()
        after = resident("VmHWM") if linux else self._highest()
        returned = sum(np.asarray(array).nbytes for array in results)
        return {"growth": after - before, "returned": returned}

    @staticmethod
    def _highest():
        import resource  # not on Windows

        unit = 1 if sys.platform == "darwin" else 1024
        return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main(engine, dtype):
    """Answer commands until stdin ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries may print; stdout is for answers
    warnings.simplefilter("ignore")
    worker = Worker(engine, dtype)
    for line in sys.stdin:
        command, *arguments = json.loads(line)
        try:
            answer = {"result": getattr(worker, command)(*arguments)}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
