"""Initializers of Keras 3, with the bits of its NumPy backend.

Formulas and defaults are those of `keras.initializers`; each instance is called as
`initializer(shape, dtype="float32")`. One that holds an int seed, or none, returns
the same values on each call; one that holds a `SeedGenerator` returns fresh ones.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from numbagru import registry
from numbagru.initializers.drawn import (
    GlorotNormal,
    GlorotUniform,
    HeNormal,
    HeUniform,
    LecunNormal,
    LecunUniform,
    Orthogonal,
    RandomNormal,
    RandomUniform,
    TruncatedNormal,
    VarianceScaling,
)
from numbagru.initializers.fixed import (
    STFT,
    Constant,
    Identity,
    Initializer,
    Ones,
    Values,
    Zeros,
)

_TABLE = registry.name_table(
    "keras.initializers",
    Initializer,
    Constant,
    GlorotNormal,
    GlorotUniform,
    HeNormal,
    HeUniform,
    Identity,
    LecunNormal,
    LecunUniform,
    Ones,
    Orthogonal,
    RandomNormal,
    RandomUniform,
    STFT,
    TruncatedNormal,
    VarianceScaling,
    Zeros,
    IdentityInitializer=Identity,
    OrthogonalInitializer=Orthogonal,
    STFTInitializer=STFT,
    normal=RandomNormal,
    one=Ones,
    uniform=RandomUniform,
    zero=Zeros,
)
# The names tf.keras 2 wrote, and the class that only numbagru has.
_TABLE |= {f"{name}V2": cls for name, cls in _TABLE.items()} | {"Values": Values}

__getattr__ = partial(registry.module_attribute, __name__, _TABLE)

serialize = registry.serialize_object


def get(
    identifier: Any, custom_objects: Mapping[str, Any] | None = None
) -> Callable[..., np.ndarray] | None:
    """Return the initializer that an identifier stands for.

    Parameters
    ----------
    identifier : None, str, dict, class, callable or numpy.ndarray
        A Keras name ("glorot_uniform", "GlorotUniform", "zero", ...; case counts), a
        config dict of Keras 3 or tf.keras 2, a class, an instance, a callable
        `(shape, dtype=None)`, or the values themselves. None stays None.
    custom_objects : mapping, optional
        Names to classes or functions, ahead of the built-in ones.

    Raises
    ------
    ValueError
        If the identifier is none of these, or stands for STFT.
    TypeError
        If a config does not fit its class.
    """
    if isinstance(identifier, (np.ndarray, np.generic)):
        return Values(identifier)
    return registry.resolve(identifier, _TABLE, "initializer", custom_objects)


deserialize = get
