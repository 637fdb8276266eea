"""The Keras GRU layer in NumPy and Numba."""
