"""Initializers that draw, with the bits of the Keras NumPy backend."""

import math
import operator
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np

from numbagru import registry
from numbagru.initializers.fixed import Initializer
from numbagru.random import (
    SEED_GENERATORS,
    SeedGenerator,
    check_seed,
    draw_seed,
    generator,
)
from numbagru.registry import finite_number, non_negative

Seed: TypeAlias = int | SeedGenerator | None
Axes: TypeAlias = Sequence[int] | None

# Standard deviation of a unit normal that is truncated to [-2, 2].
_TRUNCATED_STDDEV = 0.87962566103423978


class RandomInitializer(Initializer):
    """Base of the initializers that draw; it resolves `seed`.

    Parameters
    ----------
    seed : int or SeedGenerator, optional
        An int gives the same values on every call, a SeedGenerator fresh ones. None
        draws an int, here and now, from Python's `random`.

    Raises
    ------
    ValueError
        If `seed` is of another type or does not fit uint32.
    """

    def __init__(self, seed: Seed = None) -> None:
        if isinstance(seed, dict):
            seed = registry.resolve(seed, SEED_GENERATORS, "seed")
        self._init_seed = seed
        if seed is None:
            seed = draw_seed()
        self.seed = seed if isinstance(seed, SeedGenerator) else check_seed(seed)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments; a seed that was None stays None."""
        seed = registry.serialize_object(self._init_seed)
        return super().get_config() | {"seed": seed}


def _truncated_normal(rng, mean, stddev, shape):
    low, high = mean - 2 * stddev, mean + 2 * stddev
    size = math.prod(shape)
    kept = np.empty(0)
    # Whole blocks are redrawn, and the surplus dropped, to consume the stream as Keras.
    while kept.size < size:
        block = rng.normal(mean, stddev, size)
        kept = np.append(kept, block[(block >= low) & (block <= high)])
    return kept[:size].reshape(shape)


class RandomNormal(RandomInitializer):
    """Normal distribution.

    Parameters
    ----------
    mean : float, default 0.0
        Finite.
    stddev : float, default 0.05
        Finite and >= 0.
    seed : int or SeedGenerator, optional
        As in `RandomInitializer`.
    """

    def __init__(
        self, mean: float = 0.0, stddev: float = 0.05, seed: Seed = None
    ) -> None:
        self.mean = finite_number(mean, "mean")
        self.stddev = non_negative(stddev, "stddev")
        super().__init__(seed)

    def _fill(self, shape, dtype):
        rng = generator(self.seed)
        return rng.normal(self.mean, self.stddev, shape).astype(dtype)


class TruncatedNormal(RandomNormal):
    """Normal distribution, redrawn outside two standard deviations.

    The parameters are those of `RandomNormal`, before the truncation.
    """

    def _fill(self, shape, dtype):
        rng = generator(self.seed)
        return _truncated_normal(rng, self.mean, self.stddev, shape).astype(dtype)


class RandomUniform(RandomInitializer):
    """Uniform distribution on `[minval, maxval)`.

    Parameters
    ----------
    minval, maxval : float, default -0.05 and 0.05
        Finite, `minval <= maxval`.
    seed : int or SeedGenerator, optional
        As in `RandomInitializer`.
    """

    def __init__(
        self, minval: float = -0.05, maxval: float = 0.05, seed: Seed = None
    ) -> None:
        self.minval = finite_number(minval, "minval")
        self.maxval = finite_number(
            maxval, "maxval", f"a number >= minval={minval}", lambda v: v >= self.minval
        )
        super().__init__(seed)

    def _fill(self, shape, dtype):
        rng = generator(self.seed)
        return rng.uniform(self.minval, self.maxval, shape).astype(dtype)


class VarianceScaling(RandomInitializer):
    """Zero mean, and a variance of `scale / n` where n counts what a unit connects.

    Parameters
    ----------
    scale : float, default 1.0
        Finite and > 0.
    mode : {"fan_in", "fan_out", "fan_avg"}
        n is the number of inputs, of outputs, or their mean; at least 1.
    distribution : {"truncated_normal", "untruncated_normal", "uniform", "normal"}
        "normal" means "truncated_normal".
    seed : int or SeedGenerator, optional
        As in `RandomInitializer`.
    input_axes, output_axes : sequence of int, optional
        The axes whose sizes multiply to the number of inputs and of outputs; both
        must be given to count. By default `(shape[0], shape[1])` of a matrix, as
        Keras counts otherwise. For the fused kernel of a GRU, `(F, 3 * units)`, there
        are thus 3 * units outputs.

    Raises
    ------
    ValueError
        If an argument is not as above.
    """

    def __init__(
        self,
        scale: float = 1.0,
        mode: str = "fan_in",
        distribution: str = "truncated_normal",
        seed: Seed = None,
        input_axes: Axes = None,
        output_axes: Axes = None,
    ) -> None:
        self.scale = finite_number(scale, "scale", "a positive float", lambda v: v > 0)
        modes = ("fan_in", "fan_out", "fan_avg")
        if mode not in modes:
            raise ValueError(f"`mode` must be one of {modes}. Received: mode={mode!r}")
        self.mode = mode
        names = ("truncated_normal", "untruncated_normal", "uniform")
        name = str(distribution).lower()
        self.distribution = "truncated_normal" if name == "normal" else name
        if self.distribution not in names:
            raise ValueError(
                f"`distribution` must be one of {names}. "
                f"Received: distribution={distribution!r}"
            )
        self.input_axes = _check_axes(input_axes, "input_axes")
        self.output_axes = _check_axes(output_axes, "output_axes")
        super().__init__(seed)

    def _fill(self, shape, dtype):
        fan_in, fan_out = _fans(shape, self.input_axes, self.output_axes)
        fan_avg = (fan_in + fan_out) / 2
        n = {"fan_in": fan_in, "fan_out": fan_out, "fan_avg": fan_avg}[self.mode]
        variance = self.scale / max(1.0, n)
        rng = generator(self.seed)
        if self.distribution == "uniform":
            limit = math.sqrt(3 * variance)
            values = rng.uniform(-limit, limit, shape)
        elif self.distribution == "untruncated_normal":
            values = rng.normal(0, math.sqrt(variance), shape)
        else:
            stddev = math.sqrt(variance) / _TRUNCATED_STDDEV
            values = _truncated_normal(rng, 0, stddev, shape)
        return values.astype(dtype)


def _check_axes(axes: Axes, name: str) -> list[int] | None:
    if axes is None:
        return None
    try:
        return [operator.index(axis) for axis in axes]
    except TypeError:
        raise ValueError(
            f"`{name}` must be a list of integers or None. Received: {name}={axes!r}"
        ) from None


def _fans(shape, input_axes, output_axes):
    """Return the numbers of inputs and outputs that a weight connects."""
    if input_axes is not None and output_axes is not None:
        try:
            return tuple(
                math.prod(shape[axis] for axis in axes)
                for axes in (input_axes, output_axes)
            )
        except IndexError:
            raise ValueError(
                f"`input_axes` and `output_axes` must be axes of shape={shape}. "
                f"Received: input_axes={input_axes}, output_axes={output_axes}"
            ) from None
    if len(shape) < 2:
        size = math.prod(shape)
        return size, size
    field = math.prod(shape[:-2])  # the taps of a convolution kernel
    return shape[-2] * field, shape[-1] * field


class _FixedVarianceScaling(VarianceScaling):
    """VarianceScaling with scale, mode and distribution set by the class."""

    _fixed: tuple[float, str, str]

    def __init__(
        self, seed: Seed = None, input_axes: Axes = None, output_axes: Axes = None
    ) -> None:
        super().__init__(*self._fixed, seed, input_axes, output_axes)


class GlorotUniform(_FixedVarianceScaling):
    """Uniform on +-sqrt(6 / (fan_in + fan_out)) (Glorot and Bengio 2010, eq. 16)."""

    _fixed = (1.0, "fan_avg", "uniform")


class GlorotNormal(_FixedVarianceScaling):
    """Truncated normal of variance 2 / (fan_in + fan_out) (Glorot and Bengio 2010)."""

    _fixed = (1.0, "fan_avg", "truncated_normal")


class HeNormal(_FixedVarianceScaling):
    """Truncated normal of variance 2 / fan_in (He et al. 2015)."""

    _fixed = (2.0, "fan_in", "truncated_normal")


class HeUniform(_FixedVarianceScaling):
    """Uniform on +-sqrt(6 / fan_in) (He et al. 2015)."""

    _fixed = (2.0, "fan_in", "uniform")


class LecunNormal(_FixedVarianceScaling):
    """Truncated normal of variance 1 / fan_in (LeCun et al. 1998)."""

    _fixed = (1.0, "fan_in", "truncated_normal")


class LecunUniform(_FixedVarianceScaling):
    """Uniform on +-sqrt(3 / fan_in) (LeCun et al. 1998)."""

    _fixed = (1.0, "fan_in", "uniform")


class Orthogonal(RandomInitializer):
    """A matrix with orthonormal rows or columns, times `gain` (Saxe et al. 2014).

    A shape of higher rank is filled as the matrix `(prod(shape[:-1]), shape[-1])`.
    The `(units, units)` gate blocks of a fused `(units, 3 * units)` recurrent kernel
    are not orthogonal one by one. As in the Keras NumPy backend the values have float32
    precision for either dtype; their last bits are those of LAPACK's QR.

    Parameters
    ----------
    gain : float, default 1.0
        Finite.
    seed : int or SeedGenerator, optional
        As in `RandomInitializer`.

    Raises
    ------
    ValueError
        On a call, if `shape` has rank 0 or 1.
    """

    def __init__(self, gain: float = 1.0, seed: Seed = None) -> None:
        self.gain = finite_number(gain, "gain")
        super().__init__(seed)

    def _fill(self, shape, dtype):
        if len(shape) < 2:
            raise ValueError(
                "Orthogonal needs a `shape` of rank 2 or more. "
                f"Received: shape={shape} of rank {len(shape)}"
            )
        rows, columns = math.prod(shape[:-1]), shape[-1]
        tall = (max(rows, columns), min(rows, columns))
        a = generator(self.seed).normal(size=tall).astype(np.float32)
        q, r = np.linalg.qr(a)
        q *= np.sign(np.diag(r))
        if rows < columns:
            q = q.T
        return (np.float32(self.gain) * q).reshape(shape).astype(dtype, order="C")
