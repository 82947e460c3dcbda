"""Checkpoints of finished runs as networks that can be compared."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor, nn

from sparseflow.core.errors import StoreError
from sparseflow.data import Batch, Dataset
from sparseflow.masks import Masks
from sparseflow.runs import Run, Store
from sparseflow.runs.build import load_data, make_model
from sparseflow.studies.study import Point, Study


@dataclass(frozen=True, eq=False)
class Network:
    """A checkpoint.

    Attributes:
        label: what to call it.
        run: where it comes from.
        model: in evaluation mode, with the checkpoint's weights.
        state: these weights by name, buffers included.
        masks: at that step.
    """

    label: str
    run: Run
    model: nn.Module
    state: dict[str, Tensor]
    masks: Masks


def load(point: Point, store: Store) -> Network:
    """Load one checkpoint.

    Raises:
        StoreError: if the run or the checkpoint is missing or damaged.
    """
    run = store.find(point.run)
    state, masks = run.checkpoint(point.step)
    run.check_code()
    model = make_model(run.spec)
    model.load_state_dict(state)
    return Network(point.label or run.label, run, model.eval(), state, masks)


def load_all(study: Study, store: Store) -> tuple[list[Network], Dataset]:
    """Load all checkpoints of a study, in order, and the data set that they share.

    Raises:
        StoreError: if one is missing, or two are of different architectures or
            data sets, which have nothing to be compared by.
    """
    networks = [load(point, store) for point in study.checkpoints]
    _check_same(networks)
    return networks, load_data(networks[0].run.spec)


def examples(dataset: Dataset, count: int) -> Batch:
    """Cut the first examples of the training set."""
    return dataset.train[:count]


def _check_same(networks: Iterable[Network]) -> None:
    first, *rest = networks
    for other in rest:
        for what in ("model", "data"):
            mine, theirs = (getattr(n.run.spec, what) for n in (first, other))
            if mine != theirs:
                raise StoreError(
                    f"{first.label} and {other.label} cannot be compared: "
                    f"they differ in {what}, {mine} and {theirs}"
                )
