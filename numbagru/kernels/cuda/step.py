"""A unit's step from its sums, with the reset gate after the product."""

from __future__ import annotations

from numbagru._jit_cuda import DeviceFunction
from numbagru.gates import blend, candidate_sum


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
