"""Shared fixtures; shapes in annotations are checked in tests only."""

import os
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from hypothesis import settings
from jaxtyping import install_import_hook

install_import_hook("sparseflow", "beartype.beartype")

torch.set_num_threads(1)
settings.register_profile("repeatable", deadline=None, derandomize=True, database=None)
settings.load_profile("repeatable")


@pytest.fixture(autouse=True)
def global_seed() -> None:
    """Every test starts from one state of the global random stream."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def elsewhere() -> Callable[[str], str]:
    """Run code in a fresh process, under another hash seed; return what it prints."""

    def run(code: str) -> str:
        env = os.environ | {"PYTHONHASHSEED": "12345"}
        done = subprocess.run(
            [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    return run
