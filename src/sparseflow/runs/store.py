"""The store: one folder a run, named by the hash of its specification."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import msgspec
from torch import Tensor

from sparseflow.core.errors import StoreError
from sparseflow.core.files import write_atomic
from sparseflow.masks import Masks
from sparseflow.masks.state import State
from sparseflow.runs.spec import NUMERICS, RunSpec, identity
from sparseflow.train.checkpoint import load_state

SCHEMA = 1
"""Layout of a run folder; a folder of a newer one is refused."""


class Run:
    """One run folder.

    Files: ``spec.json``, ``metrics.jsonl``, ``checkpoints/step-*.safetensors``,
    ``resume.safetensors`` while it is under way, ``result.json`` once finished,
    ``environment.json`` (versions, execution, threads, seconds: what may differ
    between two runs of equal results).
    """

    def __init__(self, path: Path, spec: RunSpec) -> None:
        """Refer to a folder, which need not exist yet."""
        self.path = path
        self.spec = spec

    @property
    def id(self) -> str:
        """Hash of the specification: the folder's name."""
        return self.path.name

    @property
    def finished(self) -> bool:
        """Say whether the result has been written, which is the last thing a run does."""
        return (self.path / "result.json").is_file()

    @property
    def result(self) -> dict[str, Any]:
        """Final figures.

        Raises:
            StoreError: if the run is not finished, or the file is damaged.
        """
        return read_json(self.path / "result.json", f"run {self.id} ({self.spec.recipe})")

    @property
    def seconds(self) -> float:
        """Wall time of the process that finished the run, from where it resumed.

        Raises:
            StoreError: if the run is not finished, or the file is damaged.
        """
        return float(self._environment["seconds"])

    @property
    def execution(self) -> Literal["dense", "sparse"]:
        """How the run was executed: masked dense, or truly sparse.

        Raises:
            StoreError: if the run is not finished, or the file is damaged.
        """
        return self._environment.get("execution", "dense")

    @property
    def _environment(self) -> dict[str, Any]:
        return read_json(self.path / "environment.json", f"run {self.id} ({self.spec.recipe})")

    def metrics(self) -> Iterator[dict[str, Any]]:
        """Records in the order they were written; what was not finite is NaN.

        Raises:
            StoreError: if a line is damaged.
        """
        path = self.path / "metrics.jsonl"
        if not path.is_file():
            raise StoreError(f"run {self.id} ({self.spec.recipe}) has no metrics.jsonl")
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    record = msgspec.json.decode(line)
                    yield _with_nan(record) if b"null" in line else record
                except msgspec.DecodeError as error:
                    raise StoreError(f"{path}, line {number} is damaged: {error}") from error

    @property
    def kept(self) -> list[int]:
        """Steps with a checkpoint, in order."""
        files = (self.path / "checkpoints").glob("step-*.safetensors")
        return sorted(int(f.stem.removeprefix("step-")) for f in files)

    def checkpoint_path(self, step: int) -> Path:
        """File of the checkpoint at a step."""
        return self.path / "checkpoints" / f"step-{step:08d}.safetensors"

    def checkpoint(self, step: int) -> tuple[dict[str, Tensor], Masks]:
        """Weights, dense, and masks at a kept step.

        Raises:
            StoreError: if that step was not kept, or the file is damaged.
        """
        return self.state(step).dense()

    def state(self, step: int) -> State:
        """Weights and masks at a kept step, masked weights by their non-zeros.

        Raises:
            StoreError: if that step was not kept, or the file is damaged.
        """
        if step not in self.kept:
            kept = ", ".join(map(str, self.kept)) or "none"
            raise StoreError(
                f"run {self.id} ({self.spec.recipe}) has no checkpoint at step {step}; kept: {kept}"
            )
        try:
            return load_state(self.checkpoint_path(step), self.id)
        except StoreError as error:
            raise StoreError(f"{error}; remove {self.path} to run it again") from error

    @property
    def seed(self) -> str:
        """The seed, or the three of them (initialisation/mask/data) where they differ."""
        seeds = self.spec.seeds
        same = seeds.init == seeds.mask == seeds.data
        return str(seeds.init) if same else f"{seeds.init}/{seeds.mask}/{seeds.data}"

    @property
    def label(self) -> str:
        """Recipe and seed, for people."""
        return f"{self.spec.recipe or 'run'} seed {self.seed}"


class Store:
    """A folder of runs: ``runs/`` here, or ``SPARSEFLOW_RUNS``."""

    def __init__(self, root: Path | str | None = None) -> None:
        """Refer to a folder, which need not exist yet."""
        self.root = Path(root or os.environ.get("SPARSEFLOW_RUNS") or "runs")

    def run(self, spec: RunSpec) -> Run:
        """Return the run of a specification, started or not.

        Raises:
            StoreError: if its folder is damaged or of a newer schema.
        """
        path = self.root / identity(spec)
        if (path / "spec.json").is_file():
            self._read(path)
        return Run(path, spec)

    def create(self, spec: RunSpec) -> Run:
        """Make the run's folder and write its specification, if not there yet."""
        run = self.run(spec)
        if not (run.path / "spec.json").is_file():
            content = {
                "schema": SCHEMA,
                "numerics": NUMERICS,
                "id": run.id,
                "spec": msgspec.to_builtins(spec),
            }
            write_atomic(run.path / "spec.json", json.dumps(content, indent=1) + "\n")
        return run

    def ids(self) -> set[str]:
        """Ids of all runs that were begun, and names of other folders, from one listing."""
        return set(os.listdir(self.root)) if self.root.is_dir() else set()

    def runs(self) -> list[Run]:
        """All runs, sorted by label.

        Raises:
            StoreError: if one is damaged or of a newer schema.
        """
        folders = sorted(p.parent for p in self.root.glob("*/spec.json"))
        return sorted((self._read(p) for p in folders), key=lambda r: (r.label, r.id))

    def find(self, prefix: str) -> Run:
        """Return the one run whose id starts so.

        Raises:
            StoreError: if none or several do.
        """
        found = [p.parent for p in sorted(self.root.glob("*/spec.json"))]
        found = [p for p in found if prefix and p.name.startswith(prefix)]
        if len(found) != 1:
            names = ", ".join(p.name for p in found) or "none"
            raise StoreError(f"{prefix!r} names no single run in {self.root}: {names}")
        return self._read(found[0])

    def _read(self, path: Path) -> Run:
        content = read_json(path / "spec.json", f"run folder {path}")
        schema = content.get("schema")
        if not isinstance(schema, int) or schema > SCHEMA:
            raise StoreError(
                f"run folder {path} has schema {schema}; this version reads up to {SCHEMA}: "
                "install a newer sparseflow or choose another store"
            )
        try:
            spec = msgspec.convert(content["spec"], RunSpec)
        except (KeyError, msgspec.ValidationError) as error:
            raise StoreError(
                f"run folder {path}: spec.json is no specification: {error}"
            ) from error
        if content.get("numerics") == NUMERICS and identity(spec) != path.name:
            raise StoreError(f"run folder {path} holds the specification of {identity(spec)}")
        return Run(path, spec)


def _with_nan(value: Any) -> Any:
    """Read null, which stands for a number that is not finite, as NaN."""
    if isinstance(value, dict):
        return {k: _with_nan(v) for k, v in value.items()}
    return math.nan if value is None else value


def read_json(path: Path, what: str) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        StoreError: if it is missing or damaged.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise StoreError(f"{what} has no {path.name}: it is not finished") from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise StoreError(f"{what}: {path.name} is damaged: {error}") from error
    if not isinstance(content, dict):
        raise StoreError(f"{what}: {path.name} holds no JSON object")
    return content
