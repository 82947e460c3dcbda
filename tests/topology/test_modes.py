"""Ways of running a model: compiled, in half precision, averaged, functional.

Each is held to exact masks and to the plain loop: bit for bit where the arithmetic is
the same, else within the tolerance that the test states.
"""

import shutil

import pytest
import torch
from helpers.small import assert_same, batch, loss, network, snapshot, take
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import sparseflow as sf

METHODS = {"RigL": sf.RigL(sf.every(2)), "SET": sf.SET(sf.every(2))}


def adam(model: nn.Module) -> torch.optim.Adam:
    return torch.optim.Adam(model.parameters(), lr=0.01)


def start(method: sf.Method, model: nn.Module | None = None, **options: bool):
    """A sparse network, always the same, its optimiser and topology."""
    model = network() if model is None else model
    masks = sf.sparsify(model, density=0.3, init=None)
    optimizer = adam(model)
    return model, optimizer, sf.attach(model, optimizer, masks, method, **options)


def assert_exact(model: nn.Module, optimizer: torch.optim.Optimizer, masks: sf.Masks) -> None:
    for name, tensors in snapshot(model, optimizer).items():
        for tensor in tensors:
            assert name not in masks or not tensor[~masks[name]].any(), name


# ---- torch.compile


@pytest.fixture(scope="module")
def compiled():
    """One compilation for all tests."""
    if not any(map(shutil.which, ("c++", "g++", "clang++"))):
        pytest.skip("torch.compile needs a C++ compiler")
    return torch.compile(network())


@pytest.mark.filterwarnings("ignore:`torch.jit.script")  # inductor imports it
@pytest.mark.parametrize("to", ["compiled", "original"])
@pytest.mark.parametrize("method", METHODS)
def test_a_compiled_model(compiled, method, to):
    """Fused kernels round otherwise: masks are equal, weights to 1e-5."""
    compiled.load_state_dict({f"_orig_mod.{n}": t for n, t in network().state_dict().items()})
    inside = compiled._orig_mod
    model, optimizer, topology = start(METHODS[method])
    _, other_optimizer, other = start(METHODS[method], compiled if to == "compiled" else inside)
    for step in range(6):
        take(model, optimizer, step)
        other_optimizer.zero_grad()
        loss(compiled, batch(step)).backward()
        other_optimizer.step()
        assert other.masks.digest() == topology.masks.digest()
        assert_exact(inside, other_optimizer, other.masks)
    other.detach()  # the compiled model is used again
    assert other.updates == 3
    for ours, theirs in zip(model.parameters(), inside.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_names_of_a_compiled_model_are_those_of_the_model_inside():
    model = network()
    wrapped = torch.compile(model, backend="eager")
    assert list(sf.maskable(wrapped)) == list(sf.maskable(model)) == ["0.weight", "2.weight"]
    masks = sf.sparsify(wrapped, density=0.4, init=None)
    masks.apply(model)
    flow = sf.gradient_flow(wrapped, loss, batch(0), masks)
    assert flow == sf.gradient_flow(model, loss, batch(0), masks)
    ours, theirs = (sf.hessian(m, loss, batch(0), masks) for m in (wrapped, model))
    v = torch.randn(ours.shape[0])
    assert torch.equal(ours @ v, theirs @ v)
    layers = sf.maskable(wrapped)
    inputs = batch(0)[0]
    assert sf.signal(wrapped, inputs, layers) == sf.signal(model, inputs, layers)
    sparse = sf.to_sparse(wrapped, masks, inputs, force=True)
    torch.testing.assert_close(sparse(inputs), model(inputs))


# ---- half precision


@pytest.mark.parametrize("method", METHODS)
def test_autocast_in_bfloat16(method):
    """A forward pass rounds to 8 bits; the loop by hand does the same on masked copies."""
    # The loop by hand has plain Adam steps, which know no ages of connections.
    model, optimizer, topology = start(METHODS[method], fresh_steps=False)
    plain, masks = network(), topology.masks
    plain_optimizer = adam(plain)
    masks.apply(plain)
    for step in range(6):
        for each in (optimizer, plain_optimizer):
            each.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            ours, theirs = loss(model, batch(step)), loss(plain, batch(step))
        ours.backward()
        theirs.backward()
        zero_inactive({n: [p.grad] for n, p in plain.named_parameters()}, masks)
        for each in (optimizer, plain_optimizer):
            each.step()
        masks = topology.masks
        zero_inactive(
            {n: [p.data, *plain_optimizer.state[p].values()] for n, p in plain.named_parameters()},
            masks,
        )
        assert_exact(model, optimizer, masks)
    assert topology.updates == 3
    assert model[0].weight.dtype == torch.float32
    assert_same(snapshot(model, optimizer), snapshot(plain, plain_optimizer))


def zero_inactive(tensors: dict[str, list[Tensor]], masks: sf.Masks) -> None:
    for name, mask in masks.items():
        for tensor in tensors[name]:
            if tensor.shape == mask.shape:
                tensor.mul_(mask)


@pytest.mark.parametrize("method", METHODS)
def test_autocast_in_float16_with_a_scaler(method):
    """A step skipped for an overflow counts for nothing; scaling by powers of two is exact.

    The plain loop is the same without scaler and without the overflow.
    """
    model, optimizer, topology = start(METHODS[method])
    other, other_optimizer, other_topology = start(METHODS[method])
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)

    def forward(which: nn.Module, step: int) -> Tensor:
        with torch.autocast("cpu", torch.float16):
            return loss(which, batch(step))

    for step, overflows in [(0, False), (90, True), *((i, False) for i in range(1, 6))]:
        other_optimizer.zero_grad()
        before = snapshot(other, other_optimizer)
        scaler.scale(forward(other, step) * (torch.inf if overflows else 1)).backward()
        scaler.unscale_(other_optimizer)
        nn.utils.clip_grad_norm_(other.parameters(), 1e4)
        scaler.step(other_optimizer)
        scaler.update()
        assert_exact(other, other_optimizer, other_topology.masks)
        if overflows:
            assert_same(before, snapshot(other, other_optimizer))
            continue
        optimizer.zero_grad()
        forward(model, step).backward()
        optimizer.step()
        assert topology.masks.digest() == other_topology.masks.digest()
    assert scaler.get_scale() == 2.0**9
    assert (other_topology.step, other_topology.updates) == (6, 3)
    for ours, theirs in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)  # float16: 11 bits


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("parts", [2, 3])
def test_accumulation(method, parts):
    """Micro-batches sum up in another order: masks are equal, weights to 1e-5."""
    model, optimizer, topology = start(METHODS[method])
    other, other_optimizer, other_topology = start(METHODS[method])
    for step in range(6):
        take(model, optimizer, step)
        other_optimizer.zero_grad()
        x, y = batch(step)
        for data in zip(x.chunk(parts), y.chunk(parts), strict=True):
            (loss(other, data) / parts).backward()
        other_optimizer.step()
        assert topology.masks.digest() == other_topology.masks.digest()
        assert_exact(other, other_optimizer, other_topology.masks)
    for ours, theirs in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


# ---- averages of weights


def averaged(method: sf.Method):
    """Six steps; the average after each of them."""
    model, optimizer, topology = start(method)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    seen = [topology.masks]
    for step in range(6):
        take(model, optimizer, step)
        average.update_parameters(model)
        seen.append(topology.masks)
    return model, average, seen


def test_an_average_under_masks_that_stay_is_as_sparse():
    model, average, seen = averaged(sf.Static())
    plain = network()
    seen[0].apply(plain)
    expected = {n: p.detach().clone() for n, p in plain.named_parameters()}
    optimizer = adam(plain)
    topology = sf.attach(plain, optimizer, seen[0], sf.Static())
    for step in range(6):
        take(plain, optimizer, step)
        for name, parameter in plain.named_parameters():  # the first update is a copy
            expected[name].lerp_(parameter.detach(), 0.5 if step else 1.0)
    for name, parameter in average.module.named_parameters():
        torch.testing.assert_close(parameter, expected[name])
        assert name not in seen[0] or not parameter[~topology.masks[name]].any()
    assert model[0].weight.count_nonzero() == seen[0].counts["0.weight"]


@pytest.mark.parametrize("method", METHODS)
def test_an_average_under_masks_that_change_is_projected_on_request(method):
    """It is non-zero where any mask of the past was, until the masks are applied to it."""
    _, average, seen = averaged(METHODS[method])
    names = list(sf.maskable(average))
    assert names == ["0.weight", "2.weight"]
    weights = dict(average.module.named_parameters())
    assert any(bool(weights[n][~seen[-1][n]].any()) for n in names)
    for name in names:
        ever = torch.stack([masks[name] for masks in seen[1:]]).any(0)
        assert not weights[name][~ever].any()
    kept = {n: torch.where(seen[-1][n], weights[n].detach(), 0.0) for n in names}
    seen[-1].apply(average)
    for name in names:
        assert torch.equal(weights[name], kept[name])
    assert sf.gradient_flow(average, loss, batch(0), seen[-1]).total > 0


# ---- torch.func


def test_functional_calls_see_the_masked_weights_and_fire_no_hook():
    model, optimizer, topology = start(METHODS["RigL"])
    for step in range(4):
        take(model, optimizer, step)
    optimizer.zero_grad()
    weights = {n: p.detach() for n, p in model.named_parameters()}
    x, y = batch(9)

    def value(parameters: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return (functional_call(model, parameters, (x,)) - y).square().mean()

    assert torch.equal(functional_call(model, weights, (x,)), model(x))
    found = grad(value)(weights, x, y)
    expected = torch.autograd.grad(loss(model, (x, y)), list(model.parameters()))
    for name, gradient in zip(weights, expected, strict=True):
        torch.testing.assert_close(found[name], gradient)
    one_by_one = vmap(grad(value), in_dims=(None, 0, 0))(weights, x, y)
    for name, gradient in found.items():
        torch.testing.assert_close(one_by_one[name].mean(0), gradient, rtol=1e-4, atol=1e-6)
    assert all(p.grad is None for p in model.parameters())
    before = topology.masks
    take(model, optimizer, 4)
    assert topology.masks == before
    assert_exact(model, optimizer, topology.masks)


def test_functional_calls_inside_a_loss_train_the_same():
    """A loss through functional_call, whose backward pass fills ``.grad``: bit for bit."""
    model, optimizer, topology = start(METHODS["RigL"])
    other, other_optimizer, other_topology = start(METHODS["RigL"])
    for step in range(6):
        take(model, optimizer, step)
        other_optimizer.zero_grad()
        x, y = batch(step)
        found = functional_call(other, dict(other.named_parameters()), (x,))
        (found - y).square().mean().backward()
        other_optimizer.step()
    assert topology.masks.digest() == other_topology.masks.digest()
    assert_same(snapshot(model, optimizer), snapshot(other, other_optimizer))
