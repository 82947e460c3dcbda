"""How the gradient that is read follows from the one that was collected."""

import pytest
import torch

from sparseflow.topology.explain import Relation, relation


def drawn(seed: int, count: int = 40) -> torch.Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(seed))


D, W = drawn(0), drawn(1)


@pytest.mark.parametrize(
    ("read", "factor"),
    [
        (D.clone(), 1.0),
        (D * 0.25, 0.25),
        (-D, -1.0),
        (D * (1 + 1e-8), 1.0),
        (D.bfloat16().float(), 1.0),
        (D.clamp(-0.3, 0.3), 1.0),
        ((3 * D).clamp(-0.5, 0.5), 3.0),
        (D.clamp(-1e-4, 1e-4), 1.0),
        (torch.zeros_like(D), 0.0),
    ],
    ids=[
        "same",
        "scaled",
        "negated",
        "rounded",
        "communicated",
        "clipped",
        "scaled-clipped",
        "sign",
        "zeroed",
    ],
)
def test_a_factor(read, factor):
    found = relation(read, D, W)
    assert found is not None
    assert found.factor == pytest.approx(factor, rel=5e-3)
    assert not found.terms


@pytest.mark.parametrize(("r", "a", "b"), [(1.0, 0.3, 0.0), (0.5, 0.0, 0.2), (2.0, -0.4, 0.7)])
def test_terms_of_the_weights(r, a, b):
    found = relation(r * D + a * W + b * W.sign(), D, W)
    assert found is not None
    assert found.factor == pytest.approx(r, rel=1e-5)
    assert found.terms


def test_terms_alone_are_nothing_of_what_was_collected():
    assert relation(0.3 * W + W.sign(), D, W) == Relation(0.0, terms=True)


@pytest.mark.parametrize(
    "read", [drawn(2), D + drawn(2), D + 0.05 * drawn(2), D.flip(0), D.masked_fill(D > 0, 0)]
)
def test_another_gradient(read):
    assert relation(read, D, W) is None


def test_few_connections_prove_nothing_but_a_factor():
    assert relation(D[:3] * 2, D[:3], W[:3]) == Relation(2.0)
    assert relation(D[1:4], D[:3], W[:3]) is None


def test_what_is_not_finite_is_left_to_others():
    assert relation(D * torch.inf, D, W) == Relation(1.0)


def test_no_connections():
    assert relation(D[:0], D[:0], W[:0]) == Relation(1.0)


def test_what_is_not_scaled_is_not_rounded():
    found = relation(D * (1 + 1e-8), D, W)
    assert found == Relation(1.0)
