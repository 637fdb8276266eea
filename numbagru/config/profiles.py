"""Every point where Keras' own versions of the GRU disagree, as a table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any


@dataclass(frozen=True)
class Profile:
    """One of Keras' GRUs, where the others differ.

    Attributes
    ----------
    flavor : str
        Whose configuration keys `get_config` writes, "keras3" or "tf_keras".
    masked_output : str
        Output at masked steps before the first valid one: "zero", or the "state".
    returns : type
        What holds several return values, tuple or list.
    nested_states : bool
        Whether each state of stacked cells comes in a list of its own.
    recorded_state_wins : bool
        Whether a stateful layer prefers a recorded nonzero state to `initial_state`.
    dropout_per_step : bool
        Whether input dropout varies over time where TensorFlow takes its fused path.
    draws_at_inference : bool
        Whether calls with `training=False` draw dropout masks (and ignore them).
    strict_reset : bool
        Whether `reset_states` raises where there is no state to reset.
    defaults : mapping
        Arguments whose default is another than that of Keras 3.
    layer_order, cell_order : tuple of str
        Positional arguments of GRU and GRUCell after `recurrent_dropout`.
    sequence_order : tuple of str
        Those of RNN after `unroll`.
    """

    flavor: str = "keras3"
    masked_output: str = "zero"
    returns: type = tuple
    nested_states: bool = True
    recorded_state_wins: bool = False
    dropout_per_step: bool = False
    draws_at_inference: bool = True
    strict_reset: bool = False
    defaults: Mapping[str, Any] = field(default_factory=dict)
    layer_order: tuple[str, ...] = (
        "seed",
        "return_sequences",
        "return_state",
        "go_backwards",
        "stateful",
        "unroll",
        "reset_after",
        "use_cudnn",
    )
    cell_order: tuple[str, ...] = ("reset_after", "seed")
    sequence_order: tuple[str, ...] = ("zero_output_for_mask",)

    @property
    def era(self) -> str:
        """Which table the activation names are looked up in."""
        return self.flavor


_TF_FORKS: dict[str, Any] = {
    "flavor": "tf_keras",
    "returns": list,
    "nested_states": False,
    "recorded_state_wins": True,
    "draws_at_inference": False,
    "strict_reset": True,
    "cell_order": ("reset_after",),
    "sequence_order": ("time_major",),
}
_TF_ORDER = (
    "return_sequences",
    "return_state",
    "go_backwards",
    "stateful",
    "unroll",
)

PROFILES: Mapping[str, Profile] = MappingProxyType(
    {
        "keras3": Profile(),
        "keras3-jax": Profile(masked_output="state"),
        "tf_keras": Profile(
            **_TF_FORKS,
            dropout_per_step=True,
            layer_order=(*_TF_ORDER, "time_major", "reset_after"),
        ),
        "tf1": Profile(
            **_TF_FORKS,
            defaults={
                "recurrent_activation": "hard_sigmoid",
                "reset_after": False,
                "implementation": 1,
            },
            layer_order=(*_TF_ORDER, "reset_after"),
        ),
    }
)
