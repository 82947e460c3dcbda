"""What a run is built from: each draw follows its own seed and stream, each part its own data."""

from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from helpers.small import tiny

import sparseflow as sf
from sparseflow.runs import Run, RunSpec, Store, execute, identity
from sparseflow.runs.build import Assembly, assemble, load_data, make_model, probe_batch

NARROW = (
    "execution=dense", "model.widths=[8,6]", "density=0.3", "data.limit=300", "data.probe=50",
)  # fmt: skip


def spec_of(name: str, *settings: str) -> RunSpec:
    return tiny(name, *NARROW, *settings)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A pruning run, the parent of all below, and its ticket."""
    store = Store(tmp_path_factory.mktemp("runs"))
    execute(spec_of("mlp-mnist/lottery"), store)
    return store


def built(store: Store, name: str, *settings: str) -> Assembly:
    return assemble(spec_of(name, *settings), store)


def order(parts: Assembly) -> torch.Tensor:
    return parts.batches.indices(0)


def first(parts: Assembly) -> torch.Tensor:
    return next(parts.model.parameters()).detach()


def test_growth_has_a_probe_of_its_own() -> None:
    spec = spec_of("mlp-mnist/dense")
    data = load_data(spec)
    for index in (0, 1):
        images, classes = probe_batch(data, 50, index)
        assert torch.equal(images, data.train[50 * index : 50 * index + 50][0])
        assert torch.equal(classes, data.train[50 * index : 50 * index + 50][1])


def test_rigl_grows_from_the_second_probe_and_flow_is_measured_on_the_first(store: Store) -> None:
    parts = built(store, "mlp-mnist/rigl+")
    source = parts.method.growth_gradient
    assert callable(source)
    second = probe_batch(parts.dataset, 50, 1)
    name = next(iter(parts.masks))
    weight = dict(parts.model.named_parameters())[name]
    (expected,) = torch.autograd.grad(parts.loss(parts.model, second), [weight])
    given = source()[name]  # type: ignore[index]
    torch.testing.assert_close(given(slice(None)) if callable(given) else given, expected)
    assert torch.equal(parts.probe[0], parts.dataset.train[:50][0])


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("mlp-mnist/prune", "method.power=2"),
        ("mlp-mnist/dense", "train.label_smoothing=0.1"),
        ("mlp-mnist/rigl+", "method.drop.value=0.2"),
        ("mlp-mnist/rigl+", "mask.run.method.power=2"),
        ("mlp-mnist/dense", "optimizer.inner_momentum=false"),
        ("mlp-mnist/dense", "data.probe=51"),
        ("mlp-mnist/dense", "measure.every=5"),
    ],
)
def test_every_setting_enters_the_identity(name: str, setting: str) -> None:
    assert identity(spec_of(name, setting)) != identity(spec_of(name))


def test_a_child_draws_other_weights_and_another_order_than_its_parent(store: Store) -> None:
    """Equal seeds, equal layers, equal masks: the generation alone keeps the draws apart."""
    child = built(store, "mlp-mnist/scratch+")
    parent = built(store, "mlp-mnist/dense", "init=fan_in")
    mask = child.masks[next(iter(child.masks))]
    both = mask & (first(parent) != 0)
    assert both.any()
    signs = torch.sign(first(child)[both]) == torch.sign(first(parent)[both])
    assert 0.2 < signs.double().mean() < 0.8
    assert not torch.equal(order(child), order(parent))


def test_a_shuffled_mask_follows_the_seed_of_masks(store: Store) -> None:
    one, same, other = (
        built(store, "mlp-mnist/shuffled", f"seeds.mask={mask}").masks for mask in (3, 3, 4)
    )
    assert one == same
    assert one != other
    parent = store.run(spec_of("mlp-mnist/prune")).checkpoint(12)[1]
    assert one == sf.shuffle_masks(parent, 3)


def signal_at_start(run: Run) -> dict:
    return next(record for record in run.metrics() if record["event"] == "signal")


def test_the_signal_of_a_ticket_is_that_of_its_masked_weights(store: Store) -> None:
    spec = spec_of("mlp-mnist/lottery")
    run = store.run(spec)
    model = make_model(spec)
    model.load_state_dict(run.checkpoint(0)[0])
    images = probe_batch(load_data(spec), 50, 0)[0]
    expected = asdict(sf.signal(model, images, sf.maskable(model)))
    found = signal_at_start(run)["images"]
    assert found["output"] == pytest.approx(expected["output"], rel=1e-5)


def test_flow_is_measured_anew_unless_an_update_has_just_measured_it(tmp_path: Path) -> None:
    """Updates at 3, 6, 9; the flow at 3 is that after the update, at 4 it is another network's."""
    settings = ("measure.every=1", "measure.updates=1", "method.grow_from=batch")
    run = execute(spec_of("mlp-mnist/rigl+", *settings), Store(tmp_path))
    flows = {r["step"]: r["total"] for r in run.metrics() if r["event"] == "flow"}
    after = {r["step"]: r["after"]["total"] for r in run.metrics() if r["event"] == "update"}
    assert set(after) >= {3, 6, 9}
    for step, norm in after.items():
        assert flows[step] == norm
        assert flows.get(step + 1) != norm
    spec, step = run.spec, 4
    model = make_model(spec)
    model.load_state_dict(run.checkpoint(step)[0])
    probe = probe_batch(load_data(spec), 50, 0)
    expected = sf.gradient_flow(model, sf.cross_entropy, probe, run.checkpoint(step)[1]).total
    assert flows[step] == pytest.approx(expected, rel=1e-5)


def test_label_smoothing_is_part_of_the_training_loss(store: Store) -> None:
    plain, smooth = (
        built(store, "mlp-mnist/dense", *extra) for extra in ((), ("train.label_smoothing=0.2",))
    )
    logits = plain.model(plain.probe[0])
    for parts, amount in ((plain, 0.0), (smooth, 0.2)):
        expected = torch.nn.functional.cross_entropy(logits, plain.probe[1], label_smoothing=amount)
        torch.testing.assert_close(parts.loss(plain.model, plain.probe), expected)
