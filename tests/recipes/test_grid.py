"""Grids of settings, and which runs of a store are chosen."""

import pytest

from sparseflow.core.errors import SpecError
from sparseflow.recipes import expand, grid, one_each


def test_a_grid_is_the_product_with_the_last_setting_fastest() -> None:
    assert grid(["optimizer.lr=0.1,0.05", "density=0.02, 0.05,0.1"]) == [
        (f"optimizer.lr={lr}", f"density={density}")
        for lr in ("0.1", "0.05")
        for density in ("0.02", "0.05", "0.1")
    ]
    assert grid([]) == [()]


@pytest.mark.parametrize(
    "setting",
    [
        "optimizer.milestones=[50,80]",
        "method.drop=cosine(0.3, 100)",
        "method=rigl(every(50, stop=500), drop=cosine(0.3, 100), grow_from='a,b')",
        'recipe="a,b"',
        'method={"kind": "static", "x": [1, 2]}',
        "density=0.02",
        "model.widths=[]",
    ],
)
def test_commas_within_a_value_are_its_own(setting: str) -> None:
    assert grid([setting]) == [(setting,)]
    assert one_each([setting]) == (setting,)


def test_several_lists_and_calls_are_several_values() -> None:
    assert grid(
        ["optimizer.milestones=[50,80],[60]", "method.drop=cosine(0.3, 9),constant(0.1)"]
    ) == [
        (f"optimizer.milestones={steps}", f"method.drop={drop}")
        for steps in ("[50,80]", "[60]")
        for drop in ("cosine(0.3, 9)", "constant(0.1)")
    ]


def test_equal_values_are_one() -> None:
    assert grid(["density=0.1,0.1"]) == [("density=0.1",)]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["density=0.1,"], ["density=0.1,", "empty"]),
        (["density=0.1", "density=0.2"], ["set twice", "density=0.1,0.2"]),
        (["density"], ["path=value"]),
        (["=1"], ["path=value"]),
    ],
)
def test_bad_grids_are_refused(settings: list[str], words: list[str]) -> None:
    with pytest.raises(SpecError) as error:
        grid(settings)
    assert all(word in str(error.value) for word in words)


def test_one_run_takes_one_value() -> None:
    with pytest.raises(SpecError, match="has several values"):
        one_each(["density=0.1,0.2"])


def test_patterns_stand_for_the_recipes_that_fit() -> None:
    found = expand(["lenet5-mnist/rigl*", "lenet5-mnist/rigl+", "mlp-mnist/dense"])
    assert found == [
        *(f"lenet5-mnist/{name}" for name in ("rigl", "rigl-liu", "rigl+", "rigl-inverted+")),
        "mlp-mnist/dense",
    ]
    assert expand(["mlp-mnist/lottery*"]) == ["mlp-mnist/lottery"]
    assert expand(["mlp-mnist/*:orders"]) == [
        f"mlp-mnist/{name}:orders" for name in ("lottery", "scratch", "prune-restart")
    ]
    with pytest.raises(SpecError, match=r"no recipe fits 'mlp-mnist/rigll\*'"):
        expand(["mlp-mnist/rigll*"])
