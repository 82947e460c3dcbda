"""Hooks, and whatever else users put on the layers of a model, through conversion and back."""

import copy
import io
import pickle
import warnings

import pytest
import torch
from torch import nn

import sparseflow as sf
from sparseflow.core.errors import KernelError
from sparseflow.sparse import SparseConv2d, SparseLinear

REST = "ignore:.*changes the layout alone"


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(),
        nn.Linear(288, 16), nn.ReLU(), nn.Linear(16, 4),
    ).eval()  # fmt: skip


def images(seed: int = 1) -> torch.Tensor:
    return torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


def scaled(module, args, kwargs):
    return (args[0] * 2, *args[1:]), kwargs


HOOKS = {
    "forward": lambda m: m.register_forward_hook(lambda _, i, out: out.clamp(-0.1, 0.1)),
    "forward with inputs by name": lambda m: m.register_forward_hook(
        lambda _, args, kwargs, out: out + args[0].mean() + len(kwargs), with_kwargs=True
    ),
    "before": lambda m: m.register_forward_pre_hook(lambda _, args: (args[0] * 3,)),
    "before with inputs by name": lambda m: m.register_forward_pre_hook(scaled, with_kwargs=True),
    "backward": lambda m: m.register_full_backward_hook(lambda _, gi, go: (gi[0] * 5,)),
    "before backward": lambda m: m.register_full_backward_pre_hook(lambda _, go: (go[0] * 7,)),
}


def assert_same(dense: nn.Module, sparse: nn.Module) -> None:
    """Equal outputs, and gradients of the input, by which hooks on either pass show."""
    results = []
    for model in (dense, sparse):
        x = images().requires_grad_()
        out = model(x)
        out.square().sum().backward()
        results.append((out.detach(), x.grad))
    for theirs, ours in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


@pytest.mark.filterwarnings(REST)
@pytest.mark.parametrize("when", ["before it", "after it"])
@pytest.mark.parametrize("layer", ["0", "1", "4", "5", "6"])
@pytest.mark.parametrize("kind", HOOKS)
def test_hooks_run_whenever_they_were_added(kind, layer, when):
    net, plain = network(), network()
    masks = sf.sparsify(net, 0.3)
    plain.load_state_dict(net.state_dict())
    if when == "before it":
        HOOKS[kind](net.get_submodule(layer))
    sparse = sf.to_sparse(net, masks, images(), force=True)
    if when == "after it":
        HOOKS[kind](net.get_submodule(layer))
        HOOKS[kind](sparse.get_submodule(layer))
    assert isinstance(sparse.get_submodule("0"), SparseConv2d)
    assert_same(net, sparse)
    with pytest.raises(AssertionError):  # the hook does change what the model computes
        assert_same(plain, sparse)
    assert_same(net, sf.to_dense(sparse))
    assert_same(net, copy.deepcopy(sparse))


def test_a_hook_that_is_removed_leaves_the_joined_layers():
    net = network()
    sparse = sf.to_sparse(net, sf.sparsify(net, 0.3), images(), force=True).eval()
    before, seen = sparse(images()), []
    handle = sparse.get_submodule("5").register_forward_hook(lambda *_: seen.append(1))
    torch.testing.assert_close(sparse(images()), before, atol=1e-5, rtol=1e-4)
    handle.remove()
    assert torch.equal(sparse(images()), before)
    assert len(seen) == 1


def test_hooks_for_all_modules_see_the_layers():
    net, seen = network(), []
    sparse = sf.to_sparse(net, sf.sparsify(net, 0.3), images(), force=True)
    handle = nn.modules.module.register_module_forward_hook(lambda m, i, o: seen.append(type(m)))
    try:
        sparse(images())
    finally:
        handle.remove()
    assert seen.count(SparseLinear) == 2


@pytest.mark.filterwarnings("ignore:left masked dense", REST)
@pytest.mark.parametrize("kind", ["state hook", "forward", "buffer", "submodule"])
def test_what_a_sparse_layer_cannot_take_over_keeps_it_dense(kind):
    net = network()
    layer, masks = net[4], sf.sparsify(net, 0.3)
    if kind == "state hook":
        layer.register_state_dict_post_hook(lambda *_: None)
    elif kind == "forward":
        layer.forward = lambda x: nn.Linear.forward(layer, x)
    elif kind == "buffer":
        layer.register_buffer("scale", torch.ones(1))
    else:
        layer.adapter = nn.Linear(2, 2)
    named = {"state hook": "hooks on its state", "buffer": "scale", "submodule": "adapter"}
    with pytest.warns(UserWarning, match=rf"4\.weight \(it has {named.get(kind, 'a forward')} of"):
        sparse = sf.to_sparse(net, masks, images(), force=True)
    assert type(sparse.get_submodule("4")) is nn.Linear


@pytest.mark.filterwarnings("ignore:.*left masked dense")
def test_parametrised_layers_stay_dense_by_name():
    net = network()
    nn.utils.parametrizations.spectral_norm(net[4])
    with pytest.warns(UserWarning, match="4.parametrizations.weight.original"):
        sf.to_sparse(net, sf.sparsify(net, 0.3, init=None), images(), force=True)


def test_attributes_that_users_gave_a_layer_stay():
    net = network()
    net[4].tag, net[4].name = "head", "f"
    sparse = sf.to_sparse(net, sf.sparsify(net, 0.3), images(), force=True)
    assert (sparse.get_submodule("4").tag, sf.to_dense(sparse)[4].tag) == ("head", "head")
    assert "transposed" not in vars(sparse.get_submodule("0"))
    layer = sf.SparseLinear.from_dense(net[4], net[4].weight != 0)
    layer.tag = "alone"
    assert layer.to_dense().tag == "alone"
    assert not vars(layer.to_dense()).keys() & {"pattern", "values", "shape", "copied"}


# ---- layer.weight


class Own(nn.Module):
    """Uses the weight of a layer by itself, in one of several ways."""

    def __init__(self, way):
        super().__init__()
        self.way, self.a, self.b = way, nn.Linear(16, 8), nn.Linear(8, 4)

    def forward(self, x):
        return self.way(self, self.a(x))


OWN_WAYS = {
    "mul": lambda m, h: nn.functional.linear(h, m.b.weight * 2.0, m.b.bias),
    "linear": lambda m, h: nn.functional.linear(h, m.b.weight, m.b.bias),
    "data": lambda m, h: h @ m.b.weight.data.t(),
    "tied": lambda m, h: m.b(h) @ m.b.weight,
    "penalty": lambda m, h: m.b(h) + m.b.weight.square().sum(),
    "untraceable": lambda m, h: nn.functional.linear(h, m.b.weight) if h.ndim > 1 else h + max(h),
}


@pytest.mark.filterwarnings(REST)
@pytest.mark.parametrize("way", OWN_WAYS)
def test_a_weight_that_is_used_by_itself_stays_dense(way):
    torch.manual_seed(0)
    net, x = Own(OWN_WAYS[way]), torch.randn(5, 16)
    masks = sf.sparsify(net, 0.5)
    with pytest.warns(
        UserWarning, match=r"left masked dense: b\.weight \(its weight is used by it"
    ):
        sparse = sf.to_sparse(net, masks, x, force=True)
    assert type(sparse.get_submodule("b")) is nn.Linear
    assert isinstance(sparse.get_submodule("a"), SparseLinear)
    torch.testing.assert_close(sparse(x), net(x), atol=1e-5, rtol=1e-4)


@pytest.mark.filterwarnings(REST)
def test_facts_of_the_weight_may_be_read():
    def forward(m, h):
        if isinstance(m.b.weight, torch.Tensor) and h.dtype != m.b.weight.dtype:
            h = h.to(m.b.weight.dtype)
        return m.b(h.to(m.b.weight.device)) * m.b.weight.shape[0]

    net, x = Own(forward), torch.randn(5, 16)
    masks = sf.sparsify(net, 0.5)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*left masked dense")
        sparse = sf.to_sparse(net, masks, x, force=True)
    assert isinstance(sparse.get_submodule("b"), SparseLinear)
    torch.testing.assert_close(sparse(x), net(x), atol=1e-5, rtol=1e-4)


def freeze(weight):
    weight.requires_grad = False


@pytest.mark.parametrize(
    "use",
    [
        freeze, nn.init.zeros_, lambda w: w * 2, lambda w: w.data, lambda w: w.grad,
        lambda w: torch.ones(4, 8).copy_(w), lambda w: nn.functional.linear(torch.ones(1, 8), w),
        lambda w: w.detach(), lambda w: w[0], lambda w: w.clamp_(0), lambda w: w.requires_grad_(),
    ],
)  # fmt: skip
def test_whatever_else_is_done_with_it_is_refused(use):
    layer = sf.SparseLinear.from_dense(nn.Linear(8, 4), torch.rand(4, 8) < 0.5)
    weight = layer.weight
    assert (weight.shape, weight.dtype, weight.numel(), weight.requires_grad) == (
        (4, 8), torch.float32, 32, True,
    )  # fmt: skip
    assert "AbsentWeight" in repr(weight)
    with pytest.raises(KernelError, match="of the weight of a truly sparse layer, which has its"):
        use(weight)


# ---- pickle


def saved_by_torch(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return len(file.getvalue()), torch.load(file, weights_only=False)


def pickled(model):
    data = pickle.dumps(model)
    return len(data), pickle.loads(data)  # noqa: S301  (its own)


@pytest.mark.parametrize("way", [pickled, saved_by_torch])
def test_pickled_models_are_the_same(way):
    net = network()
    sparse = sf.to_sparse(net, sf.sparsify(net, 0.3), images(), force=True).eval()
    _, again = way(sparse)
    assert torch.equal(again(images()), sparse(images()))
    assert_same(sf.to_dense(again), net.eval())
    assert way(again)[1].state_dict().keys() == sparse.state_dict().keys()
    wide = nn.Sequential(nn.Linear(400, 400), nn.ReLU(), nn.Linear(400, 4))
    masks = sf.sparsify(wide, 0.05, pattern="constant_fan_in")
    small = sf.to_sparse(wide, masks, torch.randn(2, 400), force=True)
    assert way(small)[0] < way(wide)[0] / 3  # nothing of the dense weights is in it
