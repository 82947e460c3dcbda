"""What users of such libraries have reported of conversion and speed-up, restated."""

import pytest
import torch
import torch.nn.utils.prune
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.utils.data import DataLoader

import sparseflow as sf
from sparseflow.core.errors import KernelError, MaskError
from sparseflow.sparse import SparseModel

REST = "ignore:.*changes the layout alone"


class Pyramid(nn.Module):
    """One pooling layer called three times over (microsoft/nni#5406)."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 1), nn.Conv2d(32, 8, 1)
        self.pool, self.act = nn.MaxPool2d(5, 1, 2), nn.SiLU()

    def forward(self, x):
        x = self.act(self.first(x))
        once = self.pool(x)
        twice = self.pool(once)
        return self.act(self.second(torch.cat([x, once, twice, self.pool(twice)], 1)))


class Excited(nn.Module):
    """Channels scaled by what the pooled image gives (microsoft/nni#4540)."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.relu = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()
        self.pool, self.down, self.up = (
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(8, 4, 1),
            nn.Conv2d(4, 8, 1),
        )
        self.gate, self.last = nn.Hardsigmoid(), nn.Conv2d(8, 12, 1)

    def forward(self, x):
        x = self.relu(self.norm(self.first(x)))
        return self.last(self.gate(self.up(self.relu(self.down(self.pool(x))))) * x)


class Named(nn.Module):
    """Takes inputs by name (microsoft/nni#4664)."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(16, 32), nn.Linear(32, 4)

    def forward(self, x, shift=None, scale=1.0):
        h = self.a(x).relu() * scale
        return self.b(h if shift is None else h + shift)


class Keeping(Named):
    """Keeps an activation of its last pass (VainF/Torch-Pruning#374)."""

    def forward(self, x):
        self.last = self.a(x)
        return self.b(self.last.relu())


def converted(net, *example):
    torch.manual_seed(0)
    masks = sf.sparsify(net, 0.4, pattern="constant_fan_in")
    return sf.to_sparse(net, masks, example, force=True)


def close(ours, theirs):
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("make", [Pyramid, Excited])
def test_layers_used_again_and_products_of_branches(make):
    net, x = make(), torch.randn(5, 3, 9, 9)
    sparse = converted(net, x)
    assert isinstance(sparse, SparseModel)
    close(sparse(x), net(x))


def test_inputs_by_name():
    net, x, shift = Named(), torch.randn(4, 16), torch.randn(4, 32)
    sparse = converted(net, x)
    close(sparse(x=x), net(x=x))
    with pytest.raises(KernelError, match="scale was left out of the example"):
        sparse(x=x, scale=2.0)
    with pytest.raises(TypeError):
        sparse(y=x)
    both = converted(net, x, shift)
    close(both(shift=shift, x=x), net(x, shift))
    close(both(x, shift=shift), net(x, shift))


@pytest.mark.filterwarnings(REST)
def test_a_model_that_holds_activations_of_its_last_pass():
    net, x = Keeping(), torch.randn(4, 16)
    net(x)
    sparse = converted(net, x)
    close(sparse(x), net(x))
    assert net.last.grad_fn is not None  # the model itself is as it was
    sparse(x)
    close(sf.to_dense(sparse)(x), net(x))


@pytest.mark.filterwarnings(REST)
def test_layers_pruned_by_torch_next_to_sparse_ones():
    """Their weights are computed by a hook before each pass (pytorch/pytorch#37322)."""
    net, x = Named(), torch.randn(4, 16)
    nn.utils.prune.l1_unstructured(net.b, "weight", 0.5)
    masks = sf.sparsify(net, 0.4, layers=sf.maskable(net, exclude="^b"))
    net(x)
    sparse = sf.to_sparse(net, masks, x, force=True)
    close(sparse(x), net(x))
    assert int((sparse.b.weight == 0).sum()) == 64


def test_active_weights_that_are_zero_stay_connections():
    """Sparsity is what the masks say, not what values happen to be (neuralmagic/sparseml#750)."""
    net = nn.Linear(16, 8)
    masks = sf.sparsify(net, 0.5)
    with torch.no_grad():
        net.weight.view(-1)[masks.indices("weight")[:9]] = 0
    sparse = sf.to_sparse(net, masks, torch.randn(2, 16), force=True)
    assert (sparse.nnz, int((sparse.values == 0).sum())) == (64, 9)
    assert (masks.nnz, masks.density) == (64, 0.5)


def test_transforms_of_functions_are_refused_in_one_line():
    """Gradients of single examples, as for private training (meta-pytorch/opacus#391)."""
    sparse, x = converted(Named(), torch.randn(4, 16)), torch.randn(4, 16)
    values = dict(sparse.named_parameters())

    def loss(parameters, x):
        return functional_call(sparse, parameters, (x,)).square().mean()

    torch.testing.assert_close(loss(values, x), sparse(x).square().mean())
    for gradients, data in ((grad(loss), x), (vmap(grad(loss), (None, 0)), x.unsqueeze(1))):
        with pytest.raises(KernelError, match=r"torch.func \(grad, vmap, jvp, ...\) does not"):
            gradients(values, data)


def test_a_loader_is_not_an_example():
    net = Named()
    loader = DataLoader(torch.randn(8, 16), batch_size=4)
    for use in (sf.plan, sf.to_sparse):
        with pytest.raises(MaskError, match="example_input is a DataLoader: pass the inputs of on"):
            use(net, sf.full_masks(sf.maskable(net)), loader)
