"""Executes the Python examples of the README and the docs, each file in a folder of its own."""

import os
import tempfile
from collections.abc import Iterator
from typing import Any

# Two workers and what they start share the cores: before torch counts them.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
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


@pytest.fixture(autouse=True)
def registries(request: pytest.FixtureRequest) -> Iterator[None]:
    """Forget what a test or a docstring registers; the examples of a page share it."""
    if type(request.node).__name__ == "SybilItem":
        yield
        return
    import sparseflow as sf  # noqa: PLC0415  (after the import hook of the tests)
    from sparseflow.core.values import PARTS  # noqa: PLC0415
    from sparseflow.data import DATA  # noqa: PLC0415
    from sparseflow.models import MODELS  # noqa: PLC0415
    from sparseflow.recipes import FAMILIES  # noqa: PLC0415
    from sparseflow.studies import STUDIES  # noqa: PLC0415

    known = (sf.METHODS, sf.INITS, PARTS, MODELS, DATA, FAMILIES, STUDIES)
    before = [dict(registry._entries) for registry in known]
    yield
    for registry, entries in zip(known, before, strict=True):
        registry._entries.clear()
        registry._entries.update(entries)
