"""VGG-16 for ImageNet."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from sparseflow.models.parts import zero_biases

VGG16_WIDTHS = (64, 128, 256, 512, 512, 4096, 4096)


def vgg16(widths: Sequence[int] = VGG16_WIDTHS) -> nn.Sequential:
    """VGG-16 of Simonyan & Zisserman 2015 (configuration D), 138.36 million parameters.

    Without batch norm, so that initialisation is decisive; the paper's figure 2
    compares it with ResNet-50. Dropout of 0.5 in the two hidden dense layers, as
    published. Input (n, 3, h, w), usually 224×224;
    other sizes are pooled to 7×7. Output (n, 1000).
    """
    *channels, first, second = widths
    layers: list[nn.Module] = []
    before = 3
    for width, convolutions in zip(channels, (2, 2, 3, 3, 3), strict=True):
        for _ in range(convolutions):
            layers += [nn.Conv2d(before, width, 3, padding=1), nn.ReLU()]
            before = width
        layers.append(nn.MaxPool2d(2))
    layers += [nn.AdaptiveAvgPool2d(7), nn.Flatten()]
    for inputs, outputs in ((49 * before, first), (first, second)):
        layers += [nn.Linear(inputs, outputs), nn.ReLU(), nn.Dropout(0.5)]
    return zero_biases(nn.Sequential(*layers, nn.Linear(second, 1000)))
