"""What tf_keras recorded and numbagru replays: one table for both.

A case builds a layer from a module of layers (``tf.keras.layers``,
``tf.compat.v1.keras.layers``, ``numbagru.compat.v2``, ``numbagru.compat.v1``) and takes
steps with it. Arrays are named; `make_tf_keras.make_inputs` draws them.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

UNITS = 3


class Call(NamedTuple):
    """Call the layer; with `gradients` also take the gradients of everything."""

    x: str = "x"
    mask: str | None = None
    initial_state: str | None = None
    gradients: bool = False


class Reset(NamedTuple):
    """``layer.reset_states(states)``."""

    states: str | None = None


class Case(NamedTuple):
    """How to build a layer and what to do with it."""

    name: str
    build: Callable[[Any], Any]
    steps: tuple[Call | Reset, ...] = (Call(gradients=True),)


def gru(**kwargs):
    """Return a function that builds ``GRU(UNITS, **kwargs)`` from a module."""
    return lambda layers: layers.GRU(UNITS, **kwargs)


def wrapped(wrapper, inner=None, **kwargs):
    """Return a function that builds ``Bidirectional`` or ``RNN`` from a module."""
    if wrapper == "RNN":
        units = inner or (UNITS,)

        def build(layers):
            cells = [layers.GRUCell(u) for u in units]
            return layers.RNN(cells if len(cells) > 1 else cells[0], **kwargs)

    else:

        def build(layers):
            return layers.Bidirectional(layers.GRU(2, **(inner or {})), **kwargs)

    return build


FULL = {"return_sequences": True, "return_state": True}
MASKS = ("left", "right", "gaps", "one_empty")
L1L2 = {"class_name": "L1L2", "config": {"l1": 0.01, "l2": 0.02}}

CASES = (
    Case("default", gru()),
    Case("reset_after", gru(reset_after=True, **FULL)),
    Case("reset_before", gru(reset_after=False, **FULL)),
    Case("no_bias", gru(use_bias=False, **FULL)),
    Case("no_bias_reset_after", gru(use_bias=False, reset_after=True)),
    Case("sequences", gru(return_sequences=True)),
    Case("state", gru(return_state=True)),
    Case("backwards", gru(go_backwards=True, **FULL)),
    Case("unroll", gru(unroll=True, **FULL)),
    Case("implementation_1", gru(implementation=1, return_sequences=True)),
    Case("implementation_2", gru(implementation=2, return_sequences=True)),
    Case("time_major", gru(time_major=True, **FULL), (Call("x_time_major"),)),
    Case(
        "time_major_masked",
        gru(time_major=True, go_backwards=True, **FULL),
        (Call("x_time_major", "gaps_time_major", "h0", gradients=True),),
    ),
    Case("dropout_at_inference", gru(dropout=0.5, recurrent_dropout=0.5)),
    Case("one_step", gru(**FULL), (Call("x_one_step", None, "h0", gradients=True),)),
    *(
        Case(f"activation_{name}", gru(activation=name, return_sequences=True))
        for name in ("relu", "swish", "softmax")
    ),
    *(
        Case(f"recurrent_{name}", gru(recurrent_activation=name, return_sequences=True))
        for name in ("hard_sigmoid", "sigmoid")
    ),
    *(
        Case(f"mask_{mask}", gru(**FULL), (Call(mask=mask, gradients=True),))
        for mask in MASKS
    ),
    *(
        Case(
            f"mask_{mask}_initial_state",
            gru(reset_after=True, recurrent_activation="sigmoid", **FULL),
            (Call(mask=mask, initial_state="h0", gradients=True),),
        )
        for mask in MASKS
    ),
    Case("mask_last_output", gru(), (Call(mask="gaps", initial_state="h0"),)),
    Case(
        "mask_backwards",
        gru(go_backwards=True, **FULL),
        (Call(mask="right", initial_state="h0", gradients=True),),
    ),
    Case("mask_unroll", gru(unroll=True, **FULL), (Call("x", "left", "h0"),)),
    *(
        Case(
            f"zero_output_for_mask_{mask}",
            gru(zero_output_for_mask=True, **FULL),
            (Call(mask=mask, initial_state="h0", gradients=True),),
        )
        for mask in ("left", "gaps", "one_empty")
    ),
    Case(
        "zero_output_for_mask_last",
        gru(zero_output_for_mask=True),
        (Call(mask="right", initial_state="h0"),),
    ),
    Case("initial_state", gru(**FULL), (Call("x", None, "h0", gradients=True),)),
    Case(
        "stateful",
        gru(stateful=True, **FULL),
        (Call(), Call("x2"), Reset(), Call("x2"), Reset("h0"), Call("x2")),
    ),
    Case(
        "stateful_initial_state",
        gru(stateful=True),
        (Call(initial_state="h0"), Call("x2", None, "h0"), Reset(), Call("x2")),
    ),
    Case(
        "stateful_masked",
        gru(stateful=True, **FULL),
        (Call(mask="gaps"), Call("x2", "one_empty")),
    ),
    Case(
        "regularizers",
        gru(
            kernel_regularizer="l2",
            recurrent_regularizer="l1",
            bias_regularizer="l1_l2",
            activity_regularizer=L1L2,
        ),
    ),
    Case("activity_state", gru(activity_regularizer=L1L2, **FULL)),
    *(
        Case(
            f"bidirectional_{mode}",
            wrapped("Bidirectional", {"return_sequences": True}, merge_mode=mode),
        )
        for mode in ("concat", "sum", "mul", "ave", None)
    ),
    Case(
        "bidirectional_last",
        wrapped("Bidirectional", {"return_state": True}),
        (Call(mask="right"),),
    ),
    Case(
        "bidirectional_masked",
        wrapped("Bidirectional", FULL),
        (Call(mask="gaps", gradients=True),),
    ),
    Case("cell", wrapped("RNN", **FULL), (Call("x", None, "h0", gradients=True),)),
    Case(
        "stack",
        wrapped("RNN", (3, 2), **FULL),
        (Call(gradients=True), Call(mask="gaps")),
    ),
)
