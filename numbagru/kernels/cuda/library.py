"""Products over all steps by CuPy, where it is installed: ``precision="free"``.

They are those of products.py and of weight_gradients.py, in the order of sums of
NVIDIA's library: without the CPU's bits. Written for arrays that `xp` calculates with,
which is CuPy on a device, and NumPy in the tests.
"""

from __future__ import annotations

from typing import Any

from numbagru.kernels.call import Call, Outputs, Results
from numbagru.kernels.cuda.launch import Products


def project(call: Call, sums: Any) -> Products:
    """Return the sums (B T, 3 U) of the inputs, on top of the bias."""
    weights = call.weights
    bias = weights.sum_bias[:3].reshape(-1)
    return Products(_project, (call.x, call.x_drop, weights.kernel, bias, sums))


def gradients(
    call: Call, out: Outputs, d_sums: Any, results: Results
) -> list[Products]:
    """Return those of inputs and of both matrices of weights."""
    inputs = d_sums, call.weights.kernel, call.x_drop, results.x
    of_inputs = call.x, call.x_drop, call.mask, d_sums, results.W
    of_states = (
        call.h0, out.states, out.saved, call.h_drop, call.mask, d_sums,
        call.config.reset_after, results.R,
    )  # fmt: skip
    return [
        Products(_input_gradient, inputs),
        Products(_kernel_gradient, of_inputs),
        Products(_recurrent_gradient, of_states),
    ]


def _gates(matrix: Any) -> list[Any]:
    """See the columns of z, r and the candidate."""
    U = matrix.shape[1] // 3
    return [matrix[:, g * U : (g + 1) * U] for g in range(3)]


def _samples(array: Any) -> Any:
    """Put rows and steps (B, T, ...) into one axis."""
    B, T, size = array.shape
    return array.reshape(B * T, size)


def _project(xp: Any, x: Any, drop: Any, kernel: Any, bias: Any, sums: Any) -> None:
    if drop.size == 0:
        xp.matmul(_samples(x), kernel, out=sums)
    else:
        for target, columns, dropped in zip(
            _gates(sums), _gates(kernel), drop, strict=True
        ):
            target[...] = _samples(x * dropped[:, None]) @ columns
    sums += bias


def _input_gradient(xp: Any, d_sums: Any, kernel: Any, drop: Any, d_x: Any) -> None:
    z, r, candidate = _gates(kernel)
    turned = candidate, z, r  # as gradients stand
    if drop.size == 0:
        B, T, _, U = d_sums.shape
        product = d_sums[:, :, :3].reshape(B * T, 3 * U) @ xp.concatenate(turned, 1).T
        d_x[...] = product.reshape(d_x.shape)
        return
    d_x[...] = 0
    for slot, columns in enumerate(turned):
        product = _samples(d_sums[:, :, slot]) @ columns.T
        d_x += product.reshape(d_x.shape) * drop[slot - 1][:, None]


def _kernel_gradient(
    xp: Any, x: Any, drop: Any, mask: Any, d_sums: Any, total: Any
) -> None:
    _add_up(xp, _dropped(x, drop), (1, 2, 0), mask, d_sums, total)


def _recurrent_gradient(
    xp: Any, h0: Any, states: Any, saved: Any, drop: Any, mask: Any, d_sums: Any,
    reset_after: bool, total: Any,
) -> None:  # fmt: skip
    T = states.shape[1]
    before = xp.concatenate([h0[:, None], states[:, :-1]], 1)[:, :T]
    factors, slots = _dropped(before, drop), (1, 2, 3)
    if not reset_after:  # r * h was saved, with the gate's own dropout in it
        factors, slots = [*factors[:2], saved[:, :, 3]], (1, 2, 0)
    _add_up(xp, factors, slots, mask, d_sums, total)


def _dropped(factor: Any, drop: Any) -> list[Any]:
    """Give what each gate multiplies its weights with."""
    if drop.size == 0:
        return [factor] * 3
    return [factor * dropped[:, None] for dropped in drop]


def _add_up(
    xp: Any, factors: Any, slots: Any, mask: Any, d_sums: Any, total: Any
) -> None:
    """Add up the samples; those that are masked count as zeros, whatever they hold."""
    zero = total.dtype.type(0)
    for target, factor, slot in zip(_gates(total), factors, slots, strict=True):
        if mask.size > 0:
            factor = xp.where(mask[:, :, None] != 0, factor, zero)
        target[...] = _samples(factor).T @ _samples(d_sums[:, :, slot])
