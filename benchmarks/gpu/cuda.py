"""What masks cost on a GPU: a step, an update, memory, and how networks begin.

ResNet-50 (batch 64, 224², channels last, SGD) and GPT-2 (124 million parameters, batch 8 × 1024,
AdamW), both in bfloat16 autocast with torch's fused optimisers. Without a GPU a quick run goes
through all of it with tiny networks on the CPU, which times nothing of interest.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import sparseflow as sf
from benchmarks.gpu.gpt import GPT, Size
from benchmarks.progress import NotHereError
from benchmarks.steps import UPDATE_INTERVAL
from benchmarks.timing import Record, Timings, interleave, on_gpu, wall
from sparseflow.models.resnet import resnet50

ROUNDS, TURN = 20, 0.5
MIB = 2.0**20
RIGL = sf.RigL(sf.every(1), drop=sf.constant(0.3))


@dataclass(frozen=True)
class Work:
    """A network and what it is trained on.

    Attributes:
        name: of network and batch, in the tables.
        build: makes the network on a device.
        batch: makes inputs and classes on a device.
        optimizer: makes the optimiser of parameters.
        density: of the masked layers.
        prefix: of the names of the layers that are masked.
    """

    name: str
    build: Callable[[torch.device], nn.Module]
    batch: Callable[[torch.device], tuple[Tensor, Tensor]]
    optimizer: Callable[[Any], torch.optim.Optimizer]
    density: float
    prefix: str

    def layers(self, model: nn.Module) -> dict[str, sf.Layer]:
        """The layers that are masked."""
        every = sf.maskable(model)
        return {name: every[name] for name in every if name.startswith(self.prefix)}

    def sparse(self, device: torch.device) -> tuple[nn.Module, sf.Masks]:
        """The network, made sparse."""
        torch.manual_seed(0)
        model = self.build(device)
        return model, sf.sparsify(model, self.density, layers=self.layers(model))

    def step(
        self, model: nn.Module, masks: sf.Masks | None = None, method: sf.Method | None = None
    ) -> Callable[[], None]:
        """One step of plain PyTorch; with masks and a method, through ``attach``."""
        optimizer = self.optimizer(model.parameters())
        if masks is not None and method is not None:
            sf.attach(model, optimizer, masks, method)
        device = next(model.parameters()).device
        inputs, classes = self.batch(device)

        def step() -> None:
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(device.type, torch.bfloat16):
                logits = model(inputs)
                loss = functional.cross_entropy(logits.flatten(0, -2), classes.flatten())
            loss.backward()
            optimizer.step()

        return step


def works(tiny: bool) -> list[Work]:
    """Both networks, as they are published or as small as they can be."""
    widths, image, images = ((4, 4, 8, 8), 32, 2) if tiny else ((64, 128, 256, 512), 224, 64)
    size, sequences = (Size(2, 16, 2, 64, 16), 2) if tiny else (Size(), 8)

    def pictures(device: torch.device) -> tuple[Tensor, Tensor]:
        x = torch.randn(images, 3, image, image, device=device)
        return x.to(memory_format=torch.channels_last), torch.arange(images, device=device)

    def text(device: torch.device) -> tuple[Tensor, Tensor]:
        drawn = torch.randint(size.tokens, (sequences, size.length + 1), device=device)
        return drawn[:, :-1], drawn[:, 1:].contiguous()

    def channels_last(device: torch.device) -> nn.Module:
        with device:
            model = resnet50(widths)
        return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def gpt(device: torch.device) -> nn.Module:
        with device:
            return GPT(size)

    sgd = partial(torch.optim.SGD, lr=1e-3, momentum=0.9, fused=True)
    adamw = partial(torch.optim.AdamW, lr=1e-5, fused=True)
    return [
        Work(f"ResNet-50, {images} × {image}²", channels_last, pictures, sgd, 0.1, ""),
        Work(f"GPT, {sequences} × {size.length}", gpt, text, adamw, 0.1, "blocks."),
    ]


def _here(share: float) -> tuple[torch.device, list[Work]]:
    """The device, and networks of a size that fits it.

    Raises:
        NotHereError: without a GPU, unless the run is a quick one.
    """
    if torch.cuda.is_available():
        return torch.device("cuda"), works(tiny=False)
    if share < 1:
        return torch.device("cpu"), works(tiny=True)
    raise NotHereError("CUDA is not available; --quick goes through it with tiny networks")


def _interleaved(
    name: str,
    work: Work,
    device: torch.device,
    sides: Mapping[str, Callable[[], object]],
    share: float,
) -> Timings:
    cuda = device.type == "cuda"
    clock, turn = (on_gpu, TURN * share) if cuda else (wall, 0.0)
    settings = {"device": torch.cuda.get_device_name(device) if cuda else "cpu"}
    rounds = max(4, round(share * ROUNDS))
    return interleave(name, work.name, sides, rounds, turn=turn, clock=clock, settings=settings)


def cuda_steps(share: float) -> list[Record]:
    """The masked step against the dense one, and RigL's update against a masked step."""
    device, chosen = _here(share)
    records = []
    for work in chosen:
        model, masks = work.sparse(device)
        sides = {
            "dense": work.step(deepcopy(model)),
            "masked": work.step(deepcopy(model), masks, sf.Static()),
            "update": work.step(model, masks, RIGL),
        }
        timings = _interleaved("cuda-steps", work, device, sides, share)
        records += [
            timings.record(
                "masked step over dense step",
                "masked",
                "dense",
                lambda masked, dense: 100 * (masked / dense - 1),
                "%",
            ),
            timings.record(
                f"RigL update, amortised over {UPDATE_INTERVAL} steps",
                "update",
                "masked",
                lambda update, masked: 100 * (update / masked - 1) / UPDATE_INTERVAL,
                "%",
            ),
        ]
    return records


def cuda_initialisation(share: float) -> list[Record]:
    """Masks and weights of a network on the GPU, over torch's ``kaiming_normal_``."""
    device, chosen = _here(share)
    records = []
    for work in chosen:
        model = work.build(device)
        layers = work.layers(model)

        def kaiming(layers: dict[str, sf.Layer] = layers) -> None:
            for layer in layers.values():
                nn.init.kaiming_normal_(layer.parameter)

        sides = {
            "kaiming": kaiming,
            "sparsify": partial(sf.sparsify, model, work.density, layers=layers),
        }
        timings = _interleaved("cuda-init", work, device, sides, share)
        records += [
            timings.record("sparsify", "sparsify", "kaiming", lambda ours, _: 1e3 * ours, "ms"),
            timings.record(
                "sparsify, over kaiming_normal_", "sparsify", "kaiming", lambda a, b: a / b, "×"
            ),
        ]
    return records


def cuda_memory(share: float) -> list[Record]:
    """Peak of the memory that is allocated: by ``sparsify``, and in three steps.

    The third step of RigL updates the masks.

    Raises:
        NotHereError: without a GPU.
    """
    device, chosen = _here(share)
    if device.type != "cuda":
        raise NotHereError("memory is measured on a GPU alone")
    rigl = sf.RigL(sf.every(3), drop=sf.constant(0.3))
    records = []
    for work in chosen:
        before, beginning = _beginning(work, device)
        dense = _training(work, device, None)
        records += [
            _over("sparsify over the model", work, beginning, before),
            _over("masked training over dense", work, _training(work, device, sf.Static()), dense),
            _over("RigL over dense", work, _training(work, device, rigl), dense),
        ]
    return records


def _over(what: str, work: Work, peak: int, base: int) -> Record:
    more, sizes = 100 * (peak / base - 1), {"MiB": peak / MIB, "base_MiB": base / MIB}
    figure = f"peak memory, {what} ({base / MIB:,.0f} MiB)"
    return Record(
        "cuda-memory", work.name, figure, more, more, more, "%",
        None, None, 1, None, None, settings=sizes,
    )  # fmt: skip


def _emptied(device: torch.device) -> None:
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)


def _beginning(work: Work, device: torch.device) -> tuple[int, int]:
    """Bytes of a model, and the peak while it is made sparse."""
    _emptied(device)
    model = work.build(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    sf.sparsify(model, work.density, layers=work.layers(model))
    return before, torch.cuda.max_memory_allocated(device)


def _training(work: Work, device: torch.device, method: sf.Method | None) -> int:
    """The peak of three steps in bytes, from the same weights with or without their masks."""
    _emptied(device)
    model, masks = work.sparse(device)
    step = work.step(model, masks, method)
    del masks  # plain training has none
    torch.cuda.reset_peak_memory_stats(device)
    for _ in range(3):
        step()
    return torch.cuda.max_memory_allocated(device)
