"""A store that is full or cannot be written: a clear error, and nothing lost."""

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.audit import audit
from helpers.cli import Cli
from helpers.killable import contents
from helpers.small import alone

from sparseflow.core import files
from sparseflow.core.errors import StoreError
from sparseflow.runs import Store, execute, journal

SPEC = alone("measure.every=1")


def mount(*arguments: str) -> None:
    done = subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"cannot mount here: {done.stderr.strip()}")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    if os.name != "posix" or os.geteuid():
        pytest.skip("only root can mount a file system")
    place = tmp_path / "disk"
    place.mkdir()
    mount("-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place))
    yield place
    subprocess.run(["umount", str(place)], check=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("whole")
    execute(SPEC, Store(root))
    return root


def fill(place: Path, leave: int) -> Path:
    """Fill a file system but for so many bytes."""
    free = os.statvfs(place)
    ballast = place / "ballast"
    ballast.write_bytes(bytes(max(0, free.f_bavail * free.f_frsize - leave)))
    return ballast


@pytest.mark.slow
@pytest.mark.parametrize("leave", [0, 60_000])
def test_a_full_disk(leave: int, small_disk: Path, whole: Path) -> None:
    ballast, store = fill(small_disk, leave), Store(small_disk / "runs")
    with pytest.raises(StoreError, match=r"cannot write .*: No space left on device"):
        execute(SPEC, store)
    assert not list(small_disk.rglob("*.part"))
    assert not [f for f in audit(store) if f.broken]
    ballast.unlink()
    execute(SPEC, store)
    assert contents(store.root) == contents(whole)


def test_a_read_only_store(small_disk: Path, cli: Cli) -> None:
    store, other = Store(small_disk / "runs"), alone(seed=1)
    run = execute(SPEC, store)
    before = contents(store.root)
    mount("-o", "remount,ro", str(small_disk))
    assert execute(SPEC, store).result == run.result  # what is finished is read
    assert not audit(store)
    for spec in (other, alone("train.batch=64")):
        with pytest.raises(StoreError, match=r"cannot write .*: Read-only file system"):
            execute(spec, store)
    assert contents(store.root) == before
    error = cli.fails("run", "mlp-mnist/dense", "--store", str(store.root))
    assert "Read-only file system" in error
    mount("-o", "remount,rw", str(small_disk))


class Full:
    """The module ``os``, whose ``fsync`` finds the disk full once it has been asked so often."""

    def __init__(self, left: int) -> None:
        self.left = left

    def __getattr__(self, name: str) -> object:
        return getattr(os, name)

    def fsync(self, descriptor: int) -> None:
        self.left -= 1
        if self.left < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fsync(descriptor)


@pytest.mark.slow
@pytest.mark.parametrize("left", [0, 2, 9, 20])
def test_a_disk_that_says_late_that_it_is_full(
    left: int, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path / "runs")
    with monkeypatch.context() as patch:
        patch.setattr(files, "os", Full(left))
        with pytest.raises(StoreError, match="No space left"):
            execute(SPEC, store)
    assert not list(tmp_path.rglob("*.part"))
    assert not [f for f in audit(store) if f.broken]
    execute(SPEC, store)
    assert contents(store.root) == contents(whole)


@pytest.mark.slow
def test_a_line_of_which_half_is_written(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count, append = 0, journal.append

    def half(path: Path, data: bytes) -> None:
        nonlocal count
        count += 1
        append(path, data[:20] if count == 9 else data)
        if count == 9:
            raise StoreError(f"cannot write {path}: No space left on device")

    store = Store(tmp_path / "runs")
    with monkeypatch.context() as patch:
        patch.setattr(journal, "append", half)
        with pytest.raises(StoreError, match="No space left"):
            execute(SPEC, store)
    execute(SPEC, store)
    assert contents(store.root) == contents(whole)
