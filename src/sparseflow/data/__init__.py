"""Data sets as tensors, and batches in seeded, resumable order."""

from sparseflow.data.batches import Batches
from sparseflow.data.mnist import TRAIN_EXAMPLES, Dataset, load_mnist

__all__ = ["TRAIN_EXAMPLES", "Batches", "Dataset", "load_mnist"]
