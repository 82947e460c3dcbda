"""Data sets as tensors, and batches in seeded, resumable order."""

from sparseflow.data.batches import Batches
from sparseflow.data.mnist import Dataset, load_mnist

__all__ = ["Batches", "Dataset", "load_mnist"]
