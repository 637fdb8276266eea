"""The products of a step on the way back."""

from __future__ import annotations

from numbagru._jit import routine, section
from numbagru.kernels.backward_arrays import (
    rounded_up,
)
from numbagru.kernels.forward_arrays import row_of
from numbagru.kernels.simd import (
    ALONE,
    at,
    half_lanes,
    most_rows,
    vector_lanes,
)
from numbagru.kernels.team import (
    share_of,
)
from numbagru.kernels.tiles import (
    add_sums,
    add_sums_of_half,
    add_three_gates,
    add_two_gates,
    panels_alone,
    sums_at_once,
    tile_rows,
    write_vector,
)

# Below so many terms, the parts of a row are multiplied in one call (2048x50x16x64
# went back in 33.6 ms instead of 35.1).
_LONG = 128


@routine
def _add_rows(
    n, steps, first, stop, a, a_row, a_part, b, b_column, b_part, parts, K, c, c_row,
    c_step, onward, width, most,
):  # fmt: skip
    """``c += a b`` for n rows and the vectors from `first` to `stop`, part by part.

    And that for so many steps: in `a` their rows follow each other, in c they are
    c_step apart. Or ``c = a b``, if not `onward`. Summed up from zero: small terms
    added one by one to a large dh would each leave a rounding error of its size, four
    to ten times NumPy's at 70 units (test_kernels.py).

    Of a part of three vectors all rows, each time asking for one of the next three: so
    weights beyond the second-level cache are read once for all rows. Rows outside, 512
    units took 1.11 times as long, 1024 1.13; parts inside, whose sums such a cache
    might not hold together, between 0.96 and 1.05 in float64, and the same in float32
    (Emerald Rapids; busy in float64).
    """
    at_once = parts if K < _LONG else 1
    for part in range(0, parts, at_once):
        v = first
        while v < stop:
            columns = sums_at_once(n, stop - v)
            sums, weights = at(a, part * a_part), at(b, v * b_column + part * b_part)
            later = columns
            for step in range(steps):
                target, i = at(c, step * c_step + v * width), 0
                while i < n:
                    m = tile_rows(n - i, most)
                    add_sums(
                        m, columns, sums, a_row, a_part, weights, width, b_column,
                        b_part, at_once, K, at(target, i * c_row), c_row, width,
                        onward or part > 0, at(weights, later * b_column),
                    )  # fmt: skip
                    sums, i = at(sums, m * a_row), i + m
                    later = min(later + 1, 2 * columns - 1)
            v += columns


@routine
def _add_rows_of_half(n, a, a_row, b, K, c, c_row, width, most):
    """``c = a b`` for half a vector, the first of b and of c."""
    i = 0
    while i < n:
        m = tile_rows(n - i, most)
        add_sums_of_half(
            m, at(a, i * a_row), a_row, 0, b, width, 0, 0, 1, K, at(c, i * c_row),
            c_row, 0, False, b,
        )  # fmt: skip
        i += m


@routine
def add_to_dh(a, w, own, n, e, gates):
    """Add the gradients of so many gates' sums, times their weights, to dh."""
    width, most = vector_lanes(a.x), most_rows(a.x)
    U, V = a.U, w.V
    first, stop = share_of(own, V // width, 1)
    sums, part = at(e, U), U * width
    # Gates side by side are chains enough for the multipliers: 100 steps of 64 units
    # train in 95 µs instead of 106, 5000 steps of 32 units went back in 2.6 ms instead
    # of 2.8. Of more units they are too many streams of memory: of 128, 1.07 times as
    # long (Zen 5, and Zen 4 for 32 units).
    if n == 1 and ALONE * width >= V:
        v = first
        while v < stop:
            panels = panels_alone(stop - v)
            weights, dh = at(a.recurrent, v * 3 * part), at(w.dh, v * width)
            if gates == 3:
                add_three_gates(panels, sums, U, weights, 3 * part, part, U, dh)
            else:
                add_two_gates(panels, sums, U, weights, 3 * part, part, U, dh)
            v += panels
    else:
        _add_rows(
            n, 1, first, stop, sums, w.e_row, U, a.recurrent, 3 * part, part, gates, U,
            w.dh, V, 0, True, width, most,
        )  # fmt: skip


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
    _add_rows(
        n, 1, first, stop, d, w.e_row, 0, at(a.recurrent, k * width), 3 * U * width, 0,
        1, K, w.inner, V, 0, False, width, most,
    )  # fmt: skip


@section
def input_gradient(a, w, own, e, b, n, t, steps):
    """Multiply the gradients of some steps' sums with the transposed kernel.

    t is the last of the steps on the way back.
    """
    width, most = vector_lanes(a.x), most_rows(a.x)
    F, U = a.F, a.U
    FV = rounded_up(F, width)
    first, stop = share_of(own, FV // width, 1)
    rows = steps * n
    # Whole vectors go right where they belong (256x20x1024x64 went back in 16.4 ms
    # instead of 18.4 through scratch that had to be cleared, 32x50x512x32 in 1.38
    # instead of 1.47, Emerald Rapids). Not those of several steps that have no whole
    # tiles: in scratch they make some together.
    whole_tiles = steps == 1 or n == 1 or n % most == 0
    straight = F % width == 0 and not a.masked and whole_tiles
    d_x, d_x_row, in_step, at_once = w.d_x, FV, rows, 1
    if straight:
        d_x = at(a.d_x, b * a.d_x_row + (t + steps - 1) * a.d_x_step)
        d_x_row = -a.d_x_step if n == 1 else a.d_x_row
        if n > 1:
            in_step, at_once = n, steps
    # Few features, the last ones: training with 4 and 16 units, 8192 rows, 50 steps
    # took 38.7 ms, and takes 35.2 (`_add_group` also leaves out rows that are none).
    whole = FV // width
    if 0 < F - (whole - 1) * width <= half_lanes(a.x):
        whole -= 1
    vector = 3 * U * width
    _add_rows(
        in_step, at_once, first, min(stop, whole), e, w.e_row, 0, a.kernel, vector, 0,
        1, 3 * U, d_x, d_x_row, -a.d_x_step, False, width, most,
    )  # fmt: skip
    if first <= whole < stop:
        _add_rows_of_half(
            rows, e, w.e_row, at(a.kernel, whole * vector), 3 * U,
            at(d_x, whole * width), d_x_row, width, most,
        )  # fmt: skip
    if not straight:
        _give_d_x(a, w, first, stop, b, n, t, steps)


@routine
def _give_d_x(a, w, first, stop, b, n, t, steps):
    """Bring vectors of the gradients of some steps' inputs where they belong."""
    width = vector_lanes(a.x)
    F, FV = a.F, rounded_up(a.F, width)
    source = w.d_x
    for step in range(t + steps - 1, t - 1, -1):
        for i in range(n):
            target = at(a.d_x, row_of(a, b + i) * a.d_x_row + step * a.d_x_step)
            for v in range(first, stop):
                place = v * width
                write_vector(at(target, place), at(source, place), width, F - place)
            source = at(source, FV)


@routine
def input_gradient_per_gate(a, w, own, e, b, n, t):
    """Do the same where each gate may have multipliers of the inputs."""
    width, most = vector_lanes(a.x), most_rows(a.x)
    F, U = a.F, a.U
    FV, part = rounded_up(F, width), U * width
    first, stop = share_of(own, FV // width, 1)
    if not a.drops_x:
        # Still a chain for each gate, added part by part: the order of the sums with
        # dropout per gate, whichever it is of (kernels/__init__.py).
        _add_rows(
            n, 1, first, stop, e, w.e_row, U, a.kernel, 3 * part, part, 3, U, w.d_x, FV,
            0, False, width, most,
        )  # fmt: skip
        _give_d_x(a, w, first, stop, b, n, t, 1)
        return
    start, end = first * width, min(F, stop * width)
    for place in range(3):
        g = (place + 2) % 3
        _add_rows(
            n, 1, first, stop, at(e, place * U), w.e_row, 0, at(a.kernel, place * part),
            3 * part, 0, 1, U, w.d_x, FV, 0, False, width, most,
        )  # fmt: skip
        for i in range(n):
            row = row_of(a, b + i)
            target = at(a.d_x, row * a.d_x_row + t * a.d_x_step)
            drop = at(a.x_drop, (g * a.B + row) * F)
            for f in range(start, end):
                d = w.d_x[i * FV + f] * drop[f]
                target[f] = target[f] + d if place > 0 else d
