"""Threads, patterns and error bounds for tests of kernels."""

from contextlib import contextmanager

import torch

from sparseflow.sparse.kernels import blocked

EPSILON = 2.0**-24


@contextmanager
def threads(count):
    """Use this many threads for however little work."""
    worth, before = blocked._WORTH_THREADS, torch.get_num_threads()
    blocked._WORTH_THREADS = 0
    torch.set_num_threads(count)
    try:
        yield
    finally:
        blocked._WORTH_THREADS = worth
        torch.set_num_threads(before)


def csr(mask):
    pointers = torch.cat([torch.zeros(1, dtype=torch.long), mask.sum(1).cumsum(0)])
    return pointers.int(), mask.nonzero()[:, 1].int()


def assert_within(actual, exact, magnitude, terms):
    """Hold a float32 sum of that many terms to its error bound; magnitude: of their absolutes."""
    bound = (terms + 4) * EPSILON * magnitude + 1e-37
    assert actual.shape == exact.shape
    assert ((actual.double() - exact).abs() <= bound).all()
