"""Runs on a GPU: repeatable, resumed bit for bit, on either device, and recorded."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.cli import Cli
from helpers.small import alone, tiny
from helpers.work import KilledError, files

from sparseflow.core.errors import SpecError
from sparseflow.runs import Run, RunSpec, Store, execute, remeasure
from sparseflow.runs.execution import repeatable


def interrupt(spec: RunSpec, store: Store, step: int, device: torch.device | str) -> None:
    def progress(run: object, at: int, accuracy: float) -> None:
        if at == step:
            raise KilledError

    with pytest.raises(KilledError):
        execute(spec, store, device=str(device), progress=progress)


def environment(run: Run) -> dict[str, Any]:
    return json.loads((run.path / "environment.json").read_text())


@pytest.mark.parametrize("network", ["mlp", "lenet5"])
def test_a_run_is_that_of_the_cpu_and_says_where_it_was_made(
    network: str, tmp_path: Path, device: torch.device
) -> None:
    spec = tiny(f"{network}-mnist/dense", "mask=erk", "method=rigl", "method.when.n=5")
    ours = execute(spec, Store(tmp_path / "gpu"), device=str(device))
    theirs = execute(spec, Store(tmp_path / "cpu"))
    assert ours.result["active_weights"] == theirs.result["active_weights"]
    assert ours.result["test_loss"] == pytest.approx(theirs.result["test_loss"], rel=1e-3)
    made = environment(ours)
    assert made["device"] == str(device)
    assert made["execution"] == "dense" or device.type == "cpu"
    on_gpu = device.type == "cuda"
    assert made["accelerator"] == (torch.cuda.get_device_name(device) if on_gpu else None)


@pytest.mark.parametrize("network", ["mlp", "lenet5"])
def test_an_interrupted_run_ends_bit_for_bit(
    network: str, tmp_path: Path, device: torch.device
) -> None:
    method = ["mask=erk", "method=rigl", "method.when.n=3", "train.resume=4"]
    spec, store = tiny(f"{network}-mnist/dense", *method), Store(tmp_path / "halves")
    whole = execute(spec, Store(tmp_path / "whole"), device=str(device))
    interrupt(spec, store, 9, device)
    run = execute(spec, store, device=str(device))
    assert environment(run)["resumed_at"] == 8
    assert files(run) == files(whole)


@pytest.mark.parametrize("first", ["there", "here"])
def test_a_run_goes_on_on_another_device(first: str, tmp_path: Path, device: torch.device) -> None:
    spec, store = alone("execution=dense"), Store(tmp_path / "halves")
    before, after = (device, "cpu") if first == "there" else ("cpu", device)
    interrupt(spec, store, 9, before)
    run = execute(spec, store, device=str(after))
    whole = execute(spec, Store(tmp_path / "whole"))
    assert (environment(run)["resumed_at"], environment(run)["device"]) == (8, str(after))
    assert run.result["test_loss"] == pytest.approx(whole.result["test_loss"], rel=1e-3)
    assert run.result["active_weights"] == whole.result["active_weights"]


def test_children_start_from_parents_of_another_device(
    tmp_path: Path, device: torch.device
) -> None:
    store, spec = Store(tmp_path), tiny("mlp-mnist/lottery")
    execute(spec.mask.run, store)
    ticket = execute(spec, store, device=str(device))
    weights, masks = ticket.checkpoint(0)
    assert masks.digest() == store.run(spec.mask.run).checkpoint(12)[1].digest()
    assert all(not weights[name][~mask].any() for name, mask in masks.items())


def test_a_checkpoint_is_measured_again(tmp_path: Path, device: torch.device) -> None:
    run = execute(alone(), Store(tmp_path), device=str(device))
    ours, theirs = remeasure(run, 12, device=str(device)), remeasure(run, 12)
    assert ours["flow"]["total"] == pytest.approx(theirs["flow"]["total"], rel=1e-3)
    assert ours["test_accuracy"] == pytest.approx(theirs["test_accuracy"], abs=0.5)


def test_sparse_execution_is_refused(tmp_path: Path, device: torch.device) -> None:
    if device.type == "cpu":
        pytest.skip("it is refused on another device than the CPU")
    with pytest.raises(SpecError, match=f"sparse runs on the CPU, not on device {device}"):
        execute(alone("execution=sparse"), Store(tmp_path), device=str(device))


def test_the_command_trains_on_a_gpu(cli: Cli, gpu: torch.device) -> None:
    done = cli.json("run", "mlp-mnist/scratch+", "--device", "cuda", "--scale", "0.002")
    assert json.loads(Path(done["path"], "environment.json").read_text())["device"] == "cuda"
    assert "execution=sparse" in cli.fails(
        "run", "mlp-mnist/scratch+", "--device", "cuda", "--set", "execution=sparse"
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused_in_one_line(cli: Cli, tmp_path: Path) -> None:
    assert "device 'cuda' cannot be used here" in cli.fails(
        "run", "mlp-mnist/scratch+", "--device", "cuda"
    )
    with pytest.raises(SpecError, match="device 'cuda' cannot be used here"):
        execute(alone(), Store(tmp_path), device="cuda")


def test_settings_that_make_a_gpu_repeatable_end_with_the_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    settings = torch.backends.cudnn

    def now() -> tuple[object, ...]:
        exact, rounding = torch.are_deterministic_algorithms_enabled(), settings.allow_tf32
        products = torch.get_float32_matmul_precision()
        return exact, settings.deterministic, settings.benchmark, rounding, products

    torch.set_float32_matmul_precision("high")
    before = now()
    with repeatable("cuda:1"):
        assert now() == (True, True, False, False, "highest")
    assert now() == before == (False, False, False, True, "high")
    with repeatable("cpu"):
        assert now() == before
    torch.set_float32_matmul_precision("highest")
