"""Studies: what they say is what the library measures, once, on runs that can be compared."""

from pathlib import Path

import msgspec
import pytest
import torch
from helpers.small import tiny

from sparseflow.core.errors import MeasureError, SparseflowError, StoreError
from sparseflow.measure.agreement import disagreement, predict
from sparseflow.measure.distance import distance
from sparseflow.runs import Local, Run, RunSpec, Store, execute
from sparseflow.runs.build import load_data
from sparseflow.studies import (
    AgreementStudy,
    DistanceStudy,
    Group,
    LineStudy,
    PlaneStudy,
    Point,
    SpectrumStudy,
    Study,
    UpdateStudy,
    carry_out,
    carry_out_all,
    key,
    point_of,
)
from sparseflow.studies.load import load
from sparseflow.studies.replay import just_before, rule_of
from sparseflow.studies.values import rounded
from sparseflow.topology import propose

SMALL = ("density=0.3", "data.limit=600", "data.probe=50", "model.widths=[8,6]")


def short(name: str, *extra: str, seed: int = 0) -> RunSpec:
    """Twelve steps of a small perceptron."""
    steady = ["method.drop=constant"] if name == "rigl+" else []
    return tiny(f"mlp-mnist/{name}", *SMALL, *steady, *extra, seed=seed)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Three runs of one parent and three of others."""
    room = Store(tmp_path_factory.mktemp("runs"))
    for spec in (short("lottery"), short("scratch"), short("rigl+"), short("rigl+", seed=1)):
        execute(spec, room)
    return room


def at(store: Store, name: str, step: int = 12, seed: int = 0) -> Point:
    return point_of(store.run(short(name, seed=seed)), step)


def test_a_line_says_what_the_ends_are(store: Store) -> None:
    ends = at(store, "lottery"), at(store, "prune")
    found = carry_out(LineStudy(*ends, points=5, examples=100), store)
    assert found.labels == ("lottery 0 end", "prune 0 end")
    a, b = (load(point, store) for point in ends)
    names = dict(a.model.named_parameters())
    assert found.distance == pytest.approx(distance(a.state, b.state, only=names).l2, rel=1e-4)
    data = load_data(a.run.spec)
    for alpha, network in ((0.0, a), (1.0, b)):
        images, classes = data.test[:]
        right = predict(network.model, images).argmax(1) == classes
        place = found.alphas.index(alpha)
        assert found.test_accuracy[place] == rounded(100 * float(right.double().mean()))
    assert found.barrier >= 0


def test_alignment_brings_the_ends_of_a_line_nearer(store: Store) -> None:
    ends = at(store, "rigl+"), at(store, "rigl+", seed=1)
    plain, aligned = (
        carry_out(LineStudy(*ends, aligned=how, points=3, examples=50), store)
        for how in (False, True)
    )
    assert aligned.distance < plain.distance
    place = plain.alphas.index(0.0)
    assert aligned.test_accuracy[place] == plain.test_accuracy[place]


def test_distances_between_checkpoints_with_their_masks(store: Store) -> None:
    points = (at(store, "lottery", 0), at(store, "lottery"), at(store, "prune"), at(store, "rigl+"))
    found = carry_out(DistanceStudy(points), store)
    assert found.labels == ("lottery 0 start", "lottery 0 end", "prune 0 end", "rigl+ 0 end")
    assert found.hamming[1][2] == found.jaccard[0][2] == 0
    assert found.hamming[0][3] > 0
    assert len(found.places) == 4
    assert 0 <= found.stress < 1


def test_a_plane_holds_its_corners(store: Store) -> None:
    corners = (at(store, "prune"), at(store, "lottery"), at(store, "scratch"))
    found = carry_out(PlaneStudy(corners, points=3, examples=50), store)
    assert found.labels == ("prune 0 end", "lottery 0 end", "scratch 0 end")
    assert (len(found.losses), len(found.losses[0])) == (3, 3)


def test_agreement_within_groups_and_with_a_reference(store: Store) -> None:
    reference = at(store, "prune")
    groups = (
        Group("mine", (at(store, "lottery"), at(store, "scratch"))),
        Group("pruned", (reference,)),
    )
    found = carry_out(AgreementStudy(groups, reference), store)
    mine, pruned = found.groups
    a, b = (load(p, store) for p in (groups[0].members[0], reference))
    data = load_data(a.run.spec)
    images = data.test[:][0]
    expected = disagreement(predict(a.model, images), predict(b.model, images))
    assert mine.members[0].reference == pytest.approx(expected, rel=1e-4)
    assert found.labels[-1] == "prune 0 end"
    assert found.disagreement[0][-1] == mine.members[0].reference
    assert pruned.members[0].reference is None
    assert pruned.ensemble is None
    living = [m for m in mine.members if not m.dead]
    assert (mine.ensemble is None) == (len(living) < 2)


def test_a_network_is_remade_as_it_was_just_before_its_update(store: Store) -> None:
    run = store.run(short("rigl+"))
    _, model, masks, moment = just_before(run, store, 12)
    method = rule_of("rigl", run, model, tuple(t[50:100] for t in _train(run)))
    after = propose(method, model, masks, moment, seed=run.spec.seeds.mask)
    after.apply(model)
    state, kept = run.checkpoint(12)
    assert after == kept
    assert after != masks
    assert all(torch.equal(t, model.state_dict()[n]) for n, t in state.items())


def _train(run: Run) -> tuple[torch.Tensor, torch.Tensor]:
    return load_data(run.spec).train[:]


def test_every_rule_updates_one_and_the_same_network(store: Store) -> None:
    run = store.run(short("rigl+"))
    study = UpdateStudy(Point(run.id, 12, "rigl+ 0 12"), draws=2, examples=40)
    found = carry_out(study, store)
    assert [(t.rule, t.draw) for t in found.after] == [
        ("rigl", 0), ("set", 0), ("set", 1), ("rigl-inverted", 0), ("random", 0), ("random", 1),
    ]  # fmt: skip
    assert all(t.spectrum.parameters == found.before.parameters for t in found.after)
    assert sum(found.before.counts) == pytest.approx(found.before.parameters)
    # The run's own update is RigL's, and its checkpoint at that step is the network after it.
    kept = carry_out(SpectrumStudy(at(store, "rigl+"), examples=40), store)
    rigl = found.after[0].spectrum
    assert (rigl.loss, rigl.norm) == (kept.loss, kept.norm)
    assert rigl.largest == pytest.approx(kept.largest, rel=1e-4)
    assert found.after[1].spectrum != found.after[2].spectrum
    own = found.before.negative * found.before.parameters
    assert abs(found.after[0].negative - own) < found.before.parameters


def test_density_and_exact_spectrum_agree(store: Store) -> None:
    point = at(store, "rigl+")
    exact, density = (
        carry_out(SpectrumStudy(point, examples=60, exact=how), store) for how in (True, False)
    )
    assert density.largest == pytest.approx(exact.largest, rel=1e-2)
    assert density.smallest == pytest.approx(exact.smallest, rel=1e-2)
    assert exact.smallest < 0
    assert density.low <= exact.negative <= density.high
    assert sum(density.counts) == pytest.approx(density.parameters, rel=1e-3)


def test_a_study_is_made_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    study = LineStudy(at(store, "scratch"), at(store, "prune"), points=3, examples=50)
    first = carry_out(study, store)

    def fail(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(LineStudy, "measure", fail)
    assert carry_out(study, store) == first
    named = msgspec.structs.replace(study, start=Point(study.start.run, 12, "other"))
    assert key(named) == key(study)
    assert carry_out(named, store).labels == ("other", "prune 0 end")
    assert key(msgspec.structs.replace(study, aligned=True)) != key(study)


def test_studies_in_processes_come_in_order(store: Store) -> None:
    studies: list[Study] = [
        LineStudy(at(store, name), at(store, "prune"), points=3, examples=50)
        for name in ("scratch", "lottery")
    ]
    seen: list[int] = []
    with Local(threads=1) as executor:
        found = carry_out_all(studies, store, executor, changed=seen.append)
    assert [f.labels[0] for f in found] == ["scratch 0 end", "lottery 0 end"]  # type: ignore[union-attr]
    assert seen == [1, 2]


def test_one_study_that_fails_does_not_lose_the_others(store: Store) -> None:
    good = LineStudy(at(store, "scratch"), at(store, "prune"), points=5, examples=40)
    bad = LineStudy(at(store, "scratch"), Point("0" * 16, 12, "gone"), points=3, examples=50)
    with (
        Local(threads=1) as executor,
        pytest.raises(SparseflowError, match=r"1 of 2 studies failed: line of scratch 0 end, gone"),
    ):
        carry_out_all([bad, good], store, executor)
    assert (store.root / "studies" / f"{key(good)}.json").is_file()


def test_a_damaged_study_is_named(store: Store) -> None:
    study = LineStudy(at(store, "prune"), at(store, "lottery"), points=3, examples=50)
    path = store.root / "studies" / f"{key(study)}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text('{"study":')
    with pytest.raises(StoreError, match=rf"{path.name} is damaged.*remove it"):
        carry_out(study, store)


def test_what_cannot_be_compared_is_refused(store: Store) -> None:
    wide = tiny("mlp-mnist/dense", "data.limit=600", "data.probe=50", "model.widths=[8,7]")
    other = tiny("mlp-mnist/dense", "data.limit=700", "data.probe=50", "model.widths=[8,6]")
    for spec, what in ((wide, "model"), (other, "data")):
        point = point_of(execute(spec, store), 12)
        with pytest.raises(StoreError, match=f"lottery 0 end and dense 0 end.*differ in {what}"):
            carry_out(DistanceStudy((at(store, "lottery"), point)), store)


def test_missing_checkpoints_are_named(store: Store) -> None:
    with pytest.raises(StoreError, match="every 4 of its 12 steps, none at step 5"):
        at(store, "lottery", 5)
    with pytest.raises(StoreError, match="names no single run"):
        carry_out(DistanceStudy((at(store, "dense"), at(store, "prune"))), store)


def test_updates_need_a_run_that_makes_them(store: Store) -> None:
    run = store.run(short("lottery"))
    with pytest.raises(MeasureError, match="no dynamic mask update at step 6"):
        carry_out(UpdateStudy(Point(run.id, 6)), store)
    with pytest.raises(MeasureError, match=r"no dynamic mask update at step 15.*up to step 12"):
        carry_out(UpdateStudy(Point(store.run(short("rigl+")).id, 15)), store)


def test_an_ensemble_of_one_is_refused(store: Store) -> None:
    study = AgreementStudy((Group("alone", (at(store, "lottery"),)),))
    with pytest.raises(MeasureError, match="lottery 0 end is alone"):
        carry_out(study, store)


def test_the_store_lists_no_study_as_a_run(store: Store, tmp_path: Path) -> None:
    carry_out(LineStudy(at(store, "scratch"), at(store, "prune"), points=3, examples=50), store)
    assert {run.path.name for run in store.runs()}.isdisjoint({"studies"})
