"""Storage by non-zeros: the code of masks, and checkpoints of both executions."""

import copy
import json

import numpy as np
import pytest
import torch
from helpers.stored import nothing_of_size, tampered, wide
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

import sparseflow as sf
from sparseflow.core.errors import MaskError, StoreError
from sparseflow.core.files import load_tensors
from sparseflow.core.parameters import SparseWeight
from sparseflow.masks.codec import decode, encode
from sparseflow.masks.state import State
from sparseflow.train.checkpoint import (
    load_resume,
    load_state,
    save_resume,
    save_weights,
)

# ---- the code of positions


def positions(size, density, seed=0):
    stream = torch.Generator().manual_seed(seed)
    return (torch.rand(size, generator=stream) < density).nonzero().squeeze(1)


@given(size=st.integers(0, 2000), density=st.floats(0, 1), seed=st.integers(0, 9))
def test_positions_come_back(size, density, seed):
    indices = positions(size, density, seed)
    assert torch.equal(decode(encode(indices, size), size, len(indices), "w"), indices)


@given(st.sets(st.integers(0, 2**40 - 1), max_size=20))
def test_huge_gaps_come_back(places):
    indices = torch.tensor(sorted(places), dtype=torch.long)
    code = encode(indices, 2**40)
    assert torch.equal(decode(code, 2**40, len(indices), "w"), indices)
    assert len(code) <= 2 + 41 * -(-len(places) // 8) + len(places)


@pytest.mark.parametrize("places", [[], [0], [7], [0, 1, 2, 3, 4, 5, 6, 7], [3, 4]])
def test_codes_at_the_edges(places):
    indices = torch.tensor(places, dtype=torch.long)
    assert decode(encode(indices, 8), 8, len(places), "w").tolist() == places


def test_a_code_by_hand():
    # Gaps 5, 0, 9 with two low bits: 1 00, 0 00, 2 01, so planes 101, 000 and unary 01 1 001.
    assert encode(torch.tensor([5, 6, 16]), 20).tolist() == [2, 0b10100000, 0, 0b01100100]


@pytest.mark.parametrize("sparsity", [0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.999])
def test_masks_take_little_more_than_their_entropy(sparsity):
    size = 400_000
    indices = positions(size, 1 - sparsity)
    p = len(indices) / size
    entropy = -size * (p * np.log2(p) + (1 - p) * np.log2(1 - p))
    bits = 8 * len(encode(indices, size))
    assert entropy <= bits * 1.01
    assert bits <= 1.06 * entropy + 64
    assert bits + 32 * len(indices) <= 1.01 * (entropy + 32 * len(indices))


def test_two_million_of_a_quarter_of_a_billion_positions():
    size = 2**28
    stream = np.random.default_rng(0)
    indices = torch.from_numpy(np.cumsum(stream.integers(1, 190, size=2_700_000)))
    assert int(indices[-1]) < size
    code = encode(indices, size)
    assert len(code) < 1.2 * len(indices)
    assert torch.equal(decode(code, size, len(indices), "w"), indices)


@pytest.mark.parametrize("places", [[3, 3], [4, 2], [-1, 2], [2, 8]])
def test_positions_that_are_no_mask_are_not_coded(places):
    with pytest.raises(MaskError, match="not strictly ascending within 0 to 7"):
        encode(torch.tensor(places), 8)


@given(data=st.data())
def test_any_bytes_are_refused_or_are_the_code_of_a_mask(data):
    size = data.draw(st.integers(0, 60))
    count = data.draw(st.integers(0, size + 2))
    content = data.draw(st.lists(st.integers(0, 255), max_size=12))
    code = torch.tensor(content, dtype=torch.uint8)
    try:
        indices = decode(code, size, count, "w")
    except StoreError:
        return
    assert len(indices) == count
    assert all(0 <= a < size for a in indices.tolist())
    assert bool((indices[1:] > indices[:-1]).all())


@given(data=st.data())
def test_a_changed_code_is_never_taken_for_the_same_mask(data):
    indices = positions(300, data.draw(st.sampled_from([0.03, 0.3, 0.8])))
    code = encode(indices, 300)
    broken = code.clone()
    broken[data.draw(st.integers(0, len(code) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    for bad in (broken, code[:-1], torch.cat([code, code[:1]])):
        try:
            assert not torch.equal(decode(bad, 300, len(indices), "w"), indices)
        except StoreError:
            continue


@pytest.mark.parametrize("places", [[6], [0, 6], list(range(7))])
def test_the_first_place_beyond_the_weight_is_refused(places):
    code = encode(torch.tensor(places), 7)
    assert decode(code, 7, len(places), "w").tolist() == places
    with pytest.raises(StoreError, match="'w' is damaged"):
        decode(code, 6, len(places), "w")


def test_a_code_whose_sum_would_overflow_is_refused():
    low = 48
    planes = [255] * low
    code = torch.tensor([low, *planes, 255], dtype=torch.uint8)
    with pytest.raises(StoreError, match="'w' is damaged"):
        decode(code, 2**48, 8, "w")


# ---- the state of a model, whichever execution it has


class Scattered(nn.Module, SparseWeight):
    """A sparse layer of the simplest kind: it scatters its values at every pass."""

    def __init__(self, layer, mask):
        super().__init__()
        self.shape, self.record = layer.weight.shape, None
        self.register_buffer("places", mask.flatten().nonzero().squeeze(1))
        self.values = nn.Parameter(layer.weight.detach().flatten()[self.places].clone())
        self.bias = nn.Parameter(layer.bias.detach().clone())

    def indices(self):
        return self.places

    def set_topology(self, indices, values):
        self.places, self.values.grad = indices, None
        self.values.data = values.detach().clone()

    def weight_gradient(self, rows):
        raise NotImplementedError

    def forward(self, x):
        full = self.values.new_zeros(self.shape.numel()).scatter(0, self.places, self.values)
        return functional.linear(x, full.view(self.shape), self.bias)


def network(density=0.3, seed=0):
    """A masked dense network with a norm, and its masks."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 10), nn.BatchNorm1d(10), nn.Linear(10, 3))
    masks = sf.make_masks(sf.maskable(model), density, seed=seed)
    masks.apply(model)
    return model, masks


def sparse_form(model, masks, only=("0", "2")):
    other = copy.deepcopy(model)
    for name in only:
        setattr(other, name, Scattered(model[int(name)], masks[f"{name}.weight"]))
    return other


@pytest.mark.parametrize("only", [("0", "2"), ("2",)])
def test_both_executions_write_the_same_checkpoint(tmp_path, only):
    model, masks = network()
    sparse = sparse_form(model, masks, only)
    save_weights(tmp_path / "dense", model, masks, "run", 3)
    save_weights(tmp_path / "sparse", sparse, masks, "run", 3)
    assert (tmp_path / "dense").read_bytes() == (tmp_path / "sparse").read_bytes()


def test_the_sign_of_a_zero_does_not_show(tmp_path):
    model, masks = network()
    with torch.no_grad():
        model[0].weight.masked_fill_(~masks["0.weight"], -0.0)
        model[0].weight.view(-1)[masks.indices("0.weight")[0]] = -0.0
    other = copy.deepcopy(model)
    with torch.no_grad():
        other[0].weight.add_(0.0)
    assert not torch.equal(model[0].weight.signbit(), other[0].weight.signbit())
    for name, each in (("a", model), ("b", other)):
        save_weights(tmp_path / name, each, masks, "run", 3)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_equal_content_gives_equal_bytes_and_other_content_others(tmp_path):
    model, masks = network()
    for name in ("a", "b", "c"):
        save_weights(tmp_path / name, model, masks, "run", 3 + (name == "c"))
    a, b, c = ((tmp_path / name).read_bytes() for name in "abc")
    assert a == b
    assert a != c


def test_a_state_is_restored_into_either_execution(tmp_path):
    (model, masks), (fresh, other_masks) = network(0.3, 0), network(0.5, 1)
    model[1].running_mean += 1
    save_weights(tmp_path / "c", model, masks, "run", 3)
    state = load_state(tmp_path / "c", "run")
    x = torch.randn(5, 6)
    for other in (copy.deepcopy(fresh), sparse_form(fresh, other_masks, ("2",))):
        state.restore(other)
        assert torch.allclose(other.eval()(x), model.eval()(x))
    assert torch.equal(other[2].places, masks.indices("2.weight"))


def test_layers_are_read_by_their_non_zeros(tmp_path):
    model, masks = network()
    save_weights(tmp_path / "c", model, masks, "run", 3)
    state = load_state(tmp_path / "c", "run")
    assert list(state.masked) == ["0.weight", "2.weight"]
    assert set(state.others) == set(model.state_dict()) - set(state.masked)
    indices, values, shape = state.masked["0.weight"]
    assert shape == (10, 6)
    assert torch.equal(indices, masks["0.weight"].flatten().nonzero().squeeze(1))
    assert torch.equal(values, model[0].weight.detach().flatten()[indices])
    assert state.masks() == masks


def test_reading_a_state_makes_nothing_of_dense_size(tmp_path):
    model, masks = wide()
    save_weights(tmp_path / "c", model, masks, "run", 0)
    assert (tmp_path / "c").stat().st_size < 60_000
    with nothing_of_size(1_000_000):
        state = load_state(tmp_path / "c", "run")
    assert len(state.masked["0.weight"].values) == 9000


@pytest.mark.parametrize("kind", ["bfloat16", "float64"])
def test_other_kinds_of_numbers_are_kept(tmp_path, kind):
    model, masks = network()
    model.to(getattr(torch, kind))
    save_weights(tmp_path / "c", model, masks, "run", 0)
    weights, _ = load_state(tmp_path / "c", "run").dense()
    assert weights.keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert weights[name].dtype == tensor.dtype
        assert torch.equal(weights[name], tensor)


def test_what_would_be_lost_is_not_saved(tmp_path):
    model, masks = network()
    with torch.no_grad():
        model[0].weight.fill_(1.0)
    lost = int((~masks["0.weight"]).sum())
    with pytest.raises(MaskError, match=rf"'0.weight' has {lost} inactive weights that are not z"):
        save_weights(tmp_path / "c", model, masks, "run", 0)
    assert not (tmp_path / "c").exists()


def test_masks_that_do_not_fit_are_not_saved(tmp_path):
    model, masks = network()
    with pytest.raises(MaskError, match=r"'9.weight' names no weight"):
        State.of(model, sf.Masks({"9.weight": masks["0.weight"]}))
    with pytest.raises(
        MaskError, match=r"'2.weight' has shape \(10, 6\); the weight has \(3, 10\)"
    ):
        State.of(model, sf.Masks({"2.weight": masks["0.weight"]}))
    sparse, moved = sparse_form(model, masks), sf.shuffle_masks(masks, 7)
    with pytest.raises(MaskError, match=r"connections of '0.weight' are not those of its mask"):
        State.of(sparse, moved)


def test_a_sparse_layer_wants_a_masked_weight_of_its_shape():
    model, masks = network()
    sparse = sparse_form(model, masks)
    with pytest.raises(StoreError, match=r"'2.weight' is held dense; the model has a sparse layer"):
        State.of(model, sf.Masks({"0.weight": masks["0.weight"]})).restore(sparse)
    swapped = State.of(model, masks)
    entries = {**swapped.masked, "2.weight": swapped.masked["0.weight"]}
    with pytest.raises(StoreError, match=r"'2.weight' has shape \(10, 6\)"):
        State(entries, swapped.others).restore(sparse)


# ---- optimiser state


def trained(kind, steps=4, execution="dense", seed=0):
    model, masks = network(seed=seed)
    if execution == "sparse":
        model = sparse_form(model, masks)
    options = {"sgd": {"momentum": 0.9}, "rmsprop": {"momentum": 0.5}}.get(kind, {})
    made = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "rmsprop": torch.optim.RMSprop}
    optimizer = made[kind](model.parameters(), lr=0.01, **options)
    topology = sf.attach(model, optimizer, masks, sf.Static())
    for step in range(steps):
        optimizer.zero_grad()
        torch.manual_seed(step)
        model(torch.randn(8, 6)).square().mean().backward()
        optimizer.step()
    return model, optimizer, topology


@pytest.mark.parametrize("kind", ["sgd", "adam", "rmsprop"])
def test_optimiser_state_is_packed_and_comes_back_bit_for_bit(tmp_path, kind):
    model, optimizer, topology = trained(kind)
    save_resume(tmp_path / "r", model, optimizer, topology, "run", {})
    tensors, _ = load_tensors(tmp_path / "r")
    sizes = {n: len(t) for n, t in tensors.items() if n.startswith("active/0/")}
    assert len(sizes) == {"sgd": 1, "adam": 2, "rmsprop": 2}[kind]
    assert set(sizes.values()) == {topology.masks.counts["0.weight"]}
    other = trained(kind, steps=0)
    load_resume(tmp_path / "r", *other, "run")
    ours, theirs = optimizer.state_dict()["state"], other[1].state_dict()["state"]
    assert ours.keys() == theirs.keys()
    for index, slots in ours.items():
        assert slots.keys() == theirs[index].keys()
        assert all(torch.equal(theirs[index][k], v) for k, v in slots.items() if v is not None)


def test_state_off_the_mask_is_kept(tmp_path):
    model, optimizer, topology = trained("sgd")
    optimizer.state[model[0].weight]["momentum_buffer"].fill_(2.0)
    save_resume(tmp_path / "r", model, optimizer, topology, "run", {})
    tensors, _ = load_tensors(tmp_path / "r")
    assert bool((tensors["optimizer/0/momentum_buffer"] == 2).all())
    assert "active/0/momentum_buffer" not in tensors


@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_training_goes_on_under_the_other_execution(tmp_path, kind):
    model, optimizer, topology = trained(kind)
    sparse = trained(kind, execution="sparse")
    save_resume(tmp_path / "dense", model, optimizer, topology, "run", {"step": 4})
    save_resume(tmp_path / "sparse", *sparse, "run", {"step": 4})
    names = [load_tensors(tmp_path / name)[0].keys() for name in ("dense", "sparse")]
    assert names[0] == names[1]
    # Into a sparse network of another topology, and from a sparse one into a dense one.
    for source, execution in (("dense", "sparse"), ("sparse", "dense")):
        other = trained(kind, steps=0, execution=execution, seed=3)
        assert load_resume(tmp_path / source, *other, "run") == {"step": 4}
        save_resume(tmp_path / "again", *other, "run", {"step": 4})
        assert (tmp_path / "again").read_bytes() == (tmp_path / source).read_bytes()


# ---- damage


@pytest.fixture
def checkpoint(tmp_path):
    model, masks = network()
    save_weights(tmp_path / "c", model, masks, "run", 3)
    return tmp_path / "c"


def test_every_flipped_byte_is_noticed(checkpoint):
    content = checkpoint.read_bytes()
    expected = load_state(checkpoint, "run").dense()
    stream = np.random.default_rng(0)
    for at in stream.integers(0, len(content), size=120).tolist():
        broken = bytearray(content)
        broken[at] ^= 1 << int(stream.integers(8))
        checkpoint.write_bytes(broken)
        try:
            weights, masks = load_state(checkpoint, "run").dense()
        except StoreError:
            continue
        else:  # a sign that means nothing, such as the name of the checksum
            assert masks == expected[1]
            assert all(torch.equal(weights[n], t) for n, t in expected[0].items())


def test_flipped_values_are_named_as_damage(checkpoint):
    content = bytearray(checkpoint.read_bytes())
    content[-3] ^= 4
    checkpoint.write_bytes(content)
    with pytest.raises(StoreError, match="is damaged: its content does not match its checksum"):
        load_state(checkpoint, "run")


def cut(tensors, meta):
    tensors["mask/0.weight"] = tensors["mask/0.weight"][:-1].clone()


def fewer(tensors, meta):
    tensors["values/0.weight"] = tensors["values/0.weight"][1:].clone()


def smaller(tensors, meta):
    meta["shapes"]["0.weight"] = [1, 6]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (cut, r"mask of '0.weight' is damaged"),
        (fewer, r"mask of '0.weight' is damaged"),
        (smaller, r"mask of '0.weight' is damaged"),
        (lambda t, m: t.pop("mask/0.weight"), r"'0.weight' lacks its mask"),
        (lambda t, m: t.pop("values/2.weight"), r"'2.weight' lacks its values"),
        (lambda t, m: m.update(shapes=[3]), r"does not say what shapes"),
        (lambda t, m: m["shapes"].update({"0.weight": [-10, -6]}), r"an invalid shape"),
        (lambda t, m: m["shapes"].update({"0.weight": ["a"]}), r"an invalid shape"),
        (lambda t, m: m["shapes"].update({"0.weight": [2**40, 2**40]}), r"an invalid shape"),
        (lambda t, m: t.update({"mask/0.weight": torch.ones(3)}), r"damaged: torch.float32"),
    ],
)
def test_tampered_checkpoints_are_refused(checkpoint, change, message):
    tampered(checkpoint, change)
    with pytest.raises(StoreError, match=message) as caught:
        load_state(checkpoint, "run")
    assert str(checkpoint) in str(caught.value)


@pytest.mark.parametrize("text", ["[1, 2]", "{", "[" * 100_000])
def test_metadata_that_is_no_object_is_refused(tmp_path, text):
    save_file({"x": torch.ones(2)}, tmp_path / "c", {"sparseflow": text})
    with pytest.raises(StoreError, match="cannot be read"):
        load_state(tmp_path / "c", "run")


# ---- masks alone


def test_masks_are_saved_by_their_code(tmp_path):
    masks = sf.Masks({"b": torch.rand(50, 40) < 0.05, "a": torch.rand(30) < 0.5})
    masks.save(tmp_path / "m")
    assert (tmp_path / "m").stat().st_size < 700
    read = sf.Masks.load(tmp_path / "m")
    assert read == masks
    assert list(read) == ["b", "a"]
    tampered(tmp_path / "m", lambda t, m: t.update({"mask/a": t["mask/a"][:-1].clone()}))
    with pytest.raises(StoreError, match="the mask of 'a' is damaged"):
        sf.Masks.load(tmp_path / "m")


def test_masks_of_version_0_1_are_refused(tmp_path):
    masks = {"b": torch.rand(5, 4) < 0.5, "a": torch.rand(3) < 0.5}
    save_file(masks, tmp_path / "m", {"sparseflow": json.dumps({"masks": ["b", "a"]})})
    with pytest.raises(StoreError, match=r"m has no checksum: .* not written by sparseflow 0\.2"):
        sf.Masks.load(tmp_path / "m")
