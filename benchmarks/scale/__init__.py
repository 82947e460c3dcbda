"""Sweeps and stores of thousands of runs."""
