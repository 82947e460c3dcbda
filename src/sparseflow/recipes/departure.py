"""How a run differs from its recipe: the settings that make it again."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache

from sparseflow.core.code import Code, to_use
from sparseflow.core.errors import SparseflowError
from sparseflow.recipes.extend import attached, is_attached
from sparseflow.recipes.family import FAMILIES
from sparseflow.recipes.make import make_spec
from sparseflow.runs.describe import ABSENT, pairs, text_of
from sparseflow.runs.hashing import identity
from sparseflow.runs.override import assigned, path_of, scaled, with_seeds
from sparseflow.runs.run import Run
from sparseflow.runs.spec import RunSpec

DIGITS = range(1, 7)
"""Significant digits of a scale that are tried."""

SHORT = {"optimizer.kind": "optimizer", "model.name": "model", "data.name": "data"}
"""Fields that are set by the name of their part, which sets what comes with it."""

SHOWN = 3
"""Settings that a short list names."""


@dataclass(frozen=True)
class Departure:
    """What to say to a recipe for one run.

    Attributes:
        scale: of its steps and schedules.
        origin: id of the run that it was trained on from; empty if it was not.
        settings: ``path=value``, in the order in which they apply.
        exact: whether the recipe, told this, makes the run, id for id.
    """

    scale: float = 1.0
    origin: str = ""
    settings: tuple[str, ...] = ()
    exact: bool = True

    def short(self) -> str:
        """In a few words, for a list; those of parents only where there are no others."""
        own = [s for s in self.settings if ".run." not in path_of(s)] or list(self.settings)
        words = [f"scale {self.scale:g}"] * (self.scale != 1) + [f"from {self.origin[:8]}"] * bool(
            self.origin
        )
        shown = words + own
        return ", ".join(shown[:SHOWN] + ["…"] * (len(shown) > SHOWN))


def departure(spec: RunSpec) -> Departure | None:
    """Find the settings in which a run differs from its recipe, seeds included.

    Returns:
        None if its recipe is unknown here.

    Example:
        >>> departure(make_spec("mlp-mnist/set+", scale=0.1, settings=["optimizer.lr=0.3"]))
        Departure(scale=0.1, origin='', settings=('optimizer.lr=0.3',), exact=True)
    """
    plain = with_seeds(spec, 0)
    alike = ":" not in spec.recipe and with_seeds(plain, spec.seeds.data) == spec
    try:
        how = _departure(plain if alike else spec)
    except TypeError:  # a field that cannot be hashed, such as densities by layer
        how = _departure.__wrapped__(plain if alike else spec)
    if how is None or not how.origin:
        return how
    return replace(how, origin=identity(spec.weights.run))  # type: ignore[union-attr]


@lru_cache(maxsize=4096)
def _departure(spec: RunSpec) -> Departure | None:
    """As above, kept: runs that differ in their seeds alone share the answer."""
    parent = spec.weights.run if is_attached(spec) else None  # type: ignore[union-attr]
    try:
        plain = _Base(spec, None)
        bases = [plain] if parent is None else [plain, _Base(spec, parent)]
        candidates = [base.compare() for base in bases]
    except SparseflowError:
        return None
    return min(candidates, key=lambda each: not each.exact)


class _Base:
    """A recipe as it stands, or as it trains on from a run."""

    def __init__(self, spec: RunSpec, parent: RunSpec | None) -> None:
        self._spec, self._parent = spec, parent
        self._density: tuple[str, ...] = ()
        if parent is None and self._made(1.0).density != spec.density:
            self._density = (f"density={spec.density}",)

    def compare(self) -> Departure:
        """The scale, if one has a part in it, that leaves the fewest settings to say."""
        candidates, scale = [self._compare(1.0)], self._scale()
        if scale != 1:
            with suppress(SparseflowError):  # a recipe that cannot be scaled so was not
                candidates.append(self._compare(scale))
        return min(candidates, key=lambda each: (not each.exact, len(each.settings)))

    def _compare(self, scale: float) -> Departure:
        current, settings, hopeless = self._made(scale), list(self._density), list[str]()
        while (step := self._next(current, hopeless)) is not None:
            path, setting = step
            try:
                changed = assigned(current, [setting])
            except SparseflowError:
                changed = current
            if changed == current:
                hopeless.append(path)
            else:
                current = changed
            settings.append(setting)
        origin = "" if self._parent is None else identity(self._parent)
        return Departure(scale, origin, tuple(settings), current == self._spec)

    def _made(self, scale: float) -> RunSpec:
        spec = self._spec
        made = make_spec(spec.recipe, seed=spec.seeds.data, scale=scale, settings=self._density)
        return made if self._parent is None else attached(made, self._parent)

    def _scale(self) -> float:
        """Factor, in few digits, by which the recipe's length became the run's; 1 if none did."""
        theirs, plain = self._spec.train, self._made(1.0)
        name = "steps" if plain.train.steps else "keep"
        ratio = getattr(theirs, name) / getattr(plain.train, name)
        for digits in DIGITS:
            factor = float(f"{ratio:.{digits}g}")
            if not 0 < factor <= 100:
                return 1.0
            if getattr(scaled(plain, factor).train, name) == getattr(theirs, name):
                return factor
        return 1.0

    def _next(self, current: RunSpec, hopeless: Sequence[str]) -> tuple[str, str] | None:
        """The first difference that is left, those of the run itself before its parents'."""
        left = [
            (path, wanted)
            for path, _, wanted in pairs(current, self._spec)
            if wanted != ABSENT and not any(f"{path}.".startswith(f"{h}.") for h in hopeless)
        ]
        if not left:
            return None
        path, wanted = min(left, key=lambda pair: ".run." in pair[0])
        return path, f"{SHORT.get(path, path)}={text_of(wanted)}"


def code_behind(spec: RunSpec, code: Sequence[Code]) -> tuple[Code, ...]:
    """The user's files that a run and the family of its recipe rest on, each once."""
    family = spec.recipe.partition("/")[0]
    every = (*(FAMILIES.entry(family).code if family in FAMILIES else ()), *code)
    return tuple({each.digest: each for each in every}.values())


def command(run: Run) -> str:
    """Command that makes a run again, id for id; empty if no settings can.

    Raises:
        SpecError: if it rests on code that is not loaded.
    """
    how = departure(run.spec)
    if how is None or not how.exact or run.obsolete:
        return ""
    use = to_use(code_behind(run.spec, run.code))
    return shlex.join(["sparseflow", "run", *arguments(run.spec, how, use)])


def arguments(spec: RunSpec, how: Departure, use: Sequence[str] = ()) -> list[str]:
    """What follows ``sparseflow run`` for a run that departs from its recipe so."""
    words = [spec.recipe, "--seed", str(spec.seeds.data)]
    words += ["--scale", f"{how.scale:g}"] if how.scale != 1 else []
    words += ["--from", how.origin] if how.origin else []
    for setting in how.settings:
        words += ["--set", setting]
    for name in use:
        words += ["--use", name]
    return words
