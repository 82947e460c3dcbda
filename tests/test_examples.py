"""The examples of trainers: they are short, they run, and the docs show them as they are."""

import runpy
from pathlib import Path

import pytest
import torch
from helpers.transformer import transformers

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = [ROOT / "examples" / f"{name}.py" for name in ("gpt2_trainer", "vit_lightning")]
PAGE = (ROOT / "docs" / "trainers.md").read_text()


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.name)
def test_examples_are_short_and_in_the_docs(path):
    text = path.read_text()
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith('"""')]
    assert len(lines) < 30
    assert f"```py\n{text}```" in PAGE


def run(name, folder, monkeypatch):
    """Run an example in a folder of its own; return what it defined."""
    monkeypatch.chdir(folder)
    return runpy.run_path(str(ROOT / "examples" / f"{name}.py"))


def assert_exact(model, masks, density, prefix=""):
    assert masks.density == pytest.approx(density, abs=1e-3)
    for name, mask in masks.items():
        weight = model.get_parameter(name)
        assert not weight[~mask].any(), name
        assert weight.count_nonzero() > 0.5 * mask.sum(), name


@pytest.mark.slow
def test_gpt2_through_the_hugging_face_trainer(tmp_path, monkeypatch):
    found = run("gpt2_trainer", tmp_path, monkeypatch)
    assert isinstance(found["model"], transformers.GPT2LMHeadModel)
    assert_exact(found["model"], found["callback"].masks, 0.2)
    losses = found["losses"]
    assert len(losses) == 6
    assert losses[-1] < 0.75 * losses[0]
    history = found["trainer"].state.log_history
    assert [log["sparse/updates"] for log in history if "sparse/flow" in log] == [2, 4, 6, 8, 9, 9]
    assert (tmp_path / "gpt2" / "checkpoint-120" / "topology.safetensors").is_file()


@pytest.mark.slow
# Lightning asks torch in an outdated way whether a batch is one tensor, and for workers,
# which would take longer to start than this example.
@pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec:FutureWarning")
@pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers")
def test_vit_through_lightning(tmp_path, monkeypatch):
    found = run("vit_lightning", tmp_path, monkeypatch)
    trainer, masks = found["trainer"], found["callback"].masks
    assert trainer.global_step == 150
    assert_exact(trainer.lightning_module, masks, 0.2)
    assert all(name.startswith("net.") for name in masks)
    assert float(trainer.callback_metrics["loss"]) < 1.6  # ln 10 = 2.3 at the start
    assert trainer.callback_metrics["sparse/updates"] == 12
    (kept,) = tmp_path.rglob("*.ckpt")
    state = torch.load(kept, weights_only=True)["callbacks"]["SparseCallback"]
    kept_masks = {n.removeprefix("mask/") for n in state["tensors"] if n.startswith("mask/")}
    assert kept_masks == set(masks)
