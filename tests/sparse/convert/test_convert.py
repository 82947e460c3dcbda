"""Conversion to truly sparse execution and back: same function, same gradients."""

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional

import sparseflow as sf
from sparseflow.core.errors import MaskError
from sparseflow.models import lenet5, mlp
from sparseflow.sparse import SparseConv2d, SparseLinear
from sparseflow.sparse.convert.rewrite import Chain
from sparseflow.sparse.layers.chain import BLOCK, UNBLOCK


class Functional(nn.Module):
    """Written with functions, as many are."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 6, 5), nn.Conv2d(6, 8, 3, stride=2, padding=1)
        self.fc = nn.Linear(8 * 3 * 3, 10)

    def forward(self, x):
        x = functional.relu(functional.max_pool2d(self.conv1(x), 2))
        x = functional.leaky_relu(self.conv2(x))
        return functional.log_softmax(self.fc(x.view(-1, 72)), dim=1)


class Block(nn.Module):
    def __init__(self, channels, out, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.relu = nn.ReLU(inplace=True)
        self.short = nn.Identity()
        if stride > 1:
            self.short = nn.Sequential(
                nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out)
            )

    def forward(self, x):
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return self.relu(out + self.short(x))


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8))
        self.blocks = nn.Sequential(Block(8, 8, 1), Block(8, 16, 2))
        self.pool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(16, 10)

    def forward(self, x):
        x = self.blocks(torch.relu(self.stem(x)))
        return self.fc(torch.flatten(self.pool(x), 1))


class Odd(nn.Module):
    """Things in between that no layout knows."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(8, 4, 3, padding=1)
        self.three = nn.Linear(4, 6)
        self.act, self.scale = nn.PReLU(4), nn.Parameter(torch.ones(1, 4, 1, 1))

    def forward(self, x):
        a = self.act(self.one(x)) * self.scale
        b = torch.roll(a, 1, 2)
        c = functional.avg_pool2d(self.two(torch.cat([a, b], 1)), 2) / 2
        d = c.mean((2, 3)) - c.mean(dim=[-1, -2])
        e = self.three(c.mean((2, 3)) + d)
        return e.softmax(1), x.size(0)


def batch_norm_mlp():
    return nn.Sequential(
        nn.Flatten(), nn.Linear(12, 20), nn.BatchNorm1d(20), nn.Tanh(), nn.Linear(20, 3)
    )


MODELS = {
    "lenet5": (lenet5, (1, 28, 28)),
    "mlp": (mlp, (1, 28, 28)),
    "functional": (Functional, (1, 14, 14)),
    "residual": (Residual, (3, 9, 9)),
    "odd": (Odd, (2, 6, 6)),
    "batch norm after linear": (batch_norm_mlp, (3, 4)),
    "a single layer": (lambda: nn.Linear(12, 5), (12,)),
    "sequences": (lambda: nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 4)), (7, 6)),
    "average pooling": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3), nn.GELU(), nn.AvgPool2d(2, padding=1), nn.Conv2d(4, 4, 2),
            nn.MaxPool2d(3, 2, 1, ceil_mode=True), nn.ReLU(), nn.AdaptiveAvgPool2d((2, 1)),
            nn.Flatten(), nn.Linear(8, 3),
        ),
        (2, 12, 9),
    ),
}  # fmt: skip


def prepared(name, density=0.3):
    make, shape = MODELS[name]
    torch.manual_seed(0)
    model = make()
    masks = sf.make_masks(sf.maskable(model), density, seed=1)
    masks.apply(model)
    return model, masks, shape


def outputs(model, x):
    out = model(x)
    return out if isinstance(out, torch.Tensor) else out[0]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("n", [1, 16, 37])
@pytest.mark.parametrize("training", [True, False])
def test_same_function_and_gradients(name, n, training):
    dense, masks, shape = prepared(name)
    if training and n == 1 and name in ("residual", "batch norm after linear"):
        pytest.skip("batch norm wants two examples")
    sparse = sf.to_sparse(dense, masks, torch.randn(2, *shape), force=True)
    dense.train(training)
    sparse.train(training)
    x = torch.randn(n, *shape)
    xs = [x.clone().requires_grad_() for _ in range(2)]
    first, second = outputs(dense, xs[0]), outputs(sparse, xs[1])
    torch.testing.assert_close(second, first, atol=1e-5, rtol=1e-4)
    weights = torch.randn(first.shape)
    (first * weights).sum().backward()
    (second * weights).sum().backward()
    torch.testing.assert_close(xs[1].grad, xs[0].grad, atol=1e-4, rtol=1e-3)
    back = sf.to_dense(sparse)
    for key, value in dense.state_dict().items():
        torch.testing.assert_close(back.state_dict()[key], value, atol=1e-5, rtol=1e-5)
    for path, module in sparse.named_modules():
        if isinstance(module, SparseLinear | SparseConv2d):
            whole = dense.get_submodule(path).weight.grad.reshape(-1)
            torch.testing.assert_close(
                module.values.grad, whole[module.indices()], atol=2e-4, rtol=1e-3
            )


@pytest.mark.parametrize(
    ("name", "conversions"),
    [("lenet5", 2), ("mlp", 2), ("functional", 2), ("residual", 2), ("average pooling", 2)],
)
def test_the_layout_is_kept_from_the_first_layer_to_the_last(name, conversions):
    dense, masks, shape = prepared(name)
    sparse = sf.to_sparse(dense, masks, torch.randn(2, *shape), force=True)
    stages = [s for m in sparse.modules() if isinstance(m, Chain) for s in m.stages]
    assert sum(s in (BLOCK, UNBLOCK) for s in stages) == conversions


def test_a_sequential_network_is_one_chain():
    for name in ("lenet5", "mlp"):
        dense, masks, shape = prepared(name)
        sparse = sf.to_sparse(dense, masks, torch.randn(2, *shape), force=True)
        assert sum(isinstance(m, Chain) for m in sparse.modules()) == 1


def test_one_example_without_gradients():
    for name in ("mlp", "a single layer", "lenet5"):
        dense, masks, shape = prepared(name)
        sparse = sf.to_sparse(dense, masks, torch.randn(2, *shape), force=True)
        x = torch.randn(1, *shape)
        with torch.no_grad():
            torch.testing.assert_close(sparse(x), dense(x), atol=1e-5, rtol=1e-4)


def test_names_stay():
    dense, masks, shape = prepared("residual")
    sparse = sf.to_sparse(dense, masks, torch.randn(2, *shape), force=True)
    own = {n.replace(".values", ".weight") for n, _ in sparse.named_parameters()}
    assert own == {n for n, _ in dense.named_parameters()}
    masks.check(sparse)


def test_back_is_an_instance_of_the_users_class():
    dense, masks, shape = prepared("functional")
    sparse = sf.to_sparse(dense, masks, torch.randn(2, *shape), force=True)
    back = sf.to_dense(sparse)
    assert type(back) is Functional
    assert all(p.device.type == "cpu" for p in back.parameters())
    x = torch.randn(3, *shape)
    assert torch.equal(back(x), dense(x))
    back.conv1.weight.data.fill_(1)  # independent of both
    assert not torch.equal(back(x), dense(x))


def test_the_model_given_is_left_alone():
    dense, masks, shape = prepared("lenet5")
    before = copy.deepcopy(dense.state_dict())
    sparse = sf.to_sparse(dense, masks, torch.randn(2, *shape), force=True)
    for parameter in sparse.parameters():
        parameter.data.fill_(7)
    assert all(torch.equal(v, before[k]) for k, v in dense.state_dict().items())


def test_deepcopy_and_state_dict():
    dense, masks, shape = prepared("residual")
    sparse = sf.to_sparse(dense, masks, torch.randn(2, *shape), force=True).eval()
    twin = copy.deepcopy(sparse)
    x = torch.randn(3, *shape)
    assert torch.equal(twin(x), sparse(x))
    with torch.no_grad():
        twin.fc.values.zero_()
    assert not torch.equal(twin(x), sparse(x))
    twin.load_state_dict(sparse.state_dict())
    assert torch.equal(twin(x), sparse(x))


def test_masked_weights_without_a_sparse_form_stay_masked_dense():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv3d(2, 3, (1, 1, 3)), nn.Flatten(), nn.Linear(12, 4))
    masks = sf.make_masks(sf.maskable(model), 0.5)
    with pytest.warns(UserWarning, match=r"0\.weight .*Conv3d has no sparse form"):
        sparse = sf.to_sparse(model, masks, torch.randn(2, 2, 1, 1, 6), force=True)
    assert int(sparse.get_submodule("0").weight.count_nonzero()) == masks.counts["0.weight"]
    masks.apply(model)
    x = torch.randn(3, 2, 1, 1, 6)
    torch.testing.assert_close(sparse(x), model(x))


def test_control_flow_converts_layer_by_layer():
    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x):
            return self.fc(x) if x.sum() > 0 else -self.fc(x)

    model = Branching()
    masks = sf.sparsify(model, density=0.5, pattern="constant_fan_in")
    with pytest.warns(UserWarning, match="cannot be traced"):
        sparse = sf.to_sparse(model, masks, torch.randn(2, 4), force=True)
    assert type(sparse) is Branching
    for x in (torch.ones(2, 4), -torch.ones(2, 4)):
        torch.testing.assert_close(sparse(x), model(x))
    assert torch.equal(sf.to_dense(sparse).fc.weight, model.fc.weight)


def test_dropout_follows_the_mode():
    class Dropping(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.drop = nn.Linear(8, 8), nn.Dropout(0.5)

        def forward(self, x):
            return self.drop(self.fc(x))

    class Functionally(Dropping):
        def forward(self, x):
            return functional.dropout(self.fc(x), 0.5, self.training)

    for kind in (Dropping, Functionally):
        model = kind()
        masks = sf.sparsify(model, density=0.5, pattern="constant_fan_in")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*changes the layout alone")
            sparse = sf.to_sparse(model, masks, torch.randn(2, 8), force=True)
        x = torch.randn(64, 8)
        zeros = float((sparse.train()(x) == 0).float().mean())
        assert 0.3 < zeros < 0.7
        torch.testing.assert_close(sparse.eval()(x), model.eval()(x))


def test_a_shared_layer_runs_twice():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(5, 5)

        def forward(self, x):
            return self.fc(torch.relu(self.fc(x)))

    model = Twice()
    masks = sf.sparsify(model, density=0.5, pattern="constant_fan_in")
    sparse = sf.to_sparse(model, masks, torch.randn(2, 5), force=True)
    x = torch.randn(3, 5)
    model(x).sum().backward()
    sparse(x).sum().backward()
    whole = model.fc.weight.grad.reshape(-1)[sparse.fc.indices()]
    torch.testing.assert_close(sparse.fc.values.grad, whole)


def test_nothing_to_convert():
    model = nn.Conv3d(2, 2, 3)
    masks = sf.sparsify(model, density=0.5, pattern="constant_fan_in")
    with pytest.raises(MaskError, match=r"no layer to convert .*Conv3d has no sparse form"):
        sf.to_sparse(model, masks, torch.randn(1, 2, 5))
    with pytest.raises(MaskError, match="no sparse layer"):
        sf.to_dense(model)
    tied = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    tied[1].weight = tied[0].weight
    masks = sf.sparsify(tied, density=0.5, pattern="constant_fan_in")
    with pytest.raises(MaskError, match="shared by 0 and 1"):
        sf.to_sparse(tied, masks, torch.randn(1, 4))
    double = nn.Linear(4, 4).double()
    masks = sf.sparsify(double, density=0.5, pattern="constant_fan_in")
    with pytest.raises(MaskError, match="float64"):
        sf.to_sparse(double, masks, torch.randn(1, 4).double())


def test_a_mask_that_does_not_fit():
    with pytest.raises(MaskError, match="shape"):
        sf.to_sparse(
            nn.Linear(4, 4), {"weight": torch.ones(3, 4, dtype=torch.bool)}, torch.randn(1, 4)
        )
