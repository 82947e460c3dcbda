"""Recipes against each other: which pairs, which numbers, which words."""

import json
import math

import pytest
from helpers.own import EXAMPLE, clean_slate, example
from helpers.small import TINY, alone, tiny
from helpers.work import interrupt

from sparseflow.core.errors import StoreError
from sparseflow.measure import flops, paired
from sparseflow.recipes import make_spec
from sparseflow.report.compare import (
    Compared,
    Difference,
    Outcome,
    Versus,
    _corrected,
    _difference,
    _paired,
    compare,
    shared,
)
from sparseflow.report.compare_text import markdown_table, sentences
from sparseflow.runs import Store, execute
from sparseflow.runs.build import load_data, make_model
from sparseflow.runs.cost import training_flops

METRICS = {"test_accuracy": "test accuracy, %", "seconds": "seconds"}


def outcome(recipe, seed, accuracy, seconds=1.0):
    values = {"test_accuracy": accuracy, "seconds": seconds}
    return Outcome(recipe, seed, f"{recipe}{seed}", "dense", accuracy < 20, values)


def versus(recipe, ours, theirs):
    a = {s: outcome(recipe, s, *v) for s, v in enumerate(ours)}
    b = {s: outcome("base", s, *v) for s, v in enumerate(theirs)}
    return Versus(recipe, (), **_paired(a, b, METRICS))


def test_dead_runs_are_counted_and_living_pairs_compared():
    ours = [(90.0,), (10.0,), (92.0,), (93.0,), (95.0,)]
    theirs = [(89.0,), (88.0,), (90.0,), (9.0,), (92.0,)]
    found = versus("mine", ours, theirs)
    assert found.dead == (1, 1)
    assert found.p_dead == 1.0
    assert found.living == (0, 2, 4)
    accuracy = found.differences[0]
    assert accuracy.values == {0: 1.0, 2: 2.0, 4: 3.0}
    assert (accuracy.other, accuracy.baseline) == pytest.approx((277 / 3, 271 / 3))
    assert accuracy.comparison == paired({0: 90, 2: 92, 4: 95}, {0: 89, 2: 90, 4: 92})


def test_runs_that_were_interrupted_have_no_seconds():
    found = versus("mine", [(90.0, math.nan), (91.0, 2.0), (92.0, 4.0)], [(89.0, 1.0)] * 3)
    seconds = found.differences[1]
    assert seconds.values == {1: 1.0, 2: 3.0}
    assert seconds.comparison.difference.n == 2


def test_fewer_than_two_living_pairs_are_not_compared():
    found = versus("mine", [(10.0,), (10.0,), (90.0,)], [(90.0,)] * 3)
    assert found.differences[0].comparison is None
    assert found.differences[0].values == {2: 0.0}
    compared = Compared("base", (0, 1, 2), METRICS, (), _corrected([found]))
    assert sentences(compared)[0] == (
        "mine: 2 of 3 runs died, of base 0 (exact McNemar test: p = 0.50); "
        "1 pair of living runs: too few to compare."
    )
    assert "| mine | test accuracy, % | 1 | 90.00 | 90.00 | – | – | – |" in markdown_table(compared)


def test_holm_is_over_the_recipes_of_each_metric():
    theirs = [(float(80 + s), 1.0 + s % 3) for s in range(8)]
    better = versus("better", [(a + 1.0, s) for a, s in theirs], theirs)
    worse = versus("worse", [(a - 1 - k / 9, s) for k, (a, s) in enumerate(theirs)], theirs)
    same = versus("same", [(a + (-1.0) ** k, s) for k, (a, s) in enumerate(theirs)], theirs)
    corrected = _corrected([better, worse, same])
    smallest = 2 / 2**8
    assert [v.differences[0].comparison.p_exact for v in corrected][:2] == [smallest, smallest]
    assert [v.differences[0].p_holm for v in corrected] == pytest.approx(
        [3 * smallest, 3 * smallest, 1.0]
    )
    assert [v.differences[1].p_holm for v in corrected] == [1.0, 1.0, 1.0]
    compared = Compared("base", tuple(range(8)), METRICS, (), corrected)
    first = sentences(compared)[0]
    assert first.startswith("better: 0 of 8 runs died, of base 0 (exact McNemar test: p = 1.0); ")
    assert (
        "over the 8 pairs of living runs its test accuracy differs by +1.0 [+1.0, +1.0] points"
        in first
    )
    assert first.endswith("(exact p = 0.0078, by Holm 0.023).")
    assert "is at least 0.0078 for 8 pairs" in sentences(compared)[-1]


def test_the_least_p_is_of_the_pairs_that_are_compared():
    theirs = [(float(80 + s),) for s in range(5)]
    whole, some = [(a + 1.0,) for (a,) in theirs], [(10.0,), (10.0,), *theirs[2:]]
    corrected = _corrected([versus("whole", whole, theirs), versus("some", some, theirs)])
    text = sentences(Compared("base", tuple(range(5)), METRICS, (), corrected))[-1]
    assert "is at least 0.25 for 3 pairs and 0.062 for 5 pairs" in text
    corrected = _corrected([versus("none", [(10.0,)] * 5, theirs)])
    text = sentences(Compared("base", tuple(range(5)), METRICS, (), corrected))[-1]
    assert "counts all flips of signs. Holm's" in text


def test_no_pair_at_all():
    found = _difference("seconds", {})
    assert found.comparison is None
    assert math.isnan(found.baseline)
    assert isinstance(found, Difference)


# ---- what pairs share


def test_what_a_pair_shares_follows_from_the_specifications():
    rigl, other = tiny("mlp-mnist/rigl+", seed=3), tiny("mlp-mnist/set+", seed=3)
    everything = (
        "the draw of the initial weights", "the starting mask", "the order of the examples",
    )  # fmt: skip
    assert shared(rigl, other) == everything
    assert shared(rigl, tiny("mlp-mnist/set", seed=3)) == everything[1:]
    assert shared(rigl, tiny("mlp-mnist/scratch+", seed=3)) == (
        everything[0], "the pruned parent", everything[2],
    )  # fmt: skip
    assert shared(rigl, alone(seed=3)) == ()
    assert shared(tiny("mlp-mnist/rigl+", seed=1), tiny("mlp-mnist/rigl+", seed=2)) == ()


def test_pairs_of_nothing_say_so():
    found = _corrected([versus("mine", [(90.0,)] * 2, [(89.0,), (88.0,)])])
    text = " ".join(sentences(Compared("base", (0, 1), METRICS, (), found)))
    assert "by number alone: they share neither draws nor masks nor order" in text


# ---- runs


def test_what_is_compared_is_what_the_runs_hold(tmp_path):
    store = Store(tmp_path)
    groups = {
        name: {s: execute(tiny(f"mlp-mnist/{name}", seed=s), store) for s in (0, 1)}
        for name in ("set+", "rigl+")
    }
    found = compare(groups)
    assert found.metrics["early"] == "gradient norm at step 0"
    values = {o.recipe + str(o.seed): o.values for o in found.outcomes}
    for name, of_seed in groups.items():
        for seed, run in of_seed.items():
            flow = {r["step"]: r["total"] for r in run.metrics() if r["event"] == "flow"}
            assert values[f"{name}{seed}"]["early"] == flow[0]
            mean = sum(flow[s] for s in (0, 4, 8, 12)) / 4
            assert values[f"{name}{seed}"]["whole"] == pytest.approx(mean)
    assert values["rigl+1"]["test_loss"] == groups["rigl+"][1].result["test_loss"]
    assert values["rigl+1"]["seconds"] == groups["rigl+"][1].seconds


def test_operations_are_counted_by_hand(tmp_path):
    """Twelve steps of 128; updates at 3, 6, 9 and 12, by a probe of 64, or none."""
    store = Store(tmp_path)
    fixed = execute(tiny("mlp-mnist/dense", "mask=erk"), store)
    masks = fixed.state(12).masks()
    one = flops(make_model(fixed.spec), load_data(fixed.spec).train[:1][0], masks)
    assert training_flops(fixed) == 12 * 128 * one.step

    probe = ["mask=erk", "method=rigl", "method.when.n=3"]
    batch = execute(tiny("mlp-mnist/dense", *probe), store)
    extra = 4 * 128 * (one.dense_forward - one.forward)
    assert training_flops(batch) == pytest.approx(12 * 128 * one.step + extra, rel=1e-3)
    probed = execute(tiny("mlp-mnist/dense", *probe, "method.grow_from=probe"), store)
    extra = 4 * 64 * (one.dense_forward + 2 * one.forward)
    assert training_flops(probed) == pytest.approx(12 * 128 * one.step + extra, rel=1e-3)
    with clean_slate():
        example()
        settings = [*TINY, "mask=erk", "method=snfs", "method.when.n=3"]
        every = execute(make_spec("mlp-mnist/dense", settings=settings), store)
        extra = 12 * 128 * (one.dense_forward - one.forward)
        assert training_flops(every) == pytest.approx(12 * 128 * one.step + extra, rel=0.02)


def test_operations_between_checkpoints_that_were_removed_are_not_counted(tmp_path):
    run = execute(tiny("mlp-mnist/dense", "mask=erk", "method=set"), Store(tmp_path))
    for step in run.kept[::-1]:
        run.checkpoint_path(step).unlink()
        with pytest.raises(StoreError, match=r"has no checkpoint at step \d+; kept: "):
            training_flops(run)


def test_an_interrupted_run_says_where_it_went_on(tmp_path):
    store = Store(tmp_path)
    spec = tiny("mlp-mnist/dense", "mask=erk", "method=set", "method.when.n=3", "train.resume=4")
    interrupt(spec, store, 7)
    assert execute(spec, store).resumed_at == 4


# ---- the command


@pytest.fixture
def slate():
    with clean_slate():
        yield


@pytest.mark.usefixtures("slate")
def test_the_command_runs_what_is_missing_and_writes_it_down(cli, tmp_path):
    settings = [w for s in (*TINY, "mask=erk", "method.when.n=3") for w in ("--set", s)]
    common = ["--seeds", "0-1", *settings, "--use", str(EXAMPLE), "-o", str(tmp_path / "c")]
    words = ["compare", *(f"mlp-mnist/{n}+" for n in ("rigl", "snfs", "granet")), *common]
    found = cli.json(*words)
    assert found["baseline"] == "mlp-mnist/rigl+"
    assert [v["recipe"] for v in found["versus"]] == ["mlp-mnist/snfs+", "mlp-mnist/granet+"]
    assert len(found["runs"]) == 6
    assert sorted(p.name for p in (tmp_path / "c").iterdir()) == [
        f"comparison.{end}" for end in ("csv", "json", "md", "png", "svg", "tex")
    ]
    written = json.loads((tmp_path / "c" / "comparison.json").read_text())
    assert written == {k: v for k, v in found.items() if k != "files"}
    page = (tmp_path / "c" / "comparison.md").read_text()
    assert "| mlp-mnist/granet+ | test accuracy, % |" in page
    out, err = cli(*words)
    assert out.startswith("Against mlp-mnist/rigl+, seeds 0, 1.")
    assert "6 finished" in err
    assert "waiting" not in err
    sparse = ["compare", "mlp-mnist/rigl+", "mlp-mnist/granet+", *common]
    found = cli.json(*sparse, "--set", "execution=sparse")
    assert {run["execution"] for run in found["runs"]} == {"sparse"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["mlp-mnist/rigl+"], "1 recipe over 5 seeds"),
        (["mlp-mnist/rigl+", "mlp-mnist/set+", "--seeds", "3"], "2 recipes over 1 seed:"),
        (["mlp-mnist/rigl+", "mlp-mnist/rigl+"], "mlp-mnist/rigl+ is named twice"),
        (["mlp-mnist/rigl+", "resnet20-cifar10/set+"], "no test set in common"),
        (
            ["mlp-mnist/rigl+", "mlp-mnist/set+", "--set", "method=set"],
            "mlp-mnist/rigl+ and mlp-mnist/set+ are the same runs with these settings (",
        ),
        (["mlp-mnist/rigl+", "mlp-mnist/rigle+"], "did you mean"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_anything_runs(words, message, cli):
    assert message in cli.fails("compare", *words)
    assert not cli.store.exists()


@pytest.mark.usefixtures("slate")
def test_what_a_method_cannot_do_is_refused_before_anything_runs(cli):
    words = ["compare", "mlp-mnist/rigl+", "mlp-mnist/snfs+", "--use", str(EXAMPLE)]
    error = cli.fails(*words, "--set", "execution=sparse")
    assert "execution=sparse: SNFS needs masked dense layers" in error
    assert not cli.store.exists()
