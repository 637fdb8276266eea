"""Benchmarks: an asv suite and `peers`, a comparison with other engines."""
