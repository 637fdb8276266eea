"""The products of the backward pass: per step and per chunk of samples."""

from __future__ import annotations

from numbagru._jit import routine, section
from numbagru.kernels.backward_arrays import (
    GROUP,
    rounded_up,
)
from numbagru.kernels.forward_arrays import row_of
from numbagru.kernels.simd import (
    at,
    most_rows,
    vector_lanes,
)
from numbagru.kernels.team import (
    share_of,
)
from numbagru.kernels.tiles import add_product, tile_rows


@routine
def _add_rows(n, first, stop, a, a_row, b, b_column, K, c, c_row, width, most):
    """``c += a b`` for n rows and the vectors from `first` to `stop`.

    Rows outside: with columns outside, in blocks of k or not, the whole backward pass
    took 1.4 times as long at 256 units and more.
    """
    i = 0
    while i < n:
        m = tile_rows(n - i, most)
        v = first
        while v < stop:
            wide = 3 if v + 3 <= stop else 1
            add_product(
                m, wide, at(a, i * a_row), a_row, 1, at(b, v * b_column), width,
                b_column, K, at(c, i * c_row + v * width), c_row, width,
            )  # fmt: skip
            v += wide
        i += m


@routine
def add_to_dh(a, w, own, n, e, K):
    """Add the gradients of K sums after the first U, times their weights, to dh.

    Summed up from zero: small terms added one by one to a large dh would each leave a
    rounding error of its size, four to ten times NumPy's at 70 units (test_kernels.py).
    """
    width = vector_lanes(a.x)
    V = w.V
    first, stop = share_of(own, V // width, 1)
    multiply_recurrent(a, w, own, n, at(e, a.U), 0, K)
    for i in range(n):
        for j in range(i * V + first * width, i * V + stop * width):
            w.dh[j] += w.inner[j]


@routine
def add_to_dh_per_gate(a, w, own, n, e, gates):
    """Do the same where each gate has multipliers of the state."""
    width = vector_lanes(a.x)
    V = w.V
    first, stop = share_of(own, V // width, 1)
    for g in range(gates):
        multiply_recurrent(a, w, own, n, at(e, (1 + g) * a.U), g * a.U, a.U)
        drop_products(w, g, n, first * width, stop * width)
        for i in range(n):
            for j in range(i * V + first * width, i * V + stop * width):
                w.dh[j] += w.inner[j]


@routine
def drop_products(w, g, n, start, stop):
    """Multiply the products of a step by the multipliers of gate g."""
    for i in range(n):
        drop = at(w.drops, (g * w.rows + i) * w.V)
        inner = at(w.inner, i * w.V)
        for j in range(start, stop):
            inner[j] *= drop[j]


@routine
def multiply_recurrent(a, w, own, n, d, k, K):
    """Put K sums' gradients, times the recurrent kernel from row k on, into `inner`."""
    width, most = vector_lanes(a.x), most_rows(a.x)
    U, V = a.U, w.V
    first, stop = share_of(own, V // width, 1)
    for i in range(n):
        for j in range(i * V + first * width, i * V + stop * width):
            w.inner[j] = 0
    _add_rows(
        n, first, stop, d, 4 * U, at(a.recurrent, k * width), 3 * U * width, K,
        w.inner, V, width, most,
    )  # fmt: skip


@section
def input_gradient(a, w, own, e, b, n, t):
    """Multiply the gradients of a step's sums with the transposed kernel."""
    width, most = vector_lanes(a.x), most_rows(a.x)
    F, U = a.F, a.U
    FV = rounded_up(F, width)
    first, stop = share_of(own, FV // width, 1)
    start, end = first * width, min(F, stop * width)
    for i in range(n):
        for j in range(i * FV + start, i * FV + stop * width):
            w.d_x[j] = 0
    _add_rows(
        n, first, stop, e, 4 * U, a.kernel, 3 * U * width, 3 * U, w.d_x, FV, width, most
    )
    for i in range(n):
        target = at(a.d_x, row_of(a, b + i) * a.d_x_row + t * a.d_x_step)
        for f in range(start, end):
            target[f] = w.d_x[i * FV + f]


@section
def input_gradient_per_gate(a, w, own, e, b, n, t):
    """Do the same where each gate has multipliers of the inputs."""
    width, most = vector_lanes(a.x), most_rows(a.x)
    F, U = a.F, a.U
    FV = rounded_up(F, width)
    first, stop = share_of(own, FV // width, 1)
    start, end = first * width, min(F, stop * width)
    for place in range(3):
        g = (place + 2) % 3
        for i in range(n):
            for j in range(i * FV + start, i * FV + stop * width):
                w.d_x[j] = 0
        _add_rows(
            n, first, stop, at(e, place * U), 4 * U, at(a.kernel, place * U * width),
            3 * U * width, U, w.d_x, FV, width, most,
        )  # fmt: skip
        for i in range(n):
            row = row_of(a, b + i)
            target = at(a.d_x, row * a.d_x_row + t * a.d_x_step)
            drop = at(a.x_drop, (g * a.B + row) * F)
            for f in range(start, end):
                d = w.d_x[i * FV + f]
                if a.drops_x:
                    d *= drop[f]
                target[f] = target[f] + d if place > 0 else d


@routine
def _add_group(a, w, p, gate, columns, group, place, column, capacity, samples):
    """Add a chunk to the gradients of eight inputs of a panel.

    `gate` of d and `group` of a are multiplied into `column` of group `place`.
    """
    width, most = vector_lanes(a.x), most_rows(a.x)
    factors = at(w.a, group * capacity * GROUP)
    sums = at(w.d, (p * capacity * 4 + gate) * width)
    spot = ((p * w.groups + place) * GROUP * 3 + column) * width
    for half in range(0, GROUP, most):
        add_product(
            most, columns, at(factors, half), 1, GROUP, sums, 4 * width, width,
            samples, at(w.gradient, spot + half * 3 * width), 3 * width, width,
        )  # fmt: skip


@section
def add_chunk(a, w, own, reset_after, per_gate, capacity, samples):
    """Add a chunk to the gradients of weights and biases."""
    width = vector_lanes(a.x)
    inputs, states = rounded_up(a.F, GROUP) // GROUP, rounded_up(w.V, GROUP) // GROUP
    first, stop = share_of(own, w.V // width, 1)
    last = 3 if reset_after else 0  # which of d belongs to the candidate's states
    for p in range(first, stop):
        for k in range(inputs):
            if per_gate:
                for place in range(3):
                    group = (place + 2) % 3 * inputs + k
                    _add_group(a, w, p, place, 1, group, k, place, capacity, samples)
            else:
                _add_group(a, w, p, 0, 3, k, k, 0, capacity, samples)
        for k in range(states):
            place = inputs + k
            if per_gate:
                for g in range(3):
                    d = 1 + g if g < 2 else last
                    group = 3 * inputs + g * states + k
                    _add_group(a, w, p, d, 1, group, place, g, capacity, samples)
            elif reset_after:
                _add_group(a, w, p, 1, 3, place, place, 0, capacity, samples)
            else:
                _add_group(a, w, p, 1, 1, place, place, 0, capacity, samples)
                _add_group(a, w, p, 2, 1, place, place, 1, capacity, samples)
                _add_group(a, w, p, 0, 1, place + states, place, 2, capacity, samples)
        sums = at(w.d, p * capacity * 4 * width)
        one = w.s
        one[0] = 1
        for gate in range(4 if reset_after else 3):
            add_product(
                1, 1, one, 0, 0, at(sums, gate * width), 4 * width, width, samples,
                at(w.bias, (p * 4 + gate) * width), 0, width,
            )  # fmt: skip


@routine
def unpack(a, w, own, d_W, d_R, d_bias):
    """Bring a part's gradients from panels to the layout of the weights."""
    width = vector_lanes(a.x)
    F, U = a.F, a.U
    inputs = rounded_up(F, GROUP)
    p_first, p_stop = share_of(own, w.V // width, 1)
    for p in range(p_first, p_stop):
        first = p * width
        count = min(width, U - first)
        for k in range(F + U):
            row = p * w.groups * GROUP + (k if k < F else inputs + k - F)
            for g in range(3):
                # Inputs have the candidate first, states have it last.
                gate = (g + 1) % 3 if k < F else g
                source = at(w.gradient, (row * 3 + gate) * width)
                if k < F:
                    for j in range(count):
                        d_W[k, g, first + j] = source[j]
                else:
                    for j in range(count):
                        d_R[k - F, g, first + j] = source[j]
        for j in range(count):
            for g in range(3):
                d_bias[g, first + j] = w.bias[(p * 4 + (g + 1) % 3) * width + j]
            d_bias[3, first + j] = w.bias[(p * 4 + 3) * width + j]


@routine
def clear_gradients(a, w):
    """Make the gradients of a part zero."""
    for j in range(w.V * w.groups * GROUP * 3):
        w.gradient[j] = 0
    for j in range(w.V * 4):
        w.bias[j] = 0
