"""Toy transformers built from a config, the batches that fit them, and their loss."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

transformers = pytest.importorskip("transformers", reason="the extra 'huggingface' is missing")
BatchEncoding = transformers.BatchEncoding

TOKENS, LENGTH = 23, 8
SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
}


def gpt2(**changed: Any) -> nn.Module:
    """Two blocks of width 16; the head is tied to the embedding."""
    size = {"n_positions": LENGTH, "n_embd": 16, "n_layer": 2, "n_head": 2}
    special = {"bos_token_id": 0, "eos_token_id": 0}
    config = transformers.GPT2Config(vocab_size=TOKENS, **(size | special | changed))
    return transformers.GPT2LMHeadModel(config)


def bert(**changed: Any) -> nn.Module:
    """A classifier of two classes."""
    config = transformers.BertConfig(
        vocab_size=TOKENS, max_position_embeddings=LENGTH, **(SMALL | changed)
    )
    return transformers.BertForSequenceClassification(config)


def vit(**changed: Any) -> nn.Module:
    """A classifier of images of 8 × 8 in two classes."""
    config = transformers.ViTConfig(image_size=8, patch_size=4, num_channels=1, **(SMALL | changed))
    return transformers.ViTForImageClassification(config)


def tokens(step: int, size: int = 6) -> dict[str, Tensor]:
    """A batch for GPT-2: each token is the last one plus one or two."""
    stream = torch.Generator().manual_seed(step)
    steps = torch.randint(1, 3, (size, LENGTH), generator=stream)
    found = steps.cumsum(1) % TOKENS
    return {"input_ids": found, "labels": found}


def classified(step: int, size: int = 6) -> dict[str, Tensor]:
    """A batch for BERT: is the first token small?"""
    found = tokens(step, size)["input_ids"]
    return {"input_ids": found, "labels": found[:, 0] % 2}


def images(step: int, size: int = 6) -> dict[str, Tensor]:
    """A batch for ViT: is the image bright?"""
    stream = torch.Generator().manual_seed(step)
    pixels = torch.randn(size, 1, 8, 8, generator=stream)
    return {"pixel_values": pixels, "labels": (pixels.mean((1, 2, 3)) > 0).long()}


def loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """What a transformers model returns when it is given labels."""
    return model(**batch).loss
