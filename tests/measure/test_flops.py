"""Floating-point operations against closed forms."""

import math

import pytest
import torch
from torch import nn

import sparseflow as sf
from sparseflow.models import build

IMAGES = {
    "lenet5": (1, 28, 28),
    "mlp": (1, 28, 28),
    "resnet50": (3, 224, 224),
    "vgg16": (3, 224, 224),
}


def macs(conv: tuple[int, ...]) -> int:
    """Multiplications of a convolution (in, out, kernel, side of the output)."""
    before, after, kernel, side = conv
    return before * after * kernel**2 * side**2


def resnet20() -> int:
    """Closed form: a stem, and three stages of six convolutions, the first of which strides."""
    total = macs((3, 16, 3, 32)) + 6 * macs((16, 16, 3, 32)) + 64 * 10
    for before, after, side in ((16, 32, 16), (32, 64, 8)):
        total += macs((before, after, 3, side)) + 5 * macs((after, after, 3, side))
    return total


def resnet50() -> int:
    """Closed form: bottlenecks whose 3×3 convolution strides."""
    total, before, side = macs((3, 64, 7, 112)) + 2048 * 1000, 64, 56
    for stage, blocks in enumerate((3, 4, 6, 3)):
        width = 64 * 2**stage
        for block in range(blocks):
            after = side // 2 if stage and not block else side
            total += macs((before, width, 1, side)) + macs((width, width, 3, after))
            total += macs((width, 4 * width, 1, after))
            total += macs((before, 4 * width, 1, after)) if not block else 0
            before, side = 4 * width, after
    return total


def vgg16() -> int:
    total, before, side = 25_088 * 4096 + 4096**2 + 4096 * 1000, 3, 224
    for width, convolutions in zip((64, 128, 256, 512, 512), (2, 2, 3, 3, 3), strict=True):
        for _ in range(convolutions):
            total, before = total + macs((before, width, 3, side)), width
        side //= 2
    return total


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "closed", "published"),
    [
        ("lenet5", macs((1, 6, 5, 24)) + macs((6, 16, 5, 8)) + 256 * 120 + 120 * 84 + 840, 0.28e6),
        ("mlp", 784 * 300 + 300 * 100 + 1000, 0.27e6),
        ("resnet20", resnet20(), 41e6),
        ("resnet50", resnet50(), 4.1e9),
        ("vgg16", vgg16(), 15.5e9),
    ],
)
def test_dense_counts_are_the_closed_forms(name: str, closed: int, published: float) -> None:
    with torch.device("meta"):
        model, x = build(name), torch.empty(1, *IMAGES.get(name, (3, 32, 32)))
    found = sf.flops(model, x)
    assert found.dense_forward == found.forward == 2 * closed
    assert closed == pytest.approx(published, rel=0.02)
    first = next(m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear))
    without = next(v for k, v in found.per_layer.items() if model.get_submodule(k) is first)
    assert (
        found.dense_step == 3 * found.dense_forward - without
    )  # nobody wants the images' gradient


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lenet5", "resnet20", "wrn22-2"])
def test_a_layer_counts_by_its_density(name: str) -> None:
    model = build(name)
    x = torch.randn(2, *IMAGES.get(name, (3, 32, 32)))
    masks = sf.sparsify(model, 0.2, allocation="erk")
    dense, found = sf.flops(model, x), sf.flops(model, x, masks)
    share = {n.removesuffix(".weight"): m.double().mean() for n, m in masks.items()}
    for layer, count in found.per_layer.items():
        assert count == pytest.approx(float(share[layer]) * dense.per_layer[layer])
    assert found.forward == pytest.approx(sum(found.per_layer.values()))
    assert (found.dense_forward, found.dense_step) == (dense.forward, dense.step)
    first = next(iter(dense.per_layer))
    step = sum((3 - (k == first)) * count for k, count in found.per_layer.items())
    assert found.step == pytest.approx(step)


@pytest.mark.slow
def test_uniform_masks_save_their_share_and_erk_less() -> None:
    """RigL's appendix has 0.42 of the dense operations for ResNet-50 at 80 % under ERK."""
    with torch.device("meta"):
        model, x = build("resnet50"), torch.empty(1, 3, 224, 224)
    layers = sf.maskable(model)
    counts = sf.allocate(layers, 0.2, "erk")
    saved = sum(
        count * (1 - counts[f"{name}.weight"] / layers[f"{name}.weight"].size)
        for name, count in sf.flops(model, x).per_layer.items()
    )
    assert 1 - saved / sf.flops(model, x).forward == pytest.approx(0.42, abs=0.01)
    small = build("mlp")
    found = sf.flops(small, torch.ones(1, 1, 28, 28), sf.sparsify(small, 0.1, allocation="uniform"))
    assert found.forward == pytest.approx(0.1 * found.dense_forward)


class Shared(nn.Module):
    """One layer called twice, and operations outside any layer; named inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.frozen = nn.Linear(8, 8), nn.Linear(8, 8).requires_grad_(False)

    def forward(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        return self.layer(self.layer(left)) @ self.frozen(right).T


def test_shared_layers_and_products_outside_layers() -> None:
    model, x = Shared(), torch.ones(4, 8)
    masks = {"layer.weight": torch.eye(8, dtype=torch.bool)}
    found = sf.flops(model, (x, x), masks)
    one = 2 * 4 * 8 * 8
    assert found.dense_forward == 3 * one + 2 * 4 * 4 * 8
    assert found.per_layer == {"layer": 2 * one / 8, "frozen": one}
    assert found.forward == one / 4 + one + 2 * 4 * 4 * 8
    assert sf.flops(model, {"left": x, "right": x}, masks) == found


class Tied(nn.Module):
    """A table that is also the last layer's weight, and one layer under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.last = nn.Embedding(20, 8), nn.Linear(8, 20, bias=False)
        self.one = self.two = nn.Linear(8, 8)
        self.last.weight = self.table.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.last(self.two(self.one(self.table(tokens))))


def test_a_tied_weight_saves_wherever_it_is_used() -> None:
    quarter, tokens = torch.arange(160).reshape(20, 8) % 4 == 0, torch.zeros(5, dtype=torch.long)
    found = sf.flops(Tied(), tokens, {"table.weight": quarter, "one.weight": torch.eye(8) > 0})
    assert found.dense_forward == 2 * 5 * (8 * 20 + 2 * 64)
    assert found.per_layer == {"one": 2 * 2 * 5 * 64 / 8, "last": 2 * 5 * 160 / 4}
    assert found.forward == sum(found.per_layer.values())
    # Each product again by the weight and by the input: the table has a gradient.
    assert found.step == pytest.approx(3 * found.forward)
    model = Tied()
    model.table = nn.Embedding(20, 8)  # the masked weight is now that of the last layer alone
    assert sf.flops(model, tokens, {"last.weight": quarter}).per_layer["last"] == 2 * 5 * 160 / 4


def test_counting_computes_nothing_and_leaves_the_model_alone() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 2))
    before, state = torch.get_rng_state(), {k: v.clone() for k, v in model.state_dict().items()}
    sf.flops(model, torch.full((3, 4), math.nan))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_what_cannot_be_counted_is_refused() -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4))
    masks = sf.make_masks(sf.maskable(model), 0.1)
    masks.apply(model)
    x = torch.ones(2, 64)
    attention = nn.MultiheadAttention(8, 2)
    whole = {"in_proj_weight": torch.ones(24, 8, dtype=torch.bool)}
    with pytest.raises(sf.SparseflowError, match="in_proj_weight belongs to a module with others"):
        sf.flops(attention, (torch.ones(3, 1, 8),) * 3, whole)
    out = {"out_proj.weight": torch.ones(8, 8, dtype=torch.bool)}
    with pytest.raises(sf.SparseflowError, match="out_proj are never called by themselves"):
        sf.flops(attention, (torch.ones(3, 1, 8),) * 3, out)
    with pytest.raises(sf.SparseflowError, match="nothing"):
        sf.flops(model, x, {"nothing": torch.ones(2, dtype=torch.bool)})
