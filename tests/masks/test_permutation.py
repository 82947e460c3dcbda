"""The beginning of a random permutation against torch's own, and against its steps one by one."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparseflow.masks import permutation
from sparseflow.masks.permutation import first_of_permutation


def stream(seed):
    return torch.Generator().manual_seed(seed)


@given(n=st.integers(1, 300), share=st.floats(0, 0.25), seed=st.integers(0, 999))
def test_the_beginning_is_that_of_the_permutation(n, share, seed):
    k = int(share * n)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(permutation, "MANY", 0)
        found = first_of_permutation(n, k, stream(seed))
    assert found.tolist() == torch.randperm(n, generator=stream(seed))[:k].tolist()


@given(n=st.integers(1, 300), share=st.floats(0, 1), seed=st.integers(0, 999))
def test_the_other_way_is_followed_step_by_step(n, share, seed):
    k = int(share * n)
    words = torch.empty(n, dtype=torch.int64).random_(-(2**63), None, generator=stream(seed))
    whole = list(range(n))
    for step, word in enumerate(words.tolist()):
        source = word % 2**64 % (step + 1)
        whole[step], whole[source] = whole[source], step
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(permutation, "_AT_ONCE", 7)
        assert permutation._inside_out(n, k, stream(seed)).tolist() == whole[:k]


def test_small_or_dense_ones_are_torch_s_own(monkeypatch):
    monkeypatch.setattr(permutation, "_forward", None)  # not to be called
    assert first_of_permutation(20, 3, stream(0)).equal(torch.randperm(20, generator=stream(0))[:3])
    monkeypatch.setattr(permutation, "MANY", 20)
    assert first_of_permutation(20, 6, stream(0)).equal(torch.randperm(20, generator=stream(0))[:6])


@pytest.mark.soak
@pytest.mark.parametrize("n", [permutation._OTHER - 1, permutation._OTHER])
def test_torch_changes_its_way_where_this_does(n):
    found = first_of_permutation(n, 10_000, stream(1))
    assert found.equal(torch.randperm(n, generator=stream(1))[:10_000])
