"""Random numbers with the bits of the Keras NumPy backend.

A draw is a function of a state, a pair of uint32 `(seed, counter)`: it is what
`numpy.random.default_rng([seed, counter])` gives first, drawn in float64 and then
cast. So results do not depend on the device, the thread or the draws before.
"""

import operator
import random as python_random
import threading
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import DTypeLike

from numbagru.registry import finite_number, name_table

__all__ = ["SeedGenerator", "draw_seed", "dropout_mask"]

_SEED_LIMIT = 2**32

# One lock for all generators: generators stay picklable, and a draw is too short to
# be worth a lock of its own.
_next_lock = threading.Lock()
_ONE_DRAW = np.array([0, 1], np.uint32)


def draw_seed() -> int:
    """Return the seed that stands for `seed=None`: Python's `randint(1, 10**9)`."""
    return python_random.randint(1, 10**9)


def check_seed(seed: int) -> int:
    """Return `seed` if it is a Python int that fits uint32, else raise ValueError."""
    if not isinstance(seed, int):
        raise ValueError(
            "Argument `seed` must be an integer. Received: "
            f"seed={seed!r} of type {type(seed).__name__}. "
            "Pass `int(seed)` to convert a NumPy integer."
        )
    if not 0 <= seed < _SEED_LIMIT:
        raise ValueError(
            f"Argument `seed` must lie in [0, 2**32). Received: seed={seed}"
        )
    return seed


class SeedGenerator:
    """Fresh seeds, one for each draw (`keras.random.SeedGenerator`).

    Parameters
    ----------
    seed : int, optional
        In [0, 2**32). None draws one from Python's `random`.
    name : str, default "seed_generator"
        Kept for the config.

    Raises
    ------
    ValueError
        If `seed` is not an int or does not fit uint32.
    """

    def __init__(self, seed: int | None = None, name: str = "seed_generator") -> None:
        self.name = name
        self._initial_seed = seed
        self.state = (check_seed(draw_seed() if seed is None else seed), 0)

    @property
    def state(self) -> np.ndarray:
        """A copy of `[seed, counter]`, uint32; assign a pair to go back to it."""
        return self._state.copy()

    @state.setter
    def state(self, pair: Sequence[int] | np.ndarray) -> None:
        self._state = check_state(pair)

    def next(self) -> np.ndarray:
        """Return the state, uint32 `[seed, counter]`, and advance the counter."""
        with _next_lock:
            state = self._state
            self._state = state + _ONE_DRAW
        return state.copy()

    def get_config(self) -> dict[str, Any]:
        """Return `{'seed', 'name'}`; the counter is state, not config."""
        return {"seed": self._initial_seed, "name": self.name}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "SeedGenerator":
        """Build a generator, its counter at 0, from what `get_config` returned."""
        return cls(**config)


SEED_GENERATORS = name_table("keras.random", SeedGenerator)

Seed: TypeAlias = "int | SeedGenerator | Sequence[int] | np.ndarray"


def check_state(pair: Sequence[int] | np.ndarray) -> np.ndarray:
    """Return a fresh uint32 `[seed, counter]`, or raise ValueError."""
    values = np.asarray(pair)
    if (
        values.shape != (2,)
        or values.dtype.kind not in "iu"
        or not all(0 <= int(v) < _SEED_LIMIT for v in values)
    ):
        raise ValueError(
            "A seed state must be a pair `(seed, counter)` of integers in [0, 2**32). "
            f"Received: {pair!r}"
        )
    return values.astype(np.uint32)


def check_shape(shape: Sequence[int]) -> tuple[int, ...]:
    """Return `shape` as a tuple of Python ints >= 0, or raise ValueError."""
    try:
        sizes = tuple(operator.index(size) for size in shape)
    except TypeError:
        sizes = (-1,)
    if any(size < 0 for size in sizes):
        raise ValueError(
            "`shape` must be a tuple of non-negative integers. "
            f"Received: shape={shape!r}"
        )
    return sizes


def check_dtype(dtype: DTypeLike | None) -> np.dtype:
    """Return float32 (also for None) or float64 as a dtype, or raise ValueError."""
    try:
        known = np.dtype("float32" if dtype is None else dtype)
    except TypeError:
        known = None
    if known is None or known.name not in ("float32", "float64"):
        raise ValueError(
            f"`dtype` must be 'float32' or 'float64'. Received: dtype={dtype!r}"
        )
    return known


def generator(seed: Seed) -> np.random.Generator:
    """Return the NumPy generator for one draw; a SeedGenerator advances by one."""
    if isinstance(seed, SeedGenerator):
        state = seed.next()
    elif isinstance(seed, int):
        state = check_state((check_seed(seed), 0))
    else:
        state = check_state(seed)
    # What default_rng(state) makes, in two thirds of the time.
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(state)))


def dropout_mask(
    shape: Sequence[int],
    rate: float,
    seed_state: Seed,
    dtype: DTypeLike | None = None,
) -> np.ndarray:
    """Return the multipliers of inverted dropout: 0 or 1 / (1 - rate).

    Parameters
    ----------
    shape : tuple of int
        Shape of the mask.
    rate : float
        Probability of a 0, in [0, 1]. At 1 the mask is all zeros.
    seed_state : pair, int or SeedGenerator
        `(seed, counter)` as `SeedGenerator.next` returns it; an int stands for
        `(seed, 0)`, a SeedGenerator for its `next()`.
    dtype : str or dtype, default "float32"
        "float32" or "float64".

    Returns
    -------
    numpy.ndarray
        The mask, of shape `shape`; bits of `keras.random.dropout` on ones.

    Raises
    ------
    ValueError
        If an argument is not as above. No generator has advanced then.
    """
    sizes, dtype = check_shape(shape), check_dtype(dtype)
    rate = finite_number(rate, "rate", "a number in [0, 1]", lambda p: 0 <= p <= 1)
    mask = np.empty(sizes, dtype)
    fill_dropout_mask(mask, rate, generator(seed_state))
    return mask


def fill_dropout_mask(mask: np.ndarray, rate: float, rng: np.random.Generator) -> None:
    """Write what `dropout_mask` returns, without its checks."""
    kept = rng.random(mask.shape) < 1 - rate
    # The quotient is taken in the mask's type, as Keras does: rounding 1 / (1 - rate)
    # from float64 differs in the last bit for some rates.
    real = mask.dtype.type
    scale = real(1) / real(1 - rate) if rate < 1 else real(1)
    np.multiply(kept, scale, out=mask)
