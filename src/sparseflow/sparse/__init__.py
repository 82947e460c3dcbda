"""Truly sparse execution: layers, conversion and storage that cost what the non-zeros cost.

From the ground up: ``kernels`` (the C++ core), ``layers`` (a file a type, and the registry
of types), ``convert`` (a traced model in the blocked layout), ``plan`` (what that gains)
and ``files`` (models that are stored and read back).
"""

from sparseflow.sparse.convert.model import SparseModel, to_dense
from sparseflow.sparse.files.onnx import export_onnx
from sparseflow.sparse.files.storage import load, save
from sparseflow.sparse.layers import SparseConv1d, SparseConv2d, SparseLayer, SparseLinear
from sparseflow.sparse.plan.plan import Plan, plan
from sparseflow.sparse.plan.predict import LayerPlan
from sparseflow.sparse.to_sparse import to_sparse

__all__ = [
    "LayerPlan",
    "Plan",
    "SparseConv1d",
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
