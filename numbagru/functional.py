"""The GRU on plain arrays and its vector-Jacobian product: the one door to the kernels.

All checks of arrays are made before anything is computed (operands.py). `config` is a
`GRUConfig`; only its plain attributes are read.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import numpy as np

from numbagru import dispatch, operands
from numbagru.kernels import forward_cpu, memory, panels
from numbagru.kernels.call import REAL, Call, Cotangents, Outputs, Results
from numbagru.kernels.threads import get_num_threads, set_num_threads

__all__ = [
    "Gradients",
    "Weights",
    "explain",
    "get_num_threads",
    "gru",
    "gru_vjp",
    "set_num_threads",
]

# Rows whose weight gradients are added up before they meet those of other rows: never
# more parts than this, nor more memory for them.
_MOST_PARTS = 64
_PART_BYTES = 32 * 2**20
# So many samples (rows x steps) to a part, where that leaves so many parts.
_FEWEST_SAMPLES, _FEWEST_PARTS = 64, 16


class Gradients(NamedTuple):
    """Gradients of `gru`: arrays shaped as its arguments; bias None without one."""

    inputs: np.ndarray
    initial_state: np.ndarray
    kernel: np.ndarray
    recurrent_kernel: np.ndarray
    bias: np.ndarray | None


class Weights:
    """The weights of one GRU, and what kernels derive from them.

    Immutable: make another one when a weight changes.

    Parameters
    ----------
    kernel : ndarray (F, 3 U)
        Gates z, r, candidate.
    recurrent_kernel : ndarray (U, 3 U)
    bias : ndarray (2, 3 U), (3 U,) or None
        Input and recurrent bias, or the input bias alone.
    reset_after : bool
        Which of the two shapes `bias` has.
    """

    def __init__(
        self,
        kernel: np.ndarray,
        recurrent_kernel: np.ndarray,
        bias: np.ndarray | None,
        reset_after: bool,
    ) -> None:
        self.kernel = _contiguous(kernel, kernel.dtype)
        self.recurrent_kernel = _contiguous(recurrent_kernel, recurrent_kernel.dtype)
        self.bias = None if bias is None else _contiguous(bias, kernel.dtype)
        self.reset_after = reset_after
        self._prepared: tuple[Any, Callable[..., Any]] | None = None
        self._fits: Any = None  # the config that was checked last
        # Packed for the forward pass alone, and for both; then the other is dropped.
        self._packed: np.ndarray | None = None
        self._packed_both: np.ndarray | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what is made again on demand."""
        kept = ("kernel", "recurrent_kernel", "bias", "reset_after")
        made_again = dict.fromkeys(("_prepared", "_fits", "_packed", "_packed_both"))
        return {**{name: self.__dict__[name] for name in kept}, **made_again}

    @cached_property
    def sum_bias(self) -> np.ndarray:
        """Where the sums start (4, U): z, r, candidate's input and recurrent part."""
        W = self.kernel
        U = self.recurrent_kernel.shape[0]
        return panels.sum_bias(REAL[W.dtype], self._flat_bias, U)

    @property
    def _flat_bias(self) -> np.ndarray:
        if self.bias is None:
            return operands.nothing(1, self.kernel.dtype)
        return self.bias.reshape(-1)

    def packed(self, training: bool, threads: int) -> np.ndarray:
        """Give what tiles take, for the forward and, if `training`, the backward pass.

        It is packed (kernels/panels.py) at the first request, on at most `threads`
        threads.
        """
        found = self._packed_both
        if found is None and not training:
            found = self._packed
        if found is None:
            W, R, bias = self.kernel, self.recurrent_kernel, self._flat_bias
            found = panels.pack(W, R, bias, training, threads)
            if training:
                self._packed, self._packed_both = None, found
            else:
                self._packed = found
        return found

    def inference(self, config: Any) -> Inference | None:
        """Prepare calls with a config; None where the general call is needed."""
        family = _family(config)
        self.check(config)
        plain = not (config.go_backwards or config.time_major)
        ours = family.forward is forward_cpu.forward
        return Inference(config, self) if plain and ours else None

    def call(self, config: Any) -> Callable[..., Any]:
        """Give `Inference.call` for a config; the last one is remembered."""
        prepared = self._prepared  # which another thread may replace at any time
        if prepared is None or prepared[0] is not config:
            inference = self.inference(config)
            call = _general if inference is None else inference.call
            prepared = self._prepared = (config, call)
        return prepared[1]

    def check(self, config: Any) -> None:
        """Refuse the config of another layer: kernels trust shapes and types."""
        if self._fits is config:
            return
        W, R, bias = self.kernel, self.recurrent_kernel, self.bias
        U, dtype = config.units, np.dtype(config.dtype)
        bias_shape = (2, 3 * U) if config.reset_after else (3 * U,)
        expected = (3 * U,), (U, 3 * U), bias_shape if config.use_bias else None
        found = W.shape[1:], R.shape, None if bias is None else bias.shape
        if found != expected or W.dtype != dtype or R.dtype != dtype:
            raise ValueError(
                f"`weights` must have shapes (features, {3 * U}), {expected[1]} and "
                f"{expected[2]}, and dtype {config.dtype}, to fit the layer. Received: "
                f"{W.shape}, {R.shape} and {found[2]}, {W.dtype} and {R.dtype}"
            )
        self._fits = config


class Inference:
    """The tile kernels called with sequences and states, everything else bound before.

    A step of one row takes the kernel a microsecond; the checks and allocations of the
    general call take thirty.
    """

    def __init__(self, config: Any, weights: Weights) -> None:
        self.dtype = np.dtype(config.dtype)
        self.units = config.units
        self.run = forward_cpu.prepare(
            config.activation,
            config.recurrent_activation,
            config.reset_after,
            REAL[self.dtype],
            weights.packed(False, threads_of(config)),
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


def _contiguous(array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    if array.flags.c_contiguous and array.dtype is dtype:
        return array
    return np.ascontiguousarray(array, dtype)


def _general(x: Any, h0: Any) -> None:
    """Stand for `Inference.call` where every call needs the general one."""


def threads_of(config: Any) -> int:
    """How many threads a layer's call may use."""
    most = get_num_threads()
    return most if config.threads is None else min(most, config.threads)


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
    dtype = weights.kernel.dtype
    x = operands.sequences(config, weights.kernel.shape[0], dtype, x)
    B, T, _ = x.shape
    mask = operands.mask(config, mask, B, T)
    h0 = operands.state(initial_state, (B, config.units), dtype)
    x_drop, h_drop, factor = operands.multipliers(
        config, input_dropout, recurrent_dropout, x.shape, dtype
    )
    if factor is not None:
        x = np.ascontiguousarray(x * factor)
    if config.go_backwards:
        x, mask = x[:, ::-1], mask[:, ::-1]
    return Call(config, x, h0, mask, weights, x_drop, h_drop), factor


def _problem(config: Any) -> dispatch.Problem:
    if config.device == "cuda":
        raise RuntimeError(
            "device='cuda' was requested, but this version has kernels for the CPU "
            "only. Pass device='auto' or device='cpu'."
        )
    activations = config.activation, config.recurrent_activation
    return dispatch.Problem(activations, config.use_cudnn is not False)


@lru_cache
def _family(config: Any) -> dispatch.Row:
    return dispatch.select(_problem(config))


_NOTHING_SAVED = (0, 0, 0, 0), (0, 0, 0)


def _outputs(call: Call, saved: Any = _NOTHING_SAVED) -> Outputs:
    """Allocate outputs, and `saved` shapes of gates and states for backward."""
    config = call.config
    B, T, _ = call.x.shape
    U, dtype = config.units, call.x.dtype
    y = operands.nothing(3, dtype)
    if config.time_major and config.return_sequences:
        y = np.empty((T, B, U), dtype).transpose(1, 0, 2)
    elif config.return_sequences:
        y = np.empty((B, T, U), dtype)
    last = state = np.empty((B, U), dtype)
    # Without a mask the last output is the state.
    if call.mask.size > 0 or (config.return_state and not config.return_sequences):
        state = np.empty((B, U), dtype)
    gates, states = saved
    return Outputs(
        y, last, state, memory.empty(gates, dtype), memory.empty(states, dtype)
    )


def _public(config: Any, out: Outputs) -> tuple[Any, Any, Any]:
    y = out.y.transpose(1, 0, 2) if config.time_major else out.y
    return out.last, (y if config.return_sequences else None), out.state


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
    outputs : ndarray (B, T, U) or None
        In processing order; None unless ``config.return_sequences``.
    state : ndarray (B, U)
        May be the same array as `last_output` unless the config returns both.

    Raises
    ------
    TypeError
        For arrays of anything but real numbers.
    ValueError
        For wrong shapes.
    """
    if mask is None and input_dropout is None and recurrent_dropout is None:
        result = weights.call(config)(x, initial_state)
        if result is not None:
            return result
    call, _ = _call(
        config, weights, x, initial_state, mask, input_dropout, recurrent_dropout
    )
    family = _family(config)
    out = _outputs(call)
    family.forward(call, out, threads_of(config))
    return _public(config, out)


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
    call, factor = _call(
        config, weights, x, initial_state, mask, input_dropout, recurrent_dropout
    )
    for activation in (config.activation, config.recurrent_activation):
        _ = activation.backward_argument
    family = _family(config)
    out = _outputs(call, family.saved_shapes(call))
    family.forward(call, out, threads_of(config))

    def pullback(
        d_last_output: Any = None, d_outputs: Any = None, d_state: Any = None
    ) -> Gradients:
        given = Cotangents(
            *operands.cotangents(
                config, call.x.shape, call.x.dtype, d_outputs, d_last_output, d_state
            )
        )
        return _backward(family, call, given, out, factor)

    return _public(config, out), pullback


@lru_cache
def rows_per_part(B: int, T: int, F: int, U: int, itemsize: int) -> int:
    """Rows whose weight gradients are one partial sum: a function of shapes alone.

    Eight rows fill a tile; wide layers take more, because every part reads all the
    weights; some rows are split in two so that two threads have work. The rows of one
    tile stay together where threads can share its units (8 rows of 256 units: 2.6 ms
    for 50 steps on two threads, 3.5 in two parts; of 64 units 0.63 against 0.45). A
    part of few steps takes more rows: adding up the parts is most of the work there.
    """
    together = 8 if U >= 128 else 2
    if together >= B:
        return max(1, B)
    least = 8 if U < 64 else 16 if U < 256 else 32
    if 2 * least >= B:
        least = max(1, math.ceil(B / 2))
    bytes_each = (F + U) * 3 * U * itemsize
    parts = max(2, min(_MOST_PARTS, _PART_BYTES // max(1, bytes_each)))
    rows = max(least, math.ceil(B / parts))
    if T > 0:
        rows = max(rows, min(_FEWEST_SAMPLES // T, B // _FEWEST_PARTS))
    return rows if rows < 8 else math.ceil(rows / 8) * 8


def _backward(
    family: Any, call: Call, given: Cotangents, out: Outputs, factor: Any
) -> Gradients:
    config = call.config
    (B, T, F), dtype = call.x.shape, call.x.dtype
    U, empty = config.units, np.empty
    d_x = empty((T, B, F) if config.time_major else (B, T, F), dtype)
    d_x_rows = d_x.transpose(1, 0, 2) if config.time_major else d_x
    biases = (6 if config.reset_after else 3) if config.use_bias else 0
    results = Results(
        d_x_rows[:, ::-1] if config.go_backwards else d_x_rows,
        empty((B, U), dtype),
        empty((F, 3 * U), dtype),
        empty((U, 3 * U), dtype),
        empty(biases * U, dtype),
    )
    rows = rows_per_part(B, T, F, U, dtype.itemsize)
    family.backward(call, given, out, rows, results, threads_of(config))
    if factor is not None:
        d_x_rows *= factor
    bias = results.bias.reshape(2, 3 * U) if biases == 6 else results.bias
    return Gradients(
        d_x, results.h0, results.W, results.R, bias if config.use_bias else None
    )


def explain(config: Any) -> str:
    """Say which kernel `gru` takes and, for each faster one, what rules it out."""
    return dispatch.explain(_problem(config))
