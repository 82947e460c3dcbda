"""Every file of a run and of a study, damaged in every way: noticed, named, never read as good."""

import json
import os
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.audit import audit
from helpers.cli import Cli
from helpers.small import alone
from helpers.stored import tampered

from sparseflow import studies
from sparseflow.core.documents import SCHEMA, load_document, save_document
from sparseflow.core.errors import StoreError
from sparseflow.runs import Store, execute
from sparseflow.runs.spec import RunSpec
from sparseflow.studies import DistanceStudy, carry_out, point_of

SPEC, OTHER = alone(), alone(seed=1)
CHECKPOINTS = [f"checkpoints/step-{step:08d}.safetensors" for step in (0, 4, 8, 12)]
FINISHED = ["spec.json", "result.json", "environment.json", "metrics.jsonl", *CHECKPOINTS]
UNDER_WAY = ["spec.json", "metrics.jsonl", "resume.safetensors", *CHECKPOINTS[:3]]
STUDY = "study"
SEED = int(os.environ.get("SPARSEFLOW_TEST_SEED", "0"))


def study_of(store: Store, spec: RunSpec) -> DistanceStudy:
    return DistanceStudy(tuple(point_of(store.run(spec), step) for step in (0, 12)))


def study_file(store: Store, spec: RunSpec) -> Path:
    return store.root / "studies" / f"{studies.key(study_of(store, spec))}.json"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = Store(tmp_path_factory.mktemp("finished"))
    for spec in (SPEC, OTHER):
        execute(spec, store)
        carry_out(study_of(store, spec), store)
    return store


@pytest.fixture(scope="module")
def under_way(tmp_path_factory: pytest.TempPathFactory) -> Store:
    class KilledError(Exception):
        pass

    def kill(run: object, step: int, accuracy: float) -> None:
        if step == 9:
            raise KilledError

    store = Store(tmp_path_factory.mktemp("under-way"))
    for spec in (SPEC, OTHER):
        with pytest.raises(KilledError):
            execute(spec, store, progress=kill)
    return store


def truncated(file: Path, other: Path, rng: random.Random) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: rng.randrange(1, len(content))])


def flipped(file: Path, other: Path, rng: random.Random) -> None:
    content = bytearray(file.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    file.write_bytes(content)


def extended(file: Path, other: Path, rng: random.Random) -> None:
    file.write_bytes(file.read_bytes() + rng.choice([b"\n", b"{}\n", rng.randbytes(9)]))


def emptied(file: Path, other: Path, rng: random.Random) -> None:
    file.write_bytes(b"")


def deleted(file: Path, other: Path, rng: random.Random) -> None:
    file.unlink()


def swapped(file: Path, other: Path, rng: random.Random) -> None:
    shutil.copyfile(other, file)


def newer(file: Path, other: Path, rng: random.Random) -> None:
    """Of a schema that this version does not know, with a checksum that fits."""
    if file.suffix == ".safetensors":
        tampered(file, lambda tensors, meta: meta.update(format="sparseflow-9"))
    else:
        content = json.loads(file.read_bytes())
        save_document(file, content["kind"], content["id"], content | {"schema": SCHEMA + 1})


DAMAGES = [truncated, flipped, extended, emptied, deleted, swapped, newer]
Damage = Callable[[Path, Path, random.Random], None]


def cells(files: list[str]) -> list[tuple[str, Damage]]:
    """All that there is; ``metrics.jsonl`` has no schema of its own."""
    return [(f, d) for f in files for d in DAMAGES if (f, d) != ("metrics.jsonl", newer)]


def damage(store: Store, name: str, how: Damage, rng: random.Random) -> Path:
    if name == STUDY:
        file, other = (study_file(store, spec) for spec in (SPEC, OTHER))
    else:
        file, other = (store.run(spec).path / name for spec in (SPEC, OTHER))
    how(file, other, rng)
    return file


def everything(store: Store) -> list[object]:
    """All that the library reads of a finished run and its study."""
    run = store.run(SPEC)
    read: list[object] = [run.result, run.execution, run.kept, list(run.metrics())]
    for step in (0, 4, 8, 12):
        weights, masks = run.checkpoint(step)
        read += [masks.digest(), {n: w.tolist() for n, w in weights.items()}]
    assert study_file(store, SPEC).is_file()
    return [*read, carry_out(study_of(store, SPEC), store), [r.label for r in store.runs()]]


def files_of(store: Store) -> dict[str, bytes]:
    """Every byte of a run, but for what depends on the clock."""
    folder = store.run(SPEC).path
    found = {str(p.relative_to(folder)): p for p in folder.rglob("*") if p.is_file()}
    return {name: p.read_bytes() for name, p in found.items() if name != "environment.json"}


def broken_files(store: Store) -> set[Path]:
    return {f.path for f in audit(store) if f.broken}


def mend(store: Store) -> None:
    """Do what the check says, and run again."""
    for finding in audit(store):
        if found := re.match(r"remove (\S+): ", finding.remedy):
            path = Path(found[1])
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    execute(SPEC, store)
    carry_out(study_of(store, SPEC), store)


MENDED = (flipped, deleted)
"""Damages after which CI runs the run again too."""


@pytest.mark.parametrize(("name", "how"), cells([*FINISHED, STUDY]))
def test_damage_to_a_finished_run_is_named_and_never_read_as_good(
    name: str, how: Damage, finished: Store, tmp_path: Path
) -> None:
    shutil.copytree(finished.root, tmp_path / "runs")
    store = Store(tmp_path / "runs")
    file = damage(store, name, how, random.Random(SEED))
    broken = broken_files(store)
    if how is deleted and name in ("result.json", STUDY):
        assert not broken  # not there yet: running again makes it
    else:
        assert file in broken
        assert broken <= {file, file.with_name("metrics.jsonl")}  # its checksum may be gone
    if how is not deleted or name not in ("spec.json", "environment.json", STUDY):
        with pytest.raises(StoreError):
            everything(store)


@pytest.mark.parametrize(("name", "how"), cells(UNDER_WAY))
def test_damage_to_a_run_under_way_is_named(
    name: str, how: Damage, under_way: Store, tmp_path: Path
) -> None:
    shutil.copytree(under_way.root, tmp_path / "runs")
    store = Store(tmp_path / "runs")
    file = damage(store, name, how, random.Random(SEED))
    assert (file in broken_files(store)) != harmless(name, how)


def harmless(name: str, how: Damage) -> bool:
    """Say whether running again makes it good without further ado."""
    beyond_what_counts = how is extended and name == "metrics.jsonl"
    return beyond_what_counts or (how is deleted and name == "resume.safetensors")


def check_mending(store: Store, name: str, how: Damage, good: Store) -> None:
    damage(store, name, how, random.Random(SEED))
    mend(store)
    assert files_of(store) == files_of(good)
    assert everything(store) == everything(good)
    assert not broken_files(store)


def check_resuming(store: Store, name: str, how: Damage, good: Store) -> None:
    damage(store, name, how, random.Random(SEED))
    broken, refused = broken_files(store), False
    try:
        execute(SPEC, store)
    except StoreError:
        refused = True
        mend(store)
    assert refused <= bool(broken)
    assert refused or harmless(name, how) or name in ("spec.json", *CHECKPOINTS[1:])
    if audit(store):  # a checkpoint that resuming did not need: now it refuses to be read
        with pytest.raises(StoreError):
            everything(store)
        mend(store)
    assert files_of(store) == files_of(good)


def in_ci(files: list[str]) -> list[object]:
    few = (FINISHED[1], "resume.safetensors", CHECKPOINTS[1], "metrics.jsonl")
    kept = [how in MENDED and name in few for name, how in cells(files)]
    marks = [() if keep else pytest.mark.soak for keep in kept]
    return [pytest.param(*cell, marks=m) for cell, m in zip(cells(files), marks, strict=True)]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "how"), in_ci([*FINISHED, STUDY]))
def test_running_again_mends_a_finished_run(
    name: str, how: Damage, finished: Store, tmp_path: Path
) -> None:
    shutil.copytree(finished.root, tmp_path / "runs")
    check_mending(Store(tmp_path / "runs"), name, how, finished)


@pytest.mark.parametrize(("name", "how"), in_ci(UNDER_WAY))
def test_running_again_mends_a_run_under_way(
    name: str, how: Damage, under_way: Store, finished: Store, tmp_path: Path
) -> None:
    shutil.copytree(under_way.root, tmp_path / "runs")
    carried = Store(tmp_path / "runs")
    shutil.copytree(finished.root / "studies", carried.root / "studies")
    check_resuming(carried, name, how, finished)


@pytest.mark.soak
@pytest.mark.parametrize("how", [truncated, flipped, extended])
@pytest.mark.parametrize("name", [*FINISHED, STUDY, "resume.safetensors"])
def test_damage_at_many_places(
    name: str, how: Damage, finished: Store, under_way: Store, tmp_path: Path
) -> None:
    rng = random.Random(SEED)
    store = Store(tmp_path / "runs")
    shutil.copytree((under_way if name.startswith("resume") else finished).root, store.root)
    file = study_file(store, SPEC) if name == STUDY else store.run(SPEC).path / name
    content = file.read_bytes()
    for _ in range(300):
        damage(store, name, how, rng)
        assert file in broken_files(store)
        file.write_bytes(content)
    assert not audit(store)


def test_a_checkpoint_of_another_step_is_refused(finished: Store, tmp_path: Path) -> None:
    shutil.copytree(finished.root, tmp_path / "runs")
    run = Store(tmp_path / "runs").run(SPEC)
    shutil.copyfile(run.checkpoint_path(4), run.checkpoint_path(8))
    with pytest.raises(StoreError, match="is not that of step 8: 4"):
        run.checkpoint(8)


def test_files_of_one_run_do_not_stand_for_each_other(finished: Store, tmp_path: Path) -> None:
    shutil.copytree(finished.root, tmp_path / "runs")
    run = Store(tmp_path / "runs").run(SPEC)
    shutil.copyfile(run.path / "environment.json", run.path / "result.json")
    with pytest.raises(StoreError, match="is the environment of"):
        _ = run.result


def test_the_command_line_names_what_is_broken(finished: Store, cli: Cli) -> None:
    shutil.copytree(finished.root, cli.store)
    assert cli.json("list", "--check") == []
    assert "files are well" in cli("list", "--check")[0]
    run = Store(cli.store).run(SPEC)
    flipped(run.path / "metrics.jsonl", run.path, random.Random(1))
    (run.path / ".metrics.jsonl.0123abcd.part").write_bytes(b"half")
    out, err = cli("list", "--check", code=1)
    assert f"broken: {run.path / 'metrics.jsonl'}: " in out
    assert f"remove {run.path}: running it again makes all of it" in out
    assert "note: " in out
    assert "error: 1 files in" in err
    found = json.loads(cli("list", "--check", "--json", code=1)[0])
    assert [(Path(f["path"]).name, f["broken"]) for f in found] == [
        (".metrics.jsonl.0123abcd.part", False),
        ("metrics.jsonl", True),
    ]


def test_a_store_of_version_0_1_is_refused_in_one_line(
    finished: Store, tmp_path: Path, cli: Cli
) -> None:
    shutil.copytree(finished.root, cli.store)
    spec = Store(cli.store).run(SPEC).path / "spec.json"
    content = load_document(spec, "spec", spec.parent.name)
    spec.write_text(json.dumps({"schema": 1} | content))
    refused = f"{spec} has schema 1, of sparseflow 0.1, which this version does not read: "
    assert refused + "choose another store" in cli.fails("list")
    with pytest.raises(StoreError, match="has schema 1"):
        execute(SPEC, Store(cli.store))


def test_a_file_without_a_checksum_is_damaged(finished: Store, tmp_path: Path) -> None:
    shutil.copytree(finished.root, tmp_path / "runs")
    run = Store(tmp_path / "runs").run(SPEC)
    (run.path / "result.json").write_text(json.dumps(run.result))
    with pytest.raises(StoreError, match="has no checksum"):
        _ = run.result
