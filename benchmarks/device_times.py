"""How long the kernels for CUDA take, beside PyTorch's: a part of `gpu.py`."""

import math
import statistics
import subprocess
import time

from benchmarks.device_check import has_tf32, layer_for
from benchmarks.shapes import Shape, make_data
from benchmarks.tables import cell, markdown

UNITS, ROWS, STEPS, FEATURES = (
    (16, 64, 128, 256, 512, 1024),
    (1, 64, 1024, 4096),
    50,
    32,
)
# Units of which one row's steps are timed, blocks that meet in each.
MEETING = (128, 512, 1024)


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
    """Print the device, and how long launches, copies and calls of one step take."""
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
    shape = Shape(1, 1, 8, 16)
    data = make_data(shape)
    module = torch.nn.GRU(shape.features, shape.units, batch_first=True).cuda()
    for what in ("inference", "training"):  # of one step: what the host takes
        for name, step in (
            ("numbagru", our_step(shape, data, what)),
            ("PyTorch", torch_step(module, data, what)),
        ):
            each = timed(step, torch.cuda.synchronize)
            rows.append([f"{what} of one step, {name}, µs", cell(1e3 * each)])
    print(markdown(["device and host", ""], rows), flush=True)
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
    """Print times beside cuDNN's and the ratios, TF32 off and on.

    And how many times as long the CPU's order of sums takes as a free one.
    """
    import torch

    head = [f"{what}, ms (BxTxFxU)", "numbagru", "TF32", "free order", "cuDNN"]
    head += ["cuDNN TF32", "ratio", "ratio TF32", "in order / free"]
    able = {"dtype": True, "tf32": has_tf32(), "free": True}
    print(markdown(head, []))
    for units in UNITS:
        for batch in ROWS:
            shape = Shape(batch, STEPS, FEATURES, units)
            data = make_data(shape)
            module = torch.nn.GRU(FEATURES, units, batch_first=True).cuda()
            ours, theirs = [], []
            for precision, is_able in able.items():
                if not is_able:
                    ours.append(math.nan)
                    continue
                step = our_step(shape, data, what, precision=precision)
                ours.append(timed(step, torch.cuda.synchronize))
            for allowed in (False, True):
                torch.backends.cudnn.allow_tf32 = allowed
                torch.backends.cuda.matmul.allow_tf32 = allowed
                step = torch_step(module, data, what)
                theirs.append(timed(step, torch.cuda.synchronize))
            ratios = [ms / mine for ms, mine in zip(theirs, ours[:2], strict=True)]
            ratios.append(ours[0] / ours[2])
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
