"""What arguments cost beside the defaults: ``python benchmarks/variants.py``.

Each variant is timed in turns with the plain layer of the same shape; the figure is the
median of the ratios of neighbours, so that a busy machine slows both.
"""

import argparse
import os
import statistics
import sys
from pathlib import Path

import numpy as np

if not __package__:  # started as a file: Python put this folder on the path
    sys.path[0] = str(Path(__file__).parents[1])

from benchmarks.remote import environment, machine, restrict, usable_cpus
from benchmarks.shapes import Shape, make_data
from benchmarks.tables import markdown
from benchmarks.worker import measure

# One row, a small and a middle layer.
SHAPES = (Shape(1, 100, 32, 256), Shape(64, 50, 8, 32), Shape(32, 100, 32, 128))
# Arguments of the layer, and the most that a variant may cost.
VARIANTS = {
    "reset_before": ({"reset_after": False}, 1.3),
    "no_bias": ({"use_bias": False}, 1.3),
    "relu": ({"activation": "relu"}, 1.3),
    "hard_sigmoid": ({"recurrent_activation": "hard_sigmoid"}, 1.3),
    "softmax": ({"activation": "softmax"}, 1.3),
    "backwards": ({"go_backwards": True}, 1.3),
    "last_output": ({"return_sequences": False}, 1.3),
    "masked": ({}, 1.3),
    "right_padded": ({}, 1.3),
    "recurrent_dropout": ({"recurrent_dropout": 0.1, "seed": 0}, 2),
}


class Subject:
    """A built layer and what it is called with."""

    def __init__(self, shape, name="plain", dtype="float32"):
        import numbagru

        data = make_data(shape, dtype)
        arguments = {} if name == "plain" else VARIANTS[name][0]
        arguments = {"return_sequences": True, "dtype": dtype} | arguments
        self.layer = numbagru.GRU(shape.units, **arguments)
        self.layer.build(data.x.shape)
        self.x = data.x
        self.dy = data.dy if arguments["return_sequences"] else data.dy[:, -1]
        self.mask = mask_of(name, shape)

    def inference(self):
        """Call the layer as in training, so that dropout is drawn."""
        self.layer(self.x, mask=self.mask, training=True)

    def training(self):
        """Call with `vjp`, pull a cotangent back."""
        _, pullback = self.layer.vjp(self.x, mask=self.mask, training=True)
        pullback(self.dy)


def mask_of(name, shape):
    """Return the mask of the variants that have one."""
    rng = np.random.default_rng(1)
    batch, steps = shape[:2]
    if name == "masked":
        return rng.random((batch, steps)) < 0.7
    if name == "right_padded":
        return np.arange(steps) < rng.integers(1, steps + 1, (batch, 1))
    return None


def cost(shape, name, what, seconds, rounds):
    """Return the time of a variant over that of the plain layer."""
    steps = [getattr(Subject(shape, n), what) for n in (name, "plain")]
    for step in steps:
        step()
    return statistics.median(
        measure(steps[0], seconds) / measure(steps[1], seconds) for _ in range(rounds)
    )


def main():
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=len(usable_cpus()))
    parser.add_argument("--seconds", type=float, default=0.05, help="of each turn")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--quick", action="store_true", help="one, for a moment")
    options = parser.parse_args()
    restrict(options.threads)
    os.environ.update(environment(options.threads))  # Numba is not imported yet
    if options.quick:
        options.seconds, options.rounds = 0.01, 1
    shapes = SHAPES[1:2] if options.quick else SHAPES
    print(f"{machine(options.threads)}; times the plain layer, inference / training")
    rows = []
    for name, (_, most) in VARIANTS.items():
        row = [name]
        for shape in shapes:
            both = [
                cost(shape, name, what, options.seconds, options.rounds)
                for what in ("inference", "training")
            ]
            row.append(" / ".join(f"{figure:.2f}" for figure in both))
        rows.append([*row, f"{most:.1f}"])
        print(" ".join(rows[-1]), file=sys.stderr, flush=True)
    print("", markdown(["variant", *map(str, shapes), "target"], rows), sep="\n")


if __name__ == "__main__":
    main()
