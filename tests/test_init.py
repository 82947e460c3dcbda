"""Initialisation: the spread of the weights of each neuron, in closed form."""

import math
from types import SimpleNamespace

import pytest
import torch
from helpers.scatter import scattered
from helpers.small import network
from hypothesis import given
from hypothesis import settings as options
from hypothesis import strategies as st
from scipy import stats
from torch import nn

import sparseflow as sf
from sparseflow.core.errors import MaskError
from sparseflow.init import GLOROT, NAMED, deviation, initialise

FANS = ("in", "out", "avg")
DISTRIBUTIONS = ("normal", "uniform")


def drawn(module, mask, init, seed=0, **kwargs):
    layers = sf.maskable(module, **kwargs)
    initialise(layers, sf.Masks({"weight": mask}), init, seed=seed)
    return layers["weight"].parameter.detach()


def uneven_mask(rows, columns, seed=0):
    """Neurons from a twentieth of the connections to nearly all."""
    stream = torch.Generator().manual_seed(seed)
    odds = torch.linspace(0.05, 0.95, rows).unsqueeze(1)
    return torch.rand(rows, columns, generator=stream) < odds


def assert_std(sample, std, distribution):
    """Hold a sample against the distribution itself (Kolmogorov-Smirnov, p > 1e-4)."""
    if distribution == "normal":
        expected = stats.norm(0, std)
    else:
        bound = std * math.sqrt(3)
        expected = stats.uniform(-bound, 2 * bound)
    assert stats.kstest(sample.double().numpy(), expected.cdf).pvalue > 1e-4


@pytest.mark.parametrize("scale", [1.0, 2.0, 0.3])
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_std_of_each_neuron_is_the_root_of_scale_over_its_own_fan_in(distribution, scale):
    """The paper's initialisation, neuron by neuron. The variance would be far off.

    The sample variance of n draws has a relative deviation of sqrt((k - 1) / n)
    with kurtosis k (3 normal, 1.8 uniform): six of them bound every neuron.
    """
    mask = uneven_mask(12, 6000)
    init = sf.Init("neuron", "in", distribution, scale)
    weight = drawn(nn.Linear(6000, 12), mask, init)
    kurtosis = 3 if distribution == "normal" else 1.8
    for row, active in zip(weight, mask, strict=True):
        n = int(active.sum())
        found = float(row[active].double().square().mean())
        assert abs(found / (scale / n) - 1) < 6 * math.sqrt((kurtosis - 1) / n)
        assert_std(row[active], math.sqrt(scale / n), distribution)
        assert not row[~active].any()


@options(max_examples=25)
@given(
    data=st.data(),
    rows=st.integers(1, 5),
    scale=st.sampled_from([0.5, 1.0, 2.0]),
    seed=st.integers(0, 10**6),
)
def test_std_over_random_masks(data, rows, scale, seed):
    """Any mask, every neuron: std = sqrt(scale / fan_in_i)."""
    fans = data.draw(st.lists(st.integers(300, 2000), min_size=rows, max_size=rows))
    places = torch.rand(rows, 2000, generator=torch.Generator().manual_seed(seed))
    mask = places.argsort(1).argsort(1) < torch.tensor(fans).unsqueeze(1)
    weight = drawn(nn.Linear(2000, rows), mask, sf.Init("neuron", scale=scale), seed)
    for row, active, fan in zip(weight, mask, fans, strict=True):
        ratio = float(row[active].double().square().mean()) / (scale / fan)
        assert abs(ratio - 1) < 6 * math.sqrt(2 / fan)


@pytest.mark.parametrize("scale", [1.0, 2.0])
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("fan", FANS)
@pytest.mark.parametrize("kind", ["dense", "layer", "neuron"])
def test_every_fan_and_distribution(kind, fan, distribution, scale):
    """Divided by its closed form, each weight is a draw of standard deviation 1."""
    rows, columns = 60, 90
    mask = uneven_mask(rows, columns)
    weight = drawn(nn.Linear(columns, rows), mask, sf.Init(kind, fan, distribution, scale))
    counted = torch.ones_like(mask) if kind != "neuron" else mask
    fan_in = counted.sum(1, keepdim=True).expand(rows, columns).double()
    fan_out = counted.sum(0, keepdim=True).expand(rows, columns).double()
    fans = {"in": fan_in, "out": fan_out, "avg": (fan_in + fan_out) / 2}[fan]
    if kind == "layer":
        fans = fans * mask.double().mean()
    assert_std((weight / (scale / fans).sqrt())[mask], 1.0, distribution)
    assert not weight[~mask].any()


@pytest.mark.parametrize("fan", FANS)
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_liu_is_dense_over_the_root_of_the_density(fan, distribution):
    mask = uneven_mask(8, 30)
    dense = drawn(nn.Linear(30, 8), mask, sf.Init("dense", fan, distribution))
    liu = drawn(nn.Linear(30, 8), mask, sf.Init("layer", fan, distribution))
    torch.testing.assert_close(liu, dense / mask.float().mean().sqrt())


def test_all_three_agree_without_a_mask():
    full = torch.ones(8, 30, dtype=torch.bool)
    dense, layer, neuron = (
        drawn(nn.Linear(30, 8), full, sf.Init(kind)) for kind in ("dense", "layer", "neuron")
    )
    torch.testing.assert_close(layer, dense)
    torch.testing.assert_close(neuron, dense)


@pytest.mark.parametrize(
    ("init", "fill"),
    [
        (sf.Init("dense"), lambda w: nn.init.kaiming_normal_(w, nonlinearity="relu")),
        (sf.Init("dense", "out"), lambda w: nn.init.kaiming_normal_(w, mode="fan_out")),
        (sf.Init("dense", "in", "uniform"), nn.init.kaiming_uniform_),
        (GLOROT, nn.init.xavier_uniform_),
        (sf.Init("dense", "avg", "normal", 1.0), nn.init.xavier_normal_),
    ],
)
def test_masked_dense_is_what_pytorch_draws(init, fill):
    """The same distribution as the initialiser of that name in torch.nn.init."""
    module = nn.Conv2d(40, 60, 3)
    theirs = fill(module.weight).detach().clone()
    ours = drawn(module, torch.ones_like(theirs, dtype=torch.bool), init)
    assert float(ours.std() / theirs.std()) == pytest.approx(1, abs=0.03)
    if init.distribution == "uniform":
        assert float(ours.abs().max() / theirs.abs().max()) == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("fan", FANS)
def test_grouped_and_transposed_convolutions(fan):
    """Each group's entries follow the fans of that group alone."""
    grouped = nn.Conv2d(6, 8, 3, groups=2)
    mask = torch.rand(grouped.weight.shape) < 0.5
    layer = sf.maskable(grouped)["weight"]
    std = deviation(layer, mask, sf.Init("neuron", fan))
    for group in range(2):
        single = sf.maskable(nn.Conv2d(3, 4, 3))["weight"]
        rows = slice(4 * group, 4 * group + 4)
        expected = deviation(single, mask[rows], sf.Init("neuron", fan))
        torch.testing.assert_close(std[rows], expected)
    up = sf.maskable(nn.ConvTranspose2d(8, 3, 3), types=[nn.ConvTranspose2d])["weight"]
    other = mask.reshape(8, 3, 3, 3)
    expected = deviation(
        sf.maskable(nn.Conv2d(8, 3, 3))["weight"], other.transpose(0, 1), sf.Init("neuron", fan)
    )
    found = deviation(up, other, sf.Init("neuron", fan)).transpose(0, 1)
    torch.testing.assert_close(found, expected)


# ---- dead neurons


def test_dead_neurons_are_zero_and_counted():
    model = nn.Sequential(nn.Linear(50, 6), nn.Conv2d(2, 4, 3))
    masks = {n: torch.ones_like(p, dtype=torch.bool) for n, p in model.named_parameters()}
    del masks["0.bias"], masks["1.bias"]
    masks["0.weight"][[1, 4]] = False
    masks["1.weight"][2] = False
    bias = model[0].bias.detach().clone()
    with pytest.warns(UserWarning, match="^3 neurons have no active input"):
        initialise(sf.maskable(model), sf.Masks(masks), "fan_avg")
    assert model[0].weight.isfinite().all()
    assert not model[0].weight[[1, 4]].any()
    assert model[0].weight[[0, 2, 3, 5]].all()
    assert torch.equal(model[0].bias, bias)


@pytest.mark.parametrize("init", NAMED)
def test_an_empty_mask_gives_zeros(init):
    model = nn.Linear(5, 3)
    with pytest.warns(UserWarning, match="^3 neurons"):
        sf.sparsify(model, density=0.0, init=init)
    assert not model.weight.any()


# ---- draws


def test_draws_do_not_depend_on_the_mask_and_differ_by_layer_and_seed():
    model = nn.Sequential(nn.Linear(9, 9), nn.Linear(9, 9))
    layers, full = sf.maskable(model), sf.full_masks(sf.maskable(model))

    def weights(masks, seed, init="dense"):
        initialise(layers, masks, init, seed=seed)
        return [m.weight.detach().clone() for m in model]

    first, second = weights(full, 0)
    assert not torch.equal(first, second)
    assert torch.equal(first, weights(full, 0)[0])
    assert not torch.equal(first, weights(full, 1)[0])
    sparse = sf.make_masks(layers, 0.5, allocation="uniform", pattern="constant_fan_in")
    assert torch.equal(weights(sparse, 0)[0], first * sparse["0.weight"])


def test_resnet50_shapes():
    """25 million weights: bottlenecks, a 7×7 stem and a wide head."""
    shapes = [(64, 3, 7), (256, 64, 1), (512, 512, 3), (2048, 512, 1)]
    model = nn.Sequential(
        *(nn.Conv2d(i, o, k, bias=False) for o, i, k in shapes), nn.Linear(2048, 1000)
    )
    masks = sf.sparsify(model, density=0.2)
    for name, module in model.named_children():
        mask = masks[f"{name}.weight"]
        fan = mask.flatten(1).sum(1)
        square = module.weight.detach().square().flatten(1).sum(1)
        assert float(square[fan > 0].mean()) == pytest.approx(2, rel=0.1)


def test_other_dtypes_keep_theirs():
    model = nn.Linear(40, 30).double()
    sf.sparsify(model, density=0.5)
    assert model.weight.dtype == torch.float64
    half = nn.Linear(40, 30).bfloat16()
    sf.sparsify(half, density=0.5)
    torch.testing.assert_close(half.weight, model.weight.bfloat16())


def test_sparsify_may_keep_the_weights():
    model = nn.Linear(8, 8)
    before = model.weight.detach().clone()
    masks = sf.sparsify(model, density=0.25, init=None, pattern="magnitude")
    assert torch.equal(model.weight, before * masks["weight"])
    assert before.abs()[masks["weight"]].min() >= before.abs()[~masks["weight"]].max()


def test_weights_chosen_by_magnitude_are_kept_unless_an_initialisation_is_asked_for():
    """A trained layer is not drawn afresh without a word."""
    model = nn.Linear(64, 64)
    before = model.weight.detach().clone()
    masks = sf.sparsify(model, 0.5, pattern="magnitude")
    assert torch.equal(model.weight, before * masks["weight"])
    drawn, named = nn.Linear(64, 64), nn.Linear(64, 64)
    drawn.load_state_dict({"weight": before, "bias": model.bias})
    sf.sparsify(drawn, 0.5, pattern="magnitude", init="fan_in")
    assert not torch.equal(drawn.weight, model.weight)
    masks = sf.sparsify(drawn, 0.5)
    sf.initialise(sf.maskable(named), masks, "fan_in")
    assert torch.equal(drawn.weight, named.weight)


# ---- bad input


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: sf.Init(scale=0.0), "scale=0.0 must be positive"),
        (lambda: sf.Init(scale=float("nan")), "scale=nan must be positive"),
        (lambda: sf.sparsify(nn.Linear(2, 2), density=0.5, init="fanin"), "mean 'fan_in'"),
        (lambda: sf.sparsify(nn.ReLU(), density=0.5), "no weight to make sparse"),
        (lambda: sf.sparsify(nn.Linear(2, 2), density=float("nan")), "density=nan"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(MaskError, match=message):
        make()


@pytest.mark.parametrize(
    ("field", "word", "message"),
    [
        ("kind", "neurn", "unknown initialisation kind 'neurn'; did you mean 'neuron'"),
        ("fan", "on", "unknown initialisation fan 'on'"),
        ("distribution", "gaussian", "unknown initialisation distribution 'gaussian'"),
    ],
)
def test_unknown_fields(field, word, message):
    """The check is called by hand: under the tests' type checker __init__ is stricter."""
    fields = {**vars(sf.Init()), field: word}
    with pytest.raises(MaskError, match=message):
        sf.Init.__post_init__(SimpleNamespace(**fields))


@pytest.mark.parametrize("name", ["weight", "bias"])
def test_masks_that_fit_no_layer(name):
    layers = sf.maskable(nn.Linear(3, 2))
    with pytest.raises(MaskError, match=f"mask '{name}' of shape \\(2, 2\\) fits no layer"):
        initialise(layers, sf.Masks({name: torch.ones(2, 2) > 0}))


def test_a_model_that_is_truly_sparse_already_is_refused():
    model = network()
    masks = sf.make_masks(sf.maskable(model), 0.5)
    sparse = scattered(model, masks)
    with pytest.raises(MaskError, match=r"sparse layers already \(0\.weight, 2\.weight\).*convert"):
        sf.sparsify(sparse, density=0.5)
    with pytest.raises(MaskError, match=r"'0\.weight' of shape \(10, 6\) fits no layer"):
        sf.initialise({}, masks)
