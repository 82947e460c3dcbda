"""Training: the loop, optimisers and learning rates, checkpoints."""

from sparseflow.train.loop import cross_entropy, evaluate, fit
from sparseflow.train.optim import (
    constant_rate,
    cosine_rate,
    make_optimizer,
    set_rate,
    step_rate,
    with_warmup,
)

__all__ = [
    "constant_rate",
    "cosine_rate",
    "cross_entropy",
    "evaluate",
    "fit",
    "make_optimizer",
    "set_rate",
    "step_rate",
    "with_warmup",
]
