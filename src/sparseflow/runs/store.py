"""The store: one folder a run, named by the hash of its specification."""

from __future__ import annotations

import os
import re
from pathlib import Path

from sparseflow.core.code import Code
from sparseflow.core.documents import load_document, save_document
from sparseflow.core.errors import SpecError, StoreError
from sparseflow.runs.hashing import NUMERICS, code_of_run, identity, identity_of_data
from sparseflow.runs.run import Run
from sparseflow.runs.spec import RunSpec, as_data, from_data

ID = re.compile(r"[0-9a-f]{16}")
"""What the name of a run's folder looks like."""


class Store:
    """A folder of runs: ``runs/`` here, or ``SPARSEFLOW_RUNS``."""

    def __init__(self, root: Path | str | None = None) -> None:
        """Refer to a folder, which need not exist yet."""
        self.root: Path = Path(root or os.environ.get("SPARSEFLOW_RUNS") or "runs")

    def run(self, spec: RunSpec) -> Run:
        """Return the run of a specification, started or not.

        Raises:
            StoreError: if its folder is damaged or of another schema.
        """
        code = code_of_run(spec)
        path = self.root / identity(spec, code)
        if (path / "spec.json").is_file():
            self.read(path)
        return Run(path, spec, code)

    def create(self, spec: RunSpec) -> Run:
        """Make the run's folder and write its specification, if not there yet."""
        run = self.run(spec)
        if not (run.path / "spec.json").is_file():
            code = {each.digest: each.file for each in run.code}
            content = {"numerics": NUMERICS, "code": code, "spec": as_data(spec)}
            save_document(run.path / "spec.json", "spec", run.id, content)
        return run

    def ids(self) -> set[str]:
        """Ids of all runs that were begun, and names of other folders, from one listing."""
        return set(os.listdir(self.root)) if self.root.is_dir() else set()

    def runs(self) -> list[Run]:
        """All runs, sorted by label.

        Raises:
            StoreError: if one is damaged or of another schema.
        """
        folders = sorted(p.parent for p in self.root.glob("*/spec.json"))
        return sorted((self.read(p) for p in folders), key=lambda r: (r.label, r.id))

    def find(self, prefix: str) -> Run:
        """Return the one run whose id starts so.

        Raises:
            StoreError: if none or several do.
        """
        folders = [p.parent for p in sorted(self.root.glob("*/spec.json"))]
        folders = [p for p in folders if prefix and p.name.startswith(prefix)]
        if len(folders) != 1:
            names = ", ".join(p.name for p in folders) or "none"
            raise StoreError(f"{prefix!r} names no single run in {self.root}: {names}")
        return self.read(folders[0])

    def read(self, path: Path) -> Run:
        """Return the run in a folder of the store.

        Raises:
            StoreError: if its specification is missing, damaged or of another schema.
        """
        if not ID.fullmatch(path.name):
            raise StoreError(f"folder {str(path)!r} holds a spec.json, but no run is named so")
        content = load_document(path / "spec.json", "spec", path.name)
        try:
            spec = from_data(content.get("spec"))
        except SpecError as error:
            raise StoreError(
                f"run folder {path}: spec.json is not a specification: {error}"
            ) from error
        numerics = content.get("numerics")
        if not isinstance(numerics, int):
            raise StoreError(f"run folder {path}: spec.json has numerics {numerics!r}, no number")
        try:
            code = tuple(Code(str(f), d) for d, f in sorted(content.get("code", {}).items()))
        except (AttributeError, TypeError) as error:
            raise StoreError(f"run folder {path}: spec.json has code of another form") from error
        # What was written is hashed as it stands: a class of the user's may have changed since.
        named = identity_of_data(content["spec"], code) if numerics == NUMERICS else path.name
        if named != path.name:
            raise StoreError(f"run folder {path} holds the specification of {named}")
        return Run(path, spec, code)
