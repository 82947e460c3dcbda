"""Copies of model, optimiser and topology: together they go on alike, alone they are refused."""

import copy
import pickle

import pytest
import torch
from helpers.small import assert_same, batch, loss, network, snapshot, take
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import sparseflow as sf
from sparseflow.core.errors import MaskError, TopologyError
from sparseflow.core.parameters import sparse_weights

METHODS = {
    "RigL": sf.RigL(sf.every(2), sf.constant(0.5)),
    "SET": sf.SET(sf.every(2), sf.constant(0.5)),
    "pruning": sf.GradualPruning({"0.weight": 0.1, "2.weight": 0.2}, 2, 8, 2),
}


def training(method, sparse=False):
    net = network()
    masks = sf.sparsify(net, 0.4, pattern="constant_fan_in")
    if sparse:
        net = sf.to_sparse(net, masks, batch(0)[0], force=True)
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.05)
    return net, optimizer, sf.attach(net, optimizer, masks, METHODS[method], seed=3)


def advance(parts, steps):
    for step in steps:
        take(*parts[:2], step)


@pytest.mark.parametrize("at", [3, 4])  # the next step updates, or does not
@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_copied_together_they_go_on_alike_and_apart(method, sparse, at):
    ours = training(method, sparse)
    advance(ours, range(at))
    twins, before = copy.deepcopy(ours), snapshot(*ours[:2])
    advance(twins, range(at, 10))
    assert_same(snapshot(*ours[:2]), before)
    assert (ours[2].step, twins[2].step) == (at, 10)
    advance(ours, range(at, 10))
    assert ours[2].masks == twins[2].masks
    assert ours[2].updates == twins[2].updates > 2
    assert_same(snapshot(*ours[:2]), snapshot(*twins[:2]))
    with pytest.raises(TopologyError, match="attached already"):
        sf.attach(*twins[:2], twins[2].masks, sf.Static())
    twins[2].detach()
    sf.attach(*twins[:2], twins[2].masks, sf.Static())


def test_inside_a_trainer_they_are_copied_together():
    class Trainer:
        def __init__(self, parts):
            self.model, self.optimizer, self.topology = parts

    trainer = copy.deepcopy(Trainer(training("RigL")))
    advance((trainer.model, trainer.optimizer), range(4))
    assert (trainer.topology.step, trainer.topology.updates) == (4, 2)
    for name, mask in trainer.topology.masks.items():
        assert not trainer.model.get_parameter(name)[~mask].any()


@pytest.mark.filterwarnings("error")
def test_an_attached_model_is_converted_as_ever():
    model, _, topology = training("RigL")
    sparse = sf.to_sparse(model, topology.masks, batch(0)[0], force=True)
    assert len(sparse_weights(sparse)) == 2


def test_a_copy_of_what_is_detached_stays_so():
    ours = training("RigL")
    ours[2].detach()
    twins = copy.deepcopy(ours)
    advance(twins, range(3))
    assert twins[2].step == 0


def test_alone_it_is_refused_with_the_way_to_do_it():
    model, optimizer, topology = training("RigL")
    for parts in (topology, (topology, model, optimizer), (model, topology)):
        with pytest.raises(TopologyError, match=r"deepcopy\(\(model, optimizer, topology\)\)"):
            copy.deepcopy(parts)
    model.topology = topology
    with pytest.raises(TopologyError, match="together"):
        copy.deepcopy(model)
    with pytest.raises(TopologyError, match="the model holds its topology"):
        copy.deepcopy((optimizer, model))


def test_a_method_that_grows_from_the_model_it_was_made_for_is_refused():
    model = network()
    optimizer, masks = (
        torch.optim.SGD(model.parameters(), lr=0.1),
        sf.sparsify(model, 0.5, pattern="constant_fan_in"),
    )
    method = sf.RigL(grow_from=sf.probe_gradient(model, loss, batch(1)))
    topology = sf.attach(model, optimizer, masks, method)
    with pytest.raises(TopologyError, match="RigL grows from a function of the model"):
        copy.deepcopy((model, optimizer, topology))


@pytest.mark.parametrize("together", [False, True])
def test_pickling_is_refused_and_the_state_is_enough(together):
    parts = training("RigL")
    advance(parts, range(3))
    with pytest.raises(TopologyError, match=r"cannot be pickled: save topology.state_dict\(\)"):
        pickle.dumps(parts if together else parts[2])
    model, optimizer, topology = parts
    state, masks = pickle.loads(pickle.dumps((topology.state_dict(), topology.masks)))  # noqa: S301
    other, its = pickle.loads(pickle.dumps((model, optimizer)))  # noqa: S301
    again = sf.attach(other, its, masks, topology.method, seed=3)
    again.load_state_dict(state)
    for each in (parts, (other, its)):
        advance(each, range(3, 8))
    assert again.masks == topology.masks
    assert_same(snapshot(model, optimizer), snapshot(other, its))


def test_averages_of_masked_dense_models_are_by_position():
    """Weights of all masks so far take part; the masks then name what is sparse of it."""
    model, optimizer, topology = training("RigL")
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    history = []
    for step in range(6):
        take(model, optimizer, step)
        average.update_parameters(model)
        history.append(model[0].weight.detach().double())
    expected = history[0]
    for weight in history[1:]:
        expected = 0.5 * expected + 0.5 * weight
    torch.testing.assert_close(average.module[0].weight.double(), expected)
    topology.masks.apply(average)
    assert int(average.module[0].weight.count_nonzero()) <= topology.masks.counts["0.weight"]


# ---- rows of embeddings that stand for padding


def words():
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(10, 6, padding_idx=3), nn.Flatten(), nn.Linear(18, 2))


@pytest.mark.parametrize("density", [0.3, 0.8, 1.0])
@pytest.mark.parametrize("method", [sf.SET, sf.RigL, sf.RigLInverted])
def test_padding_rows_do_not_grow(method, density):
    net = words()
    layers = sf.maskable(net, types=[nn.Embedding], exclude="2")
    masks = sf.sparsify(net, density, layers=layers)
    before = masks.counts
    optimizer = torch.optim.Adam(net.parameters(), lr=0.05)
    topology = sf.attach(net, optimizer, masks, method(sf.every(1), sf.constant(0.5)))
    for step in range(8):
        tokens = torch.randint(0, 10, (8, 3), generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        net(tokens).square().mean().backward()
        optimizer.step()
        assert not topology.masks["0.weight"][3].any()
        assert not net[0].weight[3].any()
        assert topology.masks.counts == before
    assert topology.masks != masks or density == 1.0


def test_a_method_of_ones_own_that_grows_padding_is_refused():
    class Everything(sf.SET):
        def update_layer(self, connections):
            return torch.arange(connections.size)

    net = words()
    masks = sf.sparsify(net, 0.3, layers=sf.maskable(net, types=[nn.Embedding]))
    with pytest.raises(MaskError, match="row 3, which stands for padding"):
        sf.propose(Everything(), net, masks, sf.Moment(1, 1.0))


def test_weights_without_values_are_not_attached():
    net = nn.Linear(8, 6, device="meta")
    masks = sf.full_masks(sf.maskable(net))
    with pytest.raises(TopologyError, match="weight on the meta device have no values"):
        sf.attach(net, torch.optim.SGD(net.parameters(), lr=0.1), masks, sf.Static())


# ---- collapse


class Emptied(sf.SET):
    def update_layer(self, connections):
        return connections.indices[: 0 if connections.name == "2.weight" else None]


@pytest.mark.parametrize("sparse", [False, True])
def test_a_layer_that_an_update_empties_is_named_once(sparse):
    net = network()
    masks = sf.sparsify(net, 0.5, pattern="constant_fan_in")
    if sparse:
        net = sf.to_sparse(net, masks, batch(0)[0], force=True)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    sf.attach(net, optimizer, masks, Emptied(sf.every(1)))
    with pytest.warns(UserWarning, match=r"^2\.weight left without a weight by Emptied at step 1"):
        take(net, optimizer, 0)
    take(net, optimizer, 1)  # a second warning would be an error here


def test_pruning_that_empties_layers_names_them_unless_told_to():
    for density, named in ((1e-4, True), ({"0.weight": 0.0, "2.weight": 0.5}, False)):
        net = network()
        masks = sf.full_masks(sf.maskable(net))
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        topology = sf.attach(net, optimizer, masks, sf.GradualPruning(density, 1, 2, 1))
        take(net, optimizer, 0)
        if named:
            with pytest.warns(UserWarning, match=r"^0\.weight, 2\.weight left without a weight"):
                take(net, optimizer, 1)
        else:
            take(net, optimizer, 1)
        assert topology.masks.counts["0.weight"] == 0
