"""The GRU: the only place with its equations, as scalars in fma.

Cho et al. 2014 in Keras' naming (Keras 3 ``GRUCell.call``): z update gate, r reset
gate, hh candidate, h_tm1 the state before the step. The sums x W + h R + b are the
kernels' work. ``reset_after=True`` is arXiv:1406.1078v1 (and cuDNN),
``reset_after=False`` is v3.

A kernel brings the sums of a row, or of a tile of rows, in a scratch of sections n
numbers apart; one step turns the first `count` of each into gates and the next state in
place. n is a multiple of `D_BLOCK`, `count` of `BLOCK`. For activations that act on all
of a row, a section has rows of `units`, `line(units)` apart. One contiguous buffer,
unsigned indices and inner loops of constant length are what lets LLVM vectorise; a
constant n, after merging into the tile kernels, saves it the checks for overlap and the
scalar copy of the loop behind them.
"""

from __future__ import annotations

import numpy as np

from numbagru._jit import routine, scalar, section
from numbagru.activations.compiled import (
    apply_rows,
    chain_rows,
    effort,
    evaluate,
    of_input,
    slope,
)
from numbagru.scalar import fma

BLOCK = 16
# Of a short loop LLVM would unroll 16 rounds before it vectorises, and then does not:
# those of the backward pass (one row of 16 units took twice as long), and those of
# gates without an exponential (64x50x8x32 with relu took 1.15 times as long). A scratch
# has room for these blocks. Where nothing is left to compute, it would unroll even them
# (linear, 1.12 times); a plain loop for all of them costs one row 1.2 times.
D_BLOCK = 32

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
    """Sum up the candidate, with the reset gate after the product."""
    return fma(r, recurrent, x_h)


@scalar
def reset_state(r, h_tm1):
    """Reset the state that enters the candidate's product."""
    return r * h_tm1


@scalar
def d_product(d, a, b):
    """Gradients of a and b in a * b."""
    return d * b, d * a


@routine
def line(units):
    """From row to row of a section that has whole rows."""
    return (units + D_BLOCK - 1) // D_BLOCK * D_BLOCK


@scalar
def _block(act):
    """Numbers that the inner loop of a gate takes."""
    return (1, D_BLOCK, BLOCK)[effort(act)]


@routine
def _blocks(act, count):
    """Where the blocks of a gate begin."""
    room = count if effort(act) == 2 else line(count)
    return range(0, room, _block(act))


@scalar
def _gate(act, s, place, sums, i):
    """One gate from its sum, in place."""
    v = s[place + i]
    if of_input(act):
        s[sums + i] = v
    value = evaluate(act, v)
    s[place + i] = value
    return value


@section
def whole_rows_of_gates(rec, s, n, count, units):
    """From sums in Z and R to gates, where an activation takes all units of a row."""
    apply_rows(rec, s, Z * n, count, units, D_BLOCK)
    apply_rows(rec, s, R * n, count, units, D_BLOCK)


@section
def whole_rows_of_candidates(act, s, n, count, units):
    """From the sum in HH to the candidate, where an activation takes all units."""
    apply_rows(act, s, HH * n, count, units, D_BLOCK)


@section
def blend_in(act, s, n, count):
    """Do what is left of `next_state`, unit by unit."""
    z, h = np.uintp(Z * n), np.uintp(H * n)
    hh, hh_sum = np.uintp(HH * n), np.uintp(HH_SUM * n)
    for block in _blocks(act, count):
        for j in range(_block(act)):
            i = np.uintp(block) + np.uintp(j)
            s[h + i] = blend(s[z + i], s[h + i], _gate(act, s, hh, hh_sum, i))


@section
def next_state(act, s, n, count, units):
    """From the sum in HH, the gate in Z and the old state in H to the next state."""
    whole_rows_of_candidates(act, s, n, count, units)
    blend_in(act, s, n, count)


@section
def sum_candidates(rec, s, n, count):
    """Do what precedes `next_state`, reset after, unit by unit."""
    z, z_sum = np.uintp(Z * n), np.uintp(Z_SUM * n)
    r, r_sum = np.uintp(R * n), np.uintp(R_SUM * n)
    hh, recurrent = np.uintp(HH * n), np.uintp(RECURRENT * n)
    for block in _blocks(rec, count):
        for j in range(_block(rec)):
            i = np.uintp(block) + np.uintp(j)
            _gate(rec, s, z, z_sum, i)
            reset = _gate(rec, s, r, r_sum, i)
            s[hh + i] = candidate_sum(reset, s[recurrent + i], s[hh + i])


@section
def step_reset_after(act, rec, s, n, count, units):
    """One step from all four sums."""
    whole_rows_of_gates(rec, s, n, count, units)
    sum_candidates(rec, s, n, count)
    next_state(act, s, n, count, units)


@section
def reset_states(rec, s, n, count):
    """Do what is left of `gates_reset_before`, unit by unit."""
    z, z_sum = np.uintp(Z * n), np.uintp(Z_SUM * n)
    r, r_sum = np.uintp(R * n), np.uintp(R_SUM * n)
    h, recurrent = np.uintp(H * n), np.uintp(RECURRENT * n)
    for block in _blocks(rec, count):
        for j in range(_block(rec)):
            i = np.uintp(block) + np.uintp(j)
            _gate(rec, s, z, z_sum, i)
            reset = _gate(rec, s, r, r_sum, i)
            s[recurrent + i] = reset_state(reset, s[h + i])


@section
def gates_reset_before(rec, s, n, count, units):
    """From sums to gates and r * h_tm1, whose product the kernel then adds to HH."""
    whole_rows_of_gates(rec, s, n, count, units)
    reset_states(rec, s, n, count)


@routine
def kept_section(act, section, sums):
    """Which section the backward pass wants of a gate: its values or its sums."""
    return sums if of_input(act) else section


# Sections of the backward scratch. In: what was kept of Z, R, HH and RECURRENT, the old
# state in H, the gradient of the next state in D. Out: gradients of the sums, and of
# the old state in D, as far as it does not come through the sums.
D, D_HH, D_Z, D_R, D_RECURRENT = range(5, 10)
D_SECTIONS = 10


@scalar
def _value(act, kept):
    """Restore a gate from what was kept of it."""
    return evaluate(act, kept) if of_input(act) else kept


@section
def d_next_state(act, rec, d_act, s, n, count, units):
    """Undo `next_state`: gradients of z, the candidate's sum and the old state."""
    z, hh, h = np.uintp(Z * n), np.uintp(HH * n), np.uintp(H * n)
    d, d_z, d_hh = np.uintp(D * n), np.uintp(D_Z * n), np.uintp(D_HH * n)
    for block in range(0, count, D_BLOCK):
        for j in range(D_BLOCK):
            i = np.uintp(block) + np.uintp(j)
            s[d_z + i], s[d + i], d_value = d_blend(
                s[d + i], _value(rec, s[z + i]), s[h + i], _value(act, s[hh + i])
            )
            s[d_hh + i] = d_value * slope(d_act, s[hh + i])
    chain_rows(d_act, s, HH * n, D_HH * n, count, units, D_BLOCK)


@section
def d_step_reset_after(act, rec, d_act, d_rec, s, n, count, units):
    """Undo `step_reset_after`: gradients of all four sums."""
    d_next_state(act, rec, d_act, s, n, count, units)
    z, r, recurrent = np.uintp(Z * n), np.uintp(R * n), np.uintp(RECURRENT * n)
    d_z, d_r, d_hh = np.uintp(D_Z * n), np.uintp(D_R * n), np.uintp(D_HH * n)
    d_recurrent = np.uintp(D_RECURRENT * n)
    for block in range(0, count, D_BLOCK):
        for j in range(D_BLOCK):
            i = np.uintp(block) + np.uintp(j)
            d_reset, s[d_recurrent + i] = d_product(
                s[d_hh + i], _value(rec, s[r + i]), s[recurrent + i]
            )
            s[d_r + i] = d_reset * slope(d_rec, s[r + i])
            s[d_z + i] = s[d_z + i] * slope(d_rec, s[z + i])
    chain_rows(d_rec, s, Z * n, D_Z * n, count, units, D_BLOCK)
    chain_rows(d_rec, s, R * n, D_R * n, count, units, D_BLOCK)


@section
def d_gates_reset_before(rec, d_rec, s, n, count, units):
    """Undo `gates_reset_before`, given the gradient of r * h_tm1 in D_RECURRENT."""
    z, r, h = np.uintp(Z * n), np.uintp(R * n), np.uintp(H * n)
    d, d_z, d_r = np.uintp(D * n), np.uintp(D_Z * n), np.uintp(D_R * n)
    d_recurrent = np.uintp(D_RECURRENT * n)
    for block in range(0, count, D_BLOCK):
        for j in range(D_BLOCK):
            i = np.uintp(block) + np.uintp(j)
            d_reset, d_h = d_product(
                s[d_recurrent + i], _value(rec, s[r + i]), s[h + i]
            )
            s[d + i] += d_h
            s[d_r + i] = d_reset * slope(d_rec, s[r + i])
            s[d_z + i] = s[d_z + i] * slope(d_rec, s[z + i])
    chain_rows(d_rec, s, Z * n, D_Z * n, count, units, D_BLOCK)
    chain_rows(d_rec, s, R * n, D_R * n, count, units, D_BLOCK)
