"""CIFAR-10 from parquet, augmentation, and runs of its recipes."""

import filecmp
import json
import os
from pathlib import Path

import pytest
import torch
from helpers import parquet
from helpers.work import interrupt

import sparseflow as sf
from sparseflow.core.errors import DataError, SpecError
from sparseflow.data import Batches, CropFlip, Examples, load_cifar10
from sparseflow.data.cifar import NORMALISE
from sparseflow.data.parquet import FOLDER
from sparseflow.recipes import make_spec, recipe_names
from sparseflow.runs import Store, execute, identity
from sparseflow.runs.build import load_data, make_method, make_model
from sparseflow.runs.spec import RunSpec


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data")
    parquet.write_cifar(path)
    return path


@pytest.fixture
def cifar(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small CIFAR-10 where the environment says that data are."""
    load_cifar10.cache_clear()
    monkeypatch.setenv(FOLDER, str(folder))
    yield folder
    load_cifar10.cache_clear()


# ---- loading


def test_images_and_classes_come_as_they_were_written(cifar: Path) -> None:
    data = load_cifar10()
    assert (len(data.train), len(data.test)) == (96, 40)
    x, y = data.train[5:8]
    assert y.tolist() == [5, 6, 7]
    stored = parquet.image.open(parquet.io.BytesIO(parquet.picture(32, 32, 6)))
    pixels = torch.from_numpy(parquet.np.asarray(stored).copy()).permute(2, 0, 1)
    assert torch.equal(x[1], NORMALISE(pixels[None])[0])
    assert len(load_cifar10(7).test) == 7


def test_normalising_by_hand() -> None:
    x = torch.randint(256, (2, 3, 4, 4), dtype=torch.uint8)
    # Mean and standard deviation of red, green and blue over the training images.
    for colour, (mean, std) in enumerate(((0.4914, 0.2470), (0.4822, 0.2435), (0.4465, 0.2616))):
        expected = (x[:, colour].float() / 255 - mean) / std
        torch.testing.assert_close(NORMALISE(x)[:, colour], expected)


@pytest.mark.parametrize(
    "fault", ["missing", "columns", "damaged", "not an image", "class", "size"]
)
def test_what_is_no_cifar_is_refused(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(FOLDER, str(tmp_path))
    load_cifar10.cache_clear()
    train, good = tmp_path / "cifar10/train.parquet", [parquet.picture(32, 32, i) for i in range(4)]
    names, images, classes = ("img", "label"), good, [0, 1, 2, 3]
    words = {
        "missing": r"no train\*\.parquet in .*SPARSEFLOW_DATA",
        "columns": "no column 'img' among",
        "damaged": "cannot be read|damaged",
        "not an image": "damaged, or not images",
        "class": "classes from 0 to 10",
        "size": r"images of shape \(16, 16, 3\)",
    }
    if fault == "columns":
        names = ("picture", "label")
    if fault == "not an image":
        images = [b"no image", *good[1:]]
    if fault == "class":
        classes = [0, 1, 2, 10]
    if fault == "size":
        images = [parquet.picture(16, 16, i) for i in range(4)]
    if fault != "missing":
        parquet.write(train, images, classes, names)
    if fault == "damaged":
        train.write_bytes(train.read_bytes()[:200])
    with pytest.raises(DataError, match=words[fault]) as caught:
        load_cifar10()
    assert "\n" not in str(caught.value)


@pytest.mark.soak
@pytest.mark.slow
@pytest.mark.skipif(
    not Path(os.environ.get(FOLDER, "/nowhere"), "cifar10").is_dir(),
    reason=f"{FOLDER} names no folder with cifar10",
)
def test_the_real_one() -> None:
    load_cifar10.cache_clear()
    data = load_cifar10()
    load_cifar10.cache_clear()
    assert (len(data.train), len(data.test)) == (50_000, 10_000)
    x, y = data.train[:]
    assert y.bincount().tolist() == [5000] * 10
    assert x.mean((0, 2, 3)).tolist() == pytest.approx([0, 0, 0], abs=0.01)
    assert x.std((0, 2, 3)).tolist() == pytest.approx([1, 1, 1], abs=0.02)


# ---- augmentation


def test_crop_and_flip_against_a_plain_loop() -> None:
    x, chances = torch.randn(40, 3, 8, 6), torch.rand(40, 6)
    chances[0, :3], chances[1, :3] = 0.0, 1 - 2**-24
    varied = CropFlip(2)(x, chances)
    for image, (down, across, flip, *_), got in zip(x, chances.tolist(), varied, strict=True):
        wide = torch.zeros(3, 12, 10)
        wide[:, 2:10, 2:8] = image
        top, left = min(int(down * 5), 4), min(int(across * 5), 4)
        cut = wide[:, top : top + 8, left : left + 6]
        assert torch.equal(got, cut if flip < 0.5 else cut.flip(2))


def augmented(**kwargs) -> Batches:
    x = torch.arange(60.0).view(20, 1, 1, 3)
    split = Examples(x, torch.arange(20), vary=CropFlip(1))
    return Batches(split, size=8, augment=True, **({"seed": 0} | kwargs))


def test_augmentation_is_a_function_of_seed_and_step() -> None:
    first = [augmented()[t][0] for t in range(6)]
    again = augmented()
    assert all(torch.equal(again[t][0], first[t]) for t in (5, 0, 3))
    assert not torch.equal(augmented(seed=1)[0][0], first[0])
    plain = Batches(augmented()._split, size=8, seed=0)
    assert torch.equal(plain[2][1], augmented()[2][1])
    assert not torch.equal(plain[2][0], first[2])


@pytest.mark.parametrize("world", [1, 2, 4])
def test_shares_of_all_ranks_together_are_the_batch(world: int) -> None:
    whole = augmented()
    for step in (0, 2, 7):
        shares = [whole.shard(rank, world)[step] for rank in range(world)]
        for part in (0, 1):
            assert torch.equal(torch.cat([s[part] for s in shares]), whole[step][part])


@pytest.mark.parametrize(("rank", "world"), [(0, 3), (2, 2), (-1, 2)])
def test_unequal_shares_are_refused(rank: int, world: int) -> None:
    with pytest.raises(ValueError, match=f"no equal share for rank {rank} of {world}"):
        augmented().shard(rank, world)


# ---- runs


def tiny(name: str, *extra: str) -> RunSpec:
    """A recipe in 6 steps of a narrow network: 64,000 steps scaled."""
    settings = ["model.widths=[4,4,8]", "data.limit=60", "data.probe=20", "execution=dense", *extra]
    spec = make_spec(name, scale=1e-4)
    where = [
        "",
        *(f"{part}.run." for part in ("mask", "weights") if hasattr(getattr(spec, part), "run")),
    ]
    return make_spec(name, scale=1e-4, settings=settings + [f"{w}train.batch=8" for w in where])


@pytest.mark.slow
@pytest.mark.parametrize(
    "short",
    [
        "prune-restart",
        "rigl+",
        *(
            pytest.param(name, marks=pytest.mark.soak)
            for name in ("dense", "small-dense", "prune", "lottery", "static-liu")
        ),
    ],
)
def test_recipes_run(short: str, cifar: Path, tmp_path: Path) -> None:
    run = execute(tiny(f"resnet20-cifar10/{short}"), Store(tmp_path))
    events = [record["event"] for record in run.metrics()]
    assert {"signal", "flow", "eval"} <= set(events)
    weights, masks = run.checkpoint(6)
    assert all(not weights[n][~m].any() for n, m in masks.items())
    if "dense" not in short:
        assert masks.density == pytest.approx(0.1, abs=1e-3)


@pytest.mark.slow
def test_an_interrupted_run_ends_bit_for_bit_as_an_undisturbed_one(
    cifar: Path, tmp_path: Path
) -> None:
    spec = tiny("resnet20-cifar10/rigl+", "train.resume=2")
    whole, broken = Store(tmp_path / "whole"), Store(tmp_path / "broken")
    run = execute(spec, whole)
    interrupt(spec, broken, 3)
    again = execute(spec, broken)
    assert json.loads((again.path / "environment.json").read_text())["resumed_at"] == 2
    for file in ("metrics.jsonl", "result.json", *(run.checkpoint_path(s).name for s in run.kept)):
        (a,), (b,) = run.path.rglob(file), again.path.rglob(file)
        assert filecmp.cmp(a, b, shallow=False), file


def test_pruning_ends_at_the_densities_of_erk_and_random_masks_have_them_too() -> None:
    spec = make_spec("resnet20-cifar10/prune")
    model = make_model(spec)
    layers = sf.maskable(model)
    final = make_method(spec, model, (torch.zeros(1), torch.zeros(1)), layers).density
    counts = {name: round(final[name] * layer.size) for name, layer in layers.items()}
    assert sum(counts.values()) == round(0.1 * sum(layer.size for layer in layers.values()))
    assert counts == sf.make_masks(layers, 0.1, allocation="erk").counts


@pytest.mark.parametrize("scale", [1.0, 0.3, 0.03, 0.001, 1e-4])
def test_a_ticket_rewinds_to_a_step_that_is_kept_at_any_scale(scale: float) -> None:
    spec = make_spec("resnet20-cifar10/lottery", scale=scale)
    assert spec.weights.step == max(1, round(2000 * scale))
    assert spec.weights.step % spec.weights.run.train.keep == 0
    assert spec.weights.run.method.start > spec.weights.step or scale < 1e-3


def test_families_with_random_masks_need_no_parent() -> None:
    names = recipe_names("resnet20-cifar10")
    assert "resnet20-cifar10/static+" in names
    assert "resnet20-cifar10/shuffled+" not in names
    assert type(make_spec("resnet20-cifar10/rigl+").mask).__name__ == "ErkMask"
    uniform = make_spec("resnet20-cifar10/rigl+", settings=["mask=uniform"])
    assert type(uniform.mask).__name__ == "UniformMask"


def test_where_the_data_are_is_no_part_of_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    before = identity(make_spec("resnet20-cifar10/dense"))
    monkeypatch.setenv(FOLDER, "/somewhere/else")
    assert identity(make_spec("resnet20-cifar10/dense")) == before


@pytest.mark.parametrize(
    ("name", "setting", "words"),
    [
        ("resnet20-cifar10/dense", "data.name=cifar", "did you mean 'cifar10'"),
        ("resnet20-cifar10/dense", "data.name=mnist", "resnet20 is made for cifar10, not for data"),
        ("resnet20-cifar10/dense", "data.image=64", "images of cifar10 have one size"),
        ("lenet5-mnist/dense", "data.augment=true", "mnist has no augmentation"),
        ("resnet20-cifar10/dense", "train.label_smoothing=1", "label_smoothing=1.0 is not in"),
        ("resnet20-cifar10/dense", "train.batch=60000", "train.batch=60000"),
    ],
)
def test_impossible_settings(name: str, setting: str, words: str) -> None:
    with pytest.raises(SpecError, match=words):
        make_spec(name, settings=[setting])


def test_fewer_examples_than_a_batch_is_an_error_of_the_data(cifar: Path) -> None:
    with pytest.raises(DataError, match="cifar10 has 96 training examples here: too few"):
        load_data(make_spec("resnet20-cifar10/dense"))
