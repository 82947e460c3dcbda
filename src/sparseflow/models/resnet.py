"""Residual networks: ResNet for CIFAR and ImageNet, wide ResNet."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional

from sparseflow.models.parts import conv, pooled, zero_biases

CIFAR_WIDTHS = (16, 32, 64)
WIDE_WIDTHS = (16, 32, 64, 128)
RESNET50_WIDTHS = (64, 128, 256, 512)


class Subsample(nn.Module):
    """Shortcut without parameters: every ``stride``-th pixel, added channels zero.

    Option A of He et al. 2016, section 4.2.
    """

    def __init__(self, before: int, after: int, stride: int) -> None:
        """Go from ``before`` channels to ``after``."""
        super().__init__()
        self.stride, self.extra = stride, after - before

    def forward(self, x: Tensor) -> Tensor:
        """Subsample and pad."""
        pixels = x[:, :, :: self.stride, :: self.stride]
        return functional.pad(pixels, (0, 0, 0, 0, 0, self.extra))


class BasicBlock(nn.Module):
    """Two 3×3 convolutions with batch norm, added to their input (He et al. 2016, figure 5)."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        """Halve height and width if ``stride`` is 2."""
        super().__init__()
        self.first, self.first_norm = conv(before, after, 3, stride), nn.BatchNorm2d(after)
        self.second, self.second_norm = conv(after, after, 3), nn.BatchNorm2d(after)
        same = stride == 1 and before == after
        self.shortcut = nn.Identity() if same else Subsample(before, after, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Add the two convolutions to the shortcut."""
        inner = functional.relu(self.first_norm(self.first(x)))
        return functional.relu(self.second_norm(self.second(inner)) + self.shortcut(x))


class PreactivatedBlock(nn.Module):
    """Batch norm and ReLU before each of two 3×3 convolutions (He et al. 2016b).

    Where the number of channels changes, the shortcut is a 1×1 convolution of
    the activated input, as in wide ResNets.
    """

    def __init__(self, before: int, after: int, stride: int) -> None:
        """Halve height and width if ``stride`` is 2."""
        super().__init__()
        self.first_norm, self.first = nn.BatchNorm2d(before), conv(before, after, 3, stride)
        self.second_norm, self.second = nn.BatchNorm2d(after), conv(after, after, 3)
        same = stride == 1 and before == after
        self.shortcut = None if same else conv(before, after, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Add the two convolutions to the shortcut."""
        active = functional.relu(self.first_norm(x))
        inner = self.second(functional.relu(self.second_norm(self.first(active))))
        return inner + (x if self.shortcut is None else self.shortcut(active))


class Bottleneck(nn.Module):
    """1×1, 3×3 and 1×1 convolutions, the last four times as wide; the 3×3 one strides (v1.5)."""

    def __init__(self, before: int, width: int, stride: int) -> None:
        """Halve height and width if ``stride`` is 2."""
        super().__init__()
        after = 4 * width
        self.first, self.first_norm = conv(before, width, 1), nn.BatchNorm2d(width)
        self.second, self.second_norm = conv(width, width, 3, stride), nn.BatchNorm2d(width)
        self.third, self.third_norm = conv(width, after, 1), nn.BatchNorm2d(after)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or before != after:
            self.shortcut = nn.Sequential(conv(before, after, 1, stride), nn.BatchNorm2d(after))

    def forward(self, x: Tensor) -> Tensor:
        """Add the three convolutions to the shortcut."""
        inner = functional.relu(self.first_norm(self.first(x)))
        inner = functional.relu(self.second_norm(self.second(inner)))
        return functional.relu(self.third_norm(self.third(inner)) + self.shortcut(x))


def cifar_resnet(widths: Sequence[int] = CIFAR_WIDTHS, *, blocks: int = 3) -> nn.Sequential:
    """ResNet for 32×32 images of He et al. 2016, section 4.2, with 6 · blocks + 2 layers.

    ResNet-20 has 3 blocks a stage and 0.27 million parameters, ResNet-56 has 9
    and 0.85 million. Shortcuts have no parameters (their option A). Input
    (n, 3, 32, 32), output (n, 10).
    """
    layers: list[nn.Module] = [conv(3, widths[0], 3), nn.BatchNorm2d(widths[0]), nn.ReLU()]
    before = widths[0]
    for stage, width in enumerate(widths):
        for block in range(blocks):
            layers.append(BasicBlock(before, width, 2 if stage and not block else 1))
            before = width
    return zero_biases(nn.Sequential(*layers, *pooled(before, 10)))


def wide_resnet(widths: Sequence[int] = WIDE_WIDTHS, *, blocks: int = 3) -> nn.Sequential:
    """Wide ResNet for 32×32 images (Zagoruyko & Komodakis 2016), 6 · blocks + 4 layers.

    WRN-22-2 has 3 blocks a stage, twice the usual widths and 1.08 million
    parameters. Input (n, 3, 32, 32), output (n, 10).
    """
    first, *stages = widths
    layers: list[nn.Module] = [conv(3, first, 3)]
    before = first
    for stage, width in enumerate(stages):
        for block in range(blocks):
            layers.append(PreactivatedBlock(before, width, 2 if stage and not block else 1))
            before = width
    layers += [nn.BatchNorm2d(before), nn.ReLU(), *pooled(before, 10)]
    return zero_biases(nn.Sequential(*layers))


def resnet50(widths: Sequence[int] = RESNET50_WIDTHS) -> nn.Sequential:
    """ResNet-50 of He et al. 2016 for ImageNet, 25.56 million parameters.

    The stride lies in the 3×3 convolutions (v1.5), as in the implementations
    on which sparse training is compared. Input (n, 3, h, w), usually 224×224,
    output (n, 1000).
    """
    stem = widths[0]
    layers: list[nn.Module] = [
        nn.Conv2d(3, stem, 7, 2, 3, bias=False),
        nn.BatchNorm2d(stem),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, 1),
    ]
    before = stem
    for stage, (width, blocks) in enumerate(zip(widths, (3, 4, 6, 3), strict=True)):
        for block in range(blocks):
            layers.append(Bottleneck(before, width, 2 if stage and not block else 1))
            before = 4 * width
    return zero_biases(nn.Sequential(*layers, *pooled(before, 1000)))
