"""A callback for sparse training in the Hugging Face ``Trainer``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from sparseflow.core.errors import StoreError
from sparseflow.core.files import load_tensors, save_tensors
from sparseflow.core.functional import Loss
from sparseflow.core.optional import need
from sparseflow.core.wrappers import bare_optimizer
from sparseflow.integrations.session import Saved, Session, Start
from sparseflow.masks import Masks
from sparseflow.topology import Method

need("accelerate", extra="huggingface")
transformers = need("transformers", extra="huggingface")

FILE = "topology.safetensors"
"""File that the callback adds to every checkpoint folder."""


def model_loss(model: nn.Module, batch: dict[str, Any]) -> Tensor:
    """Loss that a transformers model computes from labels: ``model(**batch).loss``."""
    return model(**batch).loss


class SparseCallback(transformers.TrainerCallback):
    """Keeps the model of a ``transformers.Trainer`` sparse.

    Attaches to the trainer's optimiser when training begins and detaches at its
    end; writes ``topology.safetensors`` into every checkpoint. Training that resumes
    from one has the same masks as training that was never interrupted. Gradient
    accumulation, clipping by ``max_grad_norm`` and mixed precision see sparse
    gradients. Add it to the trainer that it is given::

        trainer.add_callback(SparseCallback(trainer, masks, sf.RigL(sf.every(100))))

    Args:
        trainer: the trainer; its ``log`` receives the metrics.
        masks: masks of the model, or a function that makes them (and may draw new
            weights) when training begins without a checkpoint:
            ``partial(sf.sparsify, density=0.1)``.
        method: as for :func:`sparseflow.attach`.
        seed: of random growth.
        probe: a batch on which gradient flow is measured, or None.
        loss: ``loss(model, batch) -> scalar``.
        every: number of steps between logs of :meth:`Session.metrics
            <sparseflow.integrations.session.Session.metrics>`; by default the
            trainer's ``logging_steps``, unless its ``logging_strategy`` is ``no``.
        resume_from: the checkpoint folder that the trainer resumes from, if that is
            not the one that it writes itself.

    Raises:
        SparseflowError: on import, if the extra ``huggingface`` is not installed.
        StoreError: when training resumes from a checkpoint that has no topology, or
            one that does not match the weights.
    """

    def __init__(
        self,
        trainer: Any,
        masks: Start,
        method: Method,
        *,
        seed: int = 0,
        probe: Any = None,
        loss: Loss = model_loss,
        every: int | None = None,
        resume_from: Path | str | None = None,
    ) -> None:
        """Make a callback; it attaches when training begins."""
        self._trainer, self._every, self._resume_from = trainer, every, resume_from
        self._session = Session(masks, method, seed=seed, probe=probe, loss=loss)

    @property
    def masks(self) -> Masks | None:
        """The current masks; after training, those of the model's final weights."""
        return self._session.masks

    def on_train_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """Attach: to the checkpoint's masks if training resumes from one."""
        saved = None
        if step := state.global_step:
            saved = _read(Path(self._resume_from or self._checkpoint(step)), step)
        self._session.begin(self._trainer.model, [bare_optimizer(self._trainer.optimizer)], saved)

    def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """Log if a log is due, and leave the trainer's log of this step as it is."""
        every = self._every
        if every is None:
            every = 0 if args.logging_strategy == "no" else state.logging_steps
        if every and state.global_step % every == 0:
            due = control.should_log
            self._trainer.log(self._session.metrics())
            control.should_log = due

    def on_save(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """Add the topology to the checkpoint that has just been written."""
        if args.should_save and (saved := self._session.saved):
            tensors, meta = saved.packed()
            path = self._checkpoint(state.global_step) / FILE
            save_tensors(path, tensors, meta | {"trainer_step": state.global_step})

    def on_train_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """Detach; if the best checkpoint was loaded, the masks become those in it."""
        best = state.best_model_checkpoint if args.load_best_model_at_end else None
        self._session.end(_read(Path(best), state.best_global_step).masks if best else None)

    def _checkpoint(self, step: int) -> Path:
        """The trainer's own folder of a step: in a hyper-parameter search each trial has one."""
        trial = getattr(self._trainer, "_trial", None)
        return Path(self._trainer._get_output_dir(trial=trial)) / f"checkpoint-{step}"


def _read(folder: Path, step: int) -> Saved:
    path = folder / FILE
    if not path.is_file():
        raise StoreError(
            f"{path} is missing: the checkpoint has no topology. If the trainer resumes from "
            "another folder, pass resume_from="
        )
    tensors, meta = load_tensors(path)
    saved = Saved.unpacked(tensors, meta, str(path))
    if meta.get("trainer_step") != step:
        raise StoreError(
            f"{path} is of step {meta.get('trainer_step')}, and the weights are of step {step}: "
            "pass resume_from=, the folder that the trainer resumes from"
        )
    return saved
