"""Tests of a GPU on a device in Python, in a process of its own: it cannot be taken back."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1] / "cuda"


def passed(*chosen: str) -> int:
    """Run tests on the pretended device; return how many passed, which must be all that ran."""
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", str(TESTS), *chosen]
    here = os.environ | {"SPARSEFLOW_TEST_DEVICE": "pretended"}
    root = TESTS.parents[1]
    done = subprocess.run(command, check=False, env=here, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    return int(done.stdout.split(" passed")[0].split()[-1])


@pytest.mark.slow
def test_masks_are_equal_and_no_step_waits_without_an_update() -> None:
    assert passed("-k", "every_method or host_waits or bit_for_bit") == 18


@pytest.mark.soak
def test_all_that_does_not_need_cuda_itself() -> None:
    assert passed() > 70
