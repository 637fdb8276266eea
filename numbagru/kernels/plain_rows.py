"""What the plain loops do with one row's numbers, forward and back."""

from __future__ import annotations

from numbagru._jit import routine


@routine
def copy(source, target):
    """Write one row over another."""
    for i in range(target.size):
        target[i] = source[i]


@routine
def add(source, target):
    """Add one row to another."""
    for i in range(target.size):
        target[i] += source[i]


@routine
def fill(target, value):
    """Set all numbers of a row."""
    for i in range(target.size):
        target[i] = value


@routine
def gate_inputs(v, drop, b, out):
    """``out[g] = v * drop[g, b]``: what each of the three gates sees of x or h."""
    for g in range(3):
        for k in range(v.size):
            out[g, k] = v[k] * drop[g, b, k] if drop.size > 0 else v[k]
