"""The callback of Lightning's Trainer."""

from functools import partial

import pytest
import torch
from helpers.small import batch, network
from torch.utils.data import DataLoader, TensorDataset

import sparseflow as sf
from sparseflow.core.errors import KernelError, StoreError, TopologyError
from sparseflow.integrations.lightning import SparseCallback, pytorch

pytestmark = [
    # Lightning asks torch in an outdated way whether a batch is one tensor.
    pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec:FutureWarning"),
    # Workers would take longer to start than these tests.
    pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers"),
    # Resumed in the middle of an epoch; the batches are in a fixed order.
    pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before"),
]

METHODS = {"RigL": sf.RigL(sf.every(2)), "SET": sf.SET(sf.every(2))}
MASKS = partial(sf.sparsify, density=0.3, pattern="constant_fan_in")
QUIET = {
    "enable_progress_bar": False,
    "enable_checkpointing": False,
    "enable_model_summary": False,
    "log_every_n_steps": 4,
}


class Regression(pytorch.LightningModule):
    """The small network, with as many optimisers as asked for."""

    def __init__(self, optimizers=1):
        super().__init__()
        self.net, self._optimizers = network(), optimizers
        self.automatic_optimization = optimizers == 1

    def training_step(self, data, index):
        value = mean_squares(self, data)
        self.log("loss", value)
        if not self.automatic_optimization:
            for optimizer in self.optimizers():
                optimizer.zero_grad()
            self.manual_backward(value)
            for optimizer in self.optimizers():
                optimizer.step()
        return value

    def configure_optimizers(self):
        parts = [self] if self._optimizers == 1 else [self.net[0], self.net[2]]
        return [torch.optim.AdamW(part.parameters(), lr=0.02) for part in parts]


def mean_squares(module, data):
    return (module.net(data[0]) - data[1]).square().mean()


class Watch(pytorch.Callback):
    """Looks at every step, keeps what is logged, and writes a checkpoint every six steps."""

    def __init__(self, sparse, folder):
        self.sparse, self.folder, self.masks, self.logs = sparse, folder, [], []

    def on_before_optimizer_step(self, trainer, module, optimizer):
        for name, mask in self.sparse.masks.items():
            assert not module.get_parameter(name).grad[~mask].any()

    def on_train_batch_end(self, trainer, module, *others):
        if trainer.global_step == len(self.masks):
            return  # accumulated
        self.masks.append(self.sparse.masks)
        self.logs.append(dict(trainer.callback_metrics))
        held = {id(p): o.state[p] for o in trainer.optimizers for p in o.state}
        for name, mask in self.sparse.masks.items():
            weight = module.get_parameter(name)
            slots = held[id(weight)]
            assert not weight[~mask].any()
            assert not any(slots[key][~mask].any() for key in ("exp_avg", "exp_avg_sq"))
        if trainer.global_step % 6 == 0:
            trainer.save_checkpoint(self.folder / f"step={trainer.global_step}.ckpt")


def data():
    x, y = batch(0, size=96)
    return DataLoader(TensorDataset(x, y), batch_size=8)


def trainer_in(folder, method="RigL", masks=MASKS, options=(), **sparse):
    """A trainer of twelve steps of two batches, its callback, and what watches it."""
    callback = SparseCallback(masks, METHODS[method], **sparse)
    watch = Watch(callback, folder)
    settings = {
        "max_steps": 12, "accumulate_grad_batches": 2, "gradient_clip_val": 0.5,
        "accelerator": "cpu", "logger": pytorch.loggers.CSVLogger(folder), **QUIET,
    }  # fmt: skip
    trainer = pytorch.Trainer(callbacks=[callback, watch], **(settings | dict(options)))
    return trainer, callback, watch


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("at", [6, 12])
def test_resumed_training_is_as_if_undisturbed(tmp_path, method, at):
    model, again = Regression(), Regression()
    trainer, callback, watch = trainer_in(tmp_path / "a", method, options={"max_steps": 18})
    trainer.fit(model, data())
    resumed, other, watched = trainer_in(tmp_path / "b", method, options={"max_steps": 18})
    watched.masks += watch.masks[:at]
    resumed.fit(again, data(), ckpt_path=tmp_path / "a" / f"step={at}.ckpt")
    assert len(watched.masks) == 18
    assert watched.masks == watch.masks
    assert len({masks.digest() for masks in watch.masks}) > 7
    assert other.masks == callback.masks
    for name, weight in again.named_parameters():
        assert torch.equal(weight, model.get_parameter(name)), name


def test_the_loop_by_hand_is_the_same(tmp_path):
    """Two micro-batches, clipping, AdamW: equal masks, weights to 1e-6."""
    model, plain = Regression(), Regression()
    trainer, _, watch = trainer_in(tmp_path)
    trainer.fit(model, data())
    optimizer = plain.configure_optimizers()[0]
    topology = sf.attach(plain, optimizer, MASKS(plain), METHODS["RigL"])
    batches = list(data()) * 2
    for step in range(12):
        optimizer.zero_grad()
        for part in batches[2 * step : 2 * step + 2]:
            (mean_squares(plain, part) / 2).backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 0.5)
        optimizer.step()
        assert topology.masks == watch.masks[step]
    for name, weight in model.named_parameters():
        torch.testing.assert_close(plain.get_parameter(name), weight, rtol=1e-5, atol=1e-6)


def test_what_is_logged_goes_through_the_module(tmp_path):
    model = Regression()
    trainer, callback, watch = trainer_in(tmp_path, probe=batch(9), loss=mean_squares)
    trainer.fit(model, data())
    rows = (tmp_path / "lightning_logs" / "version_0" / "metrics.csv").read_text().splitlines()
    head = rows[0].split(",")
    found = [dict(zip(head, row.split(","), strict=True)) for row in rows[1:]]
    logged = [row for row in found if row["sparse/flow"]]
    assert [row["step"] for row in logged] == ["3", "7", "11"]
    assert [float(row["sparse/updates"]) for row in logged] == [2, 4, 6]
    assert all(0 < float(row["sparse/churn"]) < 0.6 and row["loss"] for row in logged)
    assert "sparse/flow" not in watch.logs[0]
    flow = sf.gradient_flow(model, mean_squares, batch(9), callback.masks)
    assert float(logged[-1]["sparse/flow"]) == pytest.approx(flow.total, rel=1e-5)
    assert float(logged[-1]["sparse/probe_loss"]) == pytest.approx(flow.loss, rel=1e-5)


def test_autocast_in_bfloat16(tmp_path):
    trainer, callback, watch = trainer_in(tmp_path, options={"precision": "bf16-mixed"})
    trainer.fit(Regression(), data())
    assert len(watch.masks) == 12
    assert callback.masks.counts == watch.masks[0].counts


def test_it_detaches_and_a_second_training_goes_on(tmp_path):
    model = Regression()
    trainer, callback, watch = trainer_in(tmp_path)
    assert callback.masks is None
    assert callback.state_dict() == {}
    trainer.fit(model, data())
    assert not any(p._post_accumulate_grad_hooks for p in model.parameters())
    trainer.save_checkpoint(tmp_path / "end.ckpt")  # after training: the masks it ended with
    trainer.fit_loop.epoch_loop.max_steps = 14
    trainer.fit(model, data())
    assert watch.masks[12] == watch.masks[11]
    again, _, watched = trainer_in(tmp_path / "again", options={"max_steps": 14})
    watched.masks += watch.masks[:12]
    again.fit(Regression(), data(), ckpt_path=tmp_path / "end.ckpt")
    assert watched.masks[12] == watch.masks[11]


def test_it_detaches_when_training_fails(tmp_path):
    class Failing(Regression):
        def on_train_batch_end(self, *args):
            raise RuntimeError("enough")

    model = Failing()
    trainer, callback, _ = trainer_in(tmp_path)
    with pytest.raises(RuntimeError, match="enough"):
        trainer.fit(model, data())
    assert not any(p._post_accumulate_grad_hooks for p in model.parameters())
    assert callback.masks is not None


SWA = pytorch.callbacks.StochasticWeightAveraging
AVERAGES = {
    "SWA": lambda: SWA(0.01, swa_epoch_start=1, annealing_epochs=1),
    "average": lambda: pytorch.callbacks.WeightAveraging(device="cpu", use_buffers=False),
}


class Truly(Regression):
    """The same network, truly sparse; one that was not trained keeps its weights."""

    def __init__(self):
        super().__init__()
        masks = MASKS(self.net)
        self.net = sf.to_sparse(self.net, masks, batch(0)[0], force=True)
        self.masks = sf.Masks({f"net.{name}": mask for name, mask in masks.items()})


def averaged(tmp_path, kind, masks, method):
    callback = SparseCallback(masks, method)
    trainer = pytorch.Trainer(
        max_epochs=4, callbacks=[callback, AVERAGES[kind]()], accelerator="cpu", logger=False,
        default_root_dir=tmp_path, **QUIET,
    )  # fmt: skip
    return trainer, callback


@pytest.mark.parametrize("kind", AVERAGES)
def test_averaged_weights_end_under_the_final_masks(tmp_path, kind):
    trainer, callback = averaged(tmp_path, kind, MASKS, METHODS["RigL"])
    model = Regression()
    with pytest.warns(UserWarning, match=r"\d+ weights outside of the final masks were not zero"):
        trainer.fit(model, data())
    for name, mask in callback.masks.items():
        weight = model.get_parameter(name)
        assert not weight[~mask].any()
        assert weight[mask].count_nonzero() > 0.6 * mask.sum()  # some have only just grown


@pytest.mark.parametrize("method", [sf.RigL(sf.every(2)), sf.RigL(sf.every(2, stop=10))])
@pytest.mark.parametrize("kind", AVERAGES)
def test_averages_of_truly_sparse_weights_are_refused(tmp_path, kind, method):
    model = Truly()
    trainer, _ = averaged(tmp_path, kind, model.masks, method)
    with pytest.raises(KernelError, match="belong to different positions"):
        trainer.fit(model, data())


def test_one_of_several_optimisers(tmp_path):
    def masks(model):
        layers = sf.maskable(model, include=r"net\.2")
        return sf.sparsify(model, density=0.5, init=None, layers=layers)

    options = {"accumulate_grad_batches": 1, "gradient_clip_val": None}
    trainer, callback, _ = trainer_in(tmp_path, masks=masks, options=options)
    trainer.fit(Regression(optimizers=2), data())
    assert list(callback.masks) == ["net.2.weight"]
    trainer, callback, _ = trainer_in(tmp_path / "all", options=options)
    with pytest.raises(TopologyError, match="none of the 2 optimisers holds all masked weights"):
        trainer.fit(Regression(optimizers=2), data())


def test_a_probe_needs_a_loss():
    with pytest.raises(TopologyError, match="a probe needs a loss"):
        SparseCallback(MASKS, METHODS["SET"], probe=batch(0))


# ---- checkpoints that do not fit


@pytest.fixture
def checkpoint(tmp_path):
    """A checkpoint at step 6."""
    trainer_in(tmp_path)[0].fit(Regression(), data())
    return tmp_path / "step=6.ckpt"


def changed(path, change):
    content = torch.load(path, weights_only=True)
    change(content)
    torch.save(content, path)
    return path


def resume(path, tmp_path):
    trainer_in(tmp_path / "again")[0].fit(Regression(), data(), ckpt_path=path)


def test_a_checkpoint_without_a_topology(checkpoint, tmp_path):
    changed(checkpoint, lambda content: content["callbacks"].pop("SparseCallback"))
    with pytest.raises(StoreError, match="resumes at step 6 from a checkpoint written without"):
        resume(checkpoint, tmp_path)


def test_a_damaged_topology(checkpoint, tmp_path):
    def damage(content):
        tensors = content["callbacks"]["SparseCallback"]["tensors"]
        tensors["mask/net.0.weight"] = tensors["mask/net.0.weight"][:-2]

    with pytest.raises(
        StoreError, match=r"the checkpoint is damaged: the mask of 'net\.0\.weight'"
    ):
        resume(changed(checkpoint, damage), tmp_path)


def test_a_topology_of_other_weights(checkpoint, tmp_path):
    def fill(content):
        content["state_dict"]["net.0.weight"].fill_(1.0)

    with pytest.raises(StoreError, match=r"net\.0\.weight has 45 nonzero weights where"):
        resume(changed(checkpoint, fill), tmp_path)
