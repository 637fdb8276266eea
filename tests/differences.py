"""Gradients by central differences, for the tests."""

import numpy as np


def central_difference(f, x, h=1e-5):
    """Return the gradient of the scalar `f` at `x`, in error by about h^2 f''' / 6."""
    gradient = np.empty_like(x)
    for index in np.ndindex(x.shape):
        up, down = x.copy(), x.copy()
        up[index] += h
        down[index] -= h
        gradient[index] = (f(up) - f(down)) / (2 * h)
    return gradient
