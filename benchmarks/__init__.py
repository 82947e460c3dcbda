"""Benchmarks of sparseflow; ``python -m benchmarks`` from the repository root runs them."""
