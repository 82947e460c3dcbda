"""Choices that the library and its command line share; importing them does not import PyTorch."""

from typing import Literal

Execution = Literal["auto", "dense", "sparse"]
"""How a run is executed; ``auto`` decides by density, see :mod:`sparseflow.runs.execution`."""

Format = Literal["sparse", "onnx"]
"""What a run's network is exported as."""
