"""Calls on plain arrays of NumPy, with everything but the arrays bound before.

The checks and allocations of the general call take longer than a small layer's kernels:
of `gru` 30 µs beside the microsecond of a step of one row, of `gru_vjp` 25 beside 5.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from numbagru import dispatch
from numbagru.kernels import backward_cpu, forward_cpu, memory, one_step
from numbagru.kernels.call import REAL, Call, bias_shape, conditions, switches
from numbagru.kernels.panels import pack_zeros
from numbagru.kernels.threads import get_num_threads
from numbagru.kernels.weight_gradients import rows_per_part
from numbagru.operands import HOST, NO_MASK, nothing


def threads_of(config: Any) -> int:
    """How many threads a layer's call may use."""
    most = get_num_threads()
    return most if config.threads is None else min(most, config.threads)


class Inference:
    """The tile kernels called with sequences and states, everything else bound before.

    The weights belong to it: they are packed.
    """

    def __init__(self, config: Any, weights: Any) -> None:
        self.dtype = np.dtype(config.dtype)
        self.units = config.units
        packed = weights.packed(False, threads_of(config))
        if config.reset_after:  # r * h takes part in the other products
            pack_zeros(weights.kernel, weights.recurrent_kernel, packed)
        self.run = forward_cpu.prepare_inference(
            config.activation,
            config.recurrent_activation,
            config.reset_after,
            REAL[self.dtype],
            packed,
            config.units,
            lambda: threads_of(config),
        )
        self.no_sequence = np.empty((0, 0, 0), self.dtype)
        self.call = self._caller(config, weights.kernel.shape[0])

    def _caller(self, config: Any, features: int) -> Callable[..., Any]:
        """Make ``call(x, h0)``: outputs as of `gru`, None where x or h0 needs more.

        A closure, because looking up ten attributes takes a tenth of the call.
        """
        run, dtype, units = self.run, self.dtype, self.units
        sequences = config.return_sequences
        both = config.return_state and not sequences
        no_sequence = self.no_sequence
        no_state, no_work = np.empty((0, 0), dtype), np.empty(0, dtype)
        no_last = np.empty((0, units), dtype)
        last_in_y = sequences and not config.return_state
        ndarray, empty = np.ndarray, np.empty

        def call(x: Any, h0: Any = None) -> tuple[Any, Any, Any] | None:
            if type(x) is not ndarray or x.dtype is not dtype or x.ndim != 3:
                return None
            B, T, F = x.shape
            flags = x.flags
            if features != F or not flags.c_contiguous or not flags.aligned:
                return None
            if h0 is None:
                h0 = no_state
            elif (
                type(h0) is not ndarray
                or h0.dtype is not dtype
                or h0.shape != (B, units)
                or not h0.flags.c_contiguous
                or not h0.flags.aligned
            ):
                return None
            y = empty((B, T, units), dtype) if sequences else no_sequence
            if last_in_y and T > 0:
                # 8192 rows, one step, 32 units: 0.46 ms; 0.51 with arrays of their own.
                run(x, h0, y, no_last, no_last, no_work)
                last = y[:, -1]
                return last, y, last
            last = empty((B, units), dtype)
            # Without a mask the last output is the state.
            state = empty((B, units), dtype) if both else last
            run(x, h0, y, last, state, no_work)
            return last, (y if sequences else None), state

        return call

    def stepper(self, x: np.ndarray, state: np.ndarray, output: np.ndarray) -> Any:
        """Make ``step()``: one step from x (B, 1, F), which updates the state (B, U).

        All arrays are used again and again, and so is the memory to work with.
        """
        work = np.empty(
            forward_cpu.work_size(REAL[self.dtype], len(x), self.units), self.dtype
        )
        run, none = self.run, self.no_sequence

        def step() -> None:
            run(x, state, none, output, state, work)

        return step


class Gradients(NamedTuple):
    """Gradients of `gru`: arrays shaped as its arguments, None for those not given.

    So there is one of the initial state only where one was given, and of the bias.
    """

    inputs: np.ndarray
    initial_state: np.ndarray | None
    kernel: np.ndarray
    recurrent_kernel: np.ndarray
    bias: np.ndarray | None


def demand_slopes(config: Any) -> None:
    """Raise ValueError for an activation without a derivative."""
    for activation in (config.activation, config.recurrent_activation):
        _ = activation.backward_argument


def _by_threads(prepare: Callable[..., Any], *known: Any) -> Callable[[int], Any]:
    """Remember what a family prepares by the number of threads alone."""
    return functools.cache(functools.partial(prepare, *known))


@functools.lru_cache
def training(config: Any, shape: tuple[int, ...]) -> Callable[..., Any] | None:
    """Prepare `gru_vjp` for x of a shape: ``vjp(weights, x, h0, mask)``.

    It gives None where x needs more; this one does where the config does.
    """
    family = dispatch.family(config)
    plain = not (config.go_backwards or config.time_major) and config.device != "cuda"
    ours = family.forward is forward_cpu.forward
    if not (plain and ours and len(shape) == 3):
        return None
    demand_slopes(config)
    (B, T, F), U, dtype = shape, config.units, np.dtype(config.dtype)
    y_shape, h_shape = (B, T, U), (B, U)
    no_state, no_sequence = nothing(2, dtype), nothing(3, dtype)
    no_rows = np.empty((0, U), dtype)
    zero = dtype.type(0)
    no_drops = no_sequence, no_sequence, switches(config)
    unmasked = conditions(NO_MASK, *no_drops)
    example = Call(
        config, np.broadcast_to(zero, shape), np.broadcast_to(zero, h_shape), True,
        NO_MASK, None, *no_drops, HOST,
    )  # fmt: skip
    shapes = family.saved_shapes(example)
    saved, states = (memory.maker(shape, dtype) for shape in shapes)
    rows = rows_per_part(B, T, F, U, dtype.itemsize)
    # Weights may be read where they stand: then the kernels want states, even of zero.
    direct = one_step.fits(config, shape)
    zeros = np.zeros(h_shape, dtype) if direct else no_rows
    forward = _by_threads(forward_cpu.prepare, config, shape, False, True)
    backward = _by_threads(backward_cpu.prepare, config, shape, False, rows)
    step = _by_threads(one_step.prepare_forward, config, shape)
    step_back = _by_threads(one_step.prepare_backward, config, shape)
    sequences, use_bias = config.return_sequences, config.use_bias
    both = config.return_state and not sequences
    # Then the last one need not be written once more, as in `Inference.call`.
    all_in_y = sequences and not config.return_state and T > 0
    W_shape, R_shape, b_shape = (F, 3 * U), (U, 3 * U), bias_shape(config)
    make_W, make_R = (memory.result_maker(s, dtype) for s in (W_shape, R_shape))
    ndarray, empty = np.ndarray, np.empty

    def vjp(weights: Any, x: np.ndarray, h0: Any, mask: Any) -> tuple[Any, Any] | None:
        flags = x.flags
        if x.dtype is not dtype or not (flags.c_contiguous and flags.aligned):
            return None
        if weights.kernel.shape != W_shape:
            return None
        masked, given_conditions = mask is not None, unmasked
        if masked:
            mask = HOST.mask(config, mask, B, T)
            given_conditions = conditions(mask, *no_drops)
        from_zeros = h0 is None
        given_h0 = no_rows if from_zeros else HOST.state(h0, h_shape, dtype)
        h0 = zeros if from_zeros else given_h0
        last_in_y = all_in_y and not masked
        y = empty(y_shape, dtype) if sequences else no_sequence
        last = no_rows if last_in_y else empty(h_shape, dtype)
        # Without a mask the last output is the state.
        state = empty(h_shape, dtype) if both or masked else last
        kept, kept_states = saved(), states()
        out, most = (y, last, state, kept, kept_states), threads_of(config)
        if direct and not masked and not weights.packed_for_training:
            step(most)(weights, x, h0, from_zeros, out)
        else:
            forward(most)(weights, x, given_h0, out, given_conditions)
        if last_in_y:
            last = state = y[:, -1]

        def pullback(
            d_last_output: Any = None, d_outputs: Any = None, d_state: Any = None
        ) -> Gradients:
            if (
                type(d_outputs) is ndarray
                and d_outputs.dtype is dtype
                and d_outputs.shape == y_shape
                and d_outputs.flags.c_contiguous
                and d_outputs.flags.aligned
                and d_last_output is None
                and d_state is None
            ):
                given = d_outputs, no_state, no_state
            else:
                given = HOST.cotangents(
                    config, shape, dtype, d_outputs, d_last_output, d_state
                )
            d_x = empty(shape, dtype)
            d_h0 = no_state if from_zeros else empty(h_shape, dtype)
            d_W, d_R, d_bias = make_W(), make_R(), empty(b_shape, dtype)
            results = d_x, d_h0, d_W, d_R, d_bias.reshape(-1)
            most = threads_of(config)
            if direct and not masked and not weights.packed_for_training:
                step_back(most)(weights, x, h0, from_zeros, given, kept, results)
            else:
                backward(most)(
                    weights, x, given_h0, given, kept, kept_states, results,
                    given_conditions,
                )  # fmt: skip
            return Gradients(
                d_x,
                None if from_zeros else d_h0,
                d_W,
                d_R,
                d_bias if use_bias else None,
            )

        return (last, y if sequences else None, state), pullback

    return vjp
