"""Settings that must hold before Keras is imported."""

import os

os.environ.setdefault("KERAS_BACKEND", "numpy")
