"""Whether every kernel for CUDA computes what it should: a part of `gpu.py`."""

import numpy as np

from benchmarks import reference
from benchmarks.shapes import Shape, make_data
from benchmarks.tables import markdown

# What a layer is checked with: compiling its kernels takes most of the time, so what
# says most comes first.
VARIANTS = {
    "default": {},
    "float64": {"dtype": "float64"},
    "reset before": {"reset_after": False},
    "recurrent dropout": {"recurrent_dropout": 0.2},
    "masked": {"zero_output_for_mask": True},
    "tf32": {"precision": "tf32"},
    "free": {"precision": "free"},
    "dropout": {"dropout": 0.2, "implementation": 1},
    "gelu": {"activation": "gelu"},
    "backwards": {"go_backwards": True},
    "no bias": {"use_bias": False},
    "dropout, reset before": {"recurrent_dropout": 0.2, "reset_after": False},
    "relu": {"activation": "relu"},
}
# Without the CPU's bits.
FREE = "tf32", "free"
# By the kernel that is meant, those whose blocks wait for each other last; all variants
# at the first shape, the default at the others. A card that has no room for all blocks
# of the last takes another kernel for it: the table says which one ran.
CHECKED = {
    "cuda_resident": (Shape(37, 20, 17, 40), Shape(1, 7, 3, 5), Shape(37, 20, 17, 96)),
    "cuda_tiled": (Shape(700, 5, 8, 250),),
    "cuda_cached": (Shape(2, 6, 8, 2000),),
    "cuda_grid": (Shape(7, 30, 5, 109), Shape(60, 9, 40, 250)),
}


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


def check(kernel):
    """Compare a kernel's bits with the CPU's, and the default with a float64 reference.

    It may be four times as far from that as the reference in float32 is, with factors
    rounded to TF32's eleven bits 2^13 times as far. Neither those nor sums in a free
    order need have the CPU's bits.
    """
    head = ["variant", "shape", "kernel", "bits of the CPU", "error", "NumPy's float32"]
    print(markdown(head, []))  # and rows as they come: a time limit loses none
    shape, *others = CHECKED[kernel]
    cases = [("default", other) for other in others]
    cases += [(name, shape) for name in VARIANTS if name != "tf32" or has_tf32()]
    passed = [check_case(name, shape) for name, shape in cases]
    return all(passed)


def check_case(name, shape):
    """Print the row of a variant and a shape; whether all is as it should be."""
    arguments = VARIANTS[name]
    rounds, free = name == "tf32", name in FREE
    dtype = arguments.get("dtype", "float32")
    data, mask = make_data(shape, dtype), mask_of(name, shape)
    layers = [
        layer_for(shape, data.weights, device, **arguments)
        for device in ("cuda", "cpu")
    ]
    ours, cpu = (results_of(layer, data, mask) for layer in layers)
    ran = layers[0].explain(data.x).split(":")[0]
    same = all(a.tobytes() == b.tobytes() for a, b in zip(ours, cpu, strict=True))
    said = "-" if free else "yes" if same else "NO"
    passed, errors = same or free, ["", ""]
    if name == "default" or free:
        exact, plain = by_reference(shape, "float64"), by_reference(shape, "float32")
        errors = [distance(found, exact) for found in (ours, plain)]
        passed &= bool(errors[0] <= 4 * errors[1] * (2**13 if rounds else 1))
        errors = [f"{error:.1e}" for error in errors]
    print("|", " | ".join(map(str, [name, shape, ran, said, *errors])), "|", flush=True)
    return passed


def has_tf32():
    """Whether the device has tensor cores for TF32."""
    from numba import cuda

    from numbagru.kernels.cuda.products import capability_of

    capability = cuda.get_current_device().compute_capability
    return tuple(capability) >= capability_of("tf32")
