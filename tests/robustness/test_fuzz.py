"""Whatever a file holds: a clear error, or what was written. Never a crash, a hang or a bomb.

CI tries a few examples, always the same; ``-m soak`` many, always other ones.
"""

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from helpers.small import alone, tiny
from helpers.stored import nothing_of_size, tampered
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

import sparseflow as sf
from sparseflow.core.documents import load_document, save_document
from sparseflow.core.errors import SparseflowError, StoreError
from sparseflow.recipes import make_spec
from sparseflow.runs import Store, check, execute, identity
from sparseflow.runs.spec import RunSpec, from_data
from sparseflow.train.checkpoint import load_resume, load_state, save_resume, save_weights

COUNTS = [pytest.param(150, id="few"), pytest.param(3000, marks=pytest.mark.soak, id="many")]

numbers = (
    st.integers(-3, 3)
    | st.integers()
    | st.sampled_from([2**31, 2**63, 2**64, 10**15, 10**30, -(2**63), 10**400])
    | st.floats()
)
texts = st.text(max_size=5) | st.sampled_from(
    ["..", "../../x", "/etc/passwd", "a\0b", "\x1b[31m", "<script>", "[red]", "sparseflow-1", "end"]
)
values = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)


def fuzz(count: int, strategy: st.SearchStrategy, body: Callable[[Any], None]) -> None:
    soak = count > 1000
    settings(
        max_examples=count,
        deadline=None,
        derandomize=not soak,
        database=None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    )(given(strategy)(body))()


def places(tree: Any, at: tuple = ()) -> list[tuple]:
    """Every place within JSON-like data."""
    keys = tree if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ()
    return [at, *(place for key in keys for place in places(tree[key], (*at, key)))]


@st.composite
def mutations(draw: st.DrawFn, tree: Any) -> Any:
    """The same data with one to three places replaced, removed, renamed or moved."""
    tree = copy.deepcopy(tree)
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.sampled_from(places(tree)))
        if not place:
            tree = draw(values) if draw(st.integers(0, 9)) == 0 else tree
            continue
        parent, key = tree, place[-1]
        for step in place[:-1]:
            parent = parent[step]
        how = draw(st.sampled_from(["replace", "replace", "remove", "rename", "move"]))
        if how == "replace":
            parent[key] = draw(values)
        elif how == "move":
            found = tree
            for step in draw(st.sampled_from(places(tree))):
                found = found[step]
            parent[key] = copy.deepcopy(found)
        else:
            kept = parent.pop(key)
            if how == "rename" and isinstance(parent, dict):
                parent[draw(texts)] = kept
    return tree


@st.composite
def damages(draw: st.DrawFn, content: bytes) -> bytes:
    """The same bytes with some flipped, cut off or added."""
    data = bytearray(content)
    how = draw(st.sampled_from(["flip", "cut", "add", "splice"]))
    at = draw(st.integers(0, len(data) - 1))
    if how == "flip":
        data[at] ^= 1 << draw(st.integers(0, 7))
    elif how == "cut":
        del data[at:]
    elif how == "add":
        data[at:at] = draw(st.binary(min_size=1, max_size=9))
    else:
        data[at : at + 8] = draw(st.binary(min_size=8, max_size=8))
    return bytes(data)


# ---- specifications

SPECS = [
    msgspec.to_builtins(spec)
    for spec in (make_spec("lenet5-mnist/lottery"), tiny("mlp-mnist/rigl+"), alone())
]


@pytest.mark.slow
@pytest.mark.parametrize("count", COUNTS)
def test_any_data_is_a_specification_or_a_clear_error(count: int) -> None:
    def body(content: Any) -> None:
        try:
            spec = check(from_data(content))
        except SparseflowError:
            return
        assert len(identity(spec)) == 16
        again = msgspec.json.decode(msgspec.json.encode(spec), type=RunSpec)
        assert identity(again) == identity(spec)

    fuzz(count, st.sampled_from(SPECS).flatmap(mutations) | values, body)


@pytest.mark.parametrize("count", COUNTS)
def test_any_setting_is_taken_or_refused(count: int) -> None:
    paths = st.sampled_from(
        ["density", "recipe", "train.steps", "model.widths", "mask", "mask.run", "method", "data",
         "weights.step", "seeds.init", "kind", "mask.kind", "", "train", "init.scale"]
    ) | texts  # fmt: skip

    def body(setting: tuple[str, Any]) -> None:
        path, value = setting
        try:
            make_spec("mlp-mnist/lottery", settings=[f"{path}={value}"])
        except SparseflowError:
            return

    encoded = values.map(json.dumps) | texts
    fuzz(count, st.tuples(paths, encoded), body)


@pytest.mark.parametrize("count", COUNTS)
def test_any_spec_file_is_read_or_refused(count: int, tmp_path: Path) -> None:
    run = Store(tmp_path).create(alone())
    file = run.path / "spec.json"
    good, content = file.read_bytes(), load_document(file, "spec", run.id)

    def body(damaged: Any) -> None:
        if isinstance(damaged, bytes):
            file.write_bytes(damaged)
        else:  # another's work, with a checksum that fits
            save_document(file, "spec", run.id, damaged)
        try:
            found = Store(tmp_path).read(run.path)
        except StoreError:
            return
        assert identity(found.spec) == run.id or damaged["numerics"] != content["numerics"]

    def is_whole(data: Any) -> bool:
        return isinstance(data, dict) and all(_fits(v) for v in data.values())

    fuzz(count, damages(good) | mutations(content).filter(is_whole) | st.binary(max_size=99), body)


def _fits(value: Any) -> bool:
    """Say whether msgspec can write it: its integers have 64 bits."""
    try:
        msgspec.json.encode(value)
    except (OverflowError, UnicodeEncodeError, TypeError):
        return False
    return True


def test_runs_within_runs_without_end_are_refused() -> None:
    content: Any = {}
    for _ in range(3000):
        content = {"mask": {"kind": "parent", "run": content}}
    with pytest.raises(SparseflowError, match="too often"):
        from_data(content)


# ---- masks


@pytest.fixture
def masks_file(tmp_path: Path) -> Path:
    masks = {"a.weight": torch.rand(5, 7) < 0.3, "b": torch.rand(11) < 0.6}
    sf.Masks(masks).save(tmp_path / "masks")
    return tmp_path / "masks"


def meta_of(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    tampered(file, lambda tensors, meta: found.update(copy.deepcopy(meta)))
    return found


def set_meta(file: Path, good: bytes, meta: Any) -> None:
    """Give a file other metadata, with a checksum that fits."""
    file.write_bytes(good)

    def change(tensors: dict, old: dict) -> None:
        old.clear()
        old.update(meta)

    tampered(file, change)


@pytest.mark.parametrize("count", COUNTS)
def test_any_mask_file_is_read_or_refused(count: int, masks_file: Path) -> None:
    good, meta = masks_file.read_bytes(), meta_of(masks_file)
    digest = sf.Masks.load(masks_file).digest()

    def body(damaged: bytes | dict) -> None:
        if isinstance(damaged, bytes):
            masks_file.write_bytes(damaged)
        else:
            set_meta(masks_file, good, damaged)
        try:
            found = sf.Masks.load(masks_file)
        except SparseflowError:
            return
        assert found.nnz <= 8 * len(good)
        if isinstance(damaged, bytes):
            assert found.digest() == digest

    fuzz(count, damages(good) | mutations(meta).filter(lambda m: isinstance(m, dict)), body)


@pytest.mark.parametrize("count", COUNTS)
def test_any_code_of_positions_is_read_or_refused(count: int, masks_file: Path) -> None:
    good = masks_file.read_bytes()

    def body(given: tuple[bytes, int, int]) -> None:
        code, size, held = given
        masks_file.write_bytes(good)

        def change(tensors: dict, meta: dict) -> None:
            tensors["mask/b"] = torch.frombuffer(bytearray(code), dtype=torch.uint8)
            meta["masks"]["b"], meta["counts"]["b"] = [size], held

        tampered(masks_file, change)
        try:
            indices = sf.Masks.load(masks_file).indices("b").tolist()
        except SparseflowError:
            return
        assert indices == sorted(set(indices))
        assert len(indices) == held
        assert all(0 <= i < size for i in indices)

    sizes = st.integers(0, 40) | st.sampled_from([10**15, 2**60])
    fuzz(count, st.tuples(st.binary(min_size=1, max_size=12), sizes, st.integers(0, 99)), body)


@pytest.mark.parametrize(("size", "held"), [(10**15, 3), (10**15, 10**14), (2**60, 2**60)])
def test_a_small_file_cannot_claim_a_large_mask(size: int, held: int, masks_file: Path) -> None:
    def change(tensors: dict, meta: dict) -> None:
        meta["masks"]["b"], meta["counts"]["b"] = [size], held

    tampered(masks_file, change)
    with nothing_of_size(2**20), pytest.raises(StoreError, match="damaged"):
        sf.Masks.load(masks_file)


# ---- checkpoints


class Network:
    """A network, its optimiser and its topology, and where they are stored."""

    def __init__(self, folder: Path) -> None:
        torch.manual_seed(1)
        self.model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 3))
        self.masks = sf.sparsify(self.model, density=0.5)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9)
        self.topology = sf.attach(self.model, self.optimizer, self.masks, sf.SET(sf.every(3)))
        for _ in range(2):
            self.optimizer.zero_grad()
            self.model(torch.ones(2, 6)).square().sum().backward()
            self.optimizer.step()
        self.weights, self.resume = folder / "weights", folder / "resume"
        extra = {"step": 2}
        save_weights(self.weights, self.model, self.topology.masks, "run", 2)
        save_resume(self.resume, self.model, self.optimizer, self.topology, "run", extra)

    def load_resume(self) -> Any:
        return load_resume(self.resume, self.model, self.optimizer, self.topology, "run")


@pytest.mark.parametrize("count", COUNTS)
def test_any_checkpoint_is_read_or_refused(count: int, tmp_path: Path) -> None:
    file = Network(tmp_path).weights
    good, meta = file.read_bytes(), meta_of(file)
    digest = load_state(file, "run", 2).masks().digest()

    def body(damaged: bytes | dict) -> None:
        if isinstance(damaged, bytes):
            file.write_bytes(damaged)
        else:
            set_meta(file, good, damaged)
        try:
            found = load_state(file, "run", 2)
        except SparseflowError:
            return
        assert not isinstance(damaged, bytes) or found.masks().digest() == digest

    fuzz(count, damages(good) | mutations(meta).filter(lambda m: isinstance(m, dict)), body)


@pytest.mark.slow
@pytest.mark.parametrize("count", COUNTS)
def test_any_resume_checkpoint_is_read_or_refused(count: int, tmp_path: Path) -> None:
    network = Network(tmp_path)
    file = network.resume
    good, meta = file.read_bytes(), meta_of(file)

    def body(damaged: bytes | dict) -> None:
        if isinstance(damaged, bytes):
            file.write_bytes(damaged)
        else:
            set_meta(file, good, damaged)
        try:
            found = network.load_resume()
        except SparseflowError:
            return
        assert not isinstance(damaged, bytes) or found == {"step": 2}

    fuzz(count, damages(good) | mutations(meta).filter(lambda m: isinstance(m, dict)), body)


# ---- exported models


@pytest.mark.slow
@pytest.mark.parametrize("count", COUNTS)
def test_any_model_file_is_read_or_refused(count: int, tmp_path: Path) -> None:
    file, x = tmp_path / "model", torch.randn(4, 1, 8, 8)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(36, 8), nn.Dropout(0.1), nn.Linear(8, 3),
    ).eval()  # fmt: skip
    sf.save(file, model, sf.sparsify(model, density=0.4), example_input=x)
    good, meta = file.read_bytes(), meta_of(file)
    expected = sf.load(file, execution="dense")(x)

    def body(damaged: bytes | dict) -> None:
        if isinstance(damaged, bytes):
            file.write_bytes(damaged)
        else:
            set_meta(file, good, damaged)
        try:
            found = sf.load(file, execution="dense")
        except SparseflowError:
            return
        assert not isinstance(damaged, bytes) or torch.equal(found(x), expected)

    fuzz(count, damages(good) | mutations(meta).filter(lambda m: isinstance(m, dict)), body)


BOMBS = [
    [["function", "shape", [{"value": 0}], {}],
     ["function", "operator.mul", [{"value": 1}, 10**12], {}]],
    [["function", "operator.mul", ["ab", 10**12], {}]],
    [["function", "operator.mul", [2**40, 2**40], {}]],
    [["function", "operator.mul", [[1], 10**12], {}]],
]  # fmt: skip


@pytest.mark.parametrize("steps", BOMBS)
def test_a_model_file_cannot_fill_the_memory(steps: list, tmp_path: Path) -> None:
    file = tmp_path / "model"
    sf.save(file, nn.Sequential(nn.Linear(4, 3)), example_input=torch.randn(2, 4))

    def change(tensors: dict, meta: dict) -> None:
        last = len(meta["program"]["steps"])
        meta["program"]["steps"] += [
            [kind, name, _later(given, last), named] for kind, name, given, named in steps
        ]

    tampered(file, change)
    with nothing_of_size(2**20), pytest.raises(StoreError, match=r"sequence|63 bits"):
        sf.load(file)


def _later(given: list, last: int) -> list:
    return [{"value": last + a["value"]} if isinstance(a, dict) else a for a in given]


def test_a_foreign_file_is_refused(tmp_path: Path) -> None:
    save_file({"w": torch.ones(3)}, tmp_path / "f")
    for read in (sf.Masks.load, sf.load, lambda path: load_state(path, "run")):
        with pytest.raises(StoreError, match="not written by sparseflow"):
            read(tmp_path / "f")


def test_numbers_that_are_not_finite_come_back_as_such(tmp_path: Path) -> None:
    run = execute(alone("train.steps=0", "method=static"), Store(tmp_path))
    content = load_document(run.path / "result.json", "result", run.id)
    save_document(run.path / "result.json", "result", run.id, content | {"test_loss": math.nan})
    assert math.isnan(run.result["test_loss"])
