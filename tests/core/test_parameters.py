"""Which parameters can be sparse, and how their connections run."""

import copy
import itertools
import math

import pytest
import torch
from helpers.scatter import ScatterLinear
from torch import nn

import sparseflow as sf
from sparseflow.core.errors import MaskError
from sparseflow.core.parameters import maskable, named_weights, replace_data, sparse_weights

KINDS = {
    "linear": (nn.Linear(4, 3), {}),
    "conv1d": (nn.Conv1d(4, 6, 3), {}),
    "conv2d": (nn.Conv2d(3, 2, (2, 3)), {}),
    "conv3d": (nn.Conv3d(2, 3, 2), {}),
    "grouped": (nn.Conv2d(6, 4, 3, groups=2), {}),
    "depthwise": (nn.Conv1d(4, 8, 3, groups=4), {}),
    "transposed": (nn.ConvTranspose2d(3, 2, (2, 3)), {"types": [nn.ConvTranspose2d]}),
    "transposed grouped": (
        nn.ConvTranspose1d(6, 4, 3, groups=2),
        {"types": [nn.ConvTranspose1d]},
    ),
    "embedding": (nn.Embedding(7, 3), {"types": [nn.Embedding]}),
}


@pytest.fixture(params=KINDS)
def layer(request):
    module, options = KINDS[request.param]
    return maskable(module, **options)["weight"]


def ends(layer, index):
    """Absolute (input channel, output neuron) of one entry, from the definition."""
    a, b, *_ = index
    module, groups = layer.module, layer.groups
    if isinstance(module, nn.Embedding):
        return a, b
    if isinstance(module, nn.ConvTranspose1d | nn.ConvTranspose2d):
        group = a // (layer.shape[0] // groups)
        return a, group * layer.shape[1] + b
    group = a // (layer.shape[0] // groups)
    return group * layer.shape[1] + b, a


def test_fans_against_loops(layer):
    mask = torch.rand(layer.shape) < 0.4
    entries = list(itertools.product(*(range(n) for n in layer.shape)))
    active = [ends(layer, e) for e in entries if mask[e]]
    fan_in, fan_out = layer.fan_in(mask), layer.fan_out(mask)
    for entry in entries:
        source, target = ends(layer, entry)
        incoming = sum(t == target for _, t in active)
        looked_up = isinstance(layer.module, nn.Embedding)
        assert fan_in[entry] == (1 if looked_up else incoming)
        assert fan_out[entry] == sum(s == source for s, _ in active)


@pytest.mark.parametrize(
    ("kind", "size"),
    [
        ("linear", (4,)),
        ("conv1d", (4, 5)),
        ("conv2d", (3, 5, 5)),
        ("conv3d", (2, 4, 4, 4)),
        ("grouped", (6, 5, 5)),
        ("depthwise", (4, 5)),
    ],
)
def test_dense_fan_in_is_what_a_neuron_really_sums(kind, size):
    module = copy.deepcopy(KINDS[kind][0])
    nn.init.ones_(module.weight)
    nn.init.zeros_(module.bias)
    layer = maskable(module)["weight"]
    sums = module(torch.ones(1, *size)).unique().tolist()
    assert layer.fan_in(torch.ones(layer.shape, dtype=torch.bool)).unique().tolist() == sums


def test_neurons_roundtrip(layer):
    tensor = torch.arange(layer.size).reshape(layer.shape)
    rows = layer.neurons(tensor)
    assert torch.equal(layer.from_neurons(rows), tensor)
    for entry in itertools.product(*(range(n) for n in layer.shape)):
        source, target = ends(layer, entry)
        assert tensor[entry] in rows[target]
        assert tensor[entry] in layer.inputs(tensor)[source]


# ---- selection


class Mixed(nn.Module):
    """One of everything; the decoder is tied to the embedding."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(9, 4)
        self.conv = nn.Conv1d(4, 4, 3)
        self.up = nn.ConvTranspose1d(4, 4, 3)
        self.norm = nn.LayerNorm(4)
        self.lstm = nn.LSTM(4, 4, proj_size=2, bidirectional=True)
        self.cell = nn.GRUCell(4, 4)
        self.attention = nn.MultiheadAttention(4, 2)
        self.apart = nn.MultiheadAttention(4, 2, kdim=3, vdim=5)
        self.head = nn.Linear(4, 9, bias=False)
        self.head.weight = self.embed.weight


LINEAR = ["conv.weight", "attention.out_proj.weight", "apart.out_proj.weight", "embed.weight"]
LSTM = [f"lstm.weight_{kind}_l0{way}" for way in ("", "_reverse") for kind in ("ih", "hh", "hr")]


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({}, LINEAR),
        ({"types": [nn.Conv1d]}, ["conv.weight"]),
        ({"types": [nn.ConvTranspose1d]}, ["up.weight"]),
        ({"types": [nn.Embedding, nn.Linear]}, ["embed.weight", *LINEAR[1:3]]),
        ({"types": [nn.LSTM]}, LSTM),
        ({"types": [nn.GRUCell]}, ["cell.weight_ih", "cell.weight_hh"]),
        (
            {"types": [nn.MultiheadAttention]},
            [
                "attention.in_proj_weight",
                "apart.q_proj_weight",
                "apart.k_proj_weight",
                "apart.v_proj_weight",
            ],
        ),
        ({"include": [r"^att", "conv"]}, LINEAR[:2]),
        ({"exclude": [r"proj", "embed"]}, LINEAR[:1]),
        ({"include": ["proj"], "exclude": ["apart"]}, LINEAR[1:2]),
        ({"where": lambda name, module: module.weight.shape[0] == 9}, ["embed.weight"]),
        ({"dense_first": True}, LINEAR[1:]),
        ({"dense_last": True}, LINEAR[:-1]),
        ({"dense_first": True, "dense_last": True}, LINEAR[1:-1]),
    ],
)
def test_selection(options, names):
    model = Mixed()
    layers = maskable(model, **options)
    assert list(layers) == names
    parameters = dict(model.named_parameters())
    for name, layer in layers.items():
        assert layer.name == name
        assert layer.parameter is parameters[name]
        assert layer.size == math.prod(layer.shape)


def test_frozen_weights_are_left_alone():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[0].weight.requires_grad_(False)
    assert list(maskable(model)) == ["1.weight"]


def test_tied_weights_count_once():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    assert list(maskable(model)) == ["0.weight"]
    masks = sf.sparsify(model, density=1 / 3, pattern="constant_fan_in")
    assert masks.size == 9
    assert model[1].weight.count_nonzero() == 3


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (nn.ReLU, {}, "ReLU has no weight to make sparse"),
        (lambda: nn.Embedding(3, 3), {}, "has no weight to make sparse"),
        (lambda: nn.Linear(2, 2), {"include": ["nothing"]}, "passes the filters"),
        (lambda: nn.Linear(2, 2), {"dense_last": True}, "has no weight to make sparse"),
        (lambda: nn.Linear(2, 2).requires_grad_(False), {}, "has no weight"),
        (lambda: nn.Linear(2, 2), {"types": [nn.LayerNorm]}, "module type LayerNorm"),
        (lambda: nn.Sequential(nn.LazyLinear(3)), {}, r"0\.weight is of a lazy module"),
    ],
)
def test_nothing_to_make_sparse(make, options, message):
    with pytest.raises(MaskError, match=message):
        maskable(make(), **options)


def test_one_pattern_may_stand_without_a_list():
    model = nn.ModuleDict({"conv": nn.Linear(2, 2), "body": nn.Linear(2, 2)})
    assert list(maskable(model, include="conv")) == ["conv.weight"]
    assert list(maskable(model, exclude="conv")) == ["body.weight"]


@pytest.mark.parametrize(
    ("model", "types", "run"),
    [
        (nn.MultiheadAttention(8, 2), [nn.MultiheadAttention], lambda m, x: m(x, x, x)[0]),
        (nn.LSTM(8, 8), [nn.LSTM], lambda m, x: m(x)[0]),
        (nn.ConvTranspose1d(8, 8, 3), [nn.ConvTranspose1d], lambda m, x: m(x.mT)),
        (nn.Embedding(10, 8), [nn.Embedding], lambda m, x: m(x.argmax(-1))),
    ],
)
def test_what_is_taken_on_request_trains_sparse(model, types, run):
    layers = maskable(model, types=types)
    masks = sf.sparsify(model, density=0.5, pattern="constant_fan_in", layers=layers)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    topology = sf.attach(model, optimizer, masks, sf.RigL(sf.every(2)))
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    for _ in range(3):
        optimizer.zero_grad()
        run(model, torch.randn(5, 8, 8)).square().mean().backward()
        optimizer.step()
    for name, layer in layers.items():
        assert not layer.parameter[~topology.masks[name]].any()
        assert not torch.equal(layer.parameter, before[name])
    assert topology.masks.counts == masks.counts


# ---- truly sparse layers


def sparse_layer() -> ScatterLinear:
    return ScatterLinear((2, 3), torch.tensor([0, 2]), torch.tensor([1.0, 2.0]), torch.zeros(2))


def test_weights_of_sparse_layers_keep_their_names():
    model = nn.Sequential(nn.Linear(3, 3), nn.ModuleDict({"fc": sparse_layer()}))
    layer = model[1]["fc"]
    assert sparse_weights(model) == {"1.fc.weight": layer}
    named = named_weights(model)
    assert list(named) == ["0.weight", "0.bias", "1.fc.weight", "1.fc.bias"]
    assert named["1.fc.weight"] is layer.values
    assert named["0.weight"] is model[0].weight
    assert list(named_weights(layer)) == ["weight", "bias"]
    plain = nn.Linear(2, 2)
    assert named_weights(plain) == dict(plain.named_parameters())
    assert sparse_weights(plain) == {}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_data_of_another_size_while_the_last_graph_is_alive(dtype):
    parameter = nn.Parameter(torch.ones(3, dtype=dtype))
    fired = []
    parameter.register_post_accumulate_grad_hook(lambda p: fired.append(p.grad.shape))
    alive = []
    for size in (3, 5, 2):
        replace_data(parameter, torch.ones(size, dtype=dtype))
        assert parameter.grad is None
        alive.append(parameter.square().sum())
        alive[-1].backward()
        assert parameter.grad.tolist() == [2] * size
    assert fired == [(3,), (5,), (2,)]


# ---- what a layer is: padding rows, complex weights, weights without values or of few bits


PATTERNS = ["random", "magnitude", "uneven", "constant_fan_in"]


def padded():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Embedding(10, 6, padding_idx=3), nn.Flatten(), nn.Linear(18, 2))
    return net, maskable(net, types=[nn.Embedding, nn.Linear])


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("density", [0.0, 0.3, 0.9, 1.0])
@pytest.mark.filterwarnings("ignore:.*neurons have no active input")
def test_a_padding_row_has_no_connections_and_stays_zero(pattern, density):
    net, layers = padded()
    masks = sf.sparsify(net, density, pattern=pattern, layers=layers)
    assert not masks["0.weight"][3].any()
    assert net[0].weight[3].tolist() == [0] * 6
    assert masks.nnz == min(round(density * (60 + 36)), 54 + 36)
    assert layers["0.weight"].capacity == 54
    assert layers["2.weight"].capacity == 36
    full = sf.full_masks(layers)
    assert full.counts == {"0.weight": 54, "2.weight": 36}
    assert not full["0.weight"][3].any()


@pytest.mark.filterwarnings("ignore:2.weight left without a weight")
@pytest.mark.parametrize("allocation", ["uniform", "er", "erk", "magnitude"])
def test_a_padding_row_takes_no_part_in_allocation(allocation):
    net, layers = padded()
    with torch.no_grad():
        net[0].weight[3] = 100.0  # as a pretrained table may have it
    counts = sf.allocate(layers, 0.95, allocation)
    # Uniform densities leave out what the row would have had; the others move it.
    assert sum(counts.values()) == (54 + round(0.95 * 36) if allocation == "uniform" else 90)
    assert counts["0.weight"] == 54
    masks = sf.make_masks(layers, 0.2, allocation="magnitude", pattern="magnitude")
    assert not masks["0.weight"][3].any()
    assert sf.allocate(layers, {"0.weight": 1.0, "2.weight": 0.5}) == {
        "0.weight": 54, "2.weight": 18,
    }  # fmt: skip


def test_random_connections_beside_a_padding_row_are_uniform():
    net = nn.Embedding(5, 2, padding_idx=2)
    layers = maskable(net, types=[nn.Embedding])
    total = sum(sf.make_masks(layers, 0.4, seed=seed)["weight"].int() for seed in range(500))
    assert total[2].tolist() == [0, 0]
    others = total[[0, 1, 3, 4]].double() / 500
    assert float((others - 0.5).abs().max()) < 4 * math.sqrt(0.25 / 500)


@pytest.mark.parametrize("distribution", ["normal", "uniform"])
@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_complex_weights_have_the_variance_of_real_ones(distribution, dtype):
    """E|w|² = scale / fan, half of it in either part, which are not correlated."""
    net = nn.Linear(400, 300, dtype=dtype)
    masks = sf.sparsify(net, 0.25, init=sf.Init("neuron", distribution=distribution))
    weight = net.weight.detach()[masks["weight"]]
    assert not net.weight.detach()[~masks["weight"]].any()
    fan = masks["weight"].sum(1, keepdim=True).expand(300, 400)[masks["weight"]]
    unit = weight * (fan / 2).sqrt()
    assert float(unit.abs().square().mean()) == pytest.approx(1, rel=0.03)
    assert float(unit.real.var()) == pytest.approx(0.5, rel=0.03)
    assert float(unit.imag.var()) == pytest.approx(0.5, rel=0.03)
    assert float((unit.real * unit.imag).mean()) == pytest.approx(0, abs=0.01)


def test_models_on_the_meta_device_have_masks_and_no_values():
    net = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 3)).to("meta")
    layers = maskable(net)
    masks = sf.make_masks(layers, 0.5)
    assert masks.nnz == 18
    assert masks == sf.make_masks(maskable(nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 3))), 0.5)
    assert sf.full_masks(layers).nnz == 36
    needs_values = {
        "sparsify": lambda: sf.sparsify(net, 0.5),
        "its own weights": lambda: sf.sparsify(net, 0.5, init=None),
        "magnitude": lambda: sf.make_masks(layers, 0.5, pattern="magnitude"),
        "all magnitudes": lambda: sf.allocate(layers, 0.5, "magnitude"),
        "apply": lambda: masks.apply(net),
    }
    for make in needs_values.values():
        with pytest.raises(MaskError, match=r"0\.weight is on the meta device and has no values"):
            make()


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_layers_without_entries_are_passed_over():
    net = nn.Sequential(nn.Linear(6, 0), nn.Linear(0, 3), nn.Linear(3, 2))
    assert list(maskable(net)) == ["2.weight"]
    with pytest.raises(MaskError, match="no weight to make sparse"):
        maskable(net[:2])


def test_low_bit_weights_are_refused():
    net = nn.Linear(4, 3)
    net.weight = nn.Parameter(net.weight.detach().to(torch.float8_e4m3fn))
    with pytest.raises(MaskError, match=r"float8_e4m3fn: low-bit weights cannot be masked"):
        maskable(net)
