"""A toy ViT, 80 % sparse from scratch with RigL, on the package's MNIST through Lightning."""

from functools import partial

import lightning
import torch
from torch.utils.data import DataLoader, TensorDataset
from transformers import ViTConfig, ViTForImageClassification

import sparseflow as sf
from sparseflow.data import load_mnist
from sparseflow.integrations.lightning import SparseCallback

PATCHES = {"image_size": 28, "patch_size": 7, "num_channels": 1, "num_labels": 10}
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64}


class Classifier(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = ViTForImageClassification(ViTConfig(num_attention_heads=2, **PATCHES, **SIZES))

    def training_step(self, batch, *_):
        loss = self.net(pixel_values=batch[0], labels=batch[1]).loss
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=3e-3)


lightning.seed_everything(0, verbose=False)
images = load_mnist().train
batches = DataLoader(TensorDataset(images.x, images.y), batch_size=64, shuffle=True)
masks = partial(sf.sparsify, density=0.2, pattern="constant_fan_in")
method = sf.RigL(sf.every(10, stop=120), drop=sf.cosine(0.3, 120))
callback = SparseCallback(masks, method)
trainer = lightning.Trainer(max_steps=150, callbacks=[callback])
trainer.fit(Classifier(), batches)
print(
    f"loss {trainer.callback_metrics['loss']:.2f} with {callback.masks.density:.0%} of the weights"
)
