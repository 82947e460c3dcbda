"""What cannot be served is refused where it is asked for, in one line."""

import jaxtyping
import pytest
import torch
from helpers.scatter import scattered
from helpers.small import batch, loss, network

import sparseflow as sf
from sparseflow.core.errors import SpecError, TopologyError


def start(way="dense"):
    """The small network, whose connections change at every step."""
    model = network()
    masks = sf.sparsify(model, density=0.4, init=None)
    if way == "sparse":
        model = scattered(model, masks)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    method = sf.RigL(sf.every(1), sf.constant(0.5))
    return model, optimizer, sf.attach(model, optimizer, masks, method)


def refused(loop, way="dense", message=r"\.grad of 0\.weight is not that of the backward"):
    model, optimizer, topology = start(way)
    before = [p.detach().clone() for p in model.parameters()]
    loop(model)
    with pytest.raises(TopologyError, match=message) as error:
        optimizer.step()
    assert "\n" not in str(error.value)
    assert topology.step == 0
    assert all(torch.equal(a, p) for a, p in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize("way", ["dense", "sparse"])
def test_gradients_projected_from_several_passes(way):
    """As PCGrad does it: two tasks, .grad read after each and set by hand from both."""

    def projected(model):
        found = []
        for number in (0, 1):
            model.zero_grad()
            loss(model, batch(number)).backward()
            found.append([p.grad.clone() for p in model.parameters()])
        for p, a, b in zip(model.parameters(), *found, strict=True):
            p.grad = a + 0.3 * b

    refused(projected, way)


@pytest.mark.parametrize("way", ["dense", "sparse"])
def test_a_gradient_that_was_there_before_the_passes_were_collected(way):
    """Accumulation over an update: the first step's pass is not thrown away."""
    model, optimizer, _ = start(way)
    loss(model, batch(0)).backward()
    optimizer.step()
    loss(model, batch(1)).backward()  # .grad still holds that of the step before
    with pytest.raises(TopologyError, match=r"\.grad of 0\.weight is not that of"):
        optimizer.step()


def test_a_gradient_changed_in_place_where_it_is_masked():
    def noisy(model):
        loss(model, batch(0)).backward()
        for p in model.parameters():
            p.grad.add_(torch.ones_like(p))

    refused(noisy, message="it was changed in place at inactive connections")


def test_a_penalty_on_the_gradient_of_the_inputs():
    """Differentiated twice: masked dense execution sees it, a truly sparse layer does not."""

    def penalised(model):
        x, y = batch(0)
        x = x.clone().requires_grad_()
        value = loss(model, (x, y))
        (slope,) = torch.autograd.grad(value, x, create_graph=True)
        (value + 5 * slope.square().sum()).backward()

    refused(penalised, "sparse")
    model, optimizer, topology = start()
    found = {}

    class Seen(sf.RigL):
        def grow_score(self, view):
            found[view.name] = view.gradient
            return super().grow_score(view)

    topology.detach()
    sf.attach(model, optimizer, topology.masks, Seen(sf.every(1), sf.constant(0.5)))
    twin = network()
    topology.masks.apply(twin)
    for each in (model, twin):
        penalised(each)
    optimizer.step()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, twin.get_parameter(name).grad)


def test_what_register_method_is_told_is_checked(monkeypatch):
    """Outside of tests annotations do not check."""
    monkeypatch.setitem(jaxtyping.config.__dict__, "jaxtyping_disable", True)
    for wrong in ({"color": "#123456"}, {"color": ("#123456", "red")}, {"mask": {"density": 0.5}}):
        with pytest.raises(SpecError, match=rf"register_method\('odd'\): {next(iter(wrong))}="):
            sf.register_method("odd", **wrong)
    assert "odd" not in sf.METHODS


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: sf.SET(when=sf.constant(0.3)), "says how much, not when"),
        (lambda: sf.RigL(drop=sf.every(3)), "says when, not how much"),
    ],
)
def test_schedules_of_the_wrong_sort_are_refused_when_made(make, message):
    with pytest.raises(TopologyError, match=message):
        make()
