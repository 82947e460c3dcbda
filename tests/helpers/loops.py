"""Ways to write a step of training, as people do."""

from collections.abc import Callable
from functools import partial

import torch
from helpers.small import batch, loss, network
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

import sparseflow as sf

Data = tuple[Tensor, Tensor]
Optimizer = torch.optim.Optimizer
Loop = Callable[[nn.Module, Optimizer, Data], object]

SAME: dict[str, Loop] = {}
"""Each steps on the gradient of the plain loop."""

OTHER: dict[str, Loop] = {}
"""Each steps on a gradient of its own."""

BY_HAND: dict[str, Loop] = {}
"""The gradient of the plain loop, but without a backward pass that fills ``.grad``."""


def loop(family: dict[str, Loop]) -> Callable[[Loop], Loop]:
    """List a loop under its name."""

    def add(function: Loop) -> Loop:
        family[function.__name__] = function
        return function

    return add


def parts(data: Data, count: int) -> list[Data]:
    x, y = data
    return list(zip(x.chunk(count), y.chunk(count), strict=True))


@loop(SAME)
def plain(model, optimizer, data):
    optimizer.zero_grad()
    loss(model, data).backward()
    optimizer.step()


@loop(SAME)
def zeroed_after_the_step(model, optimizer, data):
    loss(model, data).backward()
    optimizer.step()
    optimizer.zero_grad()


@loop(SAME)
def zeroed_in_place(model, optimizer, data):
    optimizer.zero_grad(set_to_none=False)
    loss(model, data).backward()
    optimizer.step()


@loop(SAME)
def zeroed_by_hand(model, optimizer, data):
    for p in model.parameters():
        p.grad = None
    loss(model, data).backward()
    optimizer.step()


@loop(SAME)
def micro_batches(model, optimizer, data):
    optimizer.zero_grad()
    for part in parts(data, 3):
        (loss(model, part) / 3).backward()
    optimizer.step()


@loop(SAME)
def micro_batches_averaged_at_the_end(model, optimizer, data):
    optimizer.zero_grad()
    for part in parts(data, 3):
        loss(model, part).backward()
    for p in model.parameters():
        p.grad /= 3
    optimizer.step()


@loop(SAME)
def micro_batches_as_a_running_mean(model, optimizer, data):
    optimizer.zero_grad()
    for count, part in enumerate(parts(data, 3)):
        for p in model.parameters():
            if p.grad is not None:
                p.grad.data.mul_(count / (count + 1))
        (loss(model, part) / (count + 1)).backward()
    optimizer.step()


@loop(SAME)
def two_losses_one_graph(model, optimizer, data):
    optimizer.zero_grad()
    out = model(data[0])
    (0.25 * (out - data[1]).square().mean()).backward(retain_graph=True)
    (0.75 * (out - data[1]).square().mean()).backward()
    optimizer.step()


@loop(SAME)
def one_graph_walked_twice(model, optimizer, data):
    optimizer.zero_grad()
    half = loss(model, data) / 2
    half.backward(retain_graph=True)
    half.backward()
    optimizer.step()


@loop(SAME)
def two_roots(model, optimizer, data):
    optimizer.zero_grad()
    a, b = (loss(model, part) / 2 for part in parts(data, 2))
    torch.autograd.backward((a, b))
    optimizer.step()


@loop(SAME)
def closure(model, optimizer, data):
    def evaluate():
        optimizer.zero_grad()
        value = loss(model, data)
        value.backward()
        return value

    optimizer.step(closure=evaluate)


def _input_gradient(model, data, factor=50.0):
    x = data[0].clone().requires_grad_()
    return torch.autograd.grad(factor * loss(model, (x, data[1])), x)[0]


@loop(SAME)
def input_gradient_before(model, optimizer, data):
    optimizer.zero_grad()
    _input_gradient(model, data)
    loss(model, data).backward()
    optimizer.step()


@loop(SAME)
def input_gradient_after(model, optimizer, data):
    optimizer.zero_grad()
    loss(model, data).backward()
    _input_gradient(model, data)
    optimizer.step()


@loop(SAME)
def input_gradient_of_the_same_graph(model, optimizer, data):
    optimizer.zero_grad()
    x = data[0].clone().requires_grad_()
    value = loss(model, (x, data[1]))
    torch.autograd.grad(9 * value, x, retain_graph=True)
    value.backward()
    optimizer.step()


@loop(SAME)
def attack_by_backward_into_the_inputs(model, optimizer, data):
    optimizer.zero_grad()
    x = data[0].clone().requires_grad_()
    for _ in range(2):
        (50 * loss(model, (x, data[1]))).backward(inputs=[x])
    loss(model, data).backward()
    optimizer.step()


@loop(SAME)
def attack_that_fills_all_gradients(model, optimizer, data):
    x = data[0].clone().requires_grad_()
    for _ in range(2):
        optimizer.zero_grad()
        (50 * loss(model, (x, data[1]))).backward()
    optimizer.zero_grad()
    loss(model, data).backward()
    optimizer.step()


@loop(SAME)
def thrown_away_by_zeros(model, optimizer, data):
    (100 * loss(model, (data[0] + 1, data[1]))).backward()
    optimizer.zero_grad(set_to_none=False)
    loss(model, data).backward()
    optimizer.step()


@loop(SAME)
def gradients_that_are_only_looked_at(model, optimizer, data):
    optimizer.zero_grad()
    value = loss(model, data)
    torch.autograd.grad(7 * value, list(model.parameters()), retain_graph=True)
    value.backward()
    torch.autograd.grad(7 * loss(model, (data[0] - 1, data[1])), list(model.parameters()))
    optimizer.step()


@loop(SAME)
def partial_backward(model, optimizer, data):
    optimizer.zero_grad()
    value = loss(model, data)
    first = [p for p in model.parameters() if p.ndim == 1 and len(p) in (3, 10)]  # biases
    rest = [p for p in model.parameters() if all(p is not q for q in first)]
    value.backward(inputs=first, retain_graph=True)
    value.backward(inputs=rest)
    optimizer.step()


@loop(SAME)
def scaled_and_unscaled(model, optimizer, data):
    optimizer.zero_grad()
    (1000 * loss(model, data)).backward()
    for p in model.parameters():
        p.grad.mul_(1 / 1000)
    optimizer.step()


@loop(SAME)
def scaled_by_hooks(model, optimizer, data):
    optimizer.zero_grad()
    handles = [p.register_hook(lambda g: g / 8) for p in model.parameters()]
    (8 * loss(model, data)).backward()
    optimizer.step()
    for handle in handles:
        handle.remove()


@loop(SAME)
def grad_scaler_that_skips(model, optimizer, data):
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    for factor in (torch.inf, 1.0):
        optimizer.zero_grad()
        scaler.scale(factor * loss(model, data)).backward()
        scaler.step(optimizer)
        scaler.update()


@loop(SAME)
def grad_scaler_and_clipping(model, optimizer, data):
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    optimizer.zero_grad()
    scaler.scale(loss(model, data)).backward()
    scaler.unscale_(optimizer)
    nn.utils.clip_grad_norm_(model.parameters(), 1e3)
    scaler.step(optimizer)
    scaler.update()


@loop(SAME)
def evaluation_between(model, optimizer, data):
    optimizer.zero_grad()
    loss(model, data).backward()
    model.eval()
    with torch.no_grad():
        loss(model, data)
    model.train()
    optimizer.step()


@loop(SAME)
def measured_between(model, optimizer, data):
    optimizer.zero_grad()
    sf.gradient_flow(model, loss, data)
    loss(model, data).backward()
    sf.gradient_flow(model, loss, (data[0] + 1, data[1]))
    optimizer.step()


@loop(SAME)
def another_model_between(model, optimizer, data):
    other = network(data[0].dtype)
    other_optimizer = torch.optim.SGD(other.parameters(), lr=0.1)
    optimizer.zero_grad()
    loss(model, data).backward()
    loss(other, data).backward()
    other_optimizer.step()
    optimizer.step()


@loop(SAME)
def distilled(model, optimizer, data):
    """A loss through another model, whose graph is one with that of this."""
    optimizer.zero_grad()
    frozen = network(data[0].dtype).requires_grad_(False)
    (loss(model, data) + 0 * (model(data[0]) - frozen(data[0])).square().mean()).backward()
    optimizer.step()


@loop(SAME)
def functional(model, optimizer, data):
    optimizer.zero_grad()
    out = functional_call(model, dict(model.named_parameters()), (data[0],))
    (out - data[1]).square().mean().backward()
    optimizer.step()


@loop(SAME)
def from_a_loader(model, optimizer, data):
    for part in DataLoader(TensorDataset(*data), batch_size=12):
        optimizer.zero_grad()
        loss(model, part).backward()
        optimizer.step()


def _checkpointed(reentrant, model, optimizer, data):
    optimizer.zero_grad()
    x = data[0].clone().requires_grad_()
    out = model[2:](checkpoint(model[:2], x, use_reentrant=reentrant))
    (out - data[1]).square().mean().backward()
    optimizer.step()


SAME["checkpointed"] = partial(_checkpointed, False)
SAME["checkpointed_reentrant"] = partial(_checkpointed, True)


@loop(SAME)
def graph_created(model, optimizer, data):
    optimizer.zero_grad()
    for part in parts(data, 2):
        (loss(model, part) / 2).backward(create_graph=True)
    for p in model.parameters():
        p.grad = p.grad.detach()
    optimizer.step()


@loop(SAME)
def weights_averaged_by_hand(model, optimizer, data):
    plain(model, optimizer, data)
    average = [p.detach().clone() for p in model.parameters()]
    for a, p in zip(average, model.parameters(), strict=True):
        a.lerp_(p.detach(), 0.1)


# ---- gradients of their own


@loop(OTHER)
def clipped_by_norm(model, optimizer, data):
    optimizer.zero_grad()
    loss(model, data).backward()
    nn.utils.clip_grad_norm_(model.parameters(), 0.05)
    optimizer.step()


@loop(OTHER)
def clipped_by_value(model, optimizer, data):
    optimizer.zero_grad()
    loss(model, data).backward()
    nn.utils.clip_grad_value_(model.parameters(), 0.02)
    optimizer.step()


@loop(OTHER)
def adversarial(model, optimizer, data):
    attacked = data[0] + 0.3 * _input_gradient(model, data).sign()
    optimizer.zero_grad()
    loss(model, (attacked, data[1])).backward()
    optimizer.step()


@loop(OTHER)
def free_adversarial(model, optimizer, data):
    """One backward pass gives the step and the next attack."""
    x = data[0].clone().requires_grad_()
    optimizer.zero_grad()
    loss(model, (x, data[1])).backward()
    optimizer.step()
    assert x.grad is not None


@loop(OTHER)
def weight_penalties_in_the_loss(model, optimizer, data):
    optimizer.zero_grad()
    squares = sum(p.square().sum() for p in model.parameters())
    sizes = sum(p.abs().sum() for p in model.parameters())
    (loss(model, data) + 0.02 * squares + 0.01 * sizes).backward()
    optimizer.step()


@loop(OTHER)
def weight_decay_by_hand(model, optimizer, data):
    optimizer.zero_grad()
    loss(model, data).backward()
    with torch.no_grad():
        for p in model.parameters():
            p.grad.add_(p, alpha=0.1)
    optimizer.step()


@loop(OTHER)
def sharpness_aware_by_hand(model, optimizer, data):
    optimizer.zero_grad()
    loss(model, data).backward()
    moves = [0.05 * p.grad / p.grad.norm() for p in model.parameters()]
    with torch.no_grad():
        for p, move in zip(model.parameters(), moves, strict=True):
            p.add_(move)
    optimizer.zero_grad()
    loss(model, data).backward()
    with torch.no_grad():
        for p, move in zip(model.parameters(), moves, strict=True):
            p.sub_(move)
    optimizer.step()


@loop(OTHER)
def maximised(model, optimizer, data):
    optimizer.zero_grad()
    (-loss(model, data)).backward()
    for p in model.parameters():
        p.grad.neg_()
    optimizer.step()


# ---- by hand


@loop(BY_HAND)
def torch_func(model, optimizer, data):
    params = {name: p.detach() for name, p in model.named_parameters()}

    def value(values):
        return (functional_call(model, values, (data[0],)) - data[1]).square().mean()

    for name, gradient in torch.func.grad(value)(params).items():
        model.get_parameter(name).grad = gradient
    optimizer.step()


@loop(BY_HAND)
def autograd_grad(model, optimizer, data):
    optimizer.zero_grad(set_to_none=False)
    params = list(model.parameters())
    for p, g in zip(params, torch.autograd.grad(loss(model, data), params), strict=True):
        if p.grad is None:
            p.grad = g.clone()
        else:
            p.grad.copy_(g)
    optimizer.step()


class SAM(torch.optim.Optimizer):
    """Sharpness-aware minimisation as it is mostly written (Foret et al. 2021; davda54/sam)."""

    def __init__(self, params, base_optimizer, rho=0.05, **kwargs):
        super().__init__(params, {"rho": rho, **kwargs})
        self.base_optimizer = base_optimizer(self.param_groups, **kwargs)
        self.param_groups = self.base_optimizer.param_groups
        self.defaults.update(self.base_optimizer.defaults)

    @torch.no_grad()
    def first_step(self, zero_grad=False):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self.state[p]["old_p"] = p.data.clone()
                    p.add_(p.grad * group["rho"])
        if zero_grad:
            self.zero_grad()

    @torch.no_grad()
    def second_step(self, zero_grad=False):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.data = self.state[p]["old_p"]
        self.base_optimizer.step()
        if zero_grad:
            self.zero_grad()

    @torch.no_grad()
    def step(self, closure=None):
        assert closure is not None
        closure = torch.enable_grad()(closure)
        self.first_step(zero_grad=True)
        closure()
        self.second_step()


def halves(model, optimizer, data):
    loss(model, data).backward()
    optimizer.first_step(zero_grad=True)
    loss(model, data).backward()
    optimizer.second_step(zero_grad=True)


def by_closure(model, optimizer, data):
    def evaluate():
        optimizer.zero_grad()
        value = loss(model, data)
        value.backward()
        return value

    loss(model, data).backward()
    optimizer.step(evaluate)
    optimizer.zero_grad()


def batches(count: int, dtype: torch.dtype = torch.float64) -> list[Data]:
    """Inputs and targets of the steps of a test."""
    return [batch(step, dtype) for step in range(count)]
