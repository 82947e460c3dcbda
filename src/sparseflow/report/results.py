"""The compact results of many runs: everything that the report shows, and no more.

From these alone the table, the figures and the page are rebuilt without
training anything again, so they are what is kept in version control.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from sparseflow.core.errors import StoreError
from sparseflow.core.files import write_atomic
from sparseflow.studies import Record, References, dead_below, decode
from sparseflow.studies.values import Matrix, Number

SCHEMA = 3
"""Version of ``results.json``; a file of a newer one is refused. From 3 on runs say how they
were made."""

SHOWN = 3
"""Settings that a label names."""


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


class LayerCurves(_Part, frozen=True):
    """Density and churn of each layer, from the masks of kept checkpoints.

    Attributes:
        names: of the masked parameters.
        steps: of the checkpoints.
        density: share of active weights, a row a layer, a column a checkpoint.
        churn: share of the connections at a checkpoint that the next one lacks, a row a
            layer, a column a pair of checkpoints; empty where there is one checkpoint.
    """

    names: tuple[str, ...]
    steps: tuple[int, ...]
    density: Matrix
    churn: Matrix


class Told(_Part, frozen=True, omit_defaults=True):
    """What to say to a recipe so that it makes a run again, id for id.

    Attributes:
        recipe: full name, such as ``lenet5-mnist/rigl+``.
        seed: of the recipe.
        scale: of its steps and schedules.
        settings: ``path=value``, in the order in which they apply.
        use: files and modules of the user's to load.
        code: their names and digests: other text makes another run.
        origin: id of the run that it was trained on from; empty if it was not.
        parent: how that run is made; None where no recipe makes it.
    """

    recipe: str
    seed: int
    scale: float = 1.0
    settings: tuple[str, ...] = ()
    use: tuple[str, ...] = ()
    code: tuple[str, ...] = ()
    origin: str = ""
    parent: Told | None = None


class RunValues(_Part, frozen=True):
    """One finished training run.

    Attributes:
        recipe: short name, such as ``rigl+``.
        variant: what differs from the settings that most runs share; empty
            for those.
        id: name of the run's folder.
        seeds: of initialisation, masks and data order.
        density: of the specification.
        steps: length of training.
        published: whether the settings are the authors' own, so that their
            values may stand next to it.
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
        varied: path and value of each setting in which the runs of this recipe differ.
        told: how to make it again; None if no recipe makes it, or nothing is known of it.
        layers: density and churn by layer; None if it is dense, or keeps no checkpoint.
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
    varied: tuple[tuple[str, float | str], ...] = ()
    told: Told | None = None
    layers: LayerCurves | None = None

    @property
    def settings(self) -> str:
        """Name what tells it apart from other runs of its recipe; empty if nothing does."""
        short = self.varied and len(self.varied) <= SHOWN
        return described(self.varied) if short else self.variant or described(self.varied)

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


class StartValues(_Part, frozen=True):
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
        told: how to make it again, see :class:`RunValues`.
    """

    init: str
    sparsity: float
    seed: str
    id: str
    norms: Norms
    signal_images: Number
    signal_noise: Number
    cut_off: int
    told: Told | None = None


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
        left_out: names of runs that measured initialisation under other settings than most.
        schema: version of the file.
        references: what others measured, to be shown with it; handed in, never stored.
    """

    family: str
    title: str
    density: float
    steps: int
    runs: tuple[RunValues, ...]
    at_start: tuple[StartValues, ...]
    evidence: tuple[Record, ...] = ()
    left_out: tuple[str, ...] = ()
    schema: int = SCHEMA
    references: References = References()

    @property
    def main(self) -> tuple[RunValues, ...]:
        """Runs of the shared settings."""
        return tuple(run for run in self.runs if not run.variant)

    @property
    def dead_below(self) -> float:
        """Test accuracy in % under which its runs count as dead; they share a data set."""
        return self.runs[0].dead_below if self.runs else dead_below(10)


def described(settings: Sequence[tuple[str, float | str]]) -> str:
    """Name settings in a few words.

    >>> described([("optimizer.lr", 0.1), ("train.steps", 600.0)])
    'optimizer.lr=0.1, train.steps=600'
    """
    texts = [f"{path}={v:.15g}" if isinstance(v, float) else f"{path}={v}" for path, v in settings]
    return ", ".join(texts[:SHOWN] + ["…"] * (len(texts) > SHOWN))


class _Header(msgspec.Struct):
    schema: int


def encode(results: Results) -> str:
    """Results as JSON, one run a line, so that differences between versions read well."""
    fields = [f'"{n}":{_json(getattr(results, n))}' for n in ("schema", "family", "title")]
    fields += [f'"{n}":{_json(getattr(results, n))}' for n in ("density", "steps")]
    if results.left_out:
        fields.append(f'"left_out":{_json(results.left_out)}')
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
