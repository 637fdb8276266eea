"""One weight of a layer: a named, read-only array that changes only by `assign`."""

from __future__ import annotations

from typing import Any

import numpy as np

from numbagru.config import canonical_dtype


class Variable:
    """A named array owned by a layer.

    The array behind `value` is read-only, and `assign` replaces it instead of writing
    into it: a value handed out earlier never changes, and no weight changes without
    the owner knowing.

    Parameters
    ----------
    value : array_like
        Initial value; copied.
    name : str, default "variable"
        Name without the path.
    dtype : str, optional
        "float32" (default) or "float64".
    trainable : bool, default True
        Whether an optimizer updates it.
    path : str, optional
        Names of the owning layers and `name`, joined by "/".
    regularizer, constraint : callable, optional
        Penalty and projection that belong to this weight.
    owner : Layer, optional
        Told by `owner._weights_changed()` after each `assign`.
    """

    def __init__(
        self,
        value: Any,
        *,
        name: str = "variable",
        dtype: Any = None,
        trainable: bool = True,
        path: str | None = None,
        regularizer: Any = None,
        constraint: Any = None,
        owner: Any = None,
    ) -> None:
        self.name = name
        self.path = name if path is None else path
        self.trainable = trainable
        self.learnable = trainable  # never to be trained when False
        self.regularizer = regularizer
        self.constraint = constraint
        self.dtype = canonical_dtype(dtype)
        self._dtype = np.dtype(self.dtype)
        self._owner = owner
        self._value = self.converted(value)
        self._value.setflags(write=False)

    @property
    def value(self) -> np.ndarray:
        """The current array, read-only."""
        return self._value

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array; fixed for life."""
        return self._value.shape

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return self._value.ndim

    @property
    def size(self) -> int:
        """Number of elements."""
        return self._value.size

    def numpy(self) -> np.ndarray:
        """Return the current array, read-only."""
        return self._value

    def assign(self, value: Any) -> Variable:
        """Replace the value.

        Parameters
        ----------
        value : array_like
            Same shape; cast to `dtype` and copied.

        Returns
        -------
        Variable
            This variable.

        Raises
        ------
        ValueError
            If the shape differs.
        TypeError
            If `value` is not made of real numbers.
        """
        array = self.converted(value)
        if array.shape != self.shape:
            raise ValueError(
                f"`value` must have the shape {self.shape} of the variable "
                f"'{self.path}'. Received: value.shape={array.shape}"
            )
        self.adopt(array)
        return self

    def adopt(self, array: np.ndarray) -> None:
        """Take an array of the right shape and dtype, that nobody else holds.

        What `assign` does after its checks and its copy.
        """
        array.setflags(write=False)
        self._value = array
        if self._owner is not None:
            self._owner._weights_changed()

    def converted(self, value: Any) -> np.ndarray:
        """Return a copy of `value`, of any shape, in this variable's dtype."""
        if type(value) is np.ndarray and value.dtype is self._dtype:
            return value.copy()
        array = np.asarray(value)
        if array.dtype.kind not in "fiub":
            raise TypeError(
                f"The value of the variable '{self.path}' must be real numbers. "
                f"Received: dtype={array.dtype}"
            )
        return np.array(array, self._dtype, order="C")

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """Let NumPy functions take the variable as an array."""
        if copy:
            return np.array(self._value, dtype=dtype)
        return np.asarray(self._value, dtype=dtype)

    def __len__(self) -> int:
        """Return the length of the first axis."""
        return len(self._value)

    def __getitem__(self, index: Any) -> np.ndarray:
        """Return a part of the value."""
        return self._value[index]

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a pickled or copied variable, which NumPy leaves writable."""
        self.__dict__.update(state)
        self._value.setflags(write=False)

    def __repr__(self) -> str:
        """Show path, shape, dtype and value."""
        return (
            f"<Variable path={self.path}, shape={self.shape}, dtype={self.dtype}, "
            f"value={self._value}>"
        )


class RandomState(Variable):
    """The `[seed, counter]` of a random generator, seen as a variable."""

    def __init__(self, generator: Any) -> None:
        self._generator = generator
        self.name = "seed_generator_state"
        self.path = f"{generator.name}/{self.name}"
        self.dtype = "uint32"
        self.trainable = self.learnable = False
        self.regularizer = self.constraint = None

    @property
    def _value(self) -> np.ndarray:
        return self._generator.state

    def assign(self, value: Any) -> RandomState:
        """Set seed and counter, as to repeat the draws from an earlier state."""
        self._generator.state = value
        return self
