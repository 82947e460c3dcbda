"""A callback for sparse training in Lightning's ``Trainer``."""

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
    end. Its state is part of every checkpoint, as encoded masks and JSON; training
    that resumes has the same masks as training that was never interrupted.
    Gradient accumulation, clipping and mixed precision see sparse gradients. Weights that
    are averaged (``StochasticWeightAveraging``, ``WeightAveraging``) end under the final masks.

    Args:
        masks: masks of the module, by its parameters' names, or a function that makes
            them (and may draw new weights) when training begins without a
            checkpoint: ``partial(sf.sparsify, density=0.1)``.
        method: as for :func:`sparseflow.attach`.
        seed: of random growth.
        probe: a batch on which gradient flow is measured, or None.
        loss: ``loss(module, batch) -> scalar``; required with a probe.
        every: number of steps between logs of :meth:`Session.metrics
            <sparseflow.integrations.session.Session.metrics>` through
            ``module.log_dict``; by default the trainer's ``log_every_n_steps``, of which
            it should be a multiple, since loggers ignore other steps.

    Raises:
        SparseflowError: on import, if the extra ``lightning`` is not installed.
        TopologyError: if a probe is given without a loss; when training begins, if the
            masked weights are not all in one optimiser.
        StoreError: when training resumes from a checkpoint whose topology is missing
            or damaged.
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
        """Make a callback; it attaches when training begins."""
        self._every = every
        self._logged = 0
        self._loaded: Saved | None = None
        self._session = Session(masks, method, seed=seed, probe=probe, loss=loss)

    @property
    def masks(self) -> Masks | None:
        """The current masks; after training, the final ones."""
        return self._session.masks

    def on_train_start(self, trainer: Any, pl_module: nn.Module) -> None:
        """Attach: to the checkpoint's masks if training resumes from one."""
        if trainer.global_step and self._loaded is None and self._session.masks is None:
            raise StoreError(
                f"training resumes at step {trainer.global_step} from a checkpoint written without "
                "this callback: it holds no topology"
            )
        self._session.begin(pl_module, trainer.optimizers, self._loaded)
        self._loaded, self._logged = None, trainer.global_step

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log if a log is due, once per step: accumulated batches are not steps."""
        step, every = trainer.global_step, self._every or trainer.log_every_n_steps
        if step != self._logged and every and step % every == 0:
            self._logged = step
            pl_module.log_dict(self._session.metrics())

    def on_train_end(self, trainer: Any, pl_module: nn.Module) -> None:
        """Detach."""
        self._session.end()

    def on_fit_end(self, trainer: Any, pl_module: nn.Module) -> None:
        """Keep the masks on what other callbacks have made of the weights at the end."""
        self._session.hold()

    def on_exception(self, trainer: Any, pl_module: nn.Module, exception: BaseException) -> None:
        """Detach, so that failed training leaves no hooks behind."""
        self._session.end()

    def state_dict(self) -> dict[str, Any]:
        """Return the topology for a checkpoint: encoded masks, and the rest as JSON."""
        if self._session.saved is None:
            return {}
        tensors, meta = self._session.saved.packed()
        return {"tensors": tensors, "meta": json.dumps(meta)}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take the topology from a checkpoint, for the training that follows.

        Raises:
            StoreError: if it is damaged.
        """
        if state_dict:
            meta = json.loads(state_dict["meta"])
            self._loaded = Saved.unpacked(state_dict["tensors"], meta, "the checkpoint")
