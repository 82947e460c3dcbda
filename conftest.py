"""Executes the Python examples of the README and the docs, each file in a folder of its own."""

import os
import tempfile
from typing import Any

import torch
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser


def enter(namespace: dict[str, Any]) -> None:
    """Work in a fresh folder, from one state of the global random stream."""
    torch.manual_seed(0)
    namespace["_home"] = os.getcwd()
    namespace["_folder"] = tempfile.TemporaryDirectory()
    os.chdir(namespace["_folder"].name)


def leave(namespace: dict[str, Any]) -> None:
    """Go back and remove it."""
    os.chdir(namespace["_home"])
    namespace["_folder"].cleanup()


pytest_collect_file = Sybil(
    parsers=[PythonCodeBlockParser()],
    patterns=["README.md", "docs/*.md"],
    setup=enter,
    teardown=leave,
).pytest()
