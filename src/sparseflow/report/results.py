"""The compact figures of many runs: everything that the report shows, and no more.

From these alone the table, the figures and the page are rebuilt without
training anything again, so they are what is kept in version control.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from sparseflow.core.errors import StoreError
from sparseflow.core.files import write_atomic
from sparseflow.studies import Record, References, dead_below, decode
from sparseflow.studies.values import Number

SCHEMA = 2
"""Version of ``results.json``; a file of a newer one is refused."""


class _Part(msgspec.Struct, frozen=True):
    """Base of every part."""


class Norms(_Part, frozen=True):
    """Gradient norms (L2) of one network on the probe batch."""

    total: Number
    kernels: Number
    biases: Number
    dense: Number


class FlowCurve(_Part, frozen=True):
    """What was measured at the cadence, column by column.

    Attributes:
        step: optimiser steps taken.
        total: gradient norm over the active parameters.
        kernels: over weights alone.
        biases: over the others.
        effective: mean of the norms of the parameter tensors.
        loss: on the probe, without weight decay.
        distance: L2 distance of the weights to the run's start.
        gain: loss decrease of one step over its first-order prediction; None
            where the prediction is too small for the loss's float32.
    """

    step: tuple[int, ...]
    total: tuple[Number, ...]
    kernels: tuple[Number, ...]
    biases: tuple[Number, ...]
    effective: tuple[Number, ...]
    loss: tuple[Number, ...]
    distance: tuple[Number, ...]
    gain: tuple[Number, ...]


class EvalCurve(_Part, frozen=True):
    """Test accuracy in % and test loss on the way."""

    step: tuple[int, ...]
    accuracy: tuple[Number, ...]
    loss: tuple[Number, ...]


class UpdateCurve(_Part, frozen=True):
    """Total gradient norm just before and just after each mask update.

    A long run keeps every second, fourth, ... update; ``count`` and ``raised``
    are over all of them.
    """

    step: tuple[int, ...]
    before: tuple[Number, ...]
    after: tuple[Number, ...]
    count: int
    raised: int


class RunFigures(_Part, frozen=True):
    """One finished training run.

    Attributes:
        recipe: short name, such as ``rigl+``.
        variant: what differs from the settings that most runs share; empty
            for those. Only the latter are drawn.
        id: name of the run's folder.
        seeds: of initialisation, masks and data order.
        density: of the specification.
        steps: length of training.
        published: whether the settings are the authors' own, so that their
            figures may stand beside.
        test_accuracy: final, in %.
        test_loss: final.
        train_accuracy: final, in %.
        active: weights left, biases not counted.
        start: gradient norms at step 0.
        early: their means over the first ``window`` steps.
        whole: their means over the whole run.
        window: 1,000 of 11,719 steps, scaled with the run's length.
        distance: L2 distance from start to end.
        cosine: 1 minus the cosine between start and end.
        signal_images: standard deviation of the output on images, at step 0.
        signal_noise: the same on N(0, 1) noise.
        cut_off: neurons without an active input at step 0.
        flow: gradient flow at the cadence.
        evals: accuracy at its cadence.
        updates: gradient norm around mask updates; None if there were none.
        classes: of the data set.
    """

    recipe: str
    variant: str
    id: str
    seeds: tuple[int, int, int]
    density: float
    steps: int
    published: bool
    test_accuracy: float
    test_loss: Number
    train_accuracy: Number
    active: int
    start: Norms
    early: Norms
    whole: Norms
    window: int
    distance: Number
    cosine: Number
    signal_images: Number
    signal_noise: Number
    cut_off: int
    flow: FlowCurve
    evals: EvalCurve
    updates: UpdateCurve | None = None
    classes: int = 10

    @property
    def dead(self) -> bool:
        """Say whether the run ended under :attr:`dead_below`."""
        return not self.test_accuracy >= self.dead_below

    @property
    def dead_below(self) -> float:
        """Test accuracy in % under which it counts as dead."""
        return dead_below(self.classes)

    @property
    def seed(self) -> str:
        """The seed, or all three where they differ."""
        return str(self.seeds[0]) if len(set(self.seeds)) == 1 else "/".join(map(str, self.seeds))


class StartFigures(_Part, frozen=True):
    """One network at initialisation, measured at some sparsity and never trained.

    Attributes:
        init: ``masked-dense``, ``liu`` or ``fan-in``.
        sparsity: share of weights that are off.
        seed: of initialisation and masks.
        id: name of the run's folder.
        norms: gradient norms.
        signal_images: standard deviation of the output on images.
        signal_noise: the same on N(0, 1) noise.
        cut_off: neurons without an active input.
    """

    init: str
    sparsity: float
    seed: str
    id: str
    norms: Norms
    signal_images: Number
    signal_noise: Number
    cut_off: int


class Results(_Part, frozen=True):
    """All runs of one family, as the report shows them.

    Attributes:
        family: such as ``lenet5-mnist``.
        title: what was run, in a few words, such as "the full protocol".
        density: that most runs share.
        steps: that most runs share.
        runs: trained, in the order of the table.
        at_start: measured at initialisation only.
        evidence: what studies of the kept checkpoints measured; empty unless
            asked for (``sparseflow reproduce``).
        schema: version of the file.
        references: what others measured, to be shown with it; handed in, never stored.
    """

    family: str
    title: str
    density: float
    steps: int
    runs: tuple[RunFigures, ...]
    at_start: tuple[StartFigures, ...]
    evidence: tuple[Record, ...] = ()
    schema: int = SCHEMA
    references: References = References()

    @property
    def main(self) -> tuple[RunFigures, ...]:
        """Runs of the shared settings: those that are drawn and compared."""
        return tuple(run for run in self.runs if not run.variant)

    @property
    def dead_below(self) -> float:
        """Test accuracy in % under which its runs count as dead; they share a data set."""
        return self.runs[0].dead_below if self.runs else dead_below(10)


class _Header(msgspec.Struct):
    schema: int


def encode(results: Results) -> str:
    """Results as JSON, one run a line, so that differences between versions read well."""
    fields = [f'"{n}":{_json(getattr(results, n))}' for n in ("schema", "family", "title")]
    fields += [f'"{n}":{_json(getattr(results, n))}' for n in ("density", "steps")]
    for name in ("runs", "at_start", "evidence"):
        lines = ",\n".join(_json(part) for part in getattr(results, name))
        fields.append(f'"{name}":[\n{lines}\n]')
    return "{" + ",\n".join(fields) + "}\n"


def save_results(results: Results, path: Path) -> None:
    """Write results, whole or not at all; equal results give equal bytes.

    Raises:
        StoreError: if the folder cannot be written.
    """
    write_atomic(path, encode(results))


def load_results(path: Path) -> Results:
    """Read what :func:`save_results` wrote.

    Raises:
        StoreError: if the file is missing, damaged or of a newer schema.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise StoreError(f"results {path} cannot be read: {error.strerror}") from error
    try:
        schema = msgspec.json.decode(content, type=_Header).schema
        if schema > SCHEMA:
            raise StoreError(
                f"results {path} have schema {schema}; this version reads up to {SCHEMA}: "
                "install a newer sparseflow"
            )
        return msgspec.json.decode(content, type=Results, dec_hook=decode)
    except msgspec.DecodeError as error:
        raise StoreError(f"results {path} are damaged: {error}") from error


def _json(part: object) -> str:
    return msgspec.json.encode(part).decode()
