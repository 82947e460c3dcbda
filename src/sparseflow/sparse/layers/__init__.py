"""Layers that hold their non-zeros, a file a type, and what else runs in the blocked layout."""

from sparseflow.sparse.layers.base import SparseLayer
from sparseflow.sparse.layers.conv import SparseConv2d
from sparseflow.sparse.layers.conv1d import SparseConv1d
from sparseflow.sparse.layers.linear import SparseLinear

__all__ = ["SparseConv1d", "SparseConv2d", "SparseLayer", "SparseLinear"]
