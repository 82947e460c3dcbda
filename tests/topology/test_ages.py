"""Grown connections take their steps as under a fresh optimiser."""

import copy
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from helpers import ranks
from helpers.scatter import scattered
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import sparseflow as sf
from sparseflow.core.errors import TopologyError
from sparseflow.topology import ages

OUT, IN = 6, 8
PLACES = OUT * IN
START = tuple(range(0, PLACES, 2))
GROWN = tuple(range(1, PLACES, 6))
AFTER = tuple(sorted(START[: -len(GROWN)] + GROWN))
STEPS = 50


@dataclass(frozen=True)
class Scripted(sf.Method):
    """Connections after each step as they are written down; None: no update."""

    script: tuple[tuple[int, ...] | None, ...]

    def due(self, step: int) -> bool:
        return step <= len(self.script) and self.script[step - 1] is not None

    def update_layer(self, connections: sf.Connections) -> Tensor:
        return torch.tensor(self.script[connections.moment.step - 1])


def layer(places: tuple[int, ...], dtype: torch.dtype, *, sparse: bool) -> tuple[nn.Module, Any]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(IN, OUT)).to(dtype)
    masks = sf.Masks.from_indices({"0.weight": (torch.tensor(places), model[0].weight.shape)})
    masks.apply(model)
    return (scattered(model, masks) if sparse else model), masks


def gradients(step: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Inputs and gradients with respect to outputs: the weight's own do not depend on it."""
    stream = torch.Generator().manual_seed(step)
    x, dy = (torch.randn(4, n, generator=stream, dtype=torch.float64) for n in (IN, OUT))
    return x.to(dtype), dy.to(dtype)


def take(model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    x, dy = gradients(step, next(model.parameters()).dtype)
    optimizer.zero_grad()
    model(x).backward(dy)
    optimizer.step()


def weight_of(model: nn.Module) -> nn.Parameter:
    return model[0].values if hasattr(model[0], "values") else model[0].weight


def dense(model: nn.Module) -> Tensor:
    return (model[0].dense() if hasattr(model[0], "dense") else model[0].weight).detach().flatten()


def grow_late(optimizer: torch.optim.Optimizer, model: nn.Module, steps: int) -> None:
    """Let an optimiser count as if there had been many steps, whose moments it has."""
    for parameter in model.parameters():
        state = optimizer.state[parameter]
        state["step"].fill_(steps)
        if "mu_product" in state:
            state["mu_product"].zero_()


Make = Callable[[Any], torch.optim.Optimizer]
DECAY: dict[str, Any] = {"weight_decay": 0.1}
MADE: dict[str, Make] = {}
for kind, options in {
    "Adam": [{}, {"amsgrad": True}, {"fused": True}, {"fused": True, "amsgrad": True}],
    "AdamW": [{}, {"fused": True}],
    "NAdam": [{}, {"decoupled_weight_decay": True}],
    "RAdam": [{}, {"decoupled_weight_decay": True}],
    "Adamax": [{}],
    "Adagrad": [{"lr_decay": 0.1}, {"lr_decay": 0.1, "fused": True}],
}.items():
    for extra in options:
        each = [{"foreach": False}, {"foreach": True, "maximize": True}, DECAY | {"foreach": True}]
        for more in [DECAY | {"maximize": True}] if "fused" in extra else each:
            words = [k for k, v in (extra | more).items() if v]

            def make(p: Any, kind: str = kind, choice: Any = extra | more) -> torch.optim.Optimizer:
                return getattr(torch.optim, kind)(p, lr=0.01, **choice)

            MADE[" ".join([kind, *words])] = make
MADE["Adam lr tensor"] = lambda p: torch.optim.Adam(p, lr=torch.tensor(0.01), foreach=False)
MADE["Adam betas"] = lambda p: torch.optim.Adam(p, lr=0.01, betas=(0.5, 0.9), eps=1e-3)
MADE["RAdam never rectified"] = lambda p: torch.optim.RAdam(p, lr=0.01, betas=(0.9, 0.5))
MADE["NAdam without momentum"] = lambda p: torch.optim.NAdam(p, lr=0.01, betas=(0.0, 0.99))


def trained(make: Make, *, sparse: bool, dtype: torch.dtype, late: int, **options: Any) -> Tensor:
    """Weights of all places over the steps after an update, which grows some."""
    model, masks = layer(START, dtype, sparse=sparse)
    optimizer = make(model.parameters())
    method = Scripted((None, None, AFTER))
    sf.attach(model, optimizer, masks, method, **options)
    for step in range(2):
        take(model, optimizer, step)
    grow_late(optimizer, model, late)
    take(model, optimizer, 2)
    path = []
    for step in range(3, 3 + STEPS):
        take(model, optimizer, step)
        path.append(dense(model).clone())
    return torch.stack(path)


def fresh(make: Make, dtype: torch.dtype) -> Tensor:
    """The grown connections alone, from zero, under an optimiser of their own."""
    weight = nn.Parameter(torch.zeros(len(GROWN), dtype=dtype))
    optimizer, path = make([weight]), []
    for step in range(3, 3 + STEPS):
        x, dy = gradients(step, dtype)
        weight.grad = (dy.T @ x).flatten()[list(GROWN)]
        optimizer.step()
        path.append(weight.detach().clone())
    return torch.stack(path)


def check_fresh(make: Make, *, sparse: bool) -> None:
    path = trained(make, sparse=sparse, dtype=torch.float32, late=1000)[:, list(GROWN)]
    torch.testing.assert_close(path, fresh(make, torch.float32), rtol=0, atol=1e-7)


@pytest.mark.parametrize("make", MADE.values(), ids=MADE)
def test_grown_connections_step_as_under_a_fresh_optimiser(make):
    """The first 50 steps, though the optimiser has counted 1,000."""
    check_fresh(make, sparse=False)


@pytest.mark.parametrize("kind", ["Adam", "AdamW fused", "NAdam", "RAdam", "Adamax", "Adagrad"])
def test_those_of_truly_sparse_layers_too(kind):
    check_fresh(next(make for name, make in MADE.items() if name.startswith(kind)), sparse=True)


@pytest.mark.parametrize("kind", ["Adam", "NAdam", "RAdam", "Adamax", "Adagrad lr_decay"])
def test_other_connections_step_as_ever(kind):
    """Bit for bit; and without ages, grown ones step otherwise."""
    ours, was = (
        trained(MADE[kind], sparse=False, dtype=torch.float32, late=1000, fresh_steps=on)
        for on in (True, False)
    )
    stayed = sorted(set(AFTER) - set(GROWN))
    assert torch.equal(ours[:, stayed], was[:, stayed])
    assert not ours[:, sorted(set(range(PLACES)) - set(AFTER))].any()
    assert (ours[0, list(GROWN)] - was[0, list(GROWN)]).abs().min() > 1e-5


@pytest.mark.parametrize("kind", ["Adam", "NAdam", "RAdam", "Adamax"])
def test_it_is_exact(kind):
    """In float64 nothing but rounding is left."""

    def make(parameters: Any) -> torch.optim.Optimizer:
        return getattr(torch.optim, kind)(parameters, lr=0.01)

    path = trained(make, sparse=False, dtype=torch.float64, late=300)[:, list(GROWN)]
    # NAdam itself holds the product of its momenta in float32.
    bound = 1e-8 if kind == "NAdam" else 1e-14
    torch.testing.assert_close(path, fresh(make, torch.float64), rtol=0, atol=bound)


def test_the_first_step_is_one_learning_rate_and_was_more_than_two():
    ours, was = (
        trained(MADE["Adam"], sparse=False, dtype=torch.float64, late=1000, fresh_steps=on)
        for on in (True, False)
    )
    long = 0.1 * math.sqrt((1 - 0.999**1002) / 0.001)
    for path, length in ((ours, 0.01), (was, 0.01 * long)):
        steps = path[0, list(GROWN)].abs()
        torch.testing.assert_close(steps, torch.full_like(steps, length), rtol=1e-5, atol=0)
    assert long > 2.5


def test_half_precision_rounds_once():
    """bfloat16 weights are worked out in float32, as fused Adam does."""
    make = MADE["AdamW fused weight_decay maximize"]
    path = trained(make, sparse=False, dtype=torch.bfloat16, late=1000)[:, list(GROWN)]
    assert torch.equal(path[0], fresh(make, torch.bfloat16)[0])
    torch.testing.assert_close(path, fresh(make, torch.bfloat16), rtol=0.02, atol=1e-3)


def test_capturable(monkeypatch):
    """The count of steps is then a tensor on the weight's device, which is not read."""
    module = sys.modules["torch.optim.adam"]
    devices = lambda supports_xla=True: ["cpu"]  # noqa: E731
    monkeypatch.setattr(module, "_get_capturable_supported_devices", devices)

    def make(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.Adam(parameters, lr=torch.tensor(0.01), capturable=True, foreach=True)

    path = trained(make, sparse=False, dtype=torch.float32, late=1000)[:, list(GROWN)]
    # PyTorch's own factors are less exact here: it takes powers in float32.
    torch.testing.assert_close(path, fresh(MADE["Adam"], torch.float32), rtol=0, atol=1e-7)


class Reference:
    """Adam, AdamW, RAdam or Adamax with an age a connection, written out for one weight."""

    def __init__(self, start: Tensor, active: Tensor, kind: str, rate: float, decay: float):
        self.weight, self.active, self.kind, self.rate, self.decay = (
            start,
            active,
            kind,
            rate,
            decay,
        )
        self.mean, self.square, self.age = (torch.zeros_like(start) for _ in range(3))

    def step(self, gradient: Tensor) -> None:
        w, on = self.weight, self.active
        self.age += on
        t = self.age.clamp(min=1)
        w = w * (1 - self.rate * self.decay) if self.kind == "AdamW" else w
        g = torch.where(on, gradient + (0 if self.kind == "AdamW" else self.decay * w), 0)
        self.mean = 0.9 * self.mean + 0.1 * g
        mean = self.mean / (1 - 0.9**t)
        if self.kind == "Adamax":
            self.square = torch.maximum(0.999 * self.square, g.abs() + 1e-8)
            change = mean / self.square
        else:
            self.square = 0.999 * self.square + 0.001 * g * g
            root = (self.square / (1 - 0.999**t)).sqrt()
            change = mean / (root + 1e-8)
            if self.kind == "RAdam":
                last = 1999.0
                rho = last - 2 * t * 0.999**t / (1 - 0.999**t)
                r = (rho - 4) * (rho - 2) * last / ((last - 4) * (last - 2) * rho)
                root = (self.square.sqrt() + 1e-8) / (1 - 0.999**t).sqrt()
                change = torch.where(rho > 5, r.clamp(min=0).sqrt() * mean / root, mean)
        self.weight = torch.where(on, w - self.rate * change, 0)

    def update(self, active: Tensor) -> None:
        """Take new connections: what is gone is forgotten."""
        for name in ("weight", "mean", "square", "age"):
            stays = self.active & active
            setattr(self, name, torch.where(stays, getattr(self, name), 0))
        self.active = active


SHAPES = ((3, 4), (2, 5))
EVENT = st.tuples(st.booleans(), st.booleans(), st.integers(0, 2**32 - 1))


@given(
    kind=st.sampled_from(["Adam", "AdamW", "RAdam", "Adamax"]),
    events=st.lists(EVENT, min_size=3, max_size=14),
    small=st.sampled_from([0, 11, 1 << 12]),
    apart=st.booleans(),
)
@settings(max_examples=15, deadline=None)
def test_any_sequence_of_updates(kind, events, small, apart):
    """Against a reference with an age a connection: any masks, some weights idle in some steps."""
    stream = torch.Generator().manual_seed(1)
    model = nn.ParameterList(
        nn.Parameter(torch.randn(s, generator=stream, dtype=torch.float64)) for s in SHAPES
    )
    masks = {str(i): torch.rand(s, generator=stream) < 0.5 for i, s in enumerate(SHAPES)}
    script = []
    for update, _, seed in events:
        draws = torch.Generator().manual_seed(seed)
        places = [tuple(torch.randperm(10, generator=draws)[:4].sort()[0].tolist()) for _ in SHAPES]
        script.append(dict(zip(masks, places, strict=True)) if update else None)

    @dataclass(frozen=True)
    class Drawn(Scripted):
        def update_layer(self, connections):
            return torch.tensor(script[connections.moment.step - 1][connections.name])

    rates = (0.1, 0.03) if apart else (0.1, 0.1)
    groups = [{"params": [p], "lr": r} for p, r in zip(model, rates, strict=True)]
    decay = 0.1
    optimizer = getattr(torch.optim, kind)(
        groups if apart else list(model), lr=0.1, weight_decay=decay
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ages, "SMALL", small)
        topology = sf.attach(model, optimizer, masks, Drawn(tuple(script)))
        references = [
            Reference(p.detach().clone(), m, kind, r, 0.1)
            for p, m, r in zip(model, masks.values(), rates, strict=True)
        ]
        for _, idle, seed in events:
            draws = torch.Generator().manual_seed(seed)
            for i, (p, reference) in enumerate(zip(model, references, strict=True)):
                gradient = torch.randn(p.shape, generator=draws, dtype=torch.float64)
                p.grad = None
                if not (idle and i == seed % 2):
                    p.grad = gradient * topology.masks[str(i)]
                    reference.step(gradient)
            optimizer.step()
            for i, reference in enumerate(references):
                reference.update(topology.masks[str(i)])
                torch.testing.assert_close(
                    model[i].detach(), reference.weight, rtol=1e-9, atol=1e-12
                )


def attached(
    make: Make, dtype: torch.dtype = torch.float32, *, sparse: bool = False, script: Any = None
) -> tuple[nn.Module, torch.optim.Optimizer, sf.topology.Topology]:
    model, masks = layer(START, dtype, sparse=sparse)
    optimizer = make(model.parameters())
    return model, optimizer, sf.attach(model, optimizer, masks, Scripted(script or (None, AFTER)))


@pytest.mark.parametrize("sparse", [False, True], ids=["masked", "sparse"])
def test_ages_are_saved(sparse):
    """Interrupted among young connections and resumed in other objects: bit for bit."""
    model, optimizer, topology = attached(MADE["NAdam"], sparse=sparse)
    for step in range(5):
        take(model, optimizer, step)
    saved = copy.deepcopy([x.state_dict() for x in (model, optimizer, topology)])
    births = saved[2]["memory"]["born/0.weight"]
    assert births.dtype == torch.int32
    assert births.tolist() == [2 * (place in GROWN) for place in AFTER]
    other, other_optimizer, other_topology = attached(MADE["NAdam"], sparse=sparse)
    for ours, state in zip((other, other_optimizer, other_topology), saved, strict=True):
        ours.load_state_dict(state)
    for step in range(5, 9):
        take(model, optimizer, step)
        take(other, other_optimizer, step)
    assert torch.equal(dense(model), dense(other))
    with pytest.raises(TopologyError, match="has 3 births for the 24 connections"):
        other_topology.load_state_dict(
            saved[2] | {"memory": {"born/0.weight": torch.ones(3, dtype=torch.int32)}}
        )


def test_what_comes_back_at_once_keeps_its_age_and_what_comes_back_later_is_young():
    there, gone = START, START[1:]
    script = (None, AFTER, AFTER, there, None, gone, there)
    model, optimizer, topology = attached(MADE["Adam"], script=script)
    born = []
    for step in range(7):
        take(model, optimizer, step)
        places = topology.masks.indices("0.weight").tolist()
        births = topology.state_dict()["memory"].get("born/0.weight", torch.zeros(len(places)))
        born.append({p: b for p, b in zip(places, births.tolist(), strict=True) if b})
    lost = START[-len(GROWN) :]
    assert [len(each) for each in born] == [0, 8, 8, 8, 8, 8, 9]
    assert set(born[2].values()) == {2}
    assert set(born[3]) == set(lost)
    assert sorted(born[6].values()) == [4] * 8 + [7]


def test_old_connections_are_let_go(monkeypatch):
    """Once its age makes no difference to rounding, a connection costs nothing any more."""
    monkeypatch.setattr(ages, "SETTLING", 10)

    def make(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.Adam(parameters, lr=0.01, betas=(0.1, 0.5))

    model, optimizer, topology = attached(make)
    counts = []
    for step in range(45):
        take(model, optimizer, step)
        counts.append("born/0.weight" in topology.state_dict()["memory"])
    # 0.5^age is below a quarter of float32's rounding from age 26 on.
    assert counts == [1 < step <= 29 for step in range(1, 46)]


def test_before_anything_is_grown_nothing_is_done(monkeypatch):
    monkeypatch.setattr(ages._Young, "note", None)
    model, optimizer, _ = attached(MADE["Adam"], script=(None, START, START[1:]))
    for step in range(5):
        take(model, optimizer, step)


def test_weights_kept_beyond_the_mask_are_old():
    """A method that stores more than its mask: what it stores is there, what it adds is young."""
    model, masks = layer(START, torch.float32, sparse=False)
    optimizer = torch.optim.Adam(model.parameters())

    @dataclass(frozen=True)
    class Storing(Scripted):
        def stored(self, layers):
            return {name: torch.tensor(START + GROWN[:3]).sort()[0] for name in layers}

    topology = sf.attach(model, optimizer, masks, Storing((None, AFTER)))
    for step in range(3):
        take(model, optimizer, step)
    births = topology.state_dict()["memory"]["born/0.weight"]
    assert int((births > 0).sum()) == len(GROWN) - 3


def test_a_step_that_a_scaler_skips_leaves_them():
    """A fused optimiser looks for itself whether gradients were finite."""
    found = []
    for skipping in (False, True):
        model, optimizer, _ = attached(MADE["Adam fused weight_decay maximize"])
        for step in range(6):
            if skipping and step == 4:
                optimizer.found_inf = torch.tensor(1.0)
                take(model, optimizer, 99)
                del optimizer.found_inf
            take(model, optimizer, step)
        found.append(dense(model))
    assert torch.equal(*found)


def test_sharpness_aware_steps_are_of_the_inner_optimiser():
    """Weights are moved, a second gradient is taken there, and the step is made from before."""

    class SAM(torch.optim.Optimizer):
        def __init__(self, params):
            super().__init__(params, {"rho": 0.05})
            self.inner = torch.optim.Adam(self.param_groups, lr=0.01)

        @torch.no_grad()
        def first_step(self):
            self.moved = [
                (p, p.clone()) for p in self.param_groups[0]["params"] if p.grad is not None
            ]
            for p, _ in self.moved:
                p.add_(p.grad, alpha=0.05)

        @torch.no_grad()
        def second_step(self):
            for p, before in self.moved:
                p.copy_(before)
            self.inner.step()

        def step(self, closure):
            self.first_step()
            closure()
            self.second_step()

    plain, plain_optimizer, _ = attached(MADE["Adam"])
    model, optimizer, topology = attached(SAM)
    for step in range(8):
        take(plain, plain_optimizer, step)
        for half in (optimizer.first_step, optimizer.second_step):
            x, dy = gradients(step, torch.float32)
            optimizer.zero_grad()
            model(x).backward(dy)  # does not depend on the weights
            half()
    assert (topology.step, topology.updates) == (8, 1)
    assert torch.equal(dense(model), dense(plain))


@pytest.mark.parametrize("kind", ["Adam", "NAdam", "Adamax"])
def test_weights_in_another_memory_order_and_complex_ones(kind):
    """As a contiguous and as two real weights."""

    def path(weight: Tensor, mask: Tensor) -> Tensor:
        model = nn.ParameterList([nn.Parameter(weight.clone())])
        optimizer = getattr(torch.optim, kind)(model, lr=0.01)
        places = mask.flatten().nonzero().squeeze(1)
        script = (None, tuple((places[:-1] + 1).unique().tolist()))
        sf.attach(model, optimizer, {"0": mask}, Scripted(script))
        found = []
        for step in range(6):
            stream = torch.Generator().manual_seed(step)
            drawn = torch.randn((*mask.shape, 2), generator=stream)
            gradient = torch.view_as_complex(drawn) if weight.is_complex() else drawn[..., 0]
            model[0].grad = gradient * (model[0] != 0) if step < 2 else gradient
            optimizer.step()
            found.append(model[0].detach().clone().contiguous())
        return torch.stack(found)

    stream = torch.Generator().manual_seed(0)
    weight = torch.randn(4, 3, 2, 2, generator=stream)
    mask = torch.rand(weight.shape, generator=stream) < 0.5
    plain = path(weight, mask)
    assert torch.equal(path(weight.to(memory_format=torch.channels_last), mask), plain)
    both = path(torch.complex(weight, -weight), mask)
    torch.testing.assert_close(both.real, plain, rtol=0, atol=1e-8)


@pytest.mark.slow
def test_ranks_have_equal_ages(crew):
    """Under DDP and under fully_shard, whose ranks hold parts of a weight: as one process."""
    alone = ranks.grown("plain")
    for how in ("ddp", "fsdp"):
        for found in crew(2)(ranks.grown, how):
            assert found["born"] == alone["born"]
            assert any(map(any, found["born"].values()))
            for name, values in found["weights"].items():
                torch.testing.assert_close(
                    torch.tensor(values), torch.tensor(alone["weights"][name]), rtol=0, atol=1e-9
                )
