"""Data sets as splits of examples, and batches in seeded, resumable order."""

from sparseflow.data.augment import CropFlip
from sparseflow.data.batches import Batches
from sparseflow.data.cifar import load_cifar10
from sparseflow.data.dataset import Batch, Dataset, Examples, Split, in_batches
from sparseflow.data.imagenet import load_imagenet
from sparseflow.data.mnist import load_mnist
from sparseflow.data.registry import DATA, DataSource, register_data

__all__ = [
    "DATA",
    "Batch",
    "Batches",
    "CropFlip",
    "DataSource",
    "Dataset",
    "Examples",
    "Split",
    "in_batches",
    "load_cifar10",
    "load_imagenet",
    "load_mnist",
    "register_data",
]
