"""Sparse training in Lightning's ``Trainer``: a callback."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from torch import nn

from sparseflow.core.errors import StoreError
from sparseflow.core.functional import Loss
from sparseflow.core.optional import need
from sparseflow.integrations.session import Saved, Session, Start
from sparseflow.masks import Masks
from sparseflow.topology import Method

pytorch = need("lightning.pytorch", extra="lightning")


class SparseCallback(pytorch.Callback):
    """Keeps a ``LightningModule`` sparse.

    Attaches to the trainer's optimiser when training begins and detaches at its
    end; its state is part of every checkpoint, as coded masks and JSON, and
    training that resumes has the masks of one that was never interrupted.
    Gradient accumulation, clipping and mixed precision see sparse gradients.

    Args:
        masks: masks of the module, by its parameters' names, or a function that
            makes them, and may draw new weights, when a training begins that
            does not resume: ``partial(sf.sparsify, density=0.1)``.
        method: as for :func:`sparseflow.attach`.
        seed: of random growth.
        probe: a batch to measure gradient flow on, or None for no measurement.
        loss: ``loss(module, batch) -> scalar``; a probe needs it.
        every: log through ``module.log_dict`` after so many steps, see
            :meth:`Session.metrics <sparseflow.integrations.session.Session.metrics>`;
            by default, and of use for loggers in multiples of it, the trainer's
            ``log_every_n_steps``.

    Raises:
        SparseflowError: on import, if the extra ``lightning`` is not installed.
        TopologyError: if a probe has no loss; when training begins, if the
            masked weights are not all in one optimiser.
        StoreError: if a checkpoint to resume from has no topology, or a damaged one.
    """

    def __init__(
        self,
        masks: Start,
        method: Method,
        *,
        seed: int = 0,
        probe: Any = None,
        loss: Loss | None = None,
        every: int | None = None,
    ) -> None:
        """Wait for the trainer to begin."""
        self._every = every
        self._logged = 0
        self._loaded: Saved | None = None
        self._session = Session(masks, method, seed=seed, probe=probe, loss=loss)

    @property
    def masks(self) -> Masks | None:
        """The current masks, or those that training ended with."""
        return self._session.masks

    def on_train_start(self, trainer: Any, pl_module: nn.Module) -> None:
        """Attach, to the masks of the checkpoint if training goes on from one."""
        if trainer.global_step and self._loaded is None and self._session.masks is None:
            raise StoreError(
                f"training resumes at step {trainer.global_step} from a checkpoint without the "
                "state of this callback, which was not there when it was written"
            )
        self._session.begin(pl_module, trainer.optimizers, self._loaded)
        self._loaded, self._logged = None, trainer.global_step

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log at the cadence, once a step: batches that are accumulated make none."""
        step, every = trainer.global_step, self._every or trainer.log_every_n_steps
        if step != self._logged and every and step % every == 0:
            self._logged = step
            pl_module.log_dict(self._session.metrics())

    def on_train_end(self, trainer: Any, pl_module: nn.Module) -> None:
        """Detach."""
        self._session.end()

    def on_exception(self, trainer: Any, pl_module: nn.Module, exception: BaseException) -> None:
        """Detach, so that nothing is left of a training that failed."""
        self._session.end()

    def state_dict(self) -> dict[str, Any]:
        """Give the topology to a checkpoint: coded masks, and the rest as JSON."""
        if self._session.saved is None:
            return {}
        tensors, meta = self._session.saved.packed()
        return {"tensors": tensors, "meta": json.dumps(meta)}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take the topology out of a checkpoint, for the training that follows.

        Raises:
            StoreError: if it is damaged.
        """
        if state_dict:
            meta = json.loads(state_dict["meta"])
            self._loaded = Saved.unpacked(state_dict["tensors"], meta, "the checkpoint")
