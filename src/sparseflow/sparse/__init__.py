"""Truly sparse execution: layers, conversion and storage that cost what the non-zeros cost."""

from sparseflow.sparse.base import SparseLayer
from sparseflow.sparse.convert import SparseModel, to_dense, to_sparse
from sparseflow.sparse.layers import SparseConv2d, SparseLinear
from sparseflow.sparse.onnx import export_onnx
from sparseflow.sparse.plan import LayerPlan, Plan, plan
from sparseflow.sparse.storage import load, save

__all__ = [
    "LayerPlan",
    "Plan",
    "SparseConv2d",
    "SparseLayer",
    "SparseLinear",
    "SparseModel",
    "export_onnx",
    "load",
    "plan",
    "save",
    "to_dense",
    "to_sparse",
]
