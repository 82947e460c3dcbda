"""What the benchmarks train: four models, and one step of an ordinary training loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

import sparseflow as sf
from sparseflow.models import build, cifar_resnet

DENSITY = 0.05


@dataclass(frozen=True)
class Case:
    """A model and the batch it is trained on.

    Attributes:
        name: name in the tables.
        model: builds the model.
        image: shape of one example.
        batch: examples per step.
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
        """The model at a density, the same every time, and its masks."""
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
        """One step of plain PyTorch; with masks and a method, through ``attach``.

        The learning rate is small, so that the cost of a step does not drift
        while the benchmark runs. ``fused`` uses torch's fastest optimiser step.
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
RESNET18 = Case(
    "ResNet-18",
    partial(cifar_resnet, (64, 128, 256, 512), blocks=2),
    (3, 32, 32),
    batch=64,
    rounds=40,
)
RESNET20 = Case("ResNet-20", partial(build, "resnet20"), (3, 32, 32), batch=128, rounds=40)
