"""However a loop is written, masks are those of the plain one, masked dense and truly sparse."""

import pytest
import torch
from helpers.loops import BY_HAND, OTHER, SAM, SAME, batches, by_closure, halves, plain
from helpers.scatter import scattered
from helpers.small import loss, network
from torch import nn

import sparseflow as sf
from sparseflow.core.errors import TopologyError

DOUBLE = torch.float64
STEPS = 6
OPTIMIZERS = {
    "sgd": lambda m: torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01),
    "adamw": lambda m: torch.optim.AdamW(m.parameters(), lr=0.01),
}
WAYS = ("dense", "sparse")

pytestmark = pytest.mark.filterwarnings("ignore:Using backward:UserWarning")


def start(way, make, method=None):
    """The small network in one execution, its optimiser and topology; always the same."""
    model = network(DOUBLE)
    masks = sf.sparsify(model, density=0.4, init=None)
    if way == "sparse":
        model = scattered(model, masks)
    optimizer = make(model)
    method = method or sf.RigL(sf.every(2), sf.constant(0.5))
    return model, optimizer, sf.attach(model, optimizer, masks, method, seed=3)


def trail(way, make, steps, method=None, count=STEPS):
    """Digests of the masks after every step."""
    model, optimizer, topology = start(way, make, method)
    digests = []
    for data in batches(count):
        steps(model, optimizer, data)
        digests.append(topology.masks.digest())
        assert_exact(model, optimizer, topology)
    assert (topology.step, topology.updates) == (count, count // 2)
    return digests


def assert_exact(model, optimizer, topology):
    """Zeros off the masks in weights and state, as many connections as ever."""
    for name, mask in topology.masks.items():
        module = model.get_submodule(name.removesuffix(".weight"))
        if isinstance(module, nn.Linear):
            tensors = [module.weight, *optimizer.state[module.weight].values()]
            tensors = [t for t in tensors if isinstance(t, torch.Tensor) and t.shape == mask.shape]
            assert not any(bool(t[~mask].any()) for t in tensors), name
        else:
            assert torch.equal(module.indices(), topology.masks.indices(name)), name
            shapes = {s.shape for s in optimizer.state[module.values].values()}
            assert shapes <= {module.values.shape, torch.Size([])}, name


@pytest.fixture(scope="module")
def reference():
    """What the plain loop gives, masked dense."""
    trails = {kind: trail("dense", make, plain) for kind, make in OPTIMIZERS.items()}
    assert all(len(set(digests)) == STEPS / 2 + 1 for digests in trails.values())
    return trails


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", SAME)
def test_masks_are_those_of_the_plain_loop(name, way, kind, reference):
    assert trail(way, OPTIMIZERS[kind], SAME[name]) == reference[kind]


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("name", OTHER)
def test_both_executions_grow_alike(name, kind):
    dense, sparse = (trail(way, OPTIMIZERS[kind], OTHER[name]) for way in WAYS)
    assert dense == sparse
    assert len(set(dense)) == STEPS / 2 + 1


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("name", BY_HAND)
def test_gradients_set_by_hand(name, kind, reference):
    """Masked dense execution takes them as they are; a truly sparse layer has no dense one."""
    assert trail("dense", OPTIMIZERS[kind], BY_HAND[name]) == reference[kind]
    with pytest.raises(TopologyError, match=r"\.grad of 0\.weight is not .* truly sparse") as error:
        trail("sparse", OPTIMIZERS[kind], BY_HAND[name])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", BY_HAND)
def test_gradients_set_by_hand_do_not_matter_to_random_growth(name):
    method = sf.SET(sf.every(2), sf.constant(0.5))
    expected = trail("dense", OPTIMIZERS["sgd"], plain, method)
    assert [trail(way, OPTIMIZERS["sgd"], BY_HAND[name], method) for way in WAYS] == [expected] * 2


# ---- sharpness-aware optimisers


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("steps", [halves, by_closure])
@pytest.mark.parametrize("to", ["outer", "inner"])
def test_the_two_halves_of_a_sharpness_aware_step_are_one(steps, way, to):
    """Whether the optimiser is attached, or the one inside it that takes the step."""

    def attached(model):
        optimizer = SAM(model.parameters(), torch.optim.SGD, lr=0.1, momentum=0.9)
        method = sf.RigL(sf.every(2), sf.constant(0.5))
        held = optimizer if to == "outer" else optimizer.base_optimizer
        return optimizer, sf.attach(model, held, masks, method, seed=3)

    dense = network(DOUBLE)
    masks = sf.sparsify(dense, density=0.4, init=None)
    model = scattered(dense, masks) if way == "sparse" else dense
    twin = network(DOUBLE)
    masks.apply(twin)
    optimizer, topology = attached(model)
    other = torch.optim.SGD(twin.parameters(), lr=0.1, momentum=0.9)
    twin_topology = sf.attach(twin, other, masks, topology.method, seed=3)
    for data in batches(STEPS):
        steps(model, optimizer, data)
        other.zero_grad()
        loss(twin, data).backward()
        moves = [p.grad * 0.05 for p in twin.parameters()]
        before = [p.detach().clone() for p in twin.parameters()]
        with torch.no_grad():
            for p, move in zip(twin.parameters(), moves, strict=True):
                p.add_(move)
        other.zero_grad()
        loss(twin, data).backward()
        with torch.no_grad():
            for p, value in zip(twin.parameters(), before, strict=True):
                p.copy_(value)
        other.step()
        assert topology.masks == twin_topology.masks
        assert_exact(model, optimizer.base_optimizer, topology)
    assert (topology.step, topology.updates) == (STEPS, STEPS // 2)
    topology.detach()
    assert "second_step" not in vars(optimizer)


def test_an_optimiser_that_only_knows_second_step():
    class TwoStep(torch.optim.Optimizer):
        def __init__(self, params):
            super().__init__(params, {"lr": 0.1})

        @torch.no_grad()
        def second_step(self):
            for p in self.param_groups[0]["params"]:
                p.sub_(p.grad, alpha=0.1)

        def step(self, closure=None):
            self.second_step()

    trails = []
    for call in ("second_step", "step"):

        def steps(model, optimizer, data, call=call):
            optimizer.zero_grad()
            loss(model, data).backward()
            getattr(optimizer, call)()

        trails.append(trail("dense", lambda m: TwoStep(m.parameters()), steps))
    assert trails[0] == trails[1]


# ---- weights without a gradient


class Experts(nn.ModuleDict):
    """Two experts, of which one may be idle."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        for name in ("a", "b"):
            self[name] = nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, 3)).double()

    def forward(self, x, names=("a", "b")):
        return sum(self[name](x) for name in names)


@pytest.mark.parametrize("to_none", [True, False])
@pytest.mark.parametrize("method", [sf.RigL, sf.SET])
@pytest.mark.parametrize("way", WAYS)
def test_an_idle_expert_keeps_its_connections(way, method, to_none):
    model = Experts()
    masks = sf.sparsify(model, density=0.4, init=None)
    if way == "sparse":
        for name in model:
            inside = {n.removeprefix(f"{name}."): m for n, m in masks.items() if n[0] == name}
            model[name] = scattered(model[name], sf.Masks(inside))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    topology = sf.attach(model, optimizer, masks, method(sf.every(2), sf.constant(0.5)))
    for step, (x, y) in enumerate(batches(4), 1):
        before = topology.masks
        optimizer.zero_grad(set_to_none=to_none)
        names = ("a",) if step == 2 else ("a", "b")
        (model(x, names) - y).square().mean().backward()
        optimizer.step()
        changed = {n for n in masks if not torch.equal(before[n], topology.masks[n])}
        expected = {1: "", 2: "a", 3: "", 4: "ab"}[step]
        assert {name[0] for name in changed} == set(expected)
        assert topology.masks.counts == masks.counts


# ---- compiled


COMPILED = """
import torch, sparseflow as sf
from torch import nn
masks = []
for backend in (None, "eager", "aot_eager"):
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, 3))
    first = sf.sparsify(model, density=0.4, init=None)
    model = sf.to_sparse(model, first, torch.ones(12, 6), force=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    topology = sf.attach(model, optimizer, first, sf.RigL(sf.every(1), sf.constant(0.5)))
    called = torch.compile(model, backend=backend) if backend else model
    for step in range(3):
        x = torch.randn(12, 6, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        (called(x) - x[:, :3]).square().mean().backward()
        optimizer.step()
    masks.append(topology.masks)
print(masks[0] == masks[1] == masks[2], masks[0] == first)
"""


@pytest.mark.slow
def test_a_compiled_model_that_is_truly_sparse(elsewhere):
    """In another process, where annotations are not checked: the compiler cannot see through."""
    assert elsewhere(COMPILED) == "True False"
