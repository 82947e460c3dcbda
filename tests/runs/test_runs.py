"""Specifications, store, execution: what a run is and that nothing of it is lost."""

import filecmp
import json
import shutil
from functools import partial
from pathlib import Path

import msgspec
import pytest
import torch
from helpers.small import tiny
from helpers.work import interrupt

from sparseflow.core.errors import DivergedError, MaskError, SpecError, StoreError
from sparseflow.core.schedules import every, lr_proportional
from sparseflow.recipes import FAMILIES, demo_specs, expand, make_spec, recipe_names
from sparseflow.runs import Local, Store, execute, identity, matching, plan, remeasure, sweep
from sparseflow.runs.spec import RunSpec, Train, as_data, from_data, generation
from sparseflow.topology import SET, GradualPruning, RigL, RigLInverted


@pytest.mark.parametrize("family", FAMILIES)
def test_every_recipe_is_a_specification_with_a_name_and_a_hash_of_its_own(family: str) -> None:
    names = recipe_names(family) + recipe_names(family, at_start=True)
    specs = [make_spec(name) for name in names]
    assert [spec.recipe for spec in specs] == names
    assert len({identity(spec) for spec in specs}) == len(names)


MNIST = ("lenet5-mnist", "mlp-mnist")


@pytest.mark.parametrize("name", [n for f in MNIST for n in recipe_names(f)])
def test_every_recipe_runs(name: str, tmp_path: Path) -> None:
    run = execute(tiny(name), Store(tmp_path))
    events = [record["event"] for record in run.metrics()]
    assert run.finished
    assert events[0] == "signal"
    assert {"flow", "eval"} <= set(events)
    assert ("update" in events) == name.split("/")[1].startswith(("prune", "set", "rigl")) or (
        name.endswith("prune-restart")
    )
    weights, masks = run.checkpoint(12)
    assert all(not weights[n][~m].any() for n, m in masks.items())


def test_equal_specifications_have_one_identity() -> None:
    spec = make_spec("mlp-mnist/lottery")

    def altered(density: float, momentum: float, *, augment: bool, widths: object) -> RunSpec:
        change = msgspec.structs.replace
        optimizer = change(spec.optimizer, momentum=momentum)
        data, model = change(spec.data, augment=augment), change(spec.model, widths=widths)
        return change(spec, density=density, optimizer=optimizer, data=data, model=model)

    one = altered(1.0, 0.0, augment=True, widths=(8, 8))
    other = altered(1, -0.0, augment=1, widths=(8.0, 8))  # type: ignore[arg-type]
    assert one == other
    assert msgspec.json.encode(as_data(one)) == msgspec.json.encode(as_data(other))
    assert identity(one) == identity(other)
    assert identity(altered(1, 0, augment=True, widths=[8, 8])) == identity(one)
    assert identity(altered(10**400, float("nan"), augment=True, widths=(8,))) != identity(one)


def test_identity_ignores_the_name_and_survives_serialisation() -> None:
    spec = make_spec("lenet5-mnist/lottery")
    assert identity(msgspec.structs.replace(spec, recipe="mine")) == identity(spec)
    decoded = from_data(msgspec.json.decode(msgspec.json.encode(as_data(spec))))
    assert decoded == spec
    assert identity(decoded) == identity(spec)


def test_identity_reaches_into_parents() -> None:
    spec = make_spec("lenet5-mnist/scratch")
    other = make_spec("lenet5-mnist/scratch", settings=["mask.run.train.batch=64"])
    assert identity(spec) != identity(other)


def test_identity_depends_on_the_numerics_version(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = make_spec("lenet5-mnist/dense")
    before = identity(spec)
    monkeypatch.setattr("sparseflow.runs.hashing.NUMERICS", 999)
    assert identity(spec) != before


def test_density_and_seed_reach_the_parents() -> None:
    spec = make_spec("lenet5-mnist/rigl+", seed=3, settings=["density=0.02", "train.steps=2000"])
    parent = spec.mask.run  # type: ignore[union-attr]
    assert (spec.density, parent.density) == (0.02, 0.02)
    assert spec.seeds == parent.seeds
    assert (spec.train.steps, parent.train.steps) == (2000, 11719)


def test_model_and_data_settings_reach_the_parents() -> None:
    spec = make_spec(
        "lenet5-mnist/scratch", settings=["data.probe=500", "model.widths=[6,16,60,40]"]
    )
    assert spec.mask.run.data.probe == 500  # type: ignore[union-attr]
    assert spec.mask.run.model.widths == (6, 16, 60, 40)  # type: ignore[union-attr]


def test_kinds_switch_and_keep_what_they_share() -> None:
    spec = make_spec("lenet5-mnist/rigl+", settings=["mask=erk", "method=set", "method.when.n=50"])
    assert type(spec.mask).__name__ == "ErkMask"
    assert spec.method == SET(every(50), lr_proportional(0.3))
    assert (
        make_spec("lenet5-mnist/scratch", settings=["mask.kind=shuffled"]).mask.run.density == 0.05
    )  # type: ignore[union-attr]


def test_a_child_never_repeats_its_ancestors_draws() -> None:
    assert generation(make_spec("lenet5-mnist/prune")) == 0
    assert generation(make_spec("lenet5-mnist/scratch")) == 1


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("lenet5-mnist/riggl+", [], ["riggl+", "did you mean", "rigl+"]),
        ("lenet-mnist/rigl+", [], ["lenet-mnist", "did you mean", "lenet5-mnist"]),
        ("lenet5-mnist/rigl+", ["trian.steps=3"], ["trian", "did you mean 'train'"]),
        ("lenet5-mnist/rigl+", ["train.stepz=3"], ["stepz", "did you mean 'steps'"]),
        ("lenet5-mnist/rigl+", ["train.steps=many"], ["train.steps", "many", "int"]),
        ("lenet5-mnist/rigl+", ["train.steps.x=1"], ["train.steps.x", "plain value"]),
        ("lenet5-mnist/rigl+", ["method=rigle"], ["rigle", "did you mean 'rigl'"]),
        ("lenet5-mnist/rigl+", ["steps"], ["steps", "path=value"]),
        ("lenet5-mnist/rigl+", ["density=half"], ["density='half'"]),
        ("lenet5-mnist/rigl+", ["method.drop.value=1.5"], ["method.drop.value=1.5", "0 and 1"]),
        (
            "lenet5-mnist/rigl+",
            ["method.when.stop=20000"],
            ["method.when.stop=20000", "train.steps=11719"],
        ),
        ("lenet5-mnist/prune", ["train.steps=2000"], ["cannot finish", "7000", "2000"]),
        ("lenet5-mnist/dense", ["mask=parent"], ["mask=parent", "run"]),
        ("lenet5-mnist/dense", ["model.name=lenet"], ["lenet", "did you mean 'lenet5'"]),
        ("lenet5-mnist/dense", ["optimizer.kind=sdg"], ["sdg", "did you mean 'sgd'"]),
        ("lenet5-mnist/dense", ["train.batch=0"], ["train.batch=0", "positive"]),
        ("lenet5-mnist/dense", ["seeds.init=-1"], ["seeds.init=-1"]),
        ("lenet5-mnist/dense", ["data.limit=-5"], ["data.limit=-5", "positive"]),
        ("lenet5-mnist/dense", ["train.batch=70000"], ["train.batch=70000", "60000"]),
        ("lenet5-mnist/dense", ["data.limit=500"], ["data.probe=1000", "500"]),
        ("lenet5-mnist/dense", ["optimizer.momentum=2"], ["momentum=2", "less than 1"]),
        ("lenet5-mnist/dense", ["model.widths=[1,2]"], ["widths [1, 2]", "lenet5"]),
        ("mlp-mnist/dense", ["model.widths=[1,9223372036854775808]"], ["cannot be built"]),
        ("lenet5-mnist/prune", ["method.power=-1"], ["method.power=-1", "positive"]),
        ("lenet5-mnist/prune", ["method.power=nan"], ["method.power=nan"]),
        ("lenet5-mnist/prune", ["method.start=-100"], ["method.start=-100", "negative"]),
        ("lenet5-mnist/lottery", ["weights.step=1234"], ["weights.step=1234", "every 1000"]),
        ("lenet5-mnist/lottery", ["mask.run.density=0.1"], ["density", "parent"]),
    ],
)
def test_a_bad_specification_is_named(name: str, settings: list[str], words: list[str]) -> None:
    with pytest.raises(SpecError) as caught:
        make_spec(name, settings=settings)
    text = str(caught.value)
    assert all(word in text for word in words), text
    assert "\n" not in text


@pytest.mark.parametrize("density", ["-0.1", "1.5", "nan"])
def test_an_impossible_density_is_refused(density: str) -> None:
    with pytest.raises(MaskError, match="not between 0 and 1"):
        make_spec("lenet5-mnist/prune", settings=[f"density={density}"])


@pytest.mark.parametrize("scale", [1.0, 0.5, 0.2, 0.05])
def test_scaling_keeps_the_number_of_updates(scale: float) -> None:
    for name in expand(["lenet5-mnist", "mlp-mnist"]):
        spec = make_spec(name, scale=scale)
        assert spec.train.steps == max(0, round(make_spec(name).train.steps * scale))
    method = make_spec("lenet5-mnist/prune", scale=scale).method
    assert (method.stop - method.start) // method.interval == 40  # type: ignore[union-attr]


def test_a_scale_too_small_for_its_updates_makes_fewer() -> None:
    spec = make_spec("lenet5-mnist/prune", scale=0.001)
    assert spec.train.steps == 12
    assert spec.method == GradualPruning(start=3, stop=7, interval=1)


def test_a_finished_run_is_not_run_again(tmp_path: Path) -> None:
    store, spec = Store(tmp_path), tiny("mlp-mnist/dense")
    path = execute(spec, store).path
    before = {p: p.stat().st_mtime_ns for p in path.rglob("*") if p.is_file()}
    execute(spec, store)
    assert before == {p: p.stat().st_mtime_ns for p in path.rglob("*") if p.is_file()}


def test_interrupted_runs_end_bit_for_bit_as_undisturbed_ones(
    tmp_path: Path,
) -> None:
    spec = tiny("lenet5-mnist/rigl+", "train.resume=4", "mask.run.train.resume=4")
    whole, broken = Store(tmp_path / "whole"), Store(tmp_path / "broken")
    execute(spec, whole)
    for step in (2, 7, 11, 12):
        interrupt(spec, broken, step)
    resumed = execute(spec, broken)
    assert json.loads((resumed.path / "environment.json").read_text())["resumed_at"] == 12
    for run in (resumed, broken.run(spec.mask.run)):  # type: ignore[union-attr]
        files = [p.relative_to(run.path) for p in run.path.rglob("*") if p.is_file()]
        assert len(files) == len([p for p in (whole.root / run.id).rglob("*") if p.is_file()])
        for file in files:
            if file.name != "environment.json":
                same = filecmp.cmp(run.path / file, whole.root / run.id / file, shallow=False)
                assert same, file


@pytest.mark.parametrize("name", ["lenet5-mnist/rigl+", "lenet5-mnist/prune"])
def test_measuring_changes_nothing(name: str, tmp_path: Path) -> None:
    often = execute(tiny(name, "measure.every=1", "measure.evaluate=1"), Store(tmp_path))
    never = execute(tiny(name, "measure.every=1000", "measure.updates=0"), Store(tmp_path))
    assert often.id != never.id
    for step in (0, 4, 8, 12):
        (a, masks_a), (b, masks_b) = often.checkpoint(step), never.checkpoint(step)
        assert all(torch.equal(a[n], b[n]) for n in a)
        assert masks_a.digest() == masks_b.digest()


def test_a_ticket_starts_from_its_parents_weights_and_mask(tmp_path: Path) -> None:
    store, spec = Store(tmp_path), tiny("lenet5-mnist/lottery")
    run = execute(spec, store)
    parent = store.run(spec.mask.run)  # type: ignore[union-attr]
    start, masks = run.checkpoint(0)
    initial, _ = parent.checkpoint(0)
    assert masks.digest() == parent.checkpoint(12)[1].digest()
    assert all(torch.equal(start[n], initial[n] * m) for n, m in masks.items())


def test_late_rewinding_and_restart_take_later_weights(tmp_path: Path) -> None:
    store = Store(tmp_path)
    late = execute(tiny("mlp-mnist/lottery", "weights.step=4"), store)
    restart = execute(tiny("mlp-mnist/prune-restart"), store)
    parent = store.run(restart.spec.mask.run)  # type: ignore[union-attr]
    for run, step in ((late, 4), (restart, 12)):
        start, masks = run.checkpoint(0)
        weights, _ = parent.checkpoint(step)
        assert all(torch.equal(start[n], weights[n] * m) for n, m in masks.items())


def test_shuffled_masks_keep_counts_and_scratch_keeps_the_mask(tmp_path: Path) -> None:
    store = Store(tmp_path)
    scratch = execute(tiny("mlp-mnist/scratch"), store).checkpoint(0)[1]
    shuffled = execute(tiny("mlp-mnist/shuffled"), store).checkpoint(0)[1]
    assert scratch.counts == shuffled.counts
    assert scratch.digest() != shuffled.digest()
    assert scratch.density == pytest.approx(0.02, abs=1e-4)


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(tmp_path: Path) -> None:
    store = Store(tmp_path)
    spec = tiny("mlp-mnist/dense", "optimizer.lr=1e30")
    with pytest.raises(DivergedError, match=r"at step \d+"):
        execute(spec, store)
    run = store.run(spec)
    assert not run.finished
    assert run.kept == [0]
    assert all(torch.isfinite(t).all() for t in run.checkpoint(0)[0].values())


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = Store(tmp_path_factory.mktemp("store"))
    execute(tiny("mlp-mnist/prune"), store)
    return store


def copy_of(store: Store, tmp_path: Path) -> Store:
    shutil.copytree(store.root, tmp_path / "runs")
    return Store(tmp_path / "runs")


def test_a_folder_of_a_newer_schema_is_refused(finished: Store, tmp_path: Path) -> None:
    store = copy_of(finished, tmp_path)
    spec = tiny("mlp-mnist/prune")
    file = store.run(spec).path / "spec.json"
    file.write_text(file.read_text().replace('"schema": 3', '"schema": 4'))
    for look in (lambda: store.run(spec), store.runs, lambda: execute(spec, store)):
        with pytest.raises(StoreError, match="schema 4"):
            look()


def test_damaged_files_are_named(finished: Store, tmp_path: Path) -> None:
    store = copy_of(finished, tmp_path)
    run = store.run(tiny("mlp-mnist/prune"))
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write("{oops\n")
    with pytest.raises(
        StoreError, match=r"metrics\.jsonl is damaged: .* checksum; remove .* again"
    ):
        next(run.metrics())
    (run.path / "result.json").write_text("{")
    with pytest.raises(StoreError, match=r"result\.json is damaged"):
        _ = run.result
    (run.path / "result.json").unlink()
    with pytest.raises(StoreError, match=r"metrics\.jsonl, line \d+ is damaged"):
        list(run.metrics())
    content = run.checkpoint_path(12).read_bytes()
    run.checkpoint_path(12).write_bytes(content[: len(content) // 2])
    with pytest.raises(StoreError, match="truncated or foreign"):
        run.checkpoint(12)
    (run.path / "spec.json").write_text("[]")
    with pytest.raises(StoreError, match=r"spec\.json"):
        store.runs()


def test_a_checkpoint_of_another_run_is_refused(finished: Store, tmp_path: Path) -> None:
    store = copy_of(finished, tmp_path)
    run, other = store.run(tiny("mlp-mnist/prune")), execute(tiny("mlp-mnist/dense"), store)
    run.checkpoint_path(12).write_bytes(other.checkpoint_path(12).read_bytes())
    with pytest.raises(StoreError, match=f"belongs to run {other.id}"):
        run.checkpoint(12)


def test_a_missing_parent_checkpoint_is_named(finished: Store, tmp_path: Path) -> None:
    store = copy_of(finished, tmp_path)
    parent = store.run(tiny("mlp-mnist/prune"))
    parent.checkpoint_path(12).unlink()
    with pytest.raises(StoreError, match="no checkpoint at step 12"):
        execute(tiny("mlp-mnist/scratch"), store)


def test_a_step_that_was_not_kept_is_named(finished: Store) -> None:
    with pytest.raises(StoreError, match="kept: 0, 4, 8, 12"):
        remeasure(finished.run(tiny("mlp-mnist/prune")), 5)


def test_measuring_again_gives_what_was_recorded(finished: Store) -> None:
    run = finished.run(tiny("mlp-mnist/prune"))
    again = remeasure(run, 8)
    (recorded,) = [r for r in run.metrics() if r["event"] == "flow" and r["step"] == 8]
    assert again["flow"]["total"] == pytest.approx(recorded["total"], rel=1e-5)
    assert again["distance_to_start"]["l2"] == pytest.approx(recorded["distance"]["l2"], rel=1e-5)


def test_an_id_is_found_by_its_start(finished: Store) -> None:
    run = finished.run(tiny("mlp-mnist/prune"))
    assert finished.find(run.id[:6]).id == run.id
    with pytest.raises(StoreError, match="names no single run"):
        finished.find("zzz")


def test_a_store_that_cannot_be_written_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot write"):
        execute(tiny("mlp-mnist/dense"), Store(tmp_path / "file"))


def test_a_sweep_runs_parents_first_and_skips_children_of_failures(tmp_path: Path) -> None:
    store = Store(tmp_path)
    good = tiny("mlp-mnist/scratch")
    bad = tiny("mlp-mnist/scratch", "mask.run.optimizer.lr=1e30")
    jobs = plan([good, bad, tiny("mlp-mnist/prune")], store)
    assert [job.spec.recipe for job in jobs.values()] == [
        "mlp-mnist/prune",
        "mlp-mnist/scratch",
    ] * 2
    with Local(2, threads=1) as executor:
        sweep(jobs, store, executor)
    states = [job.state for job in jobs.values()]
    assert states == ["finished", "finished", "failed", "skipped"]
    assert "loss is" in [job.error for job in jobs.values()][2]
    assert {job.state for job in plan([good], store).values()} == {"finished"}


def test_matching_finds_all_seeds_of_a_specification(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for seed in (2, 0):
        execute(tiny("mlp-mnist/dense", seed=seed), store)
    execute(tiny("mlp-mnist/dense", "train.batch=64"), store)
    assert [run.seed for run in matching([lambda s: tiny("mlp-mnist/dense", seed=s)], store)] == [
        "0",
        "2",
    ]


def test_a_group_shares_its_parent_and_recipes_do_not(tmp_path: Path) -> None:
    store = Store(tmp_path)
    group = partial(tiny, "mlp-mnist/lottery:orders")
    own = partial(tiny, "mlp-mnist/lottery")
    for seed in (0, 3):
        execute(group(seed=seed), store)
    found = matching([lambda s: group(seed=s), lambda s: own(seed=s)], store)
    assert [(r.spec.recipe.partition("/")[2], r.seed) for r in found] == [
        ("lottery:orders", "0"),
        ("lottery:orders", "0/0/3"),
        ("lottery", "0"),
    ]
    assert found[0].id == found[2].id
    assert len({r.spec.mask.run.seeds.data for r in found}) == 1  # type: ignore[union-attr]


def test_matching_names_runs_as_asked_and_leaves_older_numerics_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path)
    as_rigl = tiny("mlp-mnist/rigl+", "method=set")
    as_set = tiny("mlp-mnist/set+")
    assert identity(as_rigl) == identity(as_set)
    execute(as_rigl, store)
    (found,) = matching([lambda _: as_set], store)
    assert found.spec.recipe == "mlp-mnist/set+"
    for module in ("hashing", "store"):
        monkeypatch.setattr(f"sparseflow.runs.{module}.NUMERICS", 2)
    assert matching([lambda _: as_set], store) == []


def test_a_kind_takes_over_only_what_fits_it() -> None:
    spec = make_spec("mlp-mnist/rigl+", settings=["mask=full", "method=static", "method=rigl"])
    assert spec.method == RigL()
    spec = make_spec("mlp-mnist/rigl+", settings=["method=set", "method=rigl-inverted"])
    assert spec.method == RigLInverted(every(500), lr_proportional(0.3), "batch")


def test_a_run_that_diverges_at_its_end_does_not_finish(tmp_path: Path) -> None:
    store = Store(tmp_path)
    spec = tiny("mlp-mnist/dense", "optimizer.lr=1e9", "train.steps=2", "train.keep=1")
    with pytest.raises(DivergedError, match=r"at step [12].*last checkpoint is that of step [01]"):
        execute(spec, store)
    run = store.run(spec)
    assert not run.finished
    assert not (run.path / "resume.safetensors").exists()
    assert all(torch.isfinite(t).all() for t in run.checkpoint(run.kept[-1])[0].values())


def test_the_demo_is_the_main_job() -> None:
    names = {spec.recipe.partition("/")[2] for spec in demo_specs(0.25)}
    assert {"prune", "lottery", "shuffled", "shuffled+", "rigl+"} <= names


def test_small_dense_is_solved_at_other_densities() -> None:
    assert make_spec("lenet5-mnist/small-dense").model.widths == (3, 3, 27, 20)
    assert make_spec("lenet5-mnist/small-dense", settings=["density=0.1"]).model.shrink


def test_unknown_fields_in_a_file_are_refused() -> None:
    with pytest.raises(msgspec.ValidationError, match="unknown field"):
        msgspec.json.decode(b'{"train": {"stepz": 3}}', type=RunSpec)
    assert msgspec.json.decode(b'{"train": {"steps": 3}}', type=RunSpec).train == Train(steps=3)
