"""A GRU in float32 NumPy: what every engine must compute before it is timed."""

import numpy as np


def sigmoid(x):
    """Return 1 / (1 + exp(-x)) without overflow."""
    return 0.5 + 0.5 * np.tanh(0.5 * x)


def forward(x, weights):
    """Return the output sequence and, per step, what `backward` reads."""
    kernel, recurrent_kernel, (input_bias, recurrent_bias) = weights
    h = np.zeros((len(x), len(recurrent_kernel)), x.dtype)
    y = np.empty((*x.shape[:2], h.shape[1]), x.dtype)
    saved = []
    for t in range(x.shape[1]):
        xz, xr, xh = np.split(x[:, t] @ kernel + input_bias, 3, axis=1)
        qz, qr, qh = np.split(h @ recurrent_kernel + recurrent_bias, 3, axis=1)
        z, r = sigmoid(xz + qz), sigmoid(xr + qr)
        hh = np.tanh(xh + r * qh)
        saved.append((h, z, r, hh, qh))
        h = y[:, t] = z * h + (1 - z) * hh
    return y, saved


def backward(x, weights, saved, dy):
    """Return the gradients of sum(y * dy): of x and of the three weights."""
    kernel, recurrent_kernel, bias = weights
    dx, dk, dr, db = map(np.zeros_like, (x, kernel, recurrent_kernel, bias))
    dh = np.zeros_like(dy[:, 0])
    for t in reversed(range(x.shape[1])):
        h_tm1, z, r, hh, qh = saved[t]
        dh = dh + dy[:, t]
        dhh = dh * (1 - z) * (1 - hh * hh)
        dz = dh * (h_tm1 - hh) * z * (1 - z)
        dr_gate = dhh * qh * r * (1 - r)
        d_inputs = np.concatenate([dz, dr_gate, dhh], axis=1)
        d_recurrent = np.concatenate([dz, dr_gate, dhh * r], axis=1)
        dx[:, t] = d_inputs @ kernel.T
        dk += x[:, t].T @ d_inputs
        dr += h_tm1.T @ d_recurrent
        db += [d_inputs.sum(0), d_recurrent.sum(0)]
        dh = dh * z + d_recurrent @ recurrent_kernel.T
    return dx, dk, dr, db
