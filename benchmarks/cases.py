"""What the benchmarks train: four models, and one step of the loop every user writes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

import sparseflow as sf
from sparseflow.models import build

DENSITY = 0.05


class Block(nn.Module):
    """Basic residual block of ResNet (He et al. 2016): two 3×3 convolutions with batch norm."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.first_norm = nn.BatchNorm2d(after)
        self.second = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.second_norm = nn.BatchNorm2d(after)
        self.shortcut = nn.Sequential()
        if stride != 1 or before != after:
            conv = nn.Conv2d(before, after, 1, stride, bias=False)
            self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(after))

    def forward(self, x: Tensor) -> Tensor:
        """Add the two convolutions to the shortcut."""
        inner = functional.relu(self.first_norm(self.first(x)))
        return functional.relu(self.second_norm(self.second(inner)) + self.shortcut(x))


def resnet18() -> nn.Sequential:
    """ResNet-18 for 32×32 images, 11.2 million parameters."""
    stem = [nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    blocks = []
    for before, after in ((64, 64), (64, 128), (128, 256), (256, 512)):
        blocks += [Block(before, after, after // before), Block(after, after, 1)]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10)]
    return nn.Sequential(*stem, *blocks, *head)


def resnet20() -> nn.Sequential:
    """ResNet-20 for 32×32 images (He et al. 2016, section 4.2), 0.27 million parameters."""
    stem = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    blocks = []
    for before, after in ((16, 16), (16, 32), (32, 64)):
        blocks += [Block(before, after, after // before)]
        blocks += [Block(after, after, 1) for _ in range(2)]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)]
    return nn.Sequential(*stem, *blocks, *head)


@dataclass(frozen=True)
class Case:
    """A model and the batch it is trained on.

    Attributes:
        name: as it stands in the table.
        model: builds the model.
        image: shape of one example.
        batch: examples a step.
        rounds: rounds of a full benchmark.
    """

    name: str
    model: Callable[[], nn.Module]
    image: Sequence[int]
    batch: int
    rounds: int

    @property
    def title(self) -> str:
        """Name and batch size."""
        return f"{self.name}, batch {self.batch}"

    def turns(self, share: float) -> int:
        """Rounds of a benchmark that runs ``share`` of them."""
        return max(4, round(share * self.rounds))

    def examples(self, count: int) -> tuple[Tensor, Tensor]:
        """Random images and classes, always the same."""
        stream = torch.Generator().manual_seed(1)
        images = torch.randn(count, *self.image, generator=stream)
        return images, torch.randint(10, (count,), generator=stream)

    def sparse_model(self, density: float = DENSITY) -> tuple[nn.Module, sf.Masks]:
        """The model at 95 % sparsity or another, the same every time, and its masks."""
        torch.manual_seed(0)
        model = self.model()
        return model, sf.sparsify(model, density=density)

    def step(
        self,
        model: nn.Module,
        masks: sf.Masks | None = None,
        method: sf.Method | None = None,
        *,
        fused: bool = False,
    ) -> Callable[[], None]:
        """One step of plain PyTorch; with masks and a method, ``attach`` is on it.

        The learning rate is small, so that the cost of a step does not drift
        while the benchmark runs. ``fused`` takes torch's fastest optimiser step.
        """
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, fused=fused)
        if masks is not None and method is not None:
            sf.attach(model, optimizer, masks, method)
        batch = self.examples(self.batch)

        def step() -> None:
            optimizer.zero_grad()
            sf.cross_entropy(model, batch).backward()
            optimizer.step()

        return step


LENET5 = Case("LeNet5", partial(build, "lenet5"), (1, 28, 28), batch=128, rounds=1000)
MLP = Case("MLP 300-100", partial(build, "mlp"), (1, 28, 28), batch=128, rounds=2000)
RESNET18 = Case("ResNet-18", resnet18, (3, 32, 32), batch=64, rounds=40)
RESNET20 = Case("ResNet-20", resnet20, (3, 32, 32), batch=128, rounds=40)
