"""The GRU in plain NumPy float64, forward and backward: the tests' oracle.

Written from the equations alone; imports nothing from the package. `forward` takes one
step at a time over all rows; `backward` undoes its tape step by step.
"""

from __future__ import annotations

import math

import numpy as np


def erf(x):
    """Error function, in the type of x."""
    return np.vectorize(math.erf, otypes=[x.dtype])(x)


def sigmoid(x):
    """Logistic function, without overflow."""
    return np.exp(-np.logaddexp(0, -x))


def softmax(x):
    """Softmax along the last axis."""
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def d_softmax(x, d):
    """Gradient of x from the gradient of softmax(x)."""
    y = softmax(x)
    return y * (d - (d * y).sum(-1, keepdims=True))


# name: (f(x), gradient(x, d))
ACTIVATIONS = {
    "tanh": (np.tanh, lambda x, d: d * (1 - np.tanh(x) ** 2)),
    "sigmoid": (sigmoid, lambda x, d: d * sigmoid(x) * sigmoid(-x)),
    "linear": (lambda x: x, lambda x, d: d),
    "relu": (lambda x: np.maximum(x, 0), lambda x, d: d * (x > 0)),
    "hard_sigmoid": (
        lambda x: np.clip(x / 6 + 0.5, 0, 1),
        lambda x, d: d / 6 * (np.abs(x) < 3),
    ),
    "softplus": (lambda x: np.logaddexp(0, x), lambda x, d: d * sigmoid(x)),
    "softsign": (lambda x: x / (1 + abs(x)), lambda x, d: d / (1 + abs(x)) ** 2),
    "silu": (
        lambda x: x * sigmoid(x),
        lambda x, d: d * sigmoid(x) * (1 + x * sigmoid(-x)),
    ),
    "gelu": (
        lambda x: x * (1 + erf(x / math.sqrt(2))) / 2,
        lambda x, d: (
            d
            * (
                (1 + erf(x / math.sqrt(2))) / 2
                + x * np.exp(-x * x / 2) / math.sqrt(2 * math.pi)
            )
        ),
    ),
    "softmax": (softmax, d_softmax),
}


def forward(
    x,
    kernel,
    recurrent_kernel,
    bias=None,
    *,
    reset_after=True,
    activation="tanh",
    recurrent_activation="sigmoid",
    h0=None,
    mask=None,
    go_backwards=False,
    zero_output=False,
    first_output="zero",
    x_drop=None,
    h_drop=None,
    dtype=np.float64,
):
    """Run over x (B, T, F); gives last, outputs (B, T, U), state and a tape.

    With ``dtype=np.float32`` it is the plain NumPy evaluation whose error tolerances
    are made of.
    """
    g, f = ACTIVATIONS[activation][0], ACTIVATIONS[recurrent_activation][0]
    x, W, R = (np.asarray(a, dtype) for a in (x, kernel, recurrent_kernel))
    B, T, _ = x.shape
    U = R.shape[0]
    b_in, b_rec = np.zeros(3 * U, dtype), np.zeros(3 * U, dtype)
    if bias is not None:
        given = np.asarray(bias, dtype).reshape(-1, 3 * U)
        b_in = given[0]
        b_rec = given[1] if reset_after else b_rec
    h = np.zeros((B, U), dtype) if h0 is None else np.asarray(h0, dtype)
    m = np.ones((B, T), bool) if mask is None else np.asarray(mask, bool)
    if go_backwards:
        x, m = x[:, ::-1], m[:, ::-1]
    xd = np.ones((3, B, x.shape[2])) if x_drop is None else x_drop
    hd = np.ones((3, B, U)) if h_drop is None else h_drop
    xd, hd = np.asarray(xd, dtype), np.asarray(hd, dtype)
    W, R = np.split(W, 3, 1), np.split(R, 3, 1)
    b_in, b_rec = np.split(b_in, 3), np.split(b_rec, 3)
    output = h if first_output == "state" or T == 0 else np.zeros_like(h)
    outputs = np.zeros((B, T, U), dtype)
    tape = []
    for t in range(T):
        a = [(np.where(m[:, t, None], x[:, t], 0) * xd[i]) @ W[i] for i in range(3)]
        a = [s + b for s, b in zip(a, b_in, strict=True)]
        p = [(h * hd[i]) @ R[i] + b_rec[i] for i in range(3)]
        az, ar = a[0] + p[0], a[1] + p[1]
        z, r = f(az), f(ar)
        inner = r * p[2] if reset_after else (r * (h * hd[2])) @ R[2]
        ac = a[2] + inner
        c = g(ac)
        tape.append((t, h, az, ar, ac, z, r, c, p[2]))
        keep = m[:, t, None]
        h = np.where(keep, z * h + (1 - z) * c, h)
        output = np.where(keep, h, np.zeros_like(h) if zero_output else output)
        outputs[:, t] = output
    return output, outputs, h, (x, W, R, m, xd, hd, tape)


def backward(
    tape,
    d_last=0.0,
    d_outputs=None,
    d_state=0.0,
    *,
    reset_after=True,
    activation="tanh",
    recurrent_activation="sigmoid",
    go_backwards=False,
    zero_output=False,
    first_output="zero",
):
    """Gradients of x, h0, kernel, recurrent_kernel, bias (2, 3 U) or (3 U,).

    In the float type that the tape was recorded in.
    """
    g, f = ACTIVATIONS[activation][1], ACTIVATIONS[recurrent_activation][1]
    x, W, R, m, xd, hd, steps = tape
    B, T, F = x.shape
    U = R[0].shape[0]
    dtype = x.dtype
    dx = np.zeros((B, T, F), dtype)
    dW, dR = np.zeros((3, F, U), dtype), np.zeros((3, U, U), dtype)
    db, db_rec = np.zeros((3, U), dtype), np.zeros((3, U), dtype)
    dh = np.zeros((B, U), dtype) + np.asarray(d_state, dtype)
    d_out = np.zeros((B, U), dtype) + np.asarray(d_last, dtype)
    for t, h, az, ar, ac, z, r, c, p in reversed(steps):
        keep = m[:, t, None]
        if d_outputs is not None:
            d_out = d_out + np.asarray(d_outputs[:, t], dtype)
        d = np.where(keep, dh + d_out, 0)
        d_az = f(az, d * (h - c))
        d_ac = g(ac, d * (1 - z))
        d_h = d * z
        if reset_after:
            d_r, d_p = d_ac * p, d_ac * r
            dR[2] += (h * hd[2]).T @ d_p
            d_h = d_h + (d_p @ R[2].T) * hd[2]
        else:
            inner = r * (h * hd[2])
            d_inner = d_ac @ R[2].T
            d_r, d_p = d_inner * (h * hd[2]), 0 * d_ac
            dR[2] += inner.T @ d_ac
            d_h = d_h + d_inner * r * hd[2]
        d_ar = f(ar, d_r)
        for i, d_a in enumerate((d_az, d_ar, d_ac)):
            seen = np.where(keep, x[:, t], 0) * xd[i]
            dW[i] += seen.T @ d_a
            dx[:, t] += (d_a @ W[i].T) * xd[i]
            db[i] += d_a.sum(0)
            if i < 2:
                dR[i] += (h * hd[i]).T @ d_a
                d_h = d_h + (d_a @ R[i].T) * hd[i]
                db_rec[i] += d_a.sum(0)
        db_rec[2] += d_p.sum(0)
        dh = np.where(keep, d_h, dh)
        d_out = np.where(keep | zero_output, 0, d_out)
    if T == 0 or first_output == "state":
        dh = dh + d_out
    d_bias = db.reshape(-1)
    if reset_after:
        d_bias = np.stack([d_bias, db_rec.reshape(-1)])
    return (
        dx[:, ::-1] if go_backwards else dx,
        dh,
        np.concatenate(dW, 1),
        np.concatenate(dR, 1),
        d_bias,
    )
