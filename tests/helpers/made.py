"""Made-up runs, results and run folders, for tests of the report."""

from pathlib import Path

import msgspec
from msgspec.structs import replace

from sparseflow.core.documents import save_document
from sparseflow.report import Results, RunValues, StartValues, load_results
from sparseflow.report.results import EvalCurve, FlowCurve, Norms, UpdateCurve
from sparseflow.runs import Run, RunSpec, Store

FAMILY = "lenet5-mnist"
NAMES = ("total", "kernels", "biases", "dense")


def figures(recipe: str, seed: int = 0, accuracy: float = 97.0, **changes: object) -> RunValues:
    """A run that was never trained."""
    norms, steps = Norms(0.2, 0.1, 0.17, 0.4), (0, 200, 400, 600)
    rise = tuple(0.1 * (seed + 1) * (i + 1) for i in range(4))
    moves = ("rigl" in recipe or "set" in recipe) or None
    run = RunValues(
        recipe=recipe, variant="", id=f"{recipe}-{seed}", seeds=(seed, seed, seed), density=0.05,
        steps=600, published=False, test_accuracy=accuracy, test_loss=0.1, train_accuracy=98.0,
        active=2210, start=norms, early=norms, whole=norms, window=51, distance=3.0, cosine=0.4,
        signal_images=0.5, signal_noise=0.6, cut_off=3,
        flow=FlowCurve(steps, rise, rise, rise, rise, rise, rise, (1.0, None, 0.9, 0.8)),
        evals=EvalCurve((0, 600), (10.0, accuracy), (2.3, 0.1)),
        updates=moves and UpdateCurve((100, 300), (0.1, 0.2), (0.15, 0.19), 2, 1),
    )  # fmt: skip
    return replace(run, **changes)


def start(init: str, sparsity: float, value: float) -> StartValues:
    norms = Norms(value, value, value, value)
    return StartValues(init, sparsity, "0", f"{init}{sparsity}", norms, value, value, 0)


def results(*runs: RunValues, at_start: tuple[StartValues, ...] = ()) -> Results:
    return Results(FAMILY, "a trial", 0.05, 600, runs, at_start)


def put(store: Store, spec: RunSpec, accuracy: float = 97.0, updates: int = 0) -> Run:
    """A finished run folder with made-up metrics: gradient norm 1 + step / 1000."""
    run = store.create(spec)
    out = {"output": 0.5, "per_layer": {}}
    lines = [{
        "event": "signal", "step": 0, "images": out, "noise": out, "neurons_without_input": 7,
        "active": {},
    }]  # fmt: skip
    last = spec.train.steps
    for step in sorted({*range(0, last + 1, spec.measure.every), last}):
        norms = dict.fromkeys([*NAMES, "effective", "loss"], 1 + step / 1000)
        gain = {"actual": 1e-4, "predicted": 1e-4 if step < last else 1e-9}
        moved = {"l2": step / 100, "cosine": float("nan")}
        lines.append({"event": "flow", "step": step, **norms, "decrease": gain, "distance": moved})
        lines.append({"event": "eval", "step": step, "test_accuracy": accuracy, "test_loss": 0.1})
    for step in range(updates):
        norm = {"before": {"total": 1.0}, "after": {"total": 1.5 if step % 2 else 0.9}}
        lines.append({"event": "update", "step": step, **norm})
    written = b"".join(msgspec.json.encode(line) + b"\n" for line in lines)
    (run.path / "metrics.jsonl").write_bytes(written)
    final = {
        "test_accuracy": accuracy, "test_loss": 0.1, "train_accuracy": accuracy,
        "train_loss": 0.1, "active_weights": 2210, "density": spec.density,
    }  # fmt: skip
    save_document(run.path / "result.json", "result", run.id, final)
    return run


def results_of(folder: Path) -> Results:
    """The results in the folder of a report."""
    return load_results(folder / "results.json")
