"""Settings that must hold before Keras, Numba or a test is imported."""

import hashlib
import os
import random
import zlib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).parents[1]


def _source_hash():
    """Hash the package's sources, as the stamp in its compiled code does."""
    digest = hashlib.sha256()
    for path in sorted((ROOT / "numbagru").rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


os.environ.setdefault("KERAS_BACKEND", "numpy")
# Work trees with different sources would evict each other from a shared cache.
os.environ.setdefault("NUMBA_CACHE_DIR", str(ROOT / ".numba_cache" / _source_hash()))

# The first example of a property compiles kernels; the same commit sees the same ones.
settings.register_profile(
    "numbagru",
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("numbagru")

# `seed=None` draws from Python's `random`: every run sees the same weights, also those
# of layers made when a module is imported.
random.seed(0)


@pytest.fixture(autouse=True)
def seeds_of_the_test(request):
    """Draw the same seeds in a test whether it runs alone or after others."""
    random.seed(zlib.crc32(request.node.nodeid.encode()))
