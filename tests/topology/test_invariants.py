"""Whatever legal events follow one another, the invariants hold and both executions agree."""

import copy

import torch
from helpers.scatter import scattered
from helpers.small import batch, loss, network
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from torch import nn

import sparseflow as sf

DOUBLE = torch.float64


class Side:
    """One execution: model, optimiser, topology, and an average of the model by hand."""

    def __init__(self, model: nn.Module, masks: sf.Masks) -> None:
        self.model = model
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
        self.topology = self.attached(masks)

    def attached(self, masks: sf.Masks) -> sf.Topology:
        method = sf.RigL(sf.every(2), sf.constant(0.5))
        return sf.attach(self.model, self.optimizer, masks, method, seed=3)

    @property
    def parts(self):
        return self.model, self.optimizer, self.topology


class Training(RuleBasedStateMachine):
    """Masked dense and truly sparse execution of one training, side by side."""

    def __init__(self) -> None:
        super().__init__()
        dense = network(DOUBLE)
        masks = sf.sparsify(dense, density=0.4, init=None)
        self.counts = masks.counts
        self.sides = [Side(model, masks) for model in (scattered(dense, masks), dense)]
        self.saved = [copy.deepcopy([x.state_dict() for x in s.parts]) for s in self.sides]
        self.taken = self.number = 0

    def data(self) -> list:
        self.number += 1
        x, y = batch(self.number, DOUBLE)
        return list(zip(x.chunk(3), y.chunk(3), strict=True))

    @rule(passes=st.integers(1, 3), to_none=st.booleans(), clip=st.booleans())
    def step(self, passes: int, to_none: bool, clip: bool) -> None:
        data = self.data()[:passes]
        for side in self.sides:
            for part in data:
                loss(side.model, part).backward()
            if clip:
                nn.utils.clip_grad_norm_(side.model.parameters(), 0.1)
            side.optimizer.step()
            side.optimizer.zero_grad(set_to_none=to_none)
        self.taken += 1

    @rule()
    def skip(self) -> None:
        """As GradScaler does, where a gradient is not finite."""
        data = self.data()[0]
        for side in self.sides:
            (torch.inf * loss(side.model, data)).backward()
            side.optimizer.zero_grad()

    @rule()
    def attack(self) -> None:
        x, y = self.data()[0]
        for side in self.sides:
            moved = x.clone().requires_grad_()
            torch.autograd.grad(9 * loss(side.model, (moved, y)), moved)

    @rule(layer=st.sampled_from([0, 2]), on=st.booleans())
    def freeze(self, layer: int, on: bool) -> None:
        for side in self.sides:
            for p in side.model[layer].parameters():
                p.requires_grad_(not on)

    @rule()
    def save(self) -> None:
        self.saved = [copy.deepcopy([x.state_dict() for x in s.parts]) for s in self.sides]

    @rule()
    def load(self) -> None:
        for side, states in zip(self.sides, self.saved, strict=True):
            for part, state in zip(side.parts, states, strict=True):
                part.load_state_dict(state)
        self.taken = self.sides[0].topology.step

    @rule()
    def average(self) -> None:
        for side in self.sides:
            with torch.no_grad():
                for p in side.model.parameters():
                    p.lerp_(p * 0.9, 0.1)

    @rule()
    def attach_again(self) -> None:
        for side in self.sides:
            masks = side.topology.masks
            side.topology.detach()
            side.model.requires_grad_(True)
            side.topology = side.attached(masks)
        self.taken = 0

    @invariant()
    def masks_are_equal(self) -> None:
        sparse, dense = (side.topology for side in self.sides)
        assert sparse.masks == dense.masks
        assert dense.masks.counts == self.counts
        assert sparse.step == dense.step == self.taken
        assert sparse.updates == dense.updates

    @invariant()
    def zeros_are_exact(self) -> None:
        sparse, dense = self.sides
        for name, mask in dense.topology.masks.items():
            weight = dense.model.get_parameter(name)
            layer = sparse.model.get_submodule(name.removesuffix(".weight"))
            assert torch.equal(layer.indices(), sparse.topology.masks.indices(name))
            state, values = dense.optimizer.state[weight], sparse.optimizer.state[layer.values]
            for key in ("exp_avg", "exp_avg_sq"):
                if key in state:
                    assert not state[key][~mask].any()
                    torch.testing.assert_close(state[key][mask], values[key])
            assert not weight[~mask].any()
            torch.testing.assert_close(weight[mask], layer.values)


Training.TestCase.settings = settings(
    max_examples=6, stateful_step_count=12, deadline=None, phases=[Phase.explicit, Phase.generate]
)
TestTraining = Training.TestCase
