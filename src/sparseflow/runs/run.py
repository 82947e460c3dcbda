"""One run folder: its files, read with their checksums."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import msgspec
from torch import Tensor

from sparseflow.core.code import Code
from sparseflow.core.documents import load_document
from sparseflow.core.errors import SpecError, StoreError
from sparseflow.masks import Masks
from sparseflow.masks.state import State
from sparseflow.runs.hashing import code_of_run, identity
from sparseflow.runs.journal import Mark, check
from sparseflow.runs.spec import RunSpec
from sparseflow.train.checkpoint import load_state, resume_extra

_STEP = re.compile(r"step-(\d+)", re.ASCII)


class Run:
    """One run folder.

    Files: ``spec.json``, ``metrics.jsonl``, ``checkpoints/step-*.safetensors``,
    ``resume.safetensors`` while it is under way, ``result.json`` once finished,
    ``environment.json`` (versions, device, execution, threads, seconds: what may differ
    between two runs of equal results).

    Each has a checksum that binds it to the run: JSON files and safetensors
    carry their own, that of ``metrics.jsonl`` is in ``result.json`` and
    ``resume.safetensors``.
    """

    def __init__(self, path: Path, spec: RunSpec, code: tuple[Code, ...] = ()) -> None:
        """Refer to a folder, which need not exist yet, of a run that rests on the user's code."""
        self.path = path
        self.spec = spec
        self.code = code

    @property
    def id(self) -> str:
        """Hash of the specification: the folder's name."""
        return self.path.name

    @property
    def obsolete(self) -> str:
        """Why no run of today is this one: other numerics, or other code; empty if one may be."""
        try:
            here = code_of_run(self.spec)
        except SpecError as error:
            return str(error)
        if {each.digest for each in here} != {each.digest for each in self.code}:
            return f"made by other code: {_listed(self.code)} there, {_listed(here)} here"
        return "" if identity(self.spec, here) == self.id else "older numerics"

    def check_code(self) -> None:
        """Refuse to build the run's network or method by other code than it was made by.

        Raises:
            StoreError: naming the files.
        """
        try:
            here = code_of_run(self.spec)
        except SpecError as error:
            raise StoreError(f"{self.label} ({self.id}): {error}") from error
        if {each.digest for each in here} != {each.digest for each in self.code}:
            raise StoreError(f"{self.label} ({self.id}) was {self.obsolete}: load the code it had")

    @property
    def needs(self) -> list[str]:
        """Files of user code that are to be loaded before the run can be used."""
        try:
            code_of_run(self.spec)
        except SpecError:
            return [each.file for each in self.code] or ["FILE.py"]
        return []

    @property
    def step(self) -> int:
        """Steps taken so far, as far as they are kept.

        Of a damaged resume checkpoint only what was kept before it counts.
        """
        if self.finished:
            return self.spec.train.steps
        steps = [0, *self.kept]
        if self.resume_path.is_file():
            with suppress(StoreError, KeyError, TypeError, ValueError):
                steps.append(int(resume_extra(self.resume_path, self.id)["step"]))
        return max(steps)

    @property
    def finished(self) -> bool:
        """Say whether the result has been written."""
        return (self.path / "result.json").is_file()

    @property
    def settled(self) -> bool:
        """Say whether nothing is left to do: finished, and tidied up after."""
        left = self.resume_path.exists() or not (self.path / "spec.json").is_file()
        return self.finished and not left

    @property
    def result(self) -> dict[str, Any]:
        """Final figures.

        Raises:
            StoreError: if the run is not finished, or the file is damaged.
        """
        figures = _with_nan(self._document("result"))
        return {k: v for k, v in figures.items() if k != "metrics"}

    @property
    def seconds(self) -> float:
        """Wall time of the process that finished the run, from where it resumed.

        Raises:
            StoreError: if the run is not finished, or the file is damaged.
        """
        return float(self._document("environment")["seconds"])

    @property
    def resumed_at(self) -> int:
        """Step from which the process that finished the run went on; 0 if it began it.

        Raises:
            StoreError: if the run is not finished, or the file is damaged.
        """
        return int(self._document("environment").get("resumed_at", 0))

    @property
    def execution(self) -> Literal["dense", "sparse"]:
        """How the run was executed: masked dense, or truly sparse.

        Raises:
            StoreError: if the run is not finished, or the file is damaged.
        """
        return self._document("environment").get("execution", "dense")

    def _document(self, kind: str) -> dict[str, Any]:
        path = self.path / f"{kind}.json"
        if not path.is_file():
            name = f"run {self.id} ({self.spec.recipe})"
            raise StoreError(f"{name} has no {path.name}: it is not finished")
        try:
            return load_document(path, kind, self.id)
        except StoreError as error:
            raise self._again(error) from error

    def _again(self, error: StoreError) -> StoreError:
        return StoreError(f"{error}; remove {self.path} to run it again")

    def metrics(self) -> Iterator[dict[str, Any]]:
        """Records in the order they were written; what was not finite is NaN.

        Those of a finished run are compared with their checksum first. Of a run
        under way the last line may be half written, and is then left out.

        Raises:
            StoreError: if the file or a line of it is missing or damaged.
        """
        path = self.path / "metrics.jsonl"
        if not path.is_file():
            raise StoreError(f"run {self.id} ({self.spec.recipe}) has no metrics.jsonl")
        self.check_metrics()
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not (line.endswith(b"\n") or self.finished):
                    return
                try:
                    record = msgspec.json.decode(line)
                    yield _with_nan(record) if b"null" in line else record
                except (msgspec.DecodeError, RecursionError) as error:
                    raise StoreError(f"{path}, line {number} is damaged: {error}") from error

    def check_metrics(self) -> None:
        """Compare ``metrics.jsonl`` with its checksum, if the run is finished.

        Raises:
            StoreError: if it is damaged, or the result that holds the checksum is.
        """
        written = self._document("result").get("metrics") if self.finished else None
        if written is not None:
            try:
                check(self.path / "metrics.jsonl", Mark(**written), whole=True)
            except StoreError as error:
                raise self._again(error) from error

    @property
    def kept(self) -> list[int]:
        """Steps with a checkpoint, in order."""
        files = (self.path / "checkpoints").glob("step-*.safetensors")
        return sorted(int(found[1]) for f in files if (found := _STEP.fullmatch(f.stem)))

    def expected(self, last: int) -> list[int]:
        """Steps that have a checkpoint once ``last`` steps are taken, in order."""
        steps = self.spec.train.steps
        return [*range(0, last + 1, self.spec.train.keep)] + [steps] * (
            last == steps and bool(steps % self.spec.train.keep)
        )

    def checkpoint_path(self, step: int) -> Path:
        """File of the checkpoint at a step."""
        return self.path / "checkpoints" / f"step-{step:08d}.safetensors"

    @property
    def resume_path(self) -> Path:
        """File that an interrupted run goes on from."""
        return self.path / "resume.safetensors"

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
            return load_state(self.checkpoint_path(step), self.id, step)
        except StoreError as error:
            raise self._again(error) from error

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


def _listed(code: Sequence[Code]) -> str:
    return ", ".join(f"{each.file} {each.digest}" for each in code) or "none"


def _with_nan(value: Any) -> Any:
    """Read null, which stands for a number that is not finite, as NaN."""
    if isinstance(value, dict):
        return {k: _with_nan(v) for k, v in value.items()}
    return math.nan if value is None else value
