"""Whatever module is passed in: masks are exact, counts stay, and measurements work."""

import math

import pytest
import torch
from helpers.small import snapshot
from helpers.transformer import BatchEncoding, bert, classified, gpt2, images, loss, tokens, vit
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

import sparseflow as sf
from sparseflow.core.errors import MaskError, StoreError


class Narrow(nn.Linear):
    """A user's own Linear."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).clamp(-3, 3)


class Recurrent(nn.Module):
    """Embedding, LSTM or GRU, and a head."""

    def __init__(self, kind: type[nn.RNNBase], **options) -> None:
        super().__init__()
        self.embed = nn.Embedding(23, 6)
        self.core = kind(6, 8, num_layers=2, batch_first=True, **options)
        self.head = nn.LazyLinear(2)

    def forward(self, x: Tensor) -> Tensor:
        self.core.flatten_parameters()
        return self.head(self.core(self.embed(x))[0][:, -1])


class Attention(nn.Module):
    """Packed projections."""

    def __init__(self) -> None:
        super().__init__()
        self.attend = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = x.reshape(-1, 8, 8)
        return self.head(self.attend(x, x, x, need_weights=False)[0].mean(1))


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 8, 3, groups=2), nn.BatchNorm2d(8), nn.ReLU(),
        nn.ConvTranspose2d(8, 4, 2, groups=2), nn.Flatten(), nn.LazyLinear(2),
    )  # fmt: skip


def frozen() -> nn.Module:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), Narrow(8, 6))
    model[1].requires_grad_(False)
    return model


def spectral() -> nn.Module:
    first = parametrizations.spectral_norm(nn.Linear(64, 8))
    return nn.Sequential(nn.Flatten(), first, nn.ReLU(), nn.Linear(8, 2))


def half() -> nn.Module:
    model = convolutional()
    model(torch.ones(1, 1, 8, 8))
    return model.bfloat16()


def of_images(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    pixels = batch["pixel_values"].to(next(model.parameters()).dtype)
    return nn.functional.cross_entropy(model(pixels), batch["labels"])


def of_words(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(model(batch["input_ids"]), batch["labels"])


def every_kind(model: nn.Module) -> dict[str, sf.Layer]:
    kinds = (
        nn.Linear,
        nn.Conv2d,
        nn.ConvTranspose2d,
        nn.RNNBase,
        nn.MultiheadAttention,
        nn.Embedding,
    )
    return sf.maskable(model, types=kinds)


MODELS = {
    "GPT-2": (gpt2, sf.maskable, loss, tokens, 9),
    "BERT": (bert, sf.maskable, loss, classified, 14),
    "ViT": (vit, sf.maskable, loss, images, 14),
    "LSTM": (lambda: Recurrent(nn.LSTM, bias=False), every_kind, of_words, classified, 6),
    "GRU": (lambda: Recurrent(nn.GRU, bidirectional=True), every_kind, of_words, classified, 10),
    "attention": (Attention, every_kind, of_images, images, 3),
    "convolutions": (convolutional, every_kind, of_images, images, 4),
    "frozen part, own Linear": (frozen, sf.maskable, of_images, images, 1),
    "spectral norm": (spectral, sf.maskable, of_images, images, 2),
    "bfloat16": (half, sf.maskable, of_images, images, 3),
}

METHODS = {"RigL": sf.RigL(sf.every(2)), "SET": sf.SET(sf.every(2))}


@pytest.fixture(params=MODELS)
def case(request):
    make, choose, measure, batches, count = MODELS[request.param]
    model = make()
    measure(model, batches(0))  # lazy modules take their shape
    layers = choose(model)
    assert len(layers) == count
    return model, layers, measure, batches


def assert_exact(model, optimizer, masks):
    for name, tensors in snapshot(model, optimizer).items():
        if name in masks:
            assert len(tensors) == 3, name
            assert not any(bool(t[~masks[name]].any()) for t in tensors), name


@pytest.mark.parametrize("method", METHODS)
def test_masks_are_exact_after_every_step(case, method):
    model, layers, measure, batches = case
    keys = list(model.state_dict())
    masks = sf.sparsify(model, density=0.3, pattern="constant_fan_in", layers=layers)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    topology = sf.attach(model, optimizer, masks, METHODS[method])
    for step in range(5):
        optimizer.zero_grad()
        value = measure(model, batches(step))
        value.backward()
        optimizer.step()
        assert math.isfinite(value.item())
        assert_exact(model, optimizer, topology.masks)
        assert topology.masks.counts == masks.counts
    assert topology.updates == 2
    assert topology.masks != masks
    assert list(model.state_dict()) == keys


def test_pruning_and_measurements(case):
    model, layers, measure, batches = case
    masks = sf.full_masks(layers)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    topology = sf.attach(model, optimizer, masks, sf.GradualPruning(0.25, 1, 3, 1))
    for step in range(4):
        optimizer.zero_grad()
        measure(model, batches(step)).backward()
        optimizer.step()
    assert_exact(model, optimizer, topology.masks)
    wanted = {name: round(0.25 * layer.size) for name, layer in layers.items()}
    assert topology.masks.counts == wanted
    model.eval()
    flow = sf.gradient_flow(model, measure, batches(9), topology.masks)
    assert 0 < flow.total < flow.dense
    assert set(flow.per_layer) == {n for n, p in model.named_parameters() if p.requires_grad}


def of_next_words(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """GPT-2's own loss, which the model takes in float32, in float64."""
    found = model(input_ids=batch["input_ids"]).logits[:, :-1]
    return nn.functional.cross_entropy(found.mT, batch["labels"][:, 1:])


CURVED = {
    "GPT-2": (lambda: gpt2(n_layer=1), sf.maskable, of_next_words, tokens),
    "BERT": (lambda: bert(num_hidden_layers=1), sf.maskable, loss, classified),
    **{name: MODELS[name][:4] for name in ("attention", "spectral norm")},
}


@pytest.mark.parametrize("name", CURVED)
def test_curvature_against_differences_of_gradients(name):
    make, choose, measure, batches = CURVED[name]
    model = make().eval().double()
    masks = sf.sparsify(model, density=0.3, init=None, layers=choose(model))
    operator = sf.hessian(model, measure, batches(0), masks)
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert operator.names == tuple(trained)
    where = [masks.get(n, torch.ones(p.shape, dtype=torch.bool)) for n, p in trained.items()]
    v = torch.randn(operator.shape[0], dtype=torch.float64)
    parts = v.split([int(w.sum()) for w in where])

    def gradient(shift: float) -> Tensor:
        with torch.no_grad():
            for p, w, part in zip(trained.values(), where, parts, strict=True):
                p[w] += shift * part
        found = torch.autograd.grad(measure(model, batches(0)), list(trained.values()))
        return torch.cat([g[w] for g, w in zip(found, where, strict=True)])

    size = 1e-6
    ahead, behind = gradient(size), gradient(-2 * size)
    difference = (ahead - behind) / (2 * size)
    torch.testing.assert_close(operator @ v, difference, rtol=1e-5, atol=1e-6)


def test_a_tied_weight_is_one_weight():
    model = gpt2()
    masks = sf.sparsify(model, density=0.5, layers=sf.maskable(model, include="wte"))
    assert list(masks) == ["transformer.wte.weight"]
    assert model.lm_head.weight is model.transformer.wte.weight
    assert "transformer.wte.weight" not in sf.maskable(model, exclude="wte")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    sf.attach(model, optimizer, masks, sf.Static())
    loss(model, tokens(0)).backward()
    optimizer.step()
    assert not model.state_dict()["lm_head.weight"][~masks["transformer.wte.weight"]].any()


def test_what_a_tokenizer_returns_is_a_batch():
    batch = tokens(0)
    model = gpt2().eval()
    flow = sf.gradient_flow(model, loss, BatchEncoding(batch), chunk=4)
    assert flow.total == pytest.approx(sf.gradient_flow(model, loss, batch).total, rel=1e-5)


# ---- how the connections run


def test_a_neuron_of_gpt2_is_a_column():
    """The dense fan-in is what a neuron sums when inputs and weights are one."""
    module = gpt2().transformer.h[0].attn.c_attn
    layer = sf.maskable(module)["weight"]
    assert (layer.shape, layer.layout) == ((16, 48), "in_out")
    nn.init.ones_(module.weight)
    assert module(torch.ones(1, 16)).unique().tolist() == [16]
    mask = torch.zeros(16, 48, dtype=torch.bool)
    mask[:5, 7] = True  # five inputs enter neuron 7
    assert layer.fan_in(mask)[:, 7].tolist() == [5] * 16
    assert layer.fan_out(mask)[:, 7].tolist() == [1] * 5 + [0] * 11
    assert layer.neurons(mask).sum(1).nonzero().tolist() == [[7]]


@pytest.mark.parametrize(
    ("module", "name"),
    [
        (nn.LSTM(200, 100), "weight_ih_l0"),
        (nn.GRU(200, 100), "weight_ih_l0"),
        (nn.MultiheadAttention(200, 4), "in_proj_weight"),
    ],
)
def test_each_row_of_stacked_gates_is_a_neuron(module, name):
    """Two rows of one gate with 10 and 160 inputs: variance 2 / 10 and 2 / 160."""
    layers = sf.maskable(module, types=[type(module)], include=name)
    mask = torch.rand(layers[name].shape) < 0.5
    mask[3], mask[4] = torch.arange(200) < 10, torch.arange(200) < 160
    stds = sf.init.deviation(layers[name], mask, sf.Init())
    assert stds[3].unique().tolist() == pytest.approx([0.2**0.5])
    assert stds[4].unique().tolist() == pytest.approx([(2 / 160) ** 0.5])


@torch.no_grad()
def test_the_fast_path_of_attention_sees_the_mask():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    kinds = (nn.MultiheadAttention, nn.Linear)
    masks = sf.sparsify(layer, density=0.4, init=None, layers=sf.maskable(layer, types=kinds))
    x = torch.randn(2, 5, 8)
    fast = layer(x)
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        torch.testing.assert_close(layer(x), fast)
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
    assert not layer.self_attn.in_proj_weight[~masks["self_attn.in_proj_weight"]].any()


# ---- a layout of one's own


class Experts(nn.Module):
    """Weights that no built-in module has: (inputs, neurons)."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Parameter(torch.randn(6, 12)), nn.Parameter(torch.randn(12, 6))
        self.scale = nn.Parameter(torch.ones(6))

    def forward(self, x: Tensor) -> Tensor:
        return (x @ self.up).relu() @ self.down * self.scale


@pytest.fixture
def kinds(monkeypatch):
    """Whatever a test registers is forgotten afterwards."""
    from sparseflow.core import layouts as room  # noqa: PLC0415

    monkeypatch.setattr(room, "_LAYOUTS", dict(room._LAYOUTS))


@pytest.mark.parametrize("by_name", [False, True])
def test_a_layout_is_made_known(kinds, by_name):
    model = nn.Sequential(nn.Linear(6, 6), Experts())
    assert list(sf.maskable(model)) == ["0.weight"]
    with pytest.raises(MaskError, match=r"module type Experts: .* sf\.register_layout"):
        sf.maskable(model, types=[Experts])
    key = f"{Experts.__module__}.Experts" if by_name else Experts
    sf.register_layout(key, "in_out", weights="up|down")
    assert list(sf.maskable(model)) == ["0.weight", "1.up", "1.down"]
    assert list(sf.maskable(model, types=[Experts])) == ["1.up", "1.down"]
    assert sf.maskable(model)["1.up"].neurons(model[1].up).shape == (12, 6)


def test_a_layout_on_request(kinds):
    sf.register_layout(Experts, "in_out", weights="up", default=False)
    with pytest.raises(MaskError, match="has no weight to make sparse"):
        sf.maskable(Experts())
    assert list(sf.maskable(Experts(), types=[Experts])) == ["up"]


@pytest.mark.parametrize(
    ("layout", "weights", "message"),
    [
        ("out-in", "up", "unknown layout 'out-in'; did you mean 'out_in'"),
        ("in_out", "(up", r"weights='\(up' must be a regular expression"),
    ],
)
def test_layouts_that_cannot_be(kinds, layout, weights, message):
    with pytest.raises(MaskError, match=message):
        sf.register_layout(Experts, layout, weights=weights)


def test_a_vector_is_no_weight(kinds):
    sf.register_layout(Experts, "in_out", weights="scale")
    with pytest.raises(MaskError, match=r"scale has shape \(6,\): a weight has an axis of neurons"):
        sf.maskable(Experts())


# ---- weights that are computed


class Square(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * x.abs()


class Symmetric(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.triu() + x.triu(1).mT


class Shifted(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 1


def with_parametrisation(*steps: nn.Module) -> nn.Linear:
    layer = nn.Linear(6, 6)
    for step in steps:
        parametrize.register_parametrization(layer, "weight", step)
    return layer


def test_a_parametrisation_that_keeps_zeros():
    model = nn.Sequential(with_parametrisation(Square()), nn.Linear(6, 2))
    layers = sf.maskable(model)
    assert list(layers) == ["0.parametrizations.weight.original", "1.weight"]
    masks = sf.sparsify(model, density=0.4, init=None, layers=layers)
    assert not model[0].weight[~masks["0.parametrizations.weight.original"]].any()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: with_parametrisation(Symmetric()), "parametrisation Symmetric computes weight"),
        (lambda: with_parametrisation(Square(), Shifted()), "Shifted of Square computes weight"),
        (lambda: parametrizations.orthogonal(nn.Linear(6, 6)), "_Orthogonal"),
        (
            lambda: parametrizations.weight_norm(nn.Linear(6, 6)),
            r"_WeightNorm computes .*original1",
        ),
        (
            lambda: prune.l1_unstructured(nn.Linear(6, 6), "weight", 3),
            r"0\..*weight.*a forward hook",
        ),
    ],
)
def test_weights_whose_zeros_would_not_hold_are_refused(make, message):
    model = nn.Sequential(make(), nn.Linear(6, 2))
    with pytest.raises(MaskError, match=message):
        sf.maskable(model)
    assert list(sf.maskable(model, exclude=r"^0\.")) == ["1.weight"]


# ---- clear refusals


def test_lazy_modules_before_they_have_a_shape():
    model = nn.Sequential(nn.Linear(4, 3), nn.LazyLinear(2))
    with pytest.raises(MaskError, match=r"1\.weight is of a lazy module .* on one batch first"):
        sf.sparsify(model, density=0.5)
    masks = sf.Masks({"1.weight": torch.ones(2, 3) > 0})
    with pytest.raises(MaskError, match=r"'1\.weight' is of a lazy module"):
        masks.apply(model)
    assert list(sf.sparsify(model, density=0.9, layers=sf.maskable(model, exclude="1"))) == [
        "0.weight"
    ]
    model(torch.ones(1, 4))
    assert sf.sparsify(model, density=0.5, init=None).nnz == 9


def test_a_file_that_cannot_hold_a_transformer_says_so(tmp_path):
    model, path = gpt2(), tmp_path / "gpt2.safetensors"
    masks = sf.sparsify(model, density=0.5, init=None)
    with pytest.raises(StoreError, match="GPT2LMHeadModel cannot be stored"):
        sf.save(path, model, masks, example_input=tokens(0)["input_ids"])
    with pytest.raises(MaskError, match="Conv1D has no sparse form"):
        sf.to_sparse(model, masks, tokens(0)["input_ids"], force=True)
    assert not path.exists()


# ---- libraries that not every machine has


@pytest.mark.parametrize(
    ("library", "make"),
    [
        ("torchvision", lambda lib: lib.models.mobilenet_v3_small(num_classes=2)),
        ("timm", lambda lib: lib.create_model("resnet10t", num_classes=2)),
    ],
)
def test_models_of_image_libraries(library, make):
    model = make(pytest.importorskip(library, reason=f"{library} does not import here"))
    masks = sf.sparsify(model, density=0.2, init=None)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    topology = sf.attach(model, optimizer, masks, sf.RigL(sf.every(1)))
    for _ in range(2):
        optimizer.zero_grad()
        model(torch.randn(2, 3, 64, 64)).square().mean().backward()
        optimizer.step()
    assert_exact(model, optimizer, topology.masks)
    assert topology.masks.counts == masks.counts
