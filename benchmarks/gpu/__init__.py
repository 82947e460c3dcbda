"""Masked training on a GPU."""
