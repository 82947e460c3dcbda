"""Masked dense and truly sparse execution of one and the same run."""

import filecmp
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.small import tiny

import sparseflow as sf
from sparseflow.core.errors import SparseUnavailable, SpecError
from sparseflow.masks import Masks
from sparseflow.paper import reproduction
from sparseflow.recipes import make_spec
from sparseflow.runs import Local, Run, RunSpec, Store, execute, identity, plan, remeasure, sweep
from sparseflow.runs.build import assemble
from sparseflow.runs.execution import AUTO_DENSITY, resolve
from sparseflow.train.optim import FUSED, make_optimizer

# Small networks and short runs, in which hardly ever a score stands so near another, or a
# value so near the largest of its pooling window, that rounding swaps the two.
SIZE = [
    "train.batch=24", "train.keep=10", "measure.every=20", "measure.evaluate=30",
    "data.probe=50", "data.limit=200", "density=0.1", "mask=er",
]  # fmt: skip
MLP = ["model.widths=[24,16]", "train.steps=60"]
LENET5 = ["model.widths=[2,4,20,16]", "train.steps=30", "density=0.2"]
DYNAMIC = ["method.when.n=7"]
METHODS = {
    "static": ("scratch+", []),
    "set": ("set+", DYNAMIC),
    "rigl-probe": ("rigl+", DYNAMIC),
    "rigl-batch": ("rigl+", [*DYNAMIC, "method.grow_from=batch"]),
    "rigl-inverted": ("rigl-inverted+", DYNAMIC),
    "prune": ("prune", ["mask=full", "method.start=3", "method.stop=27", "method.interval=6"]),
}


def spec_of(method: str, *extra: str, family: str = "mlp") -> RunSpec:
    name, settings = METHODS[method]
    size = [*SIZE, *(MLP if family == "mlp" else LENET5)]
    return make_spec(f"{family}-mnist/{name}", settings=[*size, *settings, *extra])


def without_core() -> None:
    raise SparseUnavailable("sparse execution is not available: no compiler was found")


def environment(run: Run) -> dict[str, Any]:
    return json.loads((run.path / "environment.json").read_text())


def assert_close(ours: Any, theirs: Any, where: str) -> None:
    """Equal but for rounding; the norm of the dense gradient is not known of sparse networks."""
    assert type(ours) is type(theirs), where
    if isinstance(ours, dict):
        assert list(ours) == list(theirs), where
        for key in ours:
            assert_close(ours[key], theirs[key], f"{where}.{key}")
    elif isinstance(ours, str):
        assert ours == theirs, where
    elif where.endswith("decrease.actual"):  # a small difference of two losses
        assert ours == pytest.approx(theirs, abs=1e-5), where
    elif where.endswith("dense"):
        assert math.isnan(ours) or ours == pytest.approx(theirs, rel=2e-4), where
    else:
        assert ours == pytest.approx(theirs, rel=2e-4, abs=1e-7), where


def assert_same_files(a: Path, b: Path) -> None:
    files = [p.relative_to(a) for p in a.rglob("*") if p.is_file()]
    assert len(files) == len([p for p in b.rglob("*") if p.is_file()])
    for file in files:
        if file.name != "environment.json":
            assert filecmp.cmp(a / file, b / file, shallow=False), file


# ---- the same run both ways


@pytest.mark.parametrize("family", ["mlp", pytest.param("lenet5", marks=pytest.mark.soak)])
@pytest.mark.parametrize("method", METHODS)
def test_both_executions_give_the_same_masks_and_figures(
    method: str, family: str, tmp_path: Path
) -> None:
    store = Store(tmp_path)
    dense, sparse = (
        execute(spec_of(method, f"execution={e}", family=family), store)
        for e in ("dense", "sparse")
    )
    assert (dense.execution, sparse.execution) == ("dense", "sparse")
    digests = [dense.checkpoint(step)[1].digest() for step in dense.kept]
    assert dense.kept == list(range(0, dense.spec.train.steps + 1, 10))
    assert (len(set(digests)) > 3) == (method != "static")
    assert digests == [sparse.checkpoint(step)[1].digest() for step in sparse.kept]
    for step in dense.kept:
        ours, theirs = sparse.checkpoint(step)[0], dense.checkpoint(step)[0]
        assert list(ours) == list(theirs)
        for name, weight in theirs.items():
            torch.testing.assert_close(ours[name], weight, rtol=1e-3, atol=1e-6)
    for ours, theirs in zip(sparse.metrics(), dense.metrics(), strict=True):
        assert_close(ours, theirs, f"{theirs['event']} {theirs['step']}")
    assert_close(sparse.result, dense.result, "result")


def test_metrics_of_a_sparse_run_are_strict_json(tmp_path: Path) -> None:
    run = execute(spec_of("rigl-batch", "execution=sparse", "train.steps=10"), Store(tmp_path))

    def refuse(word: str) -> None:
        raise AssertionError(word)

    lines = (run.path / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line, parse_constant=refuse) for line in lines]
    flows = [r for r in records if r["event"] == "flow"]
    updates = [r for r in records if r["event"] == "update"]
    assert flows
    assert updates
    assert {r["dense"] for r in flows} == {r["before"]["dense"] for r in updates} == {None}
    assert all(math.isnan(r["dense"]) for r in run.metrics() if r["event"] == "flow")


def test_a_sparse_run_is_measured_again_as_a_dense_network(tmp_path: Path) -> None:
    run = execute(spec_of("set", "execution=sparse", "train.steps=20"), Store(tmp_path))
    again = remeasure(run, 20)
    recorded = [r for r in run.metrics() if r["event"] == "flow"][-1]
    assert again["flow"]["total"] == pytest.approx(recorded["total"], rel=1e-5)
    assert again["flow"]["dense"] > again["flow"]["total"]
    assert again["distance_to_start"]["l2"] == pytest.approx(recorded["distance"]["l2"], rel=1e-5)
    assert again["masks"] == run.result["masks"]


def test_children_of_a_sparse_run_start_from_its_weights_and_mask(tmp_path: Path) -> None:
    store = Store(tmp_path)
    run = execute(tiny("mlp-mnist/lottery", "execution=sparse"), store)
    parent = store.run(run.spec.mask.run)  # type: ignore[union-attr]
    assert (run.execution, parent.execution) == ("sparse", "sparse")
    (start, masks), (initial, _) = run.checkpoint(0), parent.checkpoint(0)
    assert masks.digest() == parent.checkpoint(12)[1].digest() == parent.result["masks"]
    assert masks.density == pytest.approx(0.02, abs=1e-3)
    assert all(torch.equal(start[n], initial[n] * m) for n, m in masks.items())


# ---- interruption


def interrupt(spec: RunSpec, store: Store, step: int) -> None:
    class KilledError(Exception):
        """Stands for a process that is killed."""

    def progress(run: Run, at: int, accuracy: float) -> None:
        if at == step:
            raise KilledError

    with pytest.raises(KilledError):
        execute(spec, store, progress=progress)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["rigl-batch", "prune"])
def test_an_interrupted_sparse_run_ends_bit_for_bit_as_an_undisturbed_one(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = spec_of(method, "execution=sparse", "train.resume=8", family="lenet5")
    whole, broken = Store(tmp_path / "whole"), Store(tmp_path / "broken")
    undisturbed = execute(spec, whole)
    for step in (3, 17, 26):
        interrupt(spec, broken, step)
    resumed = execute(spec, broken)
    assert environment(resumed)["resumed_at"] == 24
    assert_same_files(resumed.path, undisturbed.path)


def test_an_interrupted_run_goes_on_in_its_execution(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = spec_of("set", "train.steps=12", "train.resume=4")
    assert spec.execution == "auto"
    whole = execute(spec, Store(tmp_path / "whole"))
    for begun, density in (("sparse", 0.0), ("dense", 1.0)):
        store = Store(tmp_path / begun)
        monkeypatch.setattr("sparseflow.runs.execution.AUTO_DENSITY", 1.0 - density)
        interrupt(spec, store, 9)
        monkeypatch.setattr("sparseflow.runs.execution.AUTO_DENSITY", density)
        run = execute(spec, store)
        assert (run.execution, environment(run)["resumed_at"]) == (begun, 8)
        if begun == "sparse":
            assert_same_files(run.path, whole.path)


def test_a_sparse_run_does_not_go_on_without_the_core(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, spec = Store(tmp_path), spec_of("set", "train.steps=12", "train.resume=4")
    interrupt(spec, store, 9)
    with pytest.raises(SpecError, match=r"resume\.safetensors is of a sparse run.*not on device"):
        execute(spec, store, device="cuda")
    monkeypatch.setattr("sparseflow.runs.execution.core", without_core)
    with pytest.raises(
        SparseUnavailable, match=r"resume\.safetensors .* no compiler .* remove resume"
    ):
        execute(spec, store)
    (store.run(spec).path / "resume.safetensors").unlink()
    assert execute(spec, store).execution == "dense"


# ---- the choice


def masks_of(density: float) -> Masks:
    count = round(1000 * density)
    return Masks({"w": torch.arange(1000).reshape(10, 100) < count})


@pytest.mark.parametrize(
    ("density", "device", "chosen"),
    [
        (0.05, "cpu", "sparse"),
        (AUTO_DENSITY, "cpu", "sparse"),
        (AUTO_DENSITY + 0.01, "cpu", "dense"),
        (1.0, "cpu", "dense"),
        (0.05, "cuda", "dense"),
        (0.05, "cuda:1", "dense"),
    ],
)
def test_auto_goes_by_density_and_device(density: float, device: str, chosen: str) -> None:
    assert resolve(spec_of("static"), masks_of(density), device) == chosen


def test_what_is_asked_for_is_what_is_done() -> None:
    for density in (0.05, 1.0):
        for asked in ("dense", "sparse"):
            spec = spec_of("static", f"execution={asked}")
            assert resolve(spec, masks_of(density), "cpu") == asked


def test_pruning_is_dense_and_its_children_are_sparse_by_default(tmp_path: Path) -> None:
    store = Store(tmp_path)
    child = execute(tiny("mlp-mnist/scratch"), store)
    assert store.run(child.spec.mask.run).execution == "dense"  # type: ignore[union-attr]
    assert child.execution == environment(child)["execution"] == "sparse"


def test_auto_is_dense_without_the_core(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparseflow.runs.execution.core", without_core)
    run = execute(spec_of("static", "train.steps=1"), Store(tmp_path))
    assert run.execution == "dense"


def test_sparse_without_the_core_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sparseflow.runs.execution.core", without_core)
    store = Store(tmp_path / "runs")
    for spec in (
        spec_of("static", "execution=sparse"),
        tiny("mlp-mnist/scratch", "execution=sparse"),
        tiny("mlp-mnist/scratch", "mask.run.execution=sparse"),
    ):
        with pytest.raises(SparseUnavailable, match="no compiler was found"):
            execute(spec, store)
        with pytest.raises(SparseUnavailable, match="no compiler was found"):
            sweep(plan([spec], store), store, Local())
    assert not store.root.exists()


def test_sparse_on_another_device_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    store, spec = Store(tmp_path / "runs"), spec_of("static", "execution=sparse")
    with pytest.raises(SpecError, match=r"execution=sparse runs on the CPU, not on device cuda:1"):
        execute(spec, store, device="cuda:1")
    with pytest.raises(SpecError, match=r"not on device cuda"):
        sweep(plan([spec], store), store, Local(), device="cuda")
    assert not store.root.exists()


def test_a_finished_sparse_run_needs_no_core(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path)
    spec = spec_of("static", "execution=sparse", "train.steps=1")
    execute(spec, store)
    monkeypatch.setattr("sparseflow.runs.execution.core", without_core)
    assert execute(spec, store).finished
    assert execute(spec, store, device="cuda").kept == [0, 1]


# ---- the specification


def test_the_default_leaves_old_runs_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparseflow.runs.hashing.NUMERICS", 1)
    assert identity(make_spec("lenet5-mnist/rigl+")) == "55bab6330f602d6a"
    made = [identity(spec_of("static", f"execution={e}")) for e in ("auto", "dense", "sparse")]
    assert made[0] == identity(spec_of("static"))
    assert len(set(made)) == 3


def test_an_execution_reaches_the_parents_unless_theirs_is_set() -> None:
    spec = make_spec("lenet5-mnist/lottery", settings=["execution=sparse"])
    executions = {spec.execution, spec.mask.run.execution, spec.weights.run.execution}  # type: ignore[union-attr]
    assert executions == {"sparse"}
    spec = make_spec(
        "lenet5-mnist/scratch", settings=["execution=sparse", "mask.run.execution=auto"]
    )
    assert (spec.execution, spec.mask.run.execution) == ("sparse", "auto")  # type: ignore[union-attr]


def test_an_unknown_execution_is_named() -> None:
    with pytest.raises(SpecError, match="unknown execution 'spares'; did you mean 'sparse'"):
        make_spec("lenet5-mnist/rigl+", settings=["execution=spares"])


def test_a_reproduction_can_be_forced(tmp_path: Path) -> None:
    planned = reproduction("lenet5-mnist", Store(tmp_path), scale=0.01, execution="sparse")
    specs = (*planned.runs, *planned.groups, *planned.at_start)
    assert {spec.execution for spec in specs} == {"sparse"}


# ---- the optimiser of sparse runs


def test_a_sparse_run_steps_all_parameters_by_one_call(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for execution in ("dense", "sparse"):
        parts = assemble(spec_of("static", f"execution={execution}"), store)
        assert parts.execution == execution
        assert bool(parts.optimizer.defaults.get("fused")) == (execution == "sparse")


@pytest.mark.parametrize("kind", [*FUSED, "rmsprop"])
def test_one_call_gives_the_numbers_of_the_loop(kind: str) -> None:
    data = torch.randn(16, 8), torch.randint(0, 4, (16,))
    found = []
    for fused in (False, True):
        torch.manual_seed(1)
        model = torch.nn.Sequential(torch.nn.Linear(8, 6), torch.nn.Tanh(), torch.nn.Linear(6, 4))
        masks = sf.Masks({"0.weight": torch.rand(6, 8) < 0.4, "2.weight": torch.zeros(4, 6) > 0})
        sparse = sf.to_sparse(model, masks, data[0], force=True)
        extra = {"momentum": 0.9} if kind in ("sgd", "rmsprop") else {}
        optimizer = make_optimizer(kind, sparse, 0.01, weight_decay=0.1, fused=fused, **extra)
        sf.attach(sparse, optimizer, masks, sf.SET(sf.every(4)))
        sf.fit(sparse, sf.cross_entropy, [data] * 20, optimizer, steps=20)
        found.append(sparse.state_dict())
    assert found[0]["2.values"].numel() == 0
    for name, tensor in found[0].items():
        torch.testing.assert_close(found[1][name], tensor, rtol=1e-4, atol=1e-6)
