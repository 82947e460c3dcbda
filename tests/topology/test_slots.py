"""Optimisers whose state masks or ages cannot reach are refused when they are attached."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from helpers.scatter import scattered
from helpers.small import network, take
from torch import Tensor, nn

import sparseflow as sf
from sparseflow.core.errors import TopologyError
from sparseflow.topology import UPDATES


class Momentum(torch.optim.Optimizer):
    """Momentum of one's own; what it keeps, and how, is up to those below."""

    def __init__(self, params: Any, lr: float = 0.1):
        super().__init__(params, {"lr": lr})
        self.rounds = 0

    def slots(self, p: Tensor) -> dict[str, Any]:
        return {"m": torch.zeros_like(p)}

    def counted(self, state: dict[str, Any], group: dict[str, Any]) -> None:
        pass

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    state = self.state[p]
                    if not state:
                        state |= self.slots(p)
                    self.counted(state, group)
                    p.sub_(p.grad, alpha=group["lr"])


class Nested(Momentum):
    """Shampoo keeps its state like this."""

    def slots(self, p):
        return {"avg": {"m": torch.zeros_like(p)}}


class InList(Momentum):
    def slots(self, p):
        return {"factors": [torch.eye(p.shape[0])]}


class InObject(Momentum):
    class Factors:
        def __init__(self, p: Tensor):
            self.left = torch.eye(p.shape[0])

    def slots(self, p):
        return {"factors": self.Factors(p)}


class Codes(Momentum):
    """bitsandbytes keeps such codes, of which 0 does not mean 0."""

    def slots(self, p):
        return {"state1": torch.zeros(p.shape, dtype=torch.uint8)}


class Low(torch.Tensor):
    """As torchao's low-bit states: a tensor of another class."""


class Subclass(Momentum):
    def slots(self, p):
        return {"m": torch.zeros_like(p).as_subclass(Low) if p.ndim > 1 else torch.zeros_like(p)}


class Counting(Momentum):
    def counted(self, state, group):
        state["step"] = state.get("step", 0) + 1


class CountingInGroup(Momentum):
    """Schedule-free optimisers and apex do."""

    def __init__(self, params: Any):
        super().__init__(params)
        self.param_groups[0]["k"] = 0

    def counted(self, state, group):
        group["k"] += group["params"][0] in self.state


class OwnStep(torch.optim.Adam):
    def step(self, closure=None):
        return super().step(closure)


class Inheriting(torch.optim.Adam):
    """Nothing of its own."""


class Around(torch.optim.Optimizer):
    """SAM holds another optimiser, which takes the steps."""

    def __init__(self, params: Any, inner: type[torch.optim.Optimizer]):
        super().__init__(params, {"lr": 0.1})
        self.inner = inner(self.param_groups, lr=0.1)

    def step(self, closure=None):
        self.inner.step()


class Several(torch.optim.Optimizer):
    """Whose optimisers take one step after the other."""

    def __init__(self, params: Any):
        super().__init__(params, {"lr": 0.1})
        self.inner = [torch.optim.Adam(self.param_groups), torch.optim.NAdam(self.param_groups)]

    def step(self, closure=None):
        for each in self.inner:
            each.step()


class Broken(Momentum):
    def counted(self, state, group):
        raise ValueError("needs a teacher\nand more")


def attach(make: Callable[[Any], torch.optim.Optimizer], method: Any = None, **options: Any) -> Any:
    model = network()
    masks = sf.sparsify(model, density=0.3, init=None)
    optimizer = make(model.parameters())
    topology = sf.attach(model, optimizer, masks, method or sf.SET(sf.every(2)), **options)
    return model, optimizer, topology


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (Nested, "Nested keeps 'avg' of 0.weight inside a dict"),
        (InList, "InList keeps 'factors' of 0.weight inside a list"),
        (InObject, "InObject keeps 'factors' of 0.weight inside a Factors"),
        (Codes, r"Codes keeps 'state1' of 0.weight in low precision \(torch.uint8\)"),
        (Subclass, r"Subclass keeps 'm' of 0.weight in low precision \(Low\)"),
    ],
)
def test_state_out_of_reach_is_refused(kind, words):
    """Whatever the method and the ages are; at once, and also where state is there already."""
    for options in ({}, {"fresh_steps": False}, {"method": sf.Static()}):
        with pytest.raises(TopologyError, match=words) as caught:
            attach(kind, **options)
        assert "\n" not in str(caught.value)

    def loaded(parameters: Any) -> torch.optim.Optimizer:
        optimizer = kind(parameters)
        for p in optimizer.param_groups[0]["params"]:
            optimizer.state[p] |= optimizer.slots(p)
        optimizer.counted = None  # a trial would fail
        return optimizer

    with pytest.raises(TopologyError, match=words):
        attach(loaded, fresh_steps=False)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (Counting, r"Counting counts steps \(state 'step'\)"),
        (CountingInGroup, r"CountingInGroup counts steps \(group 'k'\)"),
        (OwnStep, r"OwnStep counts steps \(state 'step'\)"),
        (torch.optim.ASGD, r"ASGD counts steps \(state 'step'\)"),
        (lambda p: Around(p, OwnStep), r"Around counts steps \(state 'step'\)"),
        (Several, "Several holds 2 optimisers that count steps"),
        (Broken, r"trial step of it failed \(ValueError: needs a teacher\)"),
    ],
)
def test_unknown_ways_to_count_are_refused(make, words):
    """Only where connections may be grown, and ages are asked for."""
    with pytest.raises(TopologyError, match=words) as caught:
        attach(make)
    assert "fresh_steps=False" in str(caught.value)
    assert "\n" not in str(caught.value)
    attach(make, fresh_steps=False)
    attach(make, method=sf.Static())
    attach(make, method=sf.GradualPruning(0.1, 1, 3, 1))


@pytest.mark.parametrize(
    "make",
    [
        Momentum,
        Inheriting,
        torch.optim.SGD,
        torch.optim.Muon,
        lambda p: Around(p, torch.optim.SGD),
        torch.optim.Adafactor,
    ],
)
def test_others_are_served(make):
    model, optimizer, topology = attach(lambda p: make([w for w in p if w.ndim == 2]))
    for step in range(3):
        take(model, optimizer, step)
    assert topology.updates == 1


def test_a_subclass_of_adam_has_ages():
    model, optimizer, topology = attach(Inheriting)
    for step in range(3):
        take(model, optimizer, step)
    assert "born/0.weight" in topology.state_dict()["memory"]


def test_an_optimiser_inside_another_has_ages():
    """The weights are as under the inner one alone."""
    found = []
    for make in (torch.optim.Adam, lambda p, lr: Around(p, torch.optim.Adam)):
        model, optimizer, topology = attach(partial(make, lr=0.1))
        for step in range(6):
            take(model, optimizer, step)
        assert "born/0.weight" in topology.state_dict()["memory"]
        found.append(model[0].weight.detach())
    assert torch.equal(*found)


def test_a_class_may_be_added(monkeypatch):
    torch.optim.Adam([torch.zeros(1)])  # from now on the hooks run at the step within the step, too
    monkeypatch.setitem(UPDATES, OwnStep, UPDATES[torch.optim.Adam])
    model, optimizer, topology = attach(OwnStep)
    for step in range(3):
        take(model, optimizer, step)
    assert "born/0.weight" in topology.state_dict()["memory"]


def test_a_trial_touches_nothing():
    """Neither weights nor state, other optimisers, hooks, schedules or random streams."""
    model = network()
    masks = sf.sparsify(model, density=0.3, init=None)
    optimizer = Around(model.parameters(), torch.optim.SGD)
    optimizer.rounds = torch.zeros(3)
    calls = []
    optimizer.register_step_post_hook(lambda *_: calls.append("post"))
    torch.optim.lr_scheduler.StepLR(optimizer, 1)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    before = copy.deepcopy(model.state_dict())
    torch.manual_seed(4)
    sf.attach(model, optimizer, masks, sf.SET(sf.every(2)))
    drawn = torch.rand(3)
    torch.manual_seed(4)
    assert torch.equal(drawn, torch.rand(3))
    assert not calls
    assert not optimizer.state
    assert not optimizer.inner.state
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_state_that_comes_late_is_refused_when_it_comes():
    """Where the trial failed, the first step shows what there is."""

    class Late(Nested):
        def counted(self, state, group):
            if self.rounds == 0 and group["params"][0].numel() and not self.ready:
                raise ValueError("not ready")

    def make(parameters: Any) -> torch.optim.Optimizer:
        optimizer = Late(parameters)
        optimizer.ready = False
        return optimizer

    model, optimizer, _ = attach(make, fresh_steps=False)
    optimizer.ready = True
    with pytest.raises(TopologyError, match="inside a dict"):
        take(model, optimizer, 0)


def test_adafactor_counts_for_truly_sparse_values():
    """It factors a matrix, but keeps a number for each of the values, under one count."""
    model = network()
    masks = sf.sparsify(model, density=0.3, init=None)
    model = scattered(model, masks)
    optimizer = torch.optim.Adafactor(model.parameters())
    with pytest.raises(TopologyError, match=r"truly sparse 0\.weight, 2\.weight"):
        sf.attach(model, optimizer, masks, sf.SET())
    sf.attach(model, optimizer, masks, sf.SET(), fresh_steps=False)


def test_torchao_is_refused():
    optimisers = pytest.importorskip("torchao.optim")
    model = nn.Linear(128, 256)
    masks = sf.sparsify(model, density=0.2)
    for kind in (optimisers.AdamW8bit, optimisers.AdamW4bit, optimisers.AdamWFp8):
        with pytest.raises(TopologyError, match="keeps 'exp_avg' of weight in low precision"):
            sf.attach(model, kind(model.parameters()), masks, sf.Static())
