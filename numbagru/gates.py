"""The GRU: the only place with its equations, as scalars in fma.

Cho et al. 2014 in Keras' naming (Keras 3 ``GRUCell.call``): z update gate, r reset
gate, hh candidate, h_tm1 the state before the step. The sums x W + h R + b are the
kernels' work. ``reset_after=True`` is arXiv:1406.1078v1 (and cuDNN),
``reset_after=False`` is v3.

A kernel brings the sums of n units, of one row or of a tile of rows, in a scratch of
sections of n numbers; one step turns them into gates and the next state in place. One
contiguous buffer and unsigned indices are what lets LLVM vectorise these loops.
"""

from __future__ import annotations

import numpy as np

from numbagru._jit import routine, scalar
from numbagru.activations import apply, chain_rule, of_input
from numbagru.scalar import fma

# Sections of the scratch. In: sums in Z, R, HH, (reset after) RECURRENT, and the state
# before the step in H. Out: gates in Z, R, HH, the next state in H, and (reset before)
# r * h_tm1 in RECURRENT. The last three hold the sums of gates whose derivative is
# written in the input.
Z, R, HH, RECURRENT, H, Z_SUM, R_SUM, HH_SUM = range(8)
SECTIONS = 8


@scalar
def blend(z, h_tm1, hh):
    """``z h_tm1 + (1 - z) hh``, exact where z is 0 or 1."""
    return fma(z, h_tm1, fma(-z, hh, hh))


@scalar
def d_blend(d, z, h_tm1, hh):
    """Gradients of z, h_tm1 and hh."""
    return d * (h_tm1 - hh), d * z, fma(-d, z, d)


@scalar
def candidate_sum(r, recurrent, x_h):
    """The candidate's pre-activation with the reset gate after the product."""
    return fma(r, recurrent, x_h)


@scalar
def reset_state(r, h_tm1):
    """The state in the candidate's product with the reset gate before it."""
    return r * h_tm1


@scalar
def d_product(d, a, b):
    """Gradients of a and b in a * b."""
    return d * b, d * a


@routine
def _gate(act, s, section, n, keep, sums):
    if keep and of_input(act):
        for i in range(n):
            s[np.uintp(sums * n + i)] = s[np.uintp(section * n + i)]
    apply(act, s, section * n, n)


@routine
def next_state(act, s, n, keep):
    """From the sum in HH, the gate in Z and the old state in H to the next state."""
    _gate(act, s, HH, n, keep, HH_SUM)
    z, hh, h = np.uintp(Z * n), np.uintp(HH * n), np.uintp(H * n)
    for j in range(n):
        i = np.uintp(j)
        s[h + i] = blend(s[z + i], s[h + i], s[hh + i])


@routine
def step_reset_after(act, rec, s, n, keep):
    """One step from all four sums."""
    _gate(rec, s, Z, n, keep, Z_SUM)
    _gate(rec, s, R, n, keep, R_SUM)
    r, hh, recurrent = np.uintp(R * n), np.uintp(HH * n), np.uintp(RECURRENT * n)
    for j in range(n):
        i = np.uintp(j)
        s[hh + i] = candidate_sum(s[r + i], s[recurrent + i], s[hh + i])
    next_state(act, s, n, keep)


@routine
def gates_reset_before(rec, s, n, keep):
    """The gates and r * h_tm1, which the kernel multiplies into HH before next_state."""
    _gate(rec, s, Z, n, keep, Z_SUM)
    _gate(rec, s, R, n, keep, R_SUM)
    r, h, recurrent = np.uintp(R * n), np.uintp(H * n), np.uintp(RECURRENT * n)
    for j in range(n):
        i = np.uintp(j)
        s[recurrent + i] = reset_state(s[r + i], s[h + i])


@routine
def kept_section(act, section, sums):
    """Which section the backward pass wants of a gate: its values or its sums."""
    return sums if of_input(act) else section


# Sections of the backward scratch. In: what was kept of Z, R, HH and RECURRENT, the old
# state in H, the gradient of the next state in D. Out: gradients of the sums, and of
# the old state in D, as far as it does not come through the sums. Between: gate values
# where sums were kept.
D, Z_VALUE, R_VALUE, HH_VALUE, D_HH, D_Z, D_R, D_RECURRENT = range(5, 13)
D_SECTIONS = 13


@routine
def _value(act, s, section, n, value):
    """The section that holds a gate's values."""
    if not of_input(act):
        return section
    for i in range(n):
        s[np.uintp(value * n + i)] = s[np.uintp(section * n + i)]
    apply(act, s, value * n, n)
    return value


@routine
def d_next_state(act, rec, d_act, s, n):
    """Undo `next_state`: gradients of z, of the candidate's sum and of the old state."""
    z = np.uintp(_value(rec, s, Z, n, Z_VALUE) * n)
    hh = np.uintp(_value(act, s, HH, n, HH_VALUE) * n)
    h, d, d_z, d_hh = (
        np.uintp(H * n),
        np.uintp(D * n),
        np.uintp(D_Z * n),
        np.uintp(D_HH * n),
    )
    for j in range(n):
        i = np.uintp(j)
        s[d_z + i], s[d + i], s[d_hh + i] = d_blend(
            s[d + i], s[z + i], s[h + i], s[hh + i]
        )
    chain_rule(d_act, s, HH * n, D_HH * n, n)


@routine
def d_step_reset_after(act, rec, d_act, d_rec, s, n):
    """Undo `step_reset_after`: gradients of all four sums."""
    d_next_state(act, rec, d_act, s, n)
    r = np.uintp(_value(rec, s, R, n, R_VALUE) * n)
    recurrent, d_hh = np.uintp(RECURRENT * n), np.uintp(D_HH * n)
    d_r, d_recurrent = np.uintp(D_R * n), np.uintp(D_RECURRENT * n)
    for j in range(n):
        i = np.uintp(j)
        s[d_r + i], s[d_recurrent + i] = d_product(
            s[d_hh + i], s[r + i], s[recurrent + i]
        )
    chain_rule(d_rec, s, Z * n, D_Z * n, n)
    chain_rule(d_rec, s, R * n, D_R * n, n)


@routine
def d_gates_reset_before(rec, d_rec, s, n):
    """Undo `gates_reset_before`, given the gradient of r * h_tm1 in D_RECURRENT."""
    r = np.uintp(_value(rec, s, R, n, R_VALUE) * n)
    h, d, d_r = np.uintp(H * n), np.uintp(D * n), np.uintp(D_R * n)
    d_recurrent = np.uintp(D_RECURRENT * n)
    for j in range(n):
        i = np.uintp(j)
        s[d_r + i], d_h = d_product(s[d_recurrent + i], s[r + i], s[h + i])
        s[d + i] += d_h
    chain_rule(d_rec, s, Z * n, D_Z * n, n)
    chain_rule(d_rec, s, R * n, D_R * n, n)
