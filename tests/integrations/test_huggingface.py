"""The callback of the Hugging Face Trainer."""

from functools import partial

import pytest
import torch
from helpers.transformer import gpt2, loss, tokens, transformers
from torch import nn

import sparseflow as sf
from sparseflow.core.errors import StoreError, TopologyError
from sparseflow.integrations.huggingface import FILE, SparseCallback

DATA = [{name: t[0] for name, t in tokens(step, 1).items()} for step in range(64)]
METHODS = {"RigL": sf.RigL(sf.every(2)), "SET": sf.SET(sf.every(2))}
MASKS = partial(sf.sparsify, density=0.3, pattern="constant_fan_in")


class Watch(transformers.TrainerCallback):
    """Looks at every step, and keeps what is logged."""

    def __init__(self):
        self.logs, self.masks, self.sparse = [], [], None

    def on_pre_optimizer_step(self, args, state, control, model, **others):
        for name, mask in self.sparse.masks.items():
            assert not model.get_parameter(name).grad[~mask].any()
        total = torch.stack([p.grad.norm() for p in model.parameters()]).norm()
        assert total <= args.max_grad_norm * 1.0001

    def on_optimizer_step(self, args, state, control, model, optimizer, **others):
        self.masks.append(self.sparse.masks)
        for name, mask in self.sparse.masks.items():
            weight = model.get_parameter(name)
            assert not weight[~mask].any()
            slots = [s for s in optimizer.state[weight].values() if s.shape == mask.shape]
            assert len(slots) == (2 if "adam" in args.optim else 0)
            assert not any(slot[~mask].any() for slot in slots)

    def on_log(self, args, state, control, logs, **others):
        self.logs.append(dict(logs))


def trainer_in(folder, method="RigL", masks=MASKS, options=(), network=(), **sparse):
    """A trainer of twelve steps, its callback, and what watches it."""
    torch.manual_seed(0)
    settings = {
        "max_steps": 12, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2,
        "max_grad_norm": 0.5, "save_steps": 6, "logging_steps": 4, "learning_rate": 1e-2,
        "use_cpu": True, "report_to": "none", "disable_tqdm": True,
    }  # fmt: skip
    arguments = transformers.TrainingArguments(str(folder), **(settings | dict(options)))
    watch = Watch()
    trainer = transformers.Trainer(
        gpt2(**dict(network)),
        arguments,
        train_dataset=DATA,
        eval_dataset=DATA[:8],
        callbacks=[watch],
    )
    callback = SparseCallback(trainer, masks, METHODS[method], **sparse)
    watch.sparse = callback
    trainer.add_callback(callback)
    return trainer, callback, watch


def weights(trainer):
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters()}


def assert_equal(ours, theirs):
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_resumed_training_is_as_if_undisturbed(tmp_path, method):
    trainer, callback, watch = trainer_in(tmp_path, method)
    trainer.train()
    again, resumed, watched = trainer_in(tmp_path, method)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    assert len(watched.masks) == 6
    assert watched.masks == watch.masks[6:]
    assert len({masks.digest() for masks in watch.masks}) == 7  # at the start, and six updates
    assert resumed.masks == callback.masks
    assert_equal(weights(again), weights(trainer))


def test_the_loop_by_hand_is_the_same(tmp_path):
    """Two micro-batches, clipping, SGD, a linear decay: equal masks, weights to 1e-5."""
    calm = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    options = {"save_strategy": "no", "optim": "sgd", "learning_rate": 0.1}
    trainer, _, watch = trainer_in(tmp_path, options=options, network=calm)
    seen, collate = [], trainer.data_collator
    trainer.data_collator = lambda examples: seen.append(collate(examples)) or seen[-1]
    model = gpt2(**calm)
    model.load_state_dict(trainer.model.state_dict())
    trainer.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / 12)
    topology = sf.attach(model, optimizer, MASKS(model), METHODS["RigL"])
    for step in range(12):
        optimizer.zero_grad()
        for batch in seen[2 * step : 2 * step + 2]:
            (loss(model, batch) / 2).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        rate.step()
        assert topology.masks == watch.masks[step]
    for name, weight in weights(trainer).items():
        torch.testing.assert_close(model.get_parameter(name).detach(), weight, rtol=1e-4, atol=1e-5)


def test_a_search_has_a_folder_and_masks_for_each_trial(tmp_path):
    """As ``hyperparameter_search`` does it: another folder, and a model made for the trial."""
    trainer, callback, _ = trainer_in(tmp_path, options={"max_steps": 4, "save_steps": 2})
    ends = []
    for trial in (1, 2):
        folder = tmp_path / f"run-{trial}"
        trainer._get_output_dir = lambda trial=None, folder=folder: str(folder)
        trainer.train()
        ends.append(callback.masks)
        steps = {path.parent.name for path in folder.rglob(FILE)}
        assert steps == {"checkpoint-2", "checkpoint-4"}
        trainer.model, trainer.optimizer, trainer.lr_scheduler = gpt2(), None, None
        trainer.model_wrapped = trainer.model
    assert not (tmp_path / "checkpoint-2").exists()
    assert ends[0].counts == ends[1].counts
    started = MASKS(gpt2())
    assert sf.churn(started, ends[1]) < 1 - 0.7**2 + 0.05  # two updates of new masks, not four


def test_what_is_logged_goes_through_the_trainer(tmp_path):
    trainer, callback, watch = trainer_in(tmp_path, probe=tokens(99))
    trainer.train()
    found = [log for log in trainer.state.log_history if "sparse/flow" in log]
    assert [log["step"] for log in found] == [4, 8, 12]
    assert [log["sparse/updates"] for log in found] == [2, 4, 6]
    assert [log["sparse/sparsity"] for log in found] == [pytest.approx(0.7, abs=0.001)] * 3
    assert all(0 < log["sparse/churn"] < 0.6 for log in found)
    assert sum("sparse/flow" in log for log in watch.logs) == 3  # other callbacks saw them
    assert [log["step"] for log in trainer.state.log_history if "loss" in log] == [4, 8, 12]
    flow = sf.gradient_flow(trainer.model, loss, tokens(99), callback.masks)
    assert {k for k in found[0] if k.startswith("sparse/flow")} == {
        "sparse/flow", "sparse/flow_kernels", "sparse/flow_biases",
    }  # fmt: skip
    assert found[-1]["sparse/flow"] == pytest.approx(flow.total, rel=0.3)  # dropout differs


def test_a_trainer_that_logs_nothing_is_not_made_to(tmp_path):
    trainer, callback, watch = trainer_in(tmp_path, options={"logging_strategy": "no"})
    trainer.train()
    assert not any("sparse/sparsity" in log for log in watch.logs)
    assert callback.masks != watch.masks[0]


def test_its_own_cadence(tmp_path):
    trainer, _, watch = trainer_in(tmp_path, every=5)
    trainer.train()
    assert [log["step"] for log in trainer.state.log_history if "sparse/churn" in log] == [5, 10]
    assert not any("sparse/flow" in log for log in watch.logs)


def test_autocast_in_bfloat16(tmp_path):
    trainer, callback, watch = trainer_in(tmp_path, options={"bf16": True})
    trainer.train()
    assert len(watch.masks) == 12
    assert callback.masks.density == pytest.approx(0.3, abs=0.001)


def test_it_detaches_and_a_second_training_keeps_the_masks(tmp_path):
    trainer, callback, _ = trainer_in(tmp_path)
    assert callback.masks is None
    trainer.train()
    assert not any(p._post_accumulate_grad_hooks for p in trainer.model.parameters())
    masks, before = callback.masks, weights(trainer)
    trainer.args.max_steps = 1
    trainer.train()
    assert callback.masks == masks
    assert not torch.equal(
        weights(trainer)["transformer.wte.weight"], before["transformer.wte.weight"]
    )


def test_ready_masks(tmp_path):
    masks = MASKS(trainer_in(tmp_path)[0].model)
    trainer, _, watch = trainer_in(tmp_path, masks=masks)
    trainer.train()
    assert watch.masks[0] == masks


def test_masks_of_the_best_checkpoint(tmp_path):
    options = {"eval_strategy": "steps", "eval_steps": 6, "load_best_model_at_end": True}
    trainer, callback, watch = trainer_in(
        tmp_path,
        options=options | {"metric_for_best_model": "wish", "greater_is_better": True},
    )
    scores = iter([1.0, 0.0])  # the first evaluation is the best
    plain = trainer.evaluate
    trainer.evaluate = lambda **options: plain(**options) | {"eval_wish": next(scores)}
    trainer.train()
    assert trainer.state.best_global_step == 6
    assert callback.masks == watch.masks[5] != watch.masks[-1]
    for name, mask in callback.masks.items():
        assert not trainer.model.get_parameter(name)[~mask].any()


# ---- checkpoints that do not fit


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with two checkpoints."""
    folder = tmp_path_factory.mktemp("trained")
    trainer_in(folder)[0].train()
    return folder


def resume(trained, tmp_path, **sparse):
    trainer, callback, _ = trainer_in(tmp_path, **sparse)
    trainer.train(resume_from_checkpoint=str(trained / "checkpoint-6"))
    return callback


def test_a_checkpoint_in_another_folder(trained, tmp_path):
    with pytest.raises(StoreError, match=r"checkpoint-6.* is missing: .* resume_from="):
        resume(trained, tmp_path)
    assert resume(trained, tmp_path, resume_from=trained / "checkpoint-6").masks is not None


def test_a_topology_of_another_step(trained, tmp_path):
    with pytest.raises(StoreError, match=r"is of step 12, and the weights are of step 6"):
        resume(trained, tmp_path, resume_from=trained / "checkpoint-12")


def test_a_topology_of_other_weights(trained, tmp_path):
    masks = partial(sf.sparsify, density=0.3, pattern="constant_fan_in", seed=1)
    trainer_in(tmp_path, masks=masks, options={"max_steps": 6})[0].train()
    with pytest.raises(StoreError, match=r"c_attn.weight has [\d,]+ nonzero weights where"):
        resume(trained, tmp_path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:-9], "truncated or foreign"),
        (lambda data: data[:-1] + bytes([data[-1] ^ 1]), "does not match its checksum"),
    ],
)
def test_a_damaged_topology(trained, tmp_path, damage, message):
    folder = tmp_path / "checkpoint-6"
    folder.mkdir()
    (folder / FILE).write_bytes(damage((trained / "checkpoint-6" / FILE).read_bytes()))
    with pytest.raises(StoreError, match=message):
        resume(trained, tmp_path)


def test_masks_of_another_kind_in_its_place(trained, tmp_path):
    folder = tmp_path / "checkpoint-6"
    folder.mkdir()
    MASKS(gpt2()).save(folder / FILE)
    with pytest.raises(StoreError, match="holds no topology of sparseflow"):
        resume(trained, tmp_path)


def test_what_cannot_be_attached(tmp_path):
    trainer, _, _ = trainer_in(tmp_path, method="RigL")
    trainer.model.transformer.wte.weight.requires_grad_(False)
    masks = {"transformer.wte.weight": torch.ones(23, 16) > 0}
    trainer.add_callback(SparseCallback(trainer, masks, METHODS["SET"]))
    with pytest.raises(TopologyError, match=r"transformer\.wte\.weight"):
        trainer.train()
