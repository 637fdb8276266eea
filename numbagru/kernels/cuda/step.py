"""A unit's step, and back, with the reset gate after the product."""

from __future__ import annotations

from numbagru._jit_cuda import DeviceFunction
from numbagru.gates import blend, candidate_sum, d_blend, d_product


def make_step(real, act, rec):
    """Make ``step(z_sum, r_sum, inner, x_h, old)``.

    Parameters
    ----------
    real
        Numba's float type.
    act, rec : launch.Scalars
        Of the candidate and of the gates.

    Returns
    -------
    DeviceFunction
        Gives the next state, and what is kept of z, r and the candidate: values, or
        sums where the derivative is written in the input.
    """
    (act, _, act_of_input), (rec, _, rec_of_input) = act, rec

    @DeviceFunction
    def step(z_sum, r_sum, inner, x_h, old):
        z, r = real(rec(z_sum)), real(rec(r_sum))
        hh_sum = candidate_sum(r, inner, x_h)
        candidate = real(act(hh_sum))  # a user's may give another type
        return (
            blend(z, old, candidate),
            z_sum if rec_of_input else z,
            r_sum if rec_of_input else r,
            hh_sum if act_of_input else candidate,
        )

    return step


def make_step_back(real, act, rec):
    """Make ``step_back(z, r, hh, inner, old, d)`` of what `make_step` keeps.

    d is the gradient of the next state. Gives those of the candidate's sum, of z's and
    r's, of the candidate's recurrent part, and of the old state but for the sums.
    """
    (act, d_act, act_of_input), (rec, d_rec, rec_of_input) = act, rec

    @DeviceFunction
    def step_back(z, r, hh, inner, old, d):
        update = real(rec(z)) if rec_of_input else z
        reset = real(rec(r)) if rec_of_input else r
        candidate = real(act(hh)) if act_of_input else hh
        d_update, d_old, d_value = d_blend(d, update, old, candidate)
        d_hh = d_value * real(d_act(hh))
        d_reset, d_inner = d_product(d_hh, reset, inner)
        return (
            d_hh,
            d_update * real(d_rec(z)),
            d_reset * real(d_rec(r)),
            d_inner,
            d_old,
        )

    return step_back


def make_take_output(real, masked):
    """Make ``take_output(d, carried, active, at_end, at_start, ...)``.

    Adds the gradient of a step's output to d, that of the state it came from, and
    carries on what later masked steps repeat. Returns both.
    """
    zero = real(0)

    @DeviceFunction
    def take_output(
        d, carried, active, at_end, at_start, d_y, has_d_y, d_last, zero_output,
        first_is_state,
    ):  # fmt: skip
        if not masked:
            if has_d_y:
                d += d_y
            if at_end:
                d += d_last
            return d, carried
        if at_end:
            carried += d_last
        if has_d_y:
            carried += d_y
        if active or (at_start and first_is_state and not zero_output):
            d += carried
        return d, zero if active or zero_output else carried

    return take_output
