"""The kernels for CUDA on a device: ``python benchmarks/gpu.py``, up to eight minutes.

Each part runs in a process of its own with a time limit, the safest first: what the
device can do, whether every kernel has the bits of the CPU and the values of a float64
reference (with TF32 only those, less exactly), then times beside PyTorch's ``nn.GRU``
(cuDNN, with TF32 and without) and, for what cuDNN refuses, beside the same written in
PyTorch. Needs ``numbagru[cuda]`` and PyTorch for CUDA.
"""

import argparse
import datetime
import math
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

if not __package__:  # started as a file: Python put this folder on the path
    sys.path[0] = str(Path(__file__).parents[1])

from benchmarks import reference
from benchmarks.shapes import Shape, make_data
from benchmarks.tables import cell, markdown

ROOT = Path(__file__).parents[1]
# Seconds that each part may take.
PARTS = {"machine": 60, "check": 120, "inference": 100, "training": 120, "refused": 80}
UNITS, ROWS, STEPS, FEATURES = (
    (16, 64, 128, 256, 512, 1024),
    (1, 64, 1024, 4096),
    50,
    32,
)
# What a layer is checked with, beside the defaults.
VARIANTS = {
    "default": {},
    "float64": {"dtype": "float64"},
    "reset before": {"reset_after": False},
    "no bias": {"use_bias": False},
    "relu": {"activation": "relu"},
    "gelu": {"activation": "gelu"},
    "backwards": {"go_backwards": True},
    "masked": {"zero_output_for_mask": True},
    "dropout": {"dropout": 0.2, "implementation": 1},
    "recurrent dropout": {"recurrent_dropout": 0.2},
    "dropout, reset before": {"recurrent_dropout": 0.2, "reset_after": False},
    "tf32": {"precision": "tf32"},
}
# Weights in registers, units divided among blocks, tiles of rows, weights in the cache.
CHECKED = (
    Shape(1, 7, 3, 5),
    Shape(37, 20, 17, 96),
    Shape(7, 30, 5, 109),
    Shape(60, 9, 40, 250),
    Shape(700, 5, 8, 250),
    Shape(2, 6, 8, 2000),
)
# Units of which one row's steps are timed, blocks that meet in each.
MEETING = (128, 512, 1024)


def layer_for(shape, weights, device, **arguments):
    """Build a layer with the given weights."""
    import numbagru

    arguments = {"return_sequences": True, "seed": 0} | arguments
    layer = numbagru.GRU(shape.units, device=device, **arguments)
    layer.build((None, None, shape.features))
    kernel, recurrent_kernel, bias = weights
    if not layer.config.reset_after:
        bias = bias[0]
    layer.set_weights([kernel, recurrent_kernel, *([bias] * layer.config.use_bias)])
    return layer


def mask_of(name, shape):
    """Return gaps in the steps, for the variant that has some."""
    if name != "masked":
        return None
    return np.random.default_rng(1).random(shape[:2]) < 0.8


def results_of(layer, data, mask):
    """Return outputs and all gradients of a training call."""
    y, pullback = layer.vjp(data.x, mask=mask, training=True)
    gradients = pullback(data.dy)
    return [np.asarray(a) for a in (y, gradients.inputs, *gradients.weights)]


def by_reference(shape, dtype):
    """Return what `results_of` should be for the defaults, from NumPy in a dtype."""
    data = make_data(shape)
    weights = [w.astype(dtype) for w in data.weights]
    x = data.x.astype(dtype)
    y, saved = reference.forward(x, weights)
    return y, *reference.backward(x, weights, saved, data.dy.astype(dtype))


def distance(results, exact):
    """Return the largest difference, relative to the largest number."""
    return max(
        np.abs(a - b).max() / np.abs(b).max()
        for a, b in zip(results, exact, strict=True)
    )


def check():
    """Compare bits with the CPU, and the default with a float64 reference.

    It may be four times as far from that as the reference in float32 is, with factors
    rounded to TF32's eleven bits 2^13 times as far.
    """
    head = ["variant", "shape", "kernel", "bits of the CPU", "error", "NumPy's float32"]
    print(markdown(head, []))  # and rows as they come: a time limit loses none
    passed = True
    for shape in CHECKED:
        for name, arguments in VARIANTS.items():
            rounds = arguments.get("precision") == "tf32"
            if rounds and not has_tf32():
                continue
            dtype = arguments.get("dtype", "float32")
            data, mask = make_data(shape, dtype), mask_of(name, shape)
            layers = [
                layer_for(shape, data.weights, device, **arguments)
                for device in ("cuda", "cpu")
            ]
            ours, cpu = (results_of(layer, data, mask) for layer in layers)
            kernel = layers[0].explain(data.x).split(":")[0]
            pairs = zip(ours, cpu, strict=True)
            same = all(a.tobytes() == b.tobytes() for a, b in pairs)
            passed &= same or rounds
            said = "-" if rounds else "yes" if same else "NO"
            row = [name, shape, kernel, said, "", ""]
            if name == "default" or rounds:
                exact = by_reference(shape, "float64")
                plain = by_reference(shape, "float32")
                errors = [distance(found, exact) for found in (ours, plain)]
                passed &= errors[0] <= 4 * errors[1] * (2**13 if rounds else 1)
                row[4:] = [f"{error:.1e}" for error in errors]
            print("|", " | ".join(map(str, row)), "|", flush=True)
    return bool(passed)


def has_tf32():
    """Whether the device has tensor cores for TF32."""
    from numba import cuda

    from numbagru.kernels.cuda.products import capability_of

    capability = cuda.get_current_device().compute_capability
    return tuple(capability) >= capability_of("tf32")


def timed(step, synchronize, seconds=0.1, rounds=5):
    """Return the median of a step's times in ms."""
    step()
    synchronize()
    start = time.perf_counter()
    step()
    synchronize()
    each = max(1, int(seconds / rounds / max(time.perf_counter() - start, 1e-6)))
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        for _ in range(each):
            step()
        synchronize()
        times.append(1e3 * (time.perf_counter() - start) / each)
    return statistics.median(times)


def describe():
    """Print the device, and how long a launch and a copy of its memory take."""
    import torch

    properties = torch.cuda.get_device_properties(0)
    driver = subprocess.run(
        ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
        capture_output=True, text=True, check=False,
    ).stdout.strip()  # fmt: skip
    a = torch.empty(2**26, device="cuda")
    one = torch.empty(1, device="cuda")
    copy = timed(lambda: a.copy_(a.flip(0)), torch.cuda.synchronize)
    launch = timed(lambda: one.add_(1), torch.cuda.synchronize)
    print(
        f"{properties.name}, compute capability {properties.major}.{properties.minor}, "
        f"{properties.multi_processor_count} multiprocessors, driver {driver}, CUDA "
        f"{torch.version.cuda}, PyTorch {torch.__version__}\n"
    )
    rows = [
        ["launching a kernel, µs", cell(1e3 * launch)],
        ["memory, GB/s", cell(4 * a.numel() * 4 / copy / 1e6)],
    ]
    print(markdown(["most that this device does", ""], rows), flush=True)
    rows = [[units, cell(1e3 * step_of(units))] for units in MEETING]
    print(markdown(["units of one row", "a step of blocks that meet, µs"], rows))
    return True


def step_of(units, steps=1000):
    """Return the ms of one row's step: what twice as many take longer."""
    import torch

    times = []
    for count in (steps, 2 * steps):
        shape = Shape(1, count, 1, units)
        step = our_step(shape, make_data(shape), "inference")
        times.append(timed(step, torch.cuda.synchronize))
    return (times[1] - times[0]) / steps


def on_device(data):
    """Return data on the device as PyTorch's."""
    import torch

    return tuple(torch.from_numpy(a).cuda() for a in (data.x, data.dy))


def our_step(shape, data, what, **arguments):
    """Return a call of ours on arrays of PyTorch."""
    x, dy = on_device(data)
    layer = layer_for(shape, data.weights, "auto", **arguments)
    if what == "inference":
        return lambda: layer(x)
    return lambda: layer.vjp(x, training=True)[1](dy)


def torch_step(module, data, what):
    """Return the same of a module."""
    import torch

    x, dy = on_device(data)
    if what == "inference":
        return torch.inference_mode()(lambda: module(x))

    def step():
        module.zero_grad()
        inputs = x.detach().requires_grad_()
        y = module(inputs)
        (y[0] if isinstance(y, tuple) else y).backward(dy)

    return step


def compare(what):
    """Print times beside cuDNN's and the ratios, TF32 off and on."""
    import torch

    head = [f"{what}, ms (BxTxFxU)", "numbagru", "TF32", "cuDNN", "cuDNN TF32"]
    head += ["ratio", "ratio TF32"]
    precisions = ("dtype", "tf32") if has_tf32() else ("dtype",)
    print(markdown(head, []))
    for units in UNITS:
        for batch in ROWS:
            shape = Shape(batch, STEPS, FEATURES, units)
            data = make_data(shape)
            module = torch.nn.GRU(FEATURES, units, batch_first=True).cuda()
            ours, theirs = [], []
            for precision in precisions:
                step = our_step(shape, data, what, precision=precision)
                ours.append(timed(step, torch.cuda.synchronize))
            ours += [math.nan] * (2 - len(ours))
            for allowed in (False, True):
                torch.backends.cudnn.allow_tf32 = allowed
                torch.backends.cuda.matmul.allow_tf32 = allowed
                step = torch_step(module, data, what)
                theirs.append(timed(step, torch.cuda.synchronize))
            ratios = [ms / mine for ms, mine in zip(theirs, ours, strict=True)]
            row = [shape, *map(cell, ours + theirs), *map(cell, ratios)]
            print("|", " | ".join(map(str, row)), "|", flush=True)
    return True


class ByHand:
    """Make a GRU of PyTorch operations, with the reset gate before the product."""

    def __new__(cls, features, units):
        """Return the module."""
        import torch

        class Module(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.inputs = torch.nn.Linear(features, 3 * units)
                self.gates = torch.nn.Linear(units, 2 * units, bias=False)
                self.candidate = torch.nn.Linear(units, units, bias=False)

            def forward(self, x):
                sums = self.inputs(x)
                h = x.new_zeros(len(x), units)
                outputs = []
                for t in range(x.shape[1]):
                    first, last = sums[:, t].split([2 * units, units], 1)
                    z, r = torch.sigmoid(first + self.gates(h)).chunk(2, 1)
                    h = z * h + (1 - z) * torch.tanh(last + self.candidate(r * h))
                    outputs.append(h)
                return torch.stack(outputs, 1)

        return Module().cuda()


def refused():
    """Print what cuDNN refuses beside the default, and beside PyTorch operations."""
    import torch

    rows = []
    for units in (64, 256):
        shape = Shape(64, STEPS, FEATURES, units)
        data = make_data(shape)
        for what in ("inference", "training"):
            default, ours, drops = (
                timed(our_step(shape, data, what, **arguments), torch.cuda.synchronize)
                for arguments in (
                    {},
                    {"reset_after": False},
                    {"recurrent_dropout": 0.2},
                )
            )
            by_hand = torch_step(ByHand(FEATURES, units), data, what)
            theirs = timed(by_hand, torch.cuda.synchronize)
            rows.append(
                [f"reset before, {what}", shape, cell(ours), f"{ours / default:.2f}",
                 f"{theirs / ours:.2f}"]
            )  # fmt: skip
            if what == "training":
                rows.append(
                    [f"recurrent dropout, {what}", shape, cell(drops),
                     f"{drops / default:.2f}", "-"]
                )  # fmt: skip
    head = ["configuration", "shape", "ms", "times the default", "PyTorch by hand"]
    print(markdown(head, rows))
    return True


def main():
    """Run all parts, or the one that is named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", choices=PARTS)
    part = parser.parse_args().part
    if part:
        run = {
            "machine": describe,
            "check": check,
            "inference": lambda: compare("inference"),
            "training": lambda: compare("training"),
            "refused": refused,
        }[part]
        sys.exit(0 if run() else 1)
    from numbagru._driver_cuda import driver

    try:
        driver()
    except RuntimeError as error:
        sys.exit(str(error))
    today = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
    report, failed = [f"{today}\n"], []
    for name, seconds in PARTS.items():
        command = [sys.executable, "-m", "benchmarks.gpu", "--part", name]
        try:
            found = subprocess.run(
                command, cwd=ROOT, timeout=seconds, stdout=subprocess.PIPE, text=True,
                check=False,
            )  # fmt: skip
            text, passed = found.stdout, found.returncode == 0
        except subprocess.TimeoutExpired as late:
            text = late.stdout or ""  # bytes even of text, in some versions of Python
            text = text.decode() if isinstance(text, bytes) else text
            text += f"\nnot done after {seconds} s"
            passed = False
        failed += [] if passed else [name]
        report.append(f"## {name}\n\n{text}\n")
        print(report[-1], flush=True)
    results = ROOT / "benchmarks" / "results"
    results.mkdir(exist_ok=True)
    (results / f"gpu-{today}.md").write_text("\n".join(report), encoding="utf-8")
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
