"""A unit's step and the step back for the kernels for CUDA, from gates.py.

What is kept of a gate for the step back is its value, or its sum where the derivative
is written in the input.
"""

from __future__ import annotations

from numbagru._jit_cuda import DeviceFunction
from numbagru.gates import blend, candidate_sum, d_blend, d_product, reset_state


def make_gate(real, function):
    """Make ``gate(total)``: the value of a gate, and what is kept of it.

    Parameters
    ----------
    real
        Numba's float type.
    function : launch.Scalars
        Of the gate.
    """
    value_of, _, of_input = function

    @DeviceFunction
    def gate(total):
        value = real(value_of(total))  # a user's may give another type
        return value, total if of_input else value

    return gate


def make_update(real, act):
    """Make ``update(z, r, inner, x_h, old)``, the reset gate after the product.

    Of the candidate's recurrent part and that of the inputs. Gives the next state, and
    what is kept of the candidate.
    """
    candidate_of = make_gate(real, act)

    @DeviceFunction
    def update(z, r, inner, x_h, old):
        candidate, kept = candidate_of(candidate_sum(r, inner, x_h))
        return blend(z, old, candidate), kept

    return update


def make_step(real, act, rec):
    """Make ``step(z_sum, r_sum, inner, x_h, old)``, the reset gate after the product.

    Parameters
    ----------
    real
        Numba's float type.
    act, rec : launch.Scalars
        Of the candidate and of the gates.

    Returns
    -------
    DeviceFunction
        Gives the next state, and what is kept of z, r and the candidate.
    """
    gate, update = make_gate(real, rec), make_update(real, act)

    @DeviceFunction
    def step(z_sum, r_sum, inner, x_h, old):
        z, z_kept = gate(z_sum)
        r, r_kept = gate(r_sum)
        new, hh_kept = update(z, r, inner, x_h, old)
        return new, z_kept, r_kept, hh_kept

    return step


def make_halves(real, act, rec):
    """Make the two halves of a step with the reset gate before the product.

    ``gates(z_sum, r_sum, old)`` gives z, ``r * old``, and what is kept of z and r;
    ``state(z, hh_sum, old)`` the next state, and what is kept of the candidate.
    """
    gate, candidate_of = make_gate(real, rec), make_gate(real, act)

    @DeviceFunction
    def gates(z_sum, r_sum, old):
        z, z_kept = gate(z_sum)
        r, r_kept = gate(r_sum)
        return z, reset_state(r, old), z_kept, r_kept

    @DeviceFunction
    def state(z, hh_sum, old):
        candidate, kept = candidate_of(hh_sum)
        return blend(z, old, candidate), kept

    return gates, state


def make_halves_back(real, act, rec):
    """Make the two halves of the step back, of what is kept.

    ``candidate_back(z, hh, old, d)`` takes the gradient of the next state. It gives
    that of the candidate's sum, of z, and of the old state but for the sums.
    ``gates_back(z, r, d_z, d_r)`` gives the gradients of the sums of z and r.
    """
    (act, d_act, act_of_input), (rec, d_rec, rec_of_input) = act, rec

    @DeviceFunction
    def candidate_back(z, hh, old, d):
        update = real(rec(z)) if rec_of_input else z
        candidate = real(act(hh)) if act_of_input else hh
        d_z, d_old, d_value = d_blend(d, update, old, candidate)
        return d_value * real(d_act(hh)), d_z, d_old

    @DeviceFunction
    def gates_back(z, r, d_z, d_r):
        return d_z * real(d_rec(z)), d_r * real(d_rec(r))

    return candidate_back, gates_back


def make_reset_back(real, rec):
    """Make ``reset_back(r, factor, d)``: gradients of r and factor in their product.

    r is what is kept of it; the factor is what the reset gate multiplies, the
    candidate's recurrent part or the old state.
    """
    rec, _, rec_of_input = rec

    @DeviceFunction
    def reset_back(r, factor, d):
        return d_product(d, real(rec(r)) if rec_of_input else r, factor)

    return reset_back


def make_step_back(real, act, rec):
    """Make ``step_back(z, r, hh, inner, old, d)`` for the reset gate after the product.

    Of what `make_step` keeps. Gives the gradients of the candidate's sum, of z's and
    r's, of the candidate's recurrent part, and of the old state but for the sums.
    """
    candidate_back, gates_back = make_halves_back(real, act, rec)
    reset_back = make_reset_back(real, rec)

    @DeviceFunction
    def step_back(z, r, hh, inner, old, d):
        d_hh, d_z, d_old = candidate_back(z, hh, old, d)
        d_r, d_inner = reset_back(r, inner, d_hh)
        d_z, d_r = gates_back(z, r, d_z, d_r)
        return d_hh, d_z, d_r, d_inner, d_old

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
