"""The GRU on plain arrays and its vector-Jacobian product: the one door to the kernels.

All checks of arrays are made before anything is computed (operands.py). `config` is a
`GRUConfig`; only its plain attributes are read.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from numbagru import dispatch
from numbagru.kernels.call import (
    Call,
    Cotangents,
    Outputs,
    Results,
    bias_shape,
    switches,
)
from numbagru.kernels.threads import get_num_threads, set_num_threads
from numbagru.kernels.weight_gradients import rows_per_part
from numbagru.operands import HOST, nothing, on_device
from numbagru.prepared import Gradients, demand_slopes, threads_of, training
from numbagru.weights import Weights

__all__ = [
    "Gradients",
    "Weights",
    "explain",
    "get_num_threads",
    "gru",
    "gru_vjp",
    "on_device",
    "on_host",
    "place_of",
    "plus",
    "set_num_threads",
]


def on_host(array: Any) -> np.ndarray:
    """Copy an array from a device, which may have yet to write it; leave others."""
    if not on_device(array):
        return array
    return dispatch.place_of(array).fetched(array)


def place_of(array: Any) -> Any:
    """Return the `operands.Operands` of where an array is."""
    return dispatch.place_of(array) if on_device(array) else HOST


def plus(array: Any, term: np.ndarray) -> Any:
    """Add an array of the host to one of the host, or to one on a device in place."""
    if not on_device(array):
        return array + term
    place_of(array).add(array, term)
    return array


def _call(
    config: Any,
    weights: Weights,
    x: Any,
    initial_state: Any,
    mask: Any,
    input_dropout: Any,
    recurrent_dropout: Any,
) -> tuple[Call, Any]:
    """Check everything; gives the kernels' call and the multiplier already in its x."""
    weights.check(config)
    dtype, features = weights.kernel.dtype, weights.kernel.shape[0]
    place = dispatch.place(config, x)
    x = place.sequences(config, features, dtype, x)
    B, T, _ = x.shape
    mask = place.mask(config, mask, B, T)
    h0 = place.state(initial_state, (B, config.units), dtype)
    x_drop, h_drop, factor = place.multipliers(
        config, input_dropout, recurrent_dropout, x.shape, dtype
    )
    if factor is not None:
        x = place.scaled(x, factor)
    if config.go_backwards:
        x, mask = x[:, ::-1], mask[:, ::-1]
    rest = switches(config), place
    from_zeros = initial_state is None
    call = Call(config, x, h0, from_zeros, mask, weights, x_drop, h_drop, *rest)
    return call, factor


_NOTHING_SAVED = (0, 0, 0, 0), (0, 0, 0)


def _outputs(call: Call, saved: Any = _NOTHING_SAVED) -> Outputs:
    """Allocate outputs, and `saved` shapes of gates and states for backward."""
    config = call.config
    B, T, _ = call.x.shape
    U, dtype, empty = config.units, call.x.dtype, call.place.empty
    y = nothing(3, dtype)
    if config.time_major and config.return_sequences:
        y = empty((T, B, U), dtype).transpose(1, 0, 2)
    elif config.return_sequences:
        y = empty((B, T, U), dtype)
    last = state = empty((B, U), dtype)
    # Without a mask the last output is the state.
    if call.mask.size > 0 or (config.return_state and not config.return_sequences):
        state = empty((B, U), dtype)
    work = call.place.work
    return Outputs(y, last, state, *(work(shape, dtype) for shape in saved))


def _public(call: Call, out: Outputs) -> tuple[Any, Any, Any]:
    config, given = call.config, call.place.given
    y = out.y.transpose(1, 0, 2) if config.time_major else out.y
    y = given(y) if config.return_sequences else None
    last = given(out.last)
    return last, y, last if out.state is out.last else given(out.state)


def gru(
    config: Any,
    weights: Weights,
    x: Any,
    initial_state: Any = None,
    mask: Any = None,
    input_dropout: Any = None,
    recurrent_dropout: Any = None,
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    """Run a GRU over sequences.

    Parameters
    ----------
    config : GRUConfig
    weights : Weights
    x : array_like (B, T, F), or (T, B, F) with ``config.time_major``
        An array on a CUDA device (``__cuda_array_interface__``: PyTorch, CuPy, Numba)
        is computed there, on the stream of its library, and so is anything with
        ``config.device == "cuda"``. Arrays on a device must be contiguous and have the
        layer's dtype, masks booleans; those of the host are copied there.
    initial_state : array_like (B, U), optional
        Default: zeros.
    mask : array_like (B, T) or (B, T, 1), optional
        True where a step counts; (T, B) with ``config.time_major``. Default: all do.
    input_dropout : array_like, optional
        Multipliers of x: (B, F), the shape of x, or (3, B, F) for one per gate with
        ``config.implementation == 1``.
    recurrent_dropout : array_like (3, B, U), optional
        Multipliers of the state in the product of each gate.

    Returns
    -------
    last_output : ndarray (B, U)
        This and the others are of the library that x is of.
    outputs : ndarray (B, T, U) or None
        In processing order; None unless ``config.return_sequences``.
    state : ndarray (B, U)
        Unless the config returns it, it may be the same array as `last_output`, and
        both a view of `outputs`.

    Raises
    ------
    TypeError
        For arrays of anything but real numbers, or on a device of another dtype.
    ValueError
        For wrong shapes; for arrays on a device that are elsewhere, have gaps or are
        too large for sizes of 32 bits.
    RuntimeError
        If what a CUDA device needs is missing, or no kernel there takes the layer.
    MemoryError
        If the device has too little memory.
    """
    plain = mask is None and input_dropout is None and recurrent_dropout is None
    if plain:
        result = weights.call(config)(x, initial_state)
        if result is None and type(x) is not np.ndarray:
            result = weights.again(config, x, initial_state)
        if result is not None:
            return result
    call, _ = _call(
        config, weights, x, initial_state, mask, input_dropout, recurrent_dropout
    )
    family = dispatch.family_of(call)
    out = _outputs(call)
    records = plain and on_device(x)
    if records:
        call.place.records = True
    family.forward(call, out, threads_of(config))
    given = _public(call, out)
    if records:
        weights.record(call, out, x, initial_state, given)
    return given


def gru_vjp(
    config: Any,
    weights: Weights,
    x: Any,
    initial_state: Any = None,
    mask: Any = None,
    input_dropout: Any = None,
    recurrent_dropout: Any = None,
) -> tuple[tuple[np.ndarray, np.ndarray | None, np.ndarray], Callable[..., Gradients]]:
    """Run a GRU and get its vector-Jacobian product; parameters as of `gru`.

    Returns
    -------
    outputs : tuple
        What `gru` returns.
    pullback : callable
        ``pullback(d_last_output, d_outputs, d_state) -> Gradients``; None stands for
        zero. May be called any number of times, while x and initial_state, which are
        not copied, stay as they are.
    """
    if type(x) is np.ndarray and input_dropout is None and recurrent_dropout is None:
        weights.check(config)
        vjp = training(config, x.shape)
        result = None if vjp is None else vjp(weights, x, initial_state, mask)
        if result is not None:
            return result
    call, factor = _call(
        config, weights, x, initial_state, mask, input_dropout, recurrent_dropout
    )
    demand_slopes(config)
    family = dispatch.family_of(call)
    out = _outputs(call, family.saved_shapes(call))
    family.forward(call, out, threads_of(config))

    def pullback(
        d_last_output: Any = None, d_outputs: Any = None, d_state: Any = None
    ) -> Gradients:
        given = Cotangents(
            *call.place.cotangents(
                config, call.x.shape, call.x.dtype, d_outputs, d_last_output, d_state
            )
        )
        return _backward(family, call, given, out, factor)

    return _public(call, out), pullback


def _backward(
    family: Any, call: Call, given: Cotangents, out: Outputs, factor: Any
) -> Gradients:
    config = call.config
    (B, T, F), dtype = call.x.shape, call.x.dtype
    U, place = config.units, call.place
    empty, public = place.empty, place.given
    d_x = empty((T, B, F) if config.time_major else (B, T, F), dtype)
    d_x_rows = d_x.transpose(1, 0, 2) if config.time_major else d_x
    bias = empty(bias_shape(config), dtype)
    results = Results(
        d_x_rows[:, ::-1] if config.go_backwards else d_x_rows,
        empty((B, U), dtype),
        place.gradients((F, 3 * U), dtype),
        place.gradients((U, 3 * U), dtype),
        bias.reshape(-1),
    )
    rows = rows_per_part(B, T, F, U, dtype.itemsize)
    family.backward(call, given, out, rows, results, threads_of(config))
    if factor is not None:
        place.scale(d_x_rows, factor)
    return Gradients(
        public(d_x),
        None if call.from_zeros else public(results.h0),
        public(results.W),
        public(results.R),
        public(bias) if config.use_bias else None,
    )


def explain(config: Any, x: Any = None) -> str:
    """Say which kernel `gru` takes and, for each faster one, what rules it out.

    Parameters
    ----------
    config : GRUConfig
    x : array or tuple of int, optional
        The sequences, or their shape. An array on a CUDA device runs there, and so
        does anything if ``config.device`` is "cuda". Where there is no device, what an
        A100 would run.

    Raises
    ------
    ValueError
        If x is on a device, and the config demands the CPU.
    RuntimeError
        If no kernel for the device takes the layer.
    """
    shape = getattr(x, "shape", x) or ()
    B, T = (size or 0 for size in (*shape, 0, 0)[:2])
    if config.time_major:
        B, T = T, B
    cuda, drops = on_device(x), config.recurrent_dropout > 0
    if cuda and config.device == "cpu":
        dispatch.place(config, x)  # which says why not
    chip = (dispatch.chip_of(x),) if cuda or config.device == "cuda" else ()
    return dispatch.explain(dispatch.problem(config, cuda, (B, T), drops, *chip))
