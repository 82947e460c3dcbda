"""Fixtures of the kernels."""

import jaxtyping
import pytest

from sparseflow.core.errors import SparseUnavailable
from sparseflow.sparse.kernels.library import core


@pytest.fixture(params=["v4", "v3", "portable"])
def level(request):
    if request.param not in core().levels:
        pytest.skip(f"the level {request.param} was not built")
    best = core().level
    try:
        core().set_level(request.param)
    except SparseUnavailable as error:
        pytest.skip(str(error))
    yield request.param
    core().set_level(best)


@pytest.fixture
def unannotated():
    """Leave the checks to the package, as outside of tests, where annotations do not check."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
