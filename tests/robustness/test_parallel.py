"""Data parallel: one mask on every rank, and the one that a single process would have."""

from pathlib import Path
from typing import Any

import pytest
from helpers import ranks
from helpers.ranks import UPDATES, Crews

pytestmark = pytest.mark.slow

CASES: dict[str, dict[str, Any]] = {
    f"{how} {method} {make}": {"how": how, "method": method, "make": make}
    for how, method, make in [
        ("ddp", "set", "adamw"),
        ("ddp", "rigl", "sgd"),
        ("ddp", "probe", "adamw"),
        ("ddp", "pruning", "sgd"),
        ("fsdp", "set", "sgd"),
        ("fsdp", "rigl", "adamw"),
        ("fsdp", "pruning", "sgd"),
    ]
}
RIGL = {"how": "ddp", "method": "rigl", "parts": 2}
CASES |= {
    "ddp, micro-batches": RIGL,
    "ddp, micro-batches, averaged once": RIGL | {"sync": False},
    "ddp, micro-batches, buckets": RIGL | {"gradient_as_bucket_view": True},
    "fsdp, micro-batches": RIGL | {"how": "fsdp"},
    "sparse ddp rigl": {"how": "ddp", "method": "rigl", "make": "adamw", "sparse": True},
    "sparse ddp set": {"how": "ddp", "method": "set", "sparse": True},
    "sparse ddp probe": {"how": "ddp", "method": "probe", "sparse": True},
    "sparse ddp, micro-batches": RIGL | {"sparse": True},
}
WRAPPING = ("how", "gradient_as_bucket_view")


@pytest.fixture(scope="module")
def single() -> dict[str, list[str]]:
    """The digests of one process, which takes the whole batch, and nothing wrapped."""
    cases = {
        name: {k: v for k, v in case.items() if k not in WRAPPING} | {"how": "bare"}
        for name, case in CASES.items()
    }
    return ranks.trails(cases)


@pytest.mark.parametrize("count", [2, pytest.param(4, marks=pytest.mark.soak)])
def test_masks_are_those_of_one_process_on_every_rank(
    count: int, single: dict[str, list[str]], crew: Crews
) -> None:
    found = crew(count)(ranks.trails, CASES)
    for name, digests in single.items():
        assert len(set(digests)) > UPDATES / 3, name
        assert [rank[name] for rank in found] == [digests] * count, name


@pytest.mark.parametrize("count", [2, pytest.param(4, marks=pytest.mark.soak)])
def test_in_float32_few_connections_differ_from_one_process(count: int, crew: Crews) -> None:
    single = ranks.positions("bare", "rigl")
    first, *others = crew(count)(ranks.positions, "ddp", "rigl")
    assert all(rank == first for rank in others)
    lost = sum(len(set(own) - set(first[name])) for name, own in single.items())
    assert lost <= 0.1 * sum(map(len, single.values()))


# ---- disagreement


@pytest.mark.parametrize(
    ("work", "where"),
    [
        (ranks.other_masks_on, "0.weight on rank 1; 2.weight on rank 1"),
        (ranks.other_layers_on, "on rank 1 the masks are not of the same parameters"),
    ],
)
def test_other_masks_on_one_rank_are_refused_on_all(work: Any, where: str, crew: Crews) -> None:
    for rank in crew(2)(work, 1):
        assert where in rank["error"]


def test_an_update_that_ranks_do_not_share_is_refused_on_all(crew: Crews) -> None:
    for rank in crew(2)(ranks.other_weights_on, 1):
        assert "masks differ from those of rank 0: 2.weight on rank 1." in rank["error"]
        assert rank["kept"]


@pytest.mark.soak
def test_the_error_names_every_rank_that_differs(crew: Crews) -> None:
    (text,) = {rank["error"] for rank in crew(3)(ranks.other_masks_on, 0)}
    assert "0.weight on ranks 1, 2; 2.weight on ranks 1, 2" in text


def test_a_gradient_that_is_not_finite_on_one_rank_defers_the_update_on_all(crew: Crews) -> None:
    assert crew(2)(ranks.not_finite_on, 1, "rigl") == [[0, 1], [0, 1]]


def test_a_group_of_its_own_lets_every_rank_train_its_own_model(crew: Crews) -> None:
    assert crew(2)(ranks.alone) == [[True, True]] * 2


# ---- what sharding keeps, and what it cannot do


@pytest.mark.filterwarnings("ignore:torch.distributed is .*uninitialized")
@pytest.mark.parametrize("how", ["ddp", "fsdp"])
def test_a_checkpoint_goes_on_in_one_process(how: str, tmp_path: Path, crew: Crews) -> None:
    path = str(tmp_path)
    first, second = crew(2)(ranks.saved_at, 8, how, path)
    assert first == second
    assert ranks.resumed_at(8, "bare", path) == first[8:]


@pytest.mark.soak
@pytest.mark.parametrize("how", ["ddp", "fsdp"])
def test_a_checkpoint_goes_on_with_more_ranks(how: str, tmp_path: Path, crew: Crews) -> None:
    first, _ = crew(2)(ranks.saved_at, 8, how, str(tmp_path))
    assert crew(4)(ranks.resumed_at, 8, how, str(tmp_path)) == [first[8:]] * 4


@pytest.mark.parametrize("count", [2, pytest.param(4, marks=pytest.mark.soak)])
def test_sharded_weights_and_state_are_zero_off_the_masks(count: int, crew: Crews) -> None:
    for rank in crew(count)(ranks.whole_weights, "fsdp"):
        assert rank["off"] == [0] * 8
        assert rank["outside"] == [0, 0]
        assert rank["shapes"] == [[10, 6], [3, 10]]


@pytest.mark.parametrize(
    ("work", "message"),
    [
        (ranks.shrinking, "0.weight would go from 60 to 52 values"),
        (ranks.sharded_values, "0.weight is truly sparse and sharded"),
        (ranks.measured_while_sharded, "are sharded: measure a whole model"),
        (ranks.sparsified_while_sharded, "make the model sparse first, then call fully_shard"),
        (ranks.measured_while_wrapped, "measure the one inside, model.module"),
    ],
)
def test_what_cannot_work_is_refused(work: Any, message: str, crew: Crews) -> None:
    for rank in crew(2)(work):
        assert message in rank["error"]
