"""ImageNet: ResNet-50 and VGG-16, 80 % sparse."""

from __future__ import annotations

from dataclasses import replace

from msgspec.structs import replace as with_fields

from sparseflow.core.schedules import cosine, every
from sparseflow.recipes.family import FAMILIES, HE, Family
from sparseflow.runs.spec import Data, Measure, Model, Optimizer, Train
from sparseflow.topology import GradualPruning, RigL

RESNET50 = Family(
    "resnet50-imagenet",
    Model("resnet50"),
    0.2,
    Optimizer(
        lr=1.6,
        inner_momentum=False,
        weight_decay=1e-4,
        schedule="step",
        milestones=(9384, 21_895, 28_151),
        warmup=1564,
    ),
    RigL(every(100, stop=25_000), cosine(0.3)),
    data=Data("imagenet", probe=250, augment=True),
    train=Train(steps=32_000, batch=4096, keep=5000, label_smoothing=0.1),
    measure=Measure(every=1000, updates=0, evaluate=4000),
    inits=HE,
    prune=GradualPruning(start=5000, stop=25_000, interval=1000, allocation="erk"),
    start="erk",
    rewind=5000,
    headline="Gradient flow in a sparse ResNet-50 on ImageNet",
)
"""Training of Evci et al. 2020 (RigL, section 4.1) and 2022: 32,000 steps of 4,096 images, learning
rate 1.6 after five epochs of warm-up, a tenth of it from epochs 30, 70 and 90 (steps of 4,096 out
of 1,281,167), momentum 0.9, weight decay 1e-4 (here on kernels alone), label smoothing 0.1. Masks
change every 100 steps until 25,000, drop fraction 0.3 with a cosine; tickets rewind to step 5,000
(Evci et al. 2022). The pruning window, from the step of the rewinding to the end of the mask
updates, is ours. The authors' code has Nesterov momentum and leaves the first convolution dense.
"""

VGG16 = replace(
    RESNET50,
    name="vgg16-imagenet",
    model=Model("vgg16"),
    optimizer=with_fields(RESNET50.optimizer, lr=0.16, weight_decay=5e-4),
    headline="Gradient flow in a sparse VGG-16 on ImageNet",
)
"""The schedule of ResNet-50, as the authors' code has it for VGG too. Learning rate and weight
decay are those of Simonyan & Zisserman 2015: 0.01 for 256 images, 16 times that for 4,096 (Goyal
et al. 2017), and 5e-4.
"""
for _family in (RESNET50, VGG16):
    FAMILIES.add(_family.name, _family, Family)
