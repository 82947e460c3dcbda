"""CIFAR-10: ResNet-20, 90 % sparse."""

from __future__ import annotations

from sparseflow.core.schedules import cosine, every
from sparseflow.recipes.family import FAMILIES, HE, Family
from sparseflow.runs.spec import Data, Measure, Model, Optimizer, Train
from sparseflow.topology import GradualPruning, RigL

RESNET20 = Family(
    "resnet20-cifar10",
    Model("resnet20"),
    0.1,
    Optimizer(
        lr=0.1,
        inner_momentum=False,
        weight_decay=1e-4,
        schedule="step",
        milestones=(32_000, 48_000),
    ),
    RigL(every(100, stop=49_000), cosine(0.3)),
    data=Data("cifar10", probe=250, augment=True),
    train=Train(steps=64_000, batch=128, keep=2000),
    measure=Measure(every=2000, updates=0, evaluate=16_000),
    inits=HE,
    prune=GradualPruning(start=13_000, stop=49_000, interval=1000, allocation="erk"),
    start="erk",
    rewind=2000,
    headline="Gradient flow in a sparse ResNet-20 on CIFAR-10",
)
"""Training of He et al. 2016, section 4.2: 64,000 steps of 128 images, learning rate 0.1, a
tenth of it from step 32,000 and again from 48,000, momentum 0.9, weight decay 1e-4 (here on
kernels alone), crops of the padded image and flips.

Tickets rewind to step 2,000, where this network becomes stable (Frankle et al. 2020, *Linear
mode connectivity and the lottery ticket hypothesis*, figure 5). Pruning and mask updates are
those of the CIFAR-10 runs of RigL (Evci et al. 2020; google-research/rigl,
``cifar_resnet/resnet_train_eval.py``), at the same shares of the run: pruned every 1,000 steps
between 20 % and 77 % of it, masks updated every 100 steps until 77 %, drop fraction 0.3 with a
cosine. Densities are ERK in every sparse network, the pruned one included.

One batch is 250 images where gradients are measured, so that batch norm sees it whole; updates
are not measured, since under ``--scale`` there are as many in a shorter run.
"""
FAMILIES.add(RESNET20.name, RESNET20, Family)
