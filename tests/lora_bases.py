"""A small FlashI2V transformer with a LoRA that has learned something, and steps that train it."""

from __future__ import annotations

import torch
from peft import LoraConfig

from osp_cli.models.state_dict import kept_in_fp32
from osp_cli.models.transformer_flash_i2v import FlashI2VTransformer3DModel
from osp_cli.training.losses import flash_loss

TARGETS = ["to_q", "to_k", "to_v", "ffn.net.0.proj", "ffn.net.2"]


def new_base(*, blocks=3, dtype=torch.float32, lora_dtype=torch.float32):
    """Seeded, frozen, in a precision as if it were loaded so; `lora_B` is not zero."""
    torch.manual_seed(0)
    model = FlashI2VTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=16,
        freq_dim=16,
        ffn_dim=40,
        num_layers=blocks,
        projection_channels=8,
        rope_max_seq_len=32,
    )
    for name, parameter in model.named_parameters():
        parameter.data = torch.randn_like(parameter) * 0.2
        if not kept_in_fp32(model, name):
            parameter.data = parameter.data.to(dtype)
    model.requires_grad_(False)
    model.add_adapter(LoraConfig(r=2, lora_alpha=1, target_modules=TARGETS))
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = (torch.randn(parameter.shape) * 0.2).to(lora_dtype)
            parameter.requires_grad_(True)
    return model


def predict(model, seed=0):
    """One pass over a small clip."""
    generator = torch.Generator().manual_seed(seed)
    dtype = model.patch_embedding.weight.dtype
    return model(
        hidden_states=torch.randn(1, 4, 3, 4, 4, generator=generator).to(dtype),
        timestep=torch.tensor([500.0]),
        encoder_hidden_states=torch.randn(1, 5, 16, generator=generator).to(dtype),
        fourier_features=torch.rand(1, 4, 3, 4, 4, generator=generator).to(dtype),
    ).sample


def loss_of(model, seed):
    """Eq. 22 on random latents."""
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn(1, 4, 3, 4, 4, generator=generator)
    noise = torch.randn(1, 4, 3, 4, 4, generator=generator)
    text = torch.randn(1, 5, 16, generator=generator)
    sigmas = torch.rand(1, generator=generator)
    dtype = model.patch_embedding.weight.dtype

    def velocity(noisy):
        return model(
            hidden_states=noisy.to(dtype),
            timestep=1000 * sigmas,
            encoder_hidden_states=text.to(dtype),
            fourier_features=latents.abs().to(dtype),
        ).sample

    return flash_loss(velocity, latents, noise, sigmas, latents[:, :, :1] * 0.1)


def take_steps(model, count, *, learning_rate=1e-2):
    """Losses of so many steps of AdamW; the gradients of the last are left."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=learning_rate, weight_decay=0.0)
    losses = []
    for step in range(count):
        optimizer.zero_grad()
        loss = loss_of(model, step)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def gradients(model):
    """Copies of all there are, by name."""
    return {
        name: parameter.grad.clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }
