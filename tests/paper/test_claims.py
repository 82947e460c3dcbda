"""Claims: made-up runs of which the right verdict is known, and the real ones."""

import csv
import io
import json
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from helpers.evidence import reproduction
from msgspec.structs import replace
from scipy import stats

from sparseflow.measure.statistics import Estimate
from sparseflow.paper import CLAIMS, Claim, Judgement, claims, claims_markdown, claims_rows
from sparseflow.paper.claims.flow import equal_loss
from sparseflow.paper.claims.forms import claims_values
from sparseflow.paper.claims.functions import with_reference, within
from sparseflow.paper.claims.start import fewer
from sparseflow.paper.claims.updates import norm_change, recorded, tried
from sparseflow.paper.judging import RATIO, Bound, Sample, against, alone
from sparseflow.report import Results, RunValues, StartValues, load_results
from sparseflow.report.results import EvalCurve, FlowCurve, Norms, UpdateCurve
from sparseflow.studies import Agreement, Line, Record, Spectrum, Updates
from sparseflow.studies.agreement import Ensemble, GroupRecord, Member
from sparseflow.studies.update import Trial

FIGURES = {
    "accuracy", "flow", "flow-kernels", "updates", "start-signal", "start-norm", "spectra", "map",
    "paths", "plane", "disagreement", "curvature-start",
}  # fmt: skip
EFFECTS = {
    "holds": (1.0, 1.1, 0.9, 1.05, 0.95),
    "does not hold": (-1.0, -1.1, -0.9, -1.05, -0.95),
    "not settled": (2.0, -2.2, 1.8, -1.9, 0.1),
}
"""Of five seeds, on the claimed side and off it."""

Effects = Sequence[float]


def run(
    recipe: str,
    seed: int = 0,
    *,
    accuracy: float = 97.0,
    start: float = 1.0,
    kernels: float = 1.0,
    early: float | None = 1.0,
    whole: float = 1.0,
    level: float = 1.0,
    rise: float | None = None,
) -> RunValues:
    """A run whose gradient norm is ``level`` times its loss, if it was ever trained."""
    loss = (2.0, 1.0, 0.4, 0.1)
    norm, none = tuple(level * v for v in loss), (None,) * 4
    moves = rise and UpdateCurve((100, 500), (0.2, 0.2), (0.2 * rise, 0.2 * rise), 2, 0)
    norms = [Norms(v, kernels, v, v) for v in (start, early, whole)]
    return RunValues(
        recipe, "", f"{recipe}-{seed}", (seed, seed, seed), 0.05, 600, False, accuracy, 0.1, 98.0,
        2210, *norms, 51, 3.0, 0.4, 0.5, 0.6, 3,
        FlowCurve((0, 50, 400, 600), norm, none, none, none, loss, none, none),
        EvalCurve((), (), ()), moves,
    )  # fmt: skip


def results(
    *runs: RunValues, at_start: Sequence[StartValues] = (), evidence: Sequence[Record] = ()
) -> Results:
    return Results("lenet5-mnist", "a trial", 0.05, 600, runs, tuple(at_start), tuple(evidence))


def each(recipe: str, effects: Effects, make: Callable[[float], dict[str, float]]) -> list:
    return [run(recipe, seed, **make(e)) for seed, e in enumerate(effects)]


def initial(init: str, sparsity: float, effects: Effects) -> list[StartValues]:
    return [
        StartValues(init, sparsity, str(s), "", Norms(1.0, 1.0, 1.0, 1.0), 1.0, math.exp(e), 0)
        for s, e in enumerate(effects)
    ]


def spectrum(
    label: str = "",
    *,
    largest: float = 1.0,
    smallest: float = -1.0,
    negative: float = 0.1,
    norm: float | None = 1.0,
) -> Spectrum:
    return Spectrum(
        label, 1000, 100, 0.1, norm, largest, smallest, negative, negative, negative, True, (), ()
    )


def spectra(recipe: str, effects: Effects) -> list[Spectrum]:
    return [spectrum(f"{recipe} {s} start", largest=math.exp(e)) for s, e in enumerate(effects)]


def trial(rule: str, found: Spectrum, draw: int = 0) -> Trial:
    """One of equal thresholds: both counts are the share's."""
    return Trial(rule, draw, 0.1, round((found.negative or 0) * found.parameters), found)


def updates(effects: dict[str, Effects], make: Callable[[float], Spectrum]) -> list[Updates]:
    """One network a seed, on which each rule has an effect."""
    return [
        Updates(
            f"rigl+ {s} 100", 100, 0.3, spectrum(),
            tuple(trial(rule, make(of[s])) for rule, of in effects.items()),
        )
        for s in range(5)
    ]  # fmt: skip


def line(recipe: str, seed: int, when: str, *, aligned: bool = False, **values: float) -> Line:
    found = {"distance": 1.0, "barrier": 1.0, "error_barrier": 1.0} | values
    path = ((0.0, 1.0),) * 5
    labels = f"{recipe} {seed} {when}", f"prune {seed} end"
    heights = found["barrier"], found["error_barrier"], 1.0
    return Line(labels, aligned, found["distance"], *path, *heights)


def lines(recipe: str, when: str, key: str, values: Effects, *, aligned: bool = False) -> list:
    return [line(recipe, s, when, aligned=aligned, **{key: v}) for s, v in enumerate(values)]


def member(label: str, reference: float | None = 0.1, *, dead: bool = False) -> Member:
    return Member(label, 11.35 if dead else 98.0, 0.1, 0.01, dead, reference, 0.1)


def group(name: str, references: Effects, *, gain: float = 0.0, error: float = 0.1) -> GroupRecord:
    members = tuple(member(f"{name} {s + 1} end", r) for s, r in enumerate(references))
    return GroupRecord(name, members, Ensemble(5, 98.0, 0.1, 0.01, gain, error))


def agreement(groups: Sequence[GroupRecord], apart: dict[str, Effects] | None = None) -> Agreement:
    """Two members of a group disagree by the sum of what their seeds are given."""
    labels = [m.label for g in groups for m in g.members]
    own = np.array([v for g in groups for v in (apart or {}).get(g.name, [1.0] * len(g.members))])
    table = np.pad(own[:, None] + own[None], ((0, 1), (0, 1)), constant_values=9.0)
    np.fill_diagonal(table, 0)
    matrix = tuple(tuple(float(v) for v in row) for row in table)
    everything = (*labels, "prune 0 end")
    return Agreement(tuple(groups), everything, everything, matrix, matrix)


NONE = (0.0,) * 5


def of_signal(e: Effects) -> Results:
    sparse = initial("fan-in", 0.95, e) + initial("masked-dense", 0.95, NONE)
    return results(at_start=[*sparse, *initial("fan-in", 0.5, [-x for x in e])])


def of_restored(e: Effects) -> Results:
    near = [x - 1 for x in e]
    return results(at_start=initial("fan-in", 0.95, near) + initial("fan-in", 0.0, NONE))


def of_gradient(e: Effects) -> Results:
    aware = each("shuffled+", e, lambda x: {"start": math.exp(x), "kernels": math.exp(2 * x)})
    return results(*aware, *each("shuffled", e, lambda x: {"accuracy": 11.35}))


def of_flatness(e: Effects) -> Results:
    flat = [-x for x in e]
    found = spectra("shuffled", flat) + spectra("lottery", flat)
    return results(evidence=found + spectra("dense", NONE))


def of_curvature(e: Effects) -> Results:
    return results(evidence=spectra("shuffled+", e) + spectra("shuffled", NONE))


def in_training(x: float) -> dict[str, float]:
    v = math.exp(x)
    return {"start": v, "kernels": v, "early": v, "whole": v, "level": v}


def of_rigl_flow(e: Effects) -> Results:
    return results(*each("rigl+", e, in_training), *each("shuffled+", NONE, in_training))


def of_ticket_flow(other: str) -> Callable[[Effects], Results]:
    def make(e: Effects) -> Results:
        ticket = each("lottery", e, lambda x: in_training(-x))
        return results(*ticket, *each(other, NONE, in_training))

    return make


def of_rigl_updates(e: Effects) -> Results:
    moved = each("rigl+", e, lambda x: {"rise": math.exp(x)})
    still = each("set+", e, lambda x: {"rise": 1.0})
    found = updates({"rigl": e, "set": NONE, "random": NONE}, lambda x: spectrum(norm=math.exp(x)))
    return results(*moved, *still, evidence=found)


def of_other_updates(e: Effects) -> Results:
    moved = [each(name, e, lambda x: {"rise": math.exp(-x)}) for name in ("set+", "rigl-inverted+")]
    found = updates(
        {"set": e, "rigl-inverted": e, "rigl": NONE}, lambda x: spectrum(norm=math.exp(-x))
    )
    return results(*moved[0], *moved[1], evidence=found)


def of_counts(e: Effects) -> Results:
    effects = {"rigl": e, "set": NONE, "random": NONE}
    return results(evidence=updates(effects, lambda x: spectrum(negative=0.1 + 0.02 * x)))


def of_other_counts(e: Effects) -> Results:
    effects = {"set": e, "rigl-inverted": e, "rigl": NONE}
    return results(evidence=updates(effects, lambda x: spectrum(negative=0.1 - 0.02 * x)))


def of_depths(e: Effects) -> Results:
    effects = {"rigl": e, "set": NONE, "random": NONE}
    return results(evidence=updates(effects, lambda x: spectrum(smallest=-math.exp(x))))


def of_other_depths(e: Effects) -> Results:
    effects = {"set": e, "rigl-inverted": e, "rigl": NONE}
    return results(evidence=updates(effects, lambda x: spectrum(smallest=-math.exp(-x))))


def of_distance(when: str) -> Callable[[Effects], Results]:
    def make(e: Effects) -> Results:
        near = lines("lottery", when, "distance", [math.exp(-x) for x in e])
        return results(evidence=near + lines("scratch", when, "distance", [1.0] * 5))

    return make


def of_barrier(*which: tuple[str, bool], sign: int = 1) -> Callable[[Effects], Results]:
    def make(e: Effects) -> Results:
        heights = [2 + sign * x for x in e]
        found = [
            each_line
            for recipe, aligned in which
            for each_line in lines(recipe, "end", "error_barrier", heights, aligned=aligned)
        ]
        return results(evidence=found)

    return make


def of_accuracy(e: Effects) -> Results:
    return results(
        *each("prune", NONE, lambda x: {"accuracy": 98.5}),
        *each("lottery", e, lambda x: {"accuracy": 98.0 + x}),
        *each("scratch", e, lambda x: {"accuracy": 98.0 - x}),
    )


def of_rigl_accuracy(e: Effects) -> Results:
    return results(
        *each("rigl+", e, lambda x: {"accuracy": 97 + x}),
        *each("shuffled+", NONE, lambda x: {}),
        *each("set+", NONE, lambda x: {}),
    )


def of_agreement(e: Effects) -> Results:
    near = group("lottery:orders", [0.1 * math.exp(-x) for x in e])
    # Five networks of one value would have no spread to compare with.
    apart = [0.1 * math.exp(0.01 * x) for x in EFFECTS["not settled"]]
    others = [group(name, apart) for name in ("prune", "scratch:orders", "scratch:inits")]
    return results(evidence=[agreement([near, *others])])


def of_relearning(e: Effects) -> Results:
    own = [10 - x for x in e]
    apart = {"lottery:orders": own, "prune-restart:orders": own, "prune": [10.0] * 5}
    groups = [
        group(name, [0.1] * 5) for name in ("lottery:orders", "prune", "prune-restart:orders")
    ]
    return results(evidence=[agreement(groups, apart)])


def of_gains(sign: int, *names: str) -> Callable[[Effects], Results]:
    """The tickets' gain is 1; its difference to the others' has five times the effect's spread."""

    def make(e: Effects) -> Results:
        error = 0.1 if np.ptp(e) < 1 else 2.0
        found = [group(name, [0.1] * 5, gain=1 + sign * e[0], error=error) for name in names]
        return results(evidence=[agreement([group("lottery:orders", [0.1] * 5, gain=1.0), *found])])

    return make


WORLDS: dict[str, Callable[[Effects], Results]] = {
    "signal-start": of_signal,
    "signal-dense": of_restored,
    "gradient-start": of_gradient,
    "start-flat": of_flatness,
    "start-curvature": of_curvature,
    "rigl-flow": of_rigl_flow,
    "ticket-flow": of_ticket_flow("scratch"),
    "ticket-flow-aware": of_ticket_flow("scratch+"),
    "update-norm": of_rigl_updates,
    "update-norm-others": of_other_updates,
    "update-negative": of_counts,
    "update-negative-others": of_other_counts,
    "update-depth": of_depths,
    "update-depth-others": of_other_depths,
    "ticket-start": of_distance("start"),
    "ticket-end": of_distance("end"),
    "ticket-basin": of_barrier(("lottery", False), sign=-1),
    "scratch-barrier": of_barrier(("scratch", False)),
    "scratch-barrier-aligned": of_barrier(("scratch", True)),
    "rigl-barrier": of_barrier(("rigl+", False), ("rigl+", True)),
    "ticket-accuracy": of_accuracy,
    "rigl-accuracy": of_rigl_accuracy,
    "ticket-agreement": of_agreement,
    "ticket-relearns": of_relearning,
    "ticket-ensembles": of_gains(1, "prune"),
    "scratch-ensembles": of_gains(1, "scratch:orders", "scratch:inits"),
    "dynamic-ensembles": of_gains(1, "rigl+", "set+"),
}
BY_COUNTS = {"init-trains", "init-accuracy"}


def claim(name: str, of: Results) -> Claim:
    return next(c for c in CLAIMS if c.name == name).judge(of)


def judged(name: str, of: Results, part: str) -> Judgement:
    """The one judgement whose window contains some words."""
    (found,) = [j for j in claim(name, of).judgements if part in j.window]
    return found


@pytest.mark.parametrize("name", WORLDS)
@pytest.mark.parametrize("verdict", EFFECTS)
def test_the_verdict_that_was_built_in_is_found(name: str, verdict: str) -> None:
    found = claim(name, WORLDS[name](EFFECTS[verdict]))
    assert found.judgements
    assert {j.verdict for j in found.judgements} == {verdict}
    assert found.verdict == verdict


@pytest.mark.parametrize("name", WORLDS)
def test_one_seed_settles_nothing(name: str) -> None:
    whole = WORLDS[name](EFFECTS["holds"])
    one = results(
        *[r for r in whole.runs if r.seed == "0"],
        at_start=[s for s in whole.at_start if s.seed == "0"],
        evidence=[_first(e) for e in whole.evidence if _seed(e) == "0"],
    )
    if "ensembles" in name:  # an interval over test images
        return
    found = claim(name, one)
    assert found.verdict == "not settled"
    assert all(math.isnan(j.estimate.low) for j in found.judgements)


def _seed(part: Record) -> str:
    if isinstance(part, Agreement):
        return "0"
    label = part.labels[0] if isinstance(part, Line) else part.label
    return label.split()[1]


def _first(part: Record) -> Record:
    if not isinstance(part, Agreement):
        return part
    return agreement([GroupRecord(g.name, g.members[:1], None) for g in part.groups])


def test_every_claim_has_a_world_and_is_listed_without_data() -> None:
    empty = claims(results())
    assert [c.name for c in empty] == list(dict.fromkeys(c.name for c in empty))
    assert {c.name for c in empty} == {*WORLDS, *BY_COUNTS}
    for c in empty:
        assert re.fullmatch(r"[a-z]+(-[a-z]+)*", c.name)
        assert c.verdict == "not settled"
        assert c.judgements == ()
        assert c.figure in FIGURES
        assert c.sentence.endswith(".")
        assert c.paper.endswith(".")
        assert c.note.endswith(".")


@pytest.mark.slow
def test_a_whole_reproduction_leaves_no_claim_without_a_judgement() -> None:
    found = claims(reproduction())
    assert [c.name for c in found if not c.judgements] == []


def test_windows_that_differ_leave_a_claim_open() -> None:
    def other(e: float) -> dict[str, float]:
        return {"early": math.exp(e), "whole": math.exp(-e), "level": math.exp(e)}

    world = results(*each("rigl+", EFFECTS["holds"], other), *each("shuffled+", NONE, in_training))
    found = claim("rigl-flow", world)
    assert {j.window: j.verdict for j in found.judgements} == {
        "steps 0–51": "holds",
        "whole run": "does not hold",
        "at equal training loss": "holds",
    }
    assert found.verdict == "not settled"


def test_kernels_are_judged_apart() -> None:
    e = EFFECTS["holds"]
    aware = each("shuffled+", e, lambda x: {"start": math.exp(x), "kernels": math.exp(-x)})
    found = claim("gradient-start", results(*aware, *each("shuffled", e, lambda x: {})))
    verdicts = [j.verdict for j in found.judgements]
    assert verdicts == ["holds", "does not hold"]
    assert found.judgements[1].window == "step 0, kernels alone"


def test_the_dead_are_counted_and_enter_at_step_zero_only() -> None:
    alive = [run("lottery", s, **in_training(0.01 * s)) for s in range(4)]
    other = [run("scratch", s, **in_training(2.0)) for s in range(3)]
    corpse = run("scratch", 3, accuracy=11.35, **in_training(-9.0))
    world = results(*alive, *other, corpse)
    assert judged("ticket-flow", world, "kernels").estimate.n == 4
    for part in ("steps 0–51", "whole run", "equal"):
        found = judged("ticket-flow", world, part)
        assert found.estimate.n == 3
        assert "1 dead (" in found.ours
        assert found.estimate.value == pytest.approx(math.exp(0.01 - 2), rel=1e-6)
    accuracy = judged("ticket-accuracy", results(run("prune"), run("prune", 1), *world.runs), "scr")
    assert accuracy.estimate.value == 0.0
    assert "1 dead (scratch)" in accuracy.ours


def test_dead_runs_have_no_line_from_their_end() -> None:
    corpse = run("scratch", 4, accuracy=11.35)
    found = lines("scratch", "end", "error_barrier", (9.0, 9.1, 8.9, 9.2, 0.0))
    found += lines("scratch", "start", "distance", [1.0] * 5)
    found += lines("lottery", "start", "distance", [0.5] * 5)
    world = results(corpse, evidence=found)
    barrier = judged("scratch-barrier", world, "line")
    assert (barrier.estimate.n, barrier.verdict) == (4, "holds")
    assert "left out: 1 dead (scratch)" in barrier.ours
    assert judged("ticket-start", world, "start").estimate.n == 5


def test_lines_to_another_parent_do_not_count() -> None:
    own = lines("lottery", "end", "error_barrier", (0.1, 0.2, 0.15))
    stranger = line("lottery", 0, "end", error_barrier=90.0)
    stranger = Line(("lottery 0 end", "prune 1 end"), *_fields(stranger)[1:])
    found = judged("ticket-basin", results(evidence=[stranger, *own]), "line")
    assert found.estimate.value == pytest.approx(0.15)


def _fields(record: Line) -> list:
    return [getattr(record, name) for name in record.__struct_fields__]


def test_deaths_have_exact_intervals() -> None:
    names = ("shuffled", "set", "rigl")
    plain = [run(n, s, accuracy=11.35) for n in names for s in range(5)]
    aware = [run(f"{n}+", s) for n in names for s in range(5)]
    found = claim("init-trains", results(*plain, *aware))
    assert found.verdict == "holds"
    assert found.judgements[0].ours.startswith("5 of 5 [48–100 %] dead against 0 of 5 [0–52 %]")
    half = [run("shuffled", s, accuracy=11.35 if s < 2 else 95.0) for s in range(5)]
    assert claim("init-trains", results(*half, *aware)).verdict == "not settled"
    none = [run("shuffled", s) for s in range(5)]
    corpses = [run("shuffled+", s, accuracy=11.35) for s in range(5)]
    assert claim("init-trains", results(*none, *corpses)).verdict == "does not hold"


def test_the_interval_of_a_difference_of_shares_agrees_with_fishers_test() -> None:
    for k in range(0, 7, 2):
        for j in range(4):
            found = fewer(k, 6, j, 5)
            assert found.low <= found.value <= found.high
            assert found.low >= -1
            assert found.high <= 1
            if found.low > 0 or found.high < 0:
                assert stats.fisher_exact([[k, 6 - k], [j, 5 - j]]).pvalue < 0.05
            mirrored = fewer(j, 5, k, 6)
            assert (mirrored.low, mirrored.high) == pytest.approx((-found.high, -found.low))


def test_accuracy_of_the_living_and_deaths_are_judged_apart() -> None:
    plain = [run("scratch", s, accuracy=11.35 if s < 8 else 97 + s / 100) for s in range(12)]
    aware = [run("scratch+", s, accuracy=98 + s / 200) for s in range(12)]
    found = claim("init-accuracy", results(*plain, *aware))
    assert [j.verdict for j in found.judgements] == ["holds", "holds"]
    assert found.judgements[1].estimate.n == 4
    assert "left out: 8 dead (scratch)" in found.judgements[1].ours


def test_what_is_missing_is_counted_and_left_out() -> None:
    own = [run("rigl+", s, early=None if s == 1 else 2.0) for s in range(4)]
    other = [run("shuffled+", s, early=0.0 if s == 2 else 1.0) for s in range(4)]
    found = judged("rigl-flow", results(*own, *other), "steps")
    assert (found.estimate.value, found.estimate.n) == (pytest.approx(2.0), 2)
    assert "1 without a value (rigl+), 1 without a value (shuffled+)" in found.ours


def test_ratios_have_the_interval_of_a_paired_test_on_logarithms() -> None:
    a, b = np.array([2.0, 3.5, 2.2, 4.0]), np.array([1.0, 1.1, 0.9, 1.6])
    own = Sample("a", {str(i): math.log(v) for i, v in enumerate(a)} | {"9": 5.0})
    other = Sample("b", {str(i): math.log(v) for i, v in enumerate(b)})
    (found,) = against("w", own, other, Bound(low=1))
    test = stats.ttest_rel(np.log(a), np.log(b))
    low, high = np.exp(test.confidence_interval(0.95))
    assert (found.estimate.low, found.estimate.high) == pytest.approx((low, high))
    assert found.estimate.value == pytest.approx(stats.gmean(a / b))
    assert found.comparison
    assert found.comparison.p == pytest.approx(test.pvalue)
    values = found.estimate.value, low, high
    shown = "×{:.2f} [{:.2f}, {:.2f}], 4 seeds".format(*values)
    assert found.ours.endswith(shown)


def test_runs_that_share_nothing_are_compared_by_welch() -> None:
    a, b = np.array([2.0, 3.5, 2.2, 4.0]), np.array([1.0, 1.1, 0.9])
    own, other = (Sample("", dict(zip("abcd", np.log(v), strict=False))) for v in (a, b))
    (found,) = against("w", own, other, Bound(low=1), scale=RATIO, together=False)
    test = stats.ttest_ind(np.log(a), np.log(b), equal_var=False)
    low, high = np.exp(test.confidence_interval(0.95))
    assert (found.estimate.low, found.estimate.high) == pytest.approx((low, high))
    assert found.ours.endswith("4 and 3 runs")


def test_a_bound_of_two_sides_needs_both() -> None:
    bound = Bound(0.5, 2.0)
    cases = {(0.6, 1.9): "holds", (0.4, 1.9): "not settled", (2.1, 3.0): "does not hold"}
    cases |= {(0.1, 0.5): "does not hold", (0.4, 2.5): "not settled"}
    for (low, high), verdict in cases.items():
        assert bound.judge(Estimate(1.0, low, high, 5)) == verdict
    assert bound.judge(Estimate(1.0, math.nan, math.nan, 1)) == "not settled"


def test_values_too_far_apart_for_a_float_do_not_raise() -> None:
    wild = Sample("", {"0": 900.0, "1": -900.0})
    (found,) = alone("w", wild, Bound(low=1))
    assert found.verdict == "not settled"
    assert found.estimate.high == math.inf
    assert "∞" in found.ours


def test_equal_loss_has_the_closed_form_of_power_laws() -> None:
    # norm = c·loss^p is a straight line in logarithms, however it is sampled.
    a, b = np.array([2.3, 1.7, 0.9, 0.2, 0.01]), np.array([2.0, 0.5, 0.4, 0.03])
    found = equal_loss((a.tolist(), (3 * a**0.5).tolist()), (b.tolist(), (2 * b**0.8).tolist()))
    middle = (math.log(2.0) + math.log(0.03)) / 2
    assert found == pytest.approx(math.log(3 / 2) - 0.3 * middle, abs=1e-12)


def test_equal_loss_takes_the_first_crossing() -> None:
    stream = np.random.default_rng(0)
    curves = []
    for n in (40, 25):
        loss = np.exp(np.linspace(0.8, -3, n) + stream.normal(0, 0.5, n))
        curves.append((loss.tolist(), np.exp(stream.normal(0, 1, n)).tolist()))

    def slowly(curve: tuple[list, list], level: float) -> float:
        losses, norms = np.log(curve)
        at = next(i for i, v in enumerate(losses) if v <= level + 1e-12)
        if at == 0:
            return norms[0]
        return float(np.interp(-level, -losses[at - 1 : at + 1], norms[at - 1 : at + 1]))

    top = math.log(min(c[0][0] for c in curves))
    bottom = math.log(max(min(c[0]) for c in curves))
    levels = np.linspace(top, bottom, 25)
    expected = np.mean([slowly(curves[0], v) - slowly(curves[1], v) for v in levels])
    assert equal_loss(curves[0], curves[1]) == pytest.approx(expected, abs=1e-9)


def test_runs_without_a_common_loss_are_not_compared() -> None:
    fast = [0.1, 0.01], [1.0, 1.0]
    slow = [2.0, 0.5], [1.0, 1.0]
    assert equal_loss(fast, slow) is None
    assert equal_loss(fast, ([], [])) is None
    holes = [1.0, None, 0.1, 0.05], [1.0, 1.0, 1.0, 0.0]
    assert equal_loss(holes, ([1.0, 0.1], [math.e, math.e])) == pytest.approx(-1)


def test_a_run_counts_once_however_often_it_is_tried() -> None:
    def network(seed: int, step: int, draws: Sequence[float]) -> Updates:
        found = tuple(trial("set", spectrum(norm=math.exp(x)), i) for i, x in enumerate(draws))
        return Updates(f"rigl+ {seed} {step}", step, 0.3, spectrum(), found)

    tries = [network(0, 100, (1.0, 2.0, 6.0)), network(0, 200, (5.0,)), network(1, 100, (2.0,))]
    dead = run("rigl+", 2, accuracy=11.35)
    world = results(dead, evidence=[*tries, network(2, 100, (7.0,))])
    found = tried("set", norm_change)(world)
    assert found.values == pytest.approx({"rigl+ 0": 4.0, "rigl+ 1": 2.0})
    assert found.dead == 1


def test_updates_of_the_first_half_are_judged_apart() -> None:
    def moved(e: float) -> UpdateCurve:
        return UpdateCurve((100, 300, 400, 500, 600), (1.0,) * 5, (e, e, 0.5, 0.5, 0.5), 5, 2)

    runs = [run("rigl+", s) for s in range(5)]
    fields = [{n: getattr(r, n) for n in r.__struct_fields__} for r in runs]
    ups = (1.2, 1.3, 1.25, 1.22, 1.28)
    own = [RunValues(**f | {"updates": moved(u)}) for f, u in zip(fields, ups, strict=True)]
    found = claim("update-norm", results(*own))
    verdicts = {j.window: j.verdict for j in found.judgements}
    assert verdicts == {"RigL, first half of training": "holds", "RigL, whole run": "does not hold"}
    assert found.judgements[0].estimate.value == pytest.approx(stats.gmean(ups))
    assert found.judgements[0].ours.startswith("+25 % [")


def test_one_large_update_does_not_move_a_runs_median() -> None:
    curve = UpdateCurve((100, 200, 300), (1.0,) * 3, (1.1, 1.2, 50.0), 3, 2)
    world = results(replace(run("rigl+"), updates=curve))
    for half in (True, False):
        (value,) = recorded("rigl+", half=half)(world).values.values()
        assert value == pytest.approx(math.log(1.2))


@pytest.mark.parametrize(("factor", "verdict"), [(1.2, "holds"), (1.3, "does not hold")])
def test_a_ticket_may_have_a_quarter_more_gradient(factor: float, verdict: str) -> None:
    """Up to a factor of 1.25 counts as no better: the threshold that the claim's note names."""
    spread = (1.0, 1.001, 0.999, 1.0005, 0.9995)
    runs = [run("scratch", seed) for seed in range(5)]
    runs += [run("lottery", seed, early=factor * x) for seed, x in enumerate(spread)]
    found = judged("ticket-flow", results(*runs), "steps 0–51")
    assert found.verdict == verdict
    assert "at most 1.25 times" in claim("ticket-flow", results(*runs)).note


def test_blocks_of_the_disagreement_matrix() -> None:
    first = GroupRecord("a", (member("a 0 end"), member("a 1 end", dead=True)), None)
    living = [member(f"b {s} end", 0.1 * (s + 1), dead=s == 1) for s in range(4)]
    second = GroupRecord("b", (*living, member("prune 0 end", 0.0)), None)
    whole = agreement([first, second], {"a": (5.0, 5.0), "b": (1.0, 50.0, 2.0, 3.0, 4.0)})
    world = results(evidence=[whole])
    block = within(world, "b")
    assert block is not None
    assert block.tolist() == [[0, 3, 4, 5], [3, 0, 5, 6], [4, 5, 0, 7], [5, 6, 7, 0]]
    assert within(world, "a") is None
    assert within(world, "c") is None
    assert within(results(), "a") is None
    found = with_reference("b")(world)
    assert sorted(map(math.exp, found.values.values())) == pytest.approx([0.1, 0.3, 0.4])
    assert (found.dead, found.missing) == (1, 0)


def test_gains_have_the_error_of_both_ensembles() -> None:
    groups = [
        group("lottery:orders", [0.1] * 5, gain=0.1, error=0.03),
        group("prune", [0.1] * 5, gain=0.8, error=0.04),
    ]
    found = judged("ticket-ensembles", results(evidence=[agreement(groups)]), "pruned")
    half = stats.norm.ppf(0.975) * 0.05
    shown = found.estimate
    assert (shown.value, shown.low, shown.high) == pytest.approx((-0.7, -0.7 - half, -0.7 + half))
    assert found.ours.startswith("+0.10 against +0.80 points: −0.70 points [−0.80, −0.60]")


def test_plain_data_is_whole_and_valid_json() -> None:
    found = claims(of_rigl_updates(EFFECTS["holds"]))
    rows = json.loads(json.dumps(claims_rows(found), allow_nan=False))
    assert [row["name"] for row in rows] == [c.name for c in found]
    row = next(row for row in rows if row["name"] == "update-norm")
    assert row["verdict"] == "holds"
    one = row["judgements"][0]
    assert one["value"] == pytest.approx(math.e)
    assert one["low"] < one["value"] < one["high"]
    assert (one["n"], one["level"], one["p"]) == (5, 0.95, None)
    beyond = row["judgements"][2]
    assert beyond["p_exact"] == pytest.approx(2 / 2**5)
    single = [run("rigl+"), run("shuffled+")]
    rows = claims_rows(claims(results(*single)))
    (flow,) = [row for row in rows if row["name"] == "rigl-flow"]
    assert flow["judgements"][0]["low"] is None


def test_csv_has_a_line_a_judgement() -> None:
    found = claims(of_rigl_updates(EFFECTS["holds"]))
    lines = list(csv.DictReader(io.StringIO(claims_values(found).csv())))
    assert len(lines) == sum(max(1, len(c.judgements)) for c in found)
    own = [row for row in lines if row["claim"] == "update-norm"]
    assert [row["verdict"] for row in own] == ["holds"] * 5
    assert float(own[0]["value"]) == pytest.approx(math.e)
    empty = next(row for row in lines if row["claim"] == "ticket-basin")
    assert (empty["window"], empty["value"], empty["claim_verdict"]) == ("", "", "not settled")


def test_markdown_says_every_claim_and_judgement() -> None:
    found = [*claims(of_rigl_updates(EFFECTS["holds"])), Claim("x", "a|b.", "", (), "", "")]
    text = claims_markdown(found)
    table = [row for row in text.splitlines() if row.startswith("|")]
    assert len(table) == 2 + sum(max(1, len(c.judgements)) for c in found)
    assert all(re.sub(r"\\\|", "", row).count("|") == 7 for row in table)
    for c in found[:-1]:
        assert c.sentence in text
        assert c.note in text
        assert all(j.ours in text for j in c.judgements)
    assert "| a\\|b. |" in text
    assert "no data" in text


REAL = Path(__file__).parents[2] / "results" / "lenet5-mnist.json"


@pytest.fixture(scope="module")
def real() -> dict[str, Claim]:
    return {c.name: c for c in claims(load_results(REAL))}


@pytest.mark.parametrize(
    "name",
    [
        "signal-start", "signal-dense", "gradient-start", "init-trains", "init-accuracy",
        "rigl-flow", "ticket-flow", "ticket-flow-aware", "update-norm", "update-norm-others",
        "ticket-accuracy",
    ],
)  # fmt: skip
def test_real_runs_give_finite_judgements(real: dict[str, Claim], name: str) -> None:
    assert real[name].judgements
    for j in real[name].judgements:
        assert math.isfinite(j.estimate.value)
        assert j.estimate.low <= j.estimate.value <= j.estimate.high


def test_real_runs_give_the_verdicts_that_their_table_shows(real: dict[str, Claim]) -> None:
    held = ("signal-start", "gradient-start", "init-trains", "rigl-flow", "ticket-accuracy")
    assert [real[name].verdict for name in held] == ["holds"] * len(held)
    kernels = next(j for j in real["ticket-flow"].judgements if "kernels" in j.window)
    assert kernels.verdict == "does not hold"
    assert kernels.estimate.value > 2
