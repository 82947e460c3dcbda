"""ImageNet as a stream, and three steps of its recipes, on synthetic JPEGs in parquet."""

import filecmp
import io
import json
import math
from pathlib import Path

import pytest
import torch
from helpers import parquet
from helpers.work import interrupt
from PIL import Image

from sparseflow.core.errors import DataError, SpecError
from sparseflow.data import Batches, load_imagenet
from sparseflow.data.imagenet import NORMALISE, frame
from sparseflow.data.parquet import FOLDER
from sparseflow.recipes import make_spec
from sparseflow.runs import Store, execute
from sparseflow.runs.spec import RunSpec

SIZES = [(60, 80), (90, 40), (50, 50)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data")
    parquet.write_imagenet(path)
    return path


@pytest.fixture
def imagenet(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small ImageNet in blocks of 8 rows, where the environment says that data are."""
    monkeypatch.setenv(FOLDER, str(folder))
    monkeypatch.setattr("sparseflow.data.imagenet.BLOCK", 8)
    return folder


# ---- the stream


def test_rows_come_by_number_from_several_files(imagenet: Path) -> None:
    data = load_imagenet(size=32)
    assert (len(data.train), len(data.test)) == (41, 12)
    where = torch.tensor([33, 2, 19, 20, 2, 40])
    x, y = data.train[where]
    assert x.shape == (6, 3, 32, 32)
    assert y.tolist() == [7 * (i if i < 20 else i - 20) for i in where.tolist()]
    assert torch.equal(x[1], x[4])
    again, _ = load_imagenet(size=32).train[2:3]
    assert torch.equal(again[0], x[1])
    assert data.train.first(5)[:][1].tolist() == [0, 7, 14, 21, 28]


def test_an_image_is_evaluated_at_its_centre(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(FOLDER, str(tmp_path))
    content = parquet.picture(96, 64, 3)
    for split in ("train", "validation"):
        parquet.write(tmp_path / f"imagenet/{split}.parquet", [content], [5], ("image", "label"))
    x, _ = load_imagenet(size=28).test[:]
    side = 64 * 224 / 256
    box = ((96 - side) / 2, (64 - side) / 2, (96 + side) / 2, (64 + side) / 2)
    opened = Image.open(io.BytesIO(content)).convert("RGB")
    expected = opened.resize((28, 28), Image.Resampling.BILINEAR, box)
    pixels = torch.from_numpy(parquet.np.asarray(expected).copy()).permute(2, 0, 1)
    assert torch.equal(x, NORMALISE(pixels[None]))


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_random_frames_lie_in_the_image_and_have_its_areas(width: int, height: int) -> None:
    flips = 0
    for chances in torch.rand(300, 6):
        (left, top, right, bottom), flipped = frame(width, height, chances)
        assert 0 <= left < right <= width + 1e-9
        assert 0 <= top < bottom <= height + 1e-9
        area = (right - left) * (bottom - top) / (width * height)
        ratio = (right - left) / (bottom - top)
        wanted = 0.08 + float(chances[0]) * 0.92
        assert area <= wanted + 1e-6
        cut = math.isclose(right - left, width) or math.isclose(bottom - top, height)
        if not cut:
            assert area == pytest.approx(wanted)
            assert ratio == pytest.approx(3 / 4 * (16 / 9) ** float(chances[1]))  # wide over high
        flips += flipped
    assert 110 < flips < 190


def test_normalising_by_hand() -> None:
    x = torch.randint(256, (2, 3, 4, 4), dtype=torch.uint8)
    for colour, (mean, std) in enumerate(((0.485, 0.229), (0.456, 0.224), (0.406, 0.225))):
        expected = (x[:, colour].float() / 255 - mean) / std
        torch.testing.assert_close(NORMALISE(x)[:, colour], expected)


def test_a_flipped_whole_image_is_its_mirror(imagenet: Path) -> None:
    train = load_imagenet(size=32).train
    where = torch.tensor([1])
    straight, mirrored = torch.tensor([[0.5] * 6]), torch.tensor([[0.5] * 6])
    mirrored[0, 4] = 0.25
    a, b = train.varied(where, straight)[0], train.varied(where, mirrored)[0]
    assert torch.equal(a.flip(3), b)
    assert torch.equal(train.varied(where, straight)[0], a)


def batches(size: int = 6) -> Batches:
    return Batches(load_imagenet(size=16).train, size, seed=0, augment=True)


def test_an_epoch_is_all_rows_once_shuffled_in_blocks(imagenet: Path) -> None:
    order = load_imagenet(size=16).train.order(torch.Generator().manual_seed(0))
    assert sorted(order.tolist()) == list(range(41))
    assert [block.sort().values.tolist() for block in order.split(8)] == [
        list(range(start, min(start + 8, 41))) for start in range(0, 41, 8)
    ]
    assert order[:8].tolist() != list(range(8))


def test_batch_t_is_the_same_after_a_resume_and_in_any_order(imagenet: Path) -> None:
    undisturbed = batches()
    seen = [undisturbed[t] for t in range(9)]  # an epoch is 41 rows: 6.8 batches
    resumed = batches()
    for t in (4, 5, 6, 7, 8, 0):
        assert all(torch.equal(a, b) for a, b in zip(resumed[t], seen[t], strict=True))


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_see_together_what_one_alone_would(imagenet: Path, world: int) -> None:
    shares = [batches().shard(rank, world) for rank in range(world)]
    for step in (0, 3, 7):
        for part, whole in enumerate(batches()[step]):
            assert torch.equal(torch.cat([share[step][part] for share in shares]), whole)


@pytest.mark.parametrize("fault", ["missing", "columns", "damaged file", "damaged image", "class"])
def test_what_is_no_imagenet_is_refused(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(FOLDER, str(tmp_path))
    images, classes, names = [parquet.picture(50, 50, i) for i in range(4)], [0, 1, 2, 3], None
    words = {
        "missing": r"no validation\*\.parquet in",
        "columns": "no column 'image' among",
        "damaged file": "cannot be read|damaged",
        "damaged image": "split train, row 2: damaged, or not images",
        "class": "a class is not between 0 and 999",
    }
    if fault == "damaged image":
        images[2] = images[2][:30]
    if fault == "class":
        classes[3] = 1000
    if fault == "columns":
        names = ("img", "label")
    train = tmp_path / "imagenet/train.parquet"
    parquet.write(train, images, classes, names or ("image", "label"))
    if fault != "missing":
        parquet.write(train.with_name("validation.parquet"), images, [0] * 4, ("image", "label"))
    if fault == "damaged file":
        train.write_bytes(train.read_bytes()[:-100])
    with pytest.raises(DataError, match=words[fault]):
        load_imagenet(size=16).train[:]


# ---- runs


def three_steps(name: str, *extra: str) -> RunSpec:
    """The recipe itself, scaled to three steps, on narrow networks and small images."""
    widths = {"resnet50": "[4,4,4,8]", "vgg16": "[4,4,4,8,8,16,16]"}[name.partition("-")[0]]
    spec = make_spec(name, scale=1e-4)
    where = ["", *(f"{p}.run." for p in ("mask", "weights") if hasattr(getattr(spec, p), "run"))]
    settings = [f"model.widths={widths}", "data.image=32", "data.probe=6", *extra]
    return make_spec(name, scale=1e-4, settings=settings + [f"{w}train.batch=8" for w in where])


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "vgg16-imagenet/set",
        *(
            pytest.param(name, marks=pytest.mark.soak)
            for name in (
                "resnet50-imagenet/dense",
                "resnet50-imagenet/rigl+",
                "resnet50-imagenet/lottery",
                "vgg16-imagenet/scratch-liu",
            )
        ),
    ],
)
def test_three_steps(name: str, imagenet: Path, tmp_path: Path) -> None:
    spec = three_steps(name)
    assert (spec.train.steps, spec.train.label_smoothing, spec.data.augment) == (3, 0.1, True)
    run = execute(spec, Store(tmp_path))
    assert run.finished
    weights, masks = run.checkpoint(3)
    assert all(not weights[n][~m].any() for n, m in masks.items())
    if not name.endswith("/dense"):
        assert masks.density == pytest.approx(0.2, abs=2e-3)
    assert all(
        math.isfinite(record["loss"]) for record in run.metrics() if record["event"] == "flow"
    )


@pytest.mark.slow
def test_a_run_with_dropout_resumes_bit_for_bit(imagenet: Path, tmp_path: Path) -> None:
    spec = three_steps("vgg16-imagenet/rigl+", "train.resume=1")
    run = execute(spec, Store(tmp_path / "whole"))
    broken = Store(tmp_path / "broken")
    torch.manual_seed(7)
    interrupt(spec, broken, 2)
    again = execute(spec, broken)
    assert json.loads((again.path / "environment.json").read_text())["resumed_at"] == 2
    for file in ("metrics.jsonl", "result.json", *(run.checkpoint_path(s).name for s in run.kept)):
        (a,), (b,) = run.path.rglob(file), again.path.rglob(file)
        assert filecmp.cmp(a, b, shallow=False), file


def test_the_side_of_images_is_positive() -> None:
    with pytest.raises(SpecError, match=r"data\.image=0 must be positive"):
        make_spec("resnet50-imagenet/dense", settings=["data.image=0"])
