"""The device of these tests: a GPU, or what ``SPARSEFLOW_TEST_DEVICE`` names.

Without a GPU they are skipped. ``SPARSEFLOW_TEST_DEVICE=pretended`` runs all that CUDA alone does
not have on a device in Python (:mod:`helpers.pretended`), which is as strict about where tensors
lie and notes when the host waits; ``cpu`` only proves that the tests are well-formed.
"""

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import pytest
import torch

WHY = "CUDA is not available here; SPARSEFLOW_TEST_DEVICE=pretended runs what does not need it"
ASKED = os.environ.get("SPARSEFLOW_TEST_DEVICE", "cuda")


@pytest.fixture
def device() -> Iterator[torch.device]:
    """Where the tensors of a test lie."""
    if ASKED == "pretended":
        from helpers.pretended import device, pretending  # noqa: PLC0415  (it stays in the process)

        with pretending():
            yield device()
    elif ASKED != "cuda":
        yield torch.device(ASKED)
    elif torch.cuda.is_available():
        yield torch.device("cuda", torch.cuda.current_device())
    else:
        pytest.skip(WHY)


@pytest.fixture
def gpu() -> torch.device:
    """A GPU, for what CUDA alone has."""
    if ASKED != "cuda" or not torch.cuda.is_available():
        pytest.skip("CUDA is not available here")
    return torch.device("cuda", torch.cuda.current_device())


@pytest.fixture
def no_waiting(device: torch.device) -> Callable[[], AbstractContextManager[None]]:
    """A context in which the host must not wait for the device."""

    @contextmanager
    def on_cuda() -> Iterator[None]:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Synchronization debug mode is a prototype")
            torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")

    @contextmanager
    def pretended() -> Iterator[None]:
        from helpers.pretended import waited  # noqa: PLC0415

        before = len(waited)
        yield
        assert waited[before:] == []

    return {"cuda": on_cuda, "pretended": pretended}.get(device.type, nullcontext)
