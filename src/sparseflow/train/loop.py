"""The training loop, readable from top to bottom."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional

from sparseflow.core.errors import DivergedError
from sparseflow.core.functional import Loss, logits_of

Observer = Callable[[int], None]


@runtime_checkable
class Stream(Protocol):
    """Batches by step: any object with ``batches[step]``."""

    def __getitem__(self, step: int) -> Any:
        """Return the batch for the step taken after ``step`` earlier ones."""
        ...


def cross_entropy(
    model: nn.Module, batch: tuple[Tensor, Tensor], *, label_smoothing: float = 0.0
) -> Tensor:
    """Mean cross-entropy of a classifier on (inputs, classes).

    Of a model that gives several tensors the logits count. ``label_smoothing``
    is the share of each target that is spread evenly over all classes (Szegedy
    et al. 2016).

    Example:
        >>> round(float(cross_entropy(nn.Identity(), (torch.zeros(2, 4), torch.tensor([0, 3])))), 3)
        1.386
    """
    inputs, classes = batch
    logits = logits_of(model(inputs))
    return functional.cross_entropy(logits, classes, label_smoothing=label_smoothing)


def fit(
    model: nn.Module,
    loss: Loss,
    batches: Stream,
    optimizer: torch.optim.Optimizer,
    *,
    steps: int,
    start: int = 0,
    set_rate: Callable[[int], None] | None = None,
    observers: Iterable[Observer] = (),
) -> None:
    """Train for ``steps`` steps; masks act through :func:`sparseflow.attach`, if it was called.

    Args:
        model: the model; left in training mode.
        loss: ``loss(model, batch) -> scalar``.
        batches: batch of each step.
        optimizer: any optimiser, with a topology attached or without.
        steps: total number of steps, those before ``start`` included.
        start: number of steps already taken, to resume.
        set_rate: called before each step with the number of steps taken.
        observers: called before each step and after the last with the number of
            steps taken: for measurements, checkpoints, progress.

    Raises:
        DivergedError: if the loss is not finite. The weights are those before the
            failed step. On a GPU this waits for the forward pass alone, while the
            backward pass that follows it is under way.

    Example:
        >>> net, batch = nn.Linear(3, 2), (torch.randn(8, 3), torch.randint(2, (8,)))
        >>> before = cross_entropy(net, batch)
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        >>> fit(net, cross_entropy, [batch] * 20, optimizer, steps=20)
        >>> bool(cross_entropy(net, batch) < before)
        True
    """
    watching = list(observers)
    model.train()
    for step in range(start, steps):
        for observe in watching:
            observe(step)
        if set_rate is not None:
            set_rate(step)
        optimizer.zero_grad(set_to_none=True)
        value = loss(model, batches[step])
        read = _on_its_way(value)
        value.backward()
        if not math.isfinite(number := read()):
            raise DivergedError(f"the loss is {number} at step {step}: training stopped")
        optimizer.step()
    for observe in watching:
        observe(steps)


def _on_its_way(value: Tensor) -> Callable[[], float]:
    """Start to copy a number to the host; the function returned waits for what was queued so far.

    ``item()`` would wait for all that is queued by then, and leave a GPU without work after it.
    """
    if not value.is_cuda:
        return value.item
    copy, copied = value.detach().to("cpu", non_blocking=True), torch.cuda.Event()
    copied.record(torch.cuda.current_stream(value.device))

    def read() -> float:
        copied.synchronize()
        return copy.item()

    return read


@torch.no_grad()
def evaluate(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> tuple[float, float]:
    """Accuracy in % and mean cross-entropy over batches, in evaluation mode."""
    mode = model.training
    model.eval()
    correct, total, count = 0, 0.0, 0
    for inputs, classes in batches:
        logits = logits_of(model(inputs))
        correct += int((logits.argmax(1) == classes).sum())
        total += float(functional.cross_entropy(logits, classes, reduction="sum"))
        count += len(classes)
    model.train(mode)
    return 100 * correct / count, total / count
