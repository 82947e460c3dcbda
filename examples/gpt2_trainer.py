"""GPT-2 at toy size, 80 % sparse from scratch with RigL, through the Hugging Face Trainer."""

from functools import partial

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

import sparseflow as sf
from sparseflow.integrations.huggingface import SparseCallback

torch.manual_seed(0)
sequences = torch.randint(1, 4, (512, 16)).cumsum(1) % 32  # each token is one to three ahead
data = [{"input_ids": s, "labels": s} for s in sequences]
config = GPT2Config(vocab_size=32, n_positions=16, n_embd=32, n_layer=2, n_head=2,
                    bos_token_id=0, eos_token_id=0)  # fmt: skip
model = GPT2LMHeadModel(config)

arguments = TrainingArguments("gpt2", max_steps=120, logging_steps=20, save_steps=60,
                              learning_rate=3e-3, use_cpu=True, report_to="none")  # fmt: skip
trainer = Trainer(model, arguments, train_dataset=data)
layers = sf.maskable(model, exclude="wte")  # the embedding, to which the head is tied
masks = partial(sf.sparsify, density=0.2, layers=layers)
method = sf.RigL(sf.every(10, stop=90), drop=sf.cosine(0.3, 90))
probe = {"input_ids": sequences[:64], "labels": sequences[:64]}
callback = SparseCallback(trainer, masks, method, probe=probe)
trainer.add_callback(callback)
trainer.train()

losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
print(f"loss {losses[0]:.2f} → {losses[-1]:.2f} with {callback.masks.density:.0%} of the weights")
