"""Streams, selection, schedules, functional gradients."""

import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from sparseflow.core.batches import Part, batch_size, split
from sparseflow.core.chunks import parts_of
from sparseflow.core.errors import TopologyError, unknown
from sparseflow.core.functional import gradient, undisturbed
from sparseflow.core.random import generator
from sparseflow.core.schedules import (
    Moment,
    constant,
    cosine,
    cubic,
    every,
    lr_proportional,
)
from sparseflow.core.select import find, mask_at, merged, positions_of, top_k, top_k_of_blocks

# ---- random streams


def draws(*names: str | int, seed: int = 0) -> list[int]:
    return torch.randint(10**9, (8,), generator=generator(seed, *names)).tolist()


def test_stream_is_the_same_in_another_process(elsewhere):
    code = (
        "import torch; from sparseflow.core.random import generator\n"
        "g = generator(3, 'mask', 'fc.weight', 7)\n"
        "print(torch.randint(10**9, (8,), generator=g).tolist())"
    )
    assert elsewhere(code) == str(draws("mask", "fc.weight", 7, seed=3))


def test_streams_differ_by_seed_name_order_and_type():
    streams = [
        draws("a"),
        draws("a", seed=1),
        draws("b"),
        draws("a", "b"),
        draws("b", "a"),
        draws("ab"),
        draws("1"),
        draws(1),
        draws(),
    ]
    assert len({tuple(s) for s in streams}) == len(streams)


def test_a_stream_leaves_the_global_one_alone():
    before = torch.random.get_rng_state()
    torch.rand(5, generator=generator(0, "x"))
    assert torch.equal(before, torch.random.get_rng_state())


# ---- top_k


@given(
    scores=st.lists(st.integers(-3, 3), min_size=1, max_size=40),
    share=st.floats(0, 1),
)
def test_top_k_is_a_stable_sort_by_score(scores, share):
    k = round(share * len(scores))
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    chosen = top_k(torch.tensor(scores, dtype=torch.float32), k)
    assert chosen.nonzero().squeeze(1).tolist() == sorted(order[:k])


def test_top_k_keeps_the_shape_and_takes_infinities():
    scores = torch.tensor([[-torch.inf, 0.0], [torch.inf, -1.0]])
    assert top_k(scores, 3).tolist() == [[False, True], [True, True]]


@pytest.mark.parametrize("k", [-1, 4])
def test_top_k_out_of_range(k):
    with pytest.raises(ValueError, match=f"k={k} is not between 0 and the 3"):
        top_k(torch.ones(3), k)


@pytest.mark.parametrize("k", [0, 1, 2])
def test_top_k_refuses_nan(k):
    with pytest.raises(ValueError, match="NaN"):
        top_k(torch.tensor([1.0, float("nan")]), k)


@given(
    scores=st.lists(st.integers(-3, 3), min_size=1, max_size=40),
    share=st.floats(0, 1),
    size=st.integers(1, 45),
)
def test_top_k_of_blocks_is_top_k_of_the_whole(scores, share, size):
    whole = torch.tensor(scores, dtype=torch.float32)
    k = max(1, round(share * len(scores)))
    positions, found = top_k_of_blocks(whole.split(size), k)
    assert torch.equal(positions, positions_of(top_k(whole, k)))
    assert torch.equal(found, whole[positions])


def test_top_k_of_blocks_takes_rows_of_any_shape_and_infinities():
    scores = torch.tensor([[-torch.inf, 0.0], [torch.inf, -1.0], [-torch.inf, 0.0]])
    assert top_k_of_blocks(scores.split(1), 2)[0].tolist() == [1, 2]
    assert top_k_of_blocks(scores.split(1), 5)[0].tolist() == [0, 1, 2, 3, 5]


@pytest.mark.parametrize("place", range(5))
def test_top_k_of_blocks_refuses_nan_wherever_it_is(place):
    scores = torch.ones(5)
    scores[place] = torch.nan
    with pytest.raises(ValueError, match="NaN"):
        top_k_of_blocks(scores.split(1), 2)


def test_top_k_of_too_few():
    with pytest.raises(ValueError, match="k=4 is not between 0 and the 3"):
        top_k_of_blocks(torch.ones(3).split(2), 4)


positions = st.sets(st.integers(0, 30)).map(lambda found: torch.tensor(sorted(found)).long())


@given(a=positions, b=positions)
def test_sorted_positions(a, b):
    where, there = find(a, b)
    assert there.tolist() == [i in b.tolist() for i in a.tolist()]
    assert torch.equal(b[where[there]], a[there])
    assert merged(a, b).tolist() == sorted(a.tolist() + b.tolist())
    assert torch.equal(positions_of(mask_at(a, (31,))), a)
    assert mask_at(a, (1, 31)).shape == (1, 31)


# ---- schedules


@pytest.mark.parametrize(
    ("n", "start", "stop", "fires"),
    [
        (3, 0, None, [3, 6, 9]),
        (3, 2, None, [2, 5, 8]),
        (4, 2, 6, [2, 6]),
        (1, 8, None, [8, 9]),
        (5, 5, 5, [5]),
    ],
)
def test_every(n, start, stop, fires):
    when = every(n, start=start, stop=stop)
    assert [step for step in range(10) if when(step)] == fires


def test_fractions_in_closed_form():
    assert constant(0.3)(Moment(9, 0.1)) == 0.3
    assert lr_proportional(0.3)(Moment(9, 0.5)) == pytest.approx(0.15)
    assert lr_proportional(0.8)(Moment(9, 2.0)) == 0.8
    annealed = cosine(0.4, 100)
    assert [annealed(Moment(s)) for s in (0, 50, 100, 150)] == pytest.approx([0.4, 0.2, 0, 0])
    assert annealed(Moment(25)) == pytest.approx(0.2 * (1 + math.sqrt(0.5)))


def test_cubic_in_closed_form():
    density = cubic(0.05, 3000, 7000)
    assert [density(s) for s in (0, 3000, 5000, 7000, 9000)] == pytest.approx(
        [1, 1, 0.05 + 0.95 / 8, 0.05, 0.05]
    )
    assert cubic(0.5, 0, 4, power=1.0)(1) == pytest.approx(0.875)


@pytest.mark.parametrize(
    "make",
    [
        lambda: every(0),
        lambda: every(5, start=10, stop=9),
        lambda: constant(1.1),
        lambda: constant(float("nan")),
        lambda: cosine(-0.1, 10),
        lambda: cosine(0.1, 0),
        lambda: lr_proportional(2.0),
        lambda: cubic(0.1, 10, 10),
    ],
)
def test_impossible_schedules(make):
    with pytest.raises(TopologyError):
        make()


# ---- gradient


def squares(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    x, y = batch
    return (model(x) - y).square().mean()


@pytest.fixture
def problem():
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    batch = (torch.randn(10, 5).double(), torch.randn(10, 2).double())
    return model, batch


@pytest.mark.parametrize("chunk", [1, 3, 4, 10, 99])
def test_gradient_equals_autograd_however_it_is_chunked(problem, chunk):
    model, batch = problem
    value, grads = gradient(model, squares, parts_of(model, squares, batch, chunk))
    expected = squares(model, batch)
    expected.backward()
    torch.testing.assert_close(value, expected.detach(), rtol=1e-13, atol=1e-15)
    assert list(grads) == [n for n, _ in model.named_parameters()]
    for name, p in model.named_parameters():
        torch.testing.assert_close(grads[name], p.grad, rtol=1e-12, atol=1e-15)


def test_gradient_leaves_grad_alone_works_under_no_grad_and_fires_no_hook(problem):
    model, batch = problem
    marker = torch.full_like(model[0].weight, 7.0)
    model[0].weight.grad = marker.clone()
    model[0].weight.register_post_accumulate_grad_hook(lambda p: pytest.fail("hook fired"))
    with torch.no_grad():
        gradient(model, squares, [Part(batch, 1.0)])
    assert torch.equal(model[0].weight.grad, marker)
    assert model[2].weight.grad is None


def test_gradient_of_unused_and_frozen_parameters(problem):
    model, batch = problem
    model.register_parameter("unused", nn.Parameter(torch.ones(3).double()))
    model[0].bias.requires_grad_(False)
    _, grads = gradient(model, squares, [Part(batch, 1.0)])
    assert grads["unused"].tolist() == [0, 0, 0]
    assert "0.bias" not in grads


def test_gradient_needs_a_chunk(problem):
    with pytest.raises(ValueError, match="at least one chunk"):
        gradient(problem[0], squares, [])


def test_split_cuts_every_tensor_of_a_tree():
    batch = {"x": torch.arange(5), "pair": [torch.arange(10).reshape(5, 2), 3], "s": torch.ones(())}
    parts = split(batch, 2)
    assert [batch_size(p) for p in parts] == [2, 2, 1]
    assert torch.equal(torch.cat([p["pair"][0] for p in parts]), batch["pair"][0])
    assert all(p["pair"][1] == 3 and p["s"] == 1 for p in parts)
    with pytest.raises(ValueError, match="first dimension"):
        batch_size({"s": torch.ones(()), "n": 3})


# ---- undisturbed


def test_undisturbed_restores_buffers_flags_and_random_numbers():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
    model[2].eval()
    buffers = copy.deepcopy(dict(model.named_buffers()))
    flags = [m.training for m in model.modules()]
    stream = torch.random.get_rng_state()
    with undisturbed(model):
        model.train()
        model(torch.randn(8, 4))
        assert model[1].num_batches_tracked == 1
    assert [m.training for m in model.modules()] == flags
    assert torch.equal(torch.random.get_rng_state(), stream)
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, buffers[name])


def test_undisturbed_restores_after_an_error():
    model = nn.BatchNorm1d(3)

    def broken():
        with undisturbed(model):
            model(torch.randn(4, 3))
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        broken()
    assert model.running_mean is not None
    assert model.running_mean.tolist() == [0, 0, 0]


def test_undisturbed_with_buffers_that_are_replaced_or_born_inside():
    model = nn.Linear(2, 2)
    model.register_buffer("cache", torch.ones(2))
    with undisturbed(model):
        model.cache = torch.zeros(5)
        model.register_buffer("late", torch.ones(2))
    assert model.cache.tolist() == [1, 1]


# ---- errors


def test_unknown_suggests_the_nearest():
    assert "did you mean 'rigl'?" in unknown("method", "riggl", ["rigl", "set"])
    assert "did you mean" not in unknown("method", "zzz", ["rigl", "set"])
