"""A real transformer of three tiny blocks, and a loop that samples with it."""

from __future__ import annotations

import pytest
import torch

from osp_cli.models.transformer_flash_i2v import FlashI2VTransformer3DModel

STEPS = 12


@pytest.fixture
def make_transformer():
    """Builds the same model at every call."""

    def make(num_layers=3):
        torch.manual_seed(0)
        model = FlashI2VTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=12,
            in_channels=4,
            out_channels=4,
            text_dim=8,
            freq_dim=16,
            ffn_dim=32,
            num_layers=num_layers,
            rope_max_seq_len=64,
            projection_channels=6,
        )
        return model.eval()

    return make


@pytest.fixture
def transformer(make_transformer):
    return make_transformer()


@pytest.fixture
def denoise():
    """Guided sampling: predictions of every step, `(steps, branches, channels, frames, h, w)`.

    Also says which steps ran the last block (`ran`, `(steps, branches)` bool), seen from inside it.
    `start` is a step and the latents before it; `after_step` is told each step and the latents.
    """

    @torch.no_grad()
    def run(
        transformer, *, steps=STEPS, guided=True, seed=1, only=None, start=None, after_step=None
    ):
        generator = torch.Generator().manual_seed(seed)
        latents = torch.randn(1, 4, 2, 4, 6, generator=generator)
        contexts = {"cond": torch.randn(1, 5, 8, generator=generator)}
        if guided:
            contexts["uncond"] = torch.randn(1, 3, 8, generator=generator)
        calls, ran, outputs = [], [], []
        inside = transformer.blocks[-1].attn1
        handle = inside.register_forward_hook(lambda *_: calls.append(1))
        try:
            first, latents = start or (0, latents)
            for step in range(steps)[first:only]:
                made = []
                for name, context in contexts.items():
                    calls.clear()
                    timestep = torch.tensor([1000 * (1 - step / steps)])
                    with transformer.cache_context(name):
                        made.append(transformer(latents, timestep, context).sample)
                    ran.append(bool(calls))
                velocity = made[0] if not guided else made[1] + 3 * (made[0] - made[1])
                latents = latents - velocity / steps
                outputs.append(torch.cat(made))
                if after_step is not None:
                    after_step(step, latents)
        finally:
            handle.remove()
        return torch.stack(outputs), torch.tensor(ran).view(len(outputs), len(contexts))

    return run
