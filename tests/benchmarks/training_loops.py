"""Two loops that train the same LoRA on the same random clips; for `training.py` and
`training_14b.py`.

Ours is what `osp train-lora` runs: the prepared base, the objective and the trainer. The plain one
is what one writes with diffusers and PEFT in half a page: `add_adapter`, gradient checkpointing,
AdamW, Eq. 22.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from osp_cli.sampling.fourier import fourier_features
from osp_cli.sampling.latent_shift import project_first_frame
from osp_cli.training.adapters import add_adapter
from osp_cli.training.memory import prepare_base
from osp_cli.training.objective import ClipObjective, ObjectiveSettings, draw
from osp_cli.training.samples import EncodedClip, SampleNumber
from osp_cli.training.trainer import LoopSettings, Trainer

_SEED = 42
_CLIPS = 2
# Section 6.4 of the paper.
_RATE, _DECAY, _BETAS, _EPS, _CLIPPING = 1e-4, 0.03, (0.9, 0.999), 1e-10, 0.05


@dataclass(frozen=True)
class Clips:
    """Random latents and texts in place of encoded clips.

    Attributes:
        shape: of latents, `(channels, frames, h, w)`.
        rows, channels: of the conditioning.
        batch: samples of a step.
    """

    shape: tuple[int, int, int, int]
    rows: int
    channels: int
    batch: int = 1
    kept: dict[int, EncodedClip] = field(default_factory=dict)

    def clip(self, index: int) -> EncodedClip:
        """The same for the same number."""
        if index not in self.kept:
            generator = torch.Generator().manual_seed(index)
            latents = torch.randn(self.shape, generator=generator)
            states = torch.randn(self.rows, self.channels, generator=generator)
            told = {"states": states.bfloat16()}
            self.kept[index] = EncodedClip(latents.bfloat16(), latents[:, :1], told, told)
        return self.kept[index]

    def samples(self, step: int) -> list[SampleNumber]:
        """Those of a step."""
        first = step * self.batch
        return [
            SampleNumber(number, number % _CLIPS, number // _CLIPS)
            for number in range(first, first + self.batch)
        ]

    @property
    def tokens(self) -> int:
        """Of one clip."""
        _, frames, height, width = self.shape
        return frames * (height // 2) * (width // 2)


class _Texts:
    """Conditions that are there already."""

    adapters: dict[str, nn.Module] = {}  # noqa: RUF012

    def prepare(self, prompt: str, image: object) -> dict[str, Tensor]:
        raise NotImplementedError("they are random numbers")

    def join(self, rows: Any, first: Tensor | None, device: torch.device) -> dict[str, Tensor]:
        return {"encoder_hidden_states": torch.stack([row["states"] for row in rows]).to(device)}

    def unload(self) -> None:
        """There is nothing to let go of."""


def with_lora(model: Any, *, rank: int = 8, alpha: float = 4.0) -> Any:
    """The model with what is trained."""
    add_adapter(model, "qkv-ffn", rank, alpha, _SEED)
    return model


def ours(model: Any, clips: Clips, steps: int, device: torch.device, **way: Any) -> Iterator[float]:
    """Losses of our loop, each when its step is done; `way` is that of `prepare_base`."""
    dtype = model.patch_embedding.weight.dtype
    settings = LoopSettings(
        steps=steps, learning_rate=_RATE, warmup=0, lr_schedule="constant", weight_decay=_DECAY,
        betas=_BETAS, eps=_EPS, max_grad_norm=_CLIPPING, ema=0.0, save_every=0, seed=_SEED,
    )  # fmt: skip
    with (
        prepare_base(model, dtype=dtype, device=device, **way),
        tempfile.TemporaryDirectory() as folder,
    ):
        objective = ClipObjective(
            model, _Texts(), clips.clip, clips.samples, ObjectiveSettings(seed=_SEED), device,
            batch_size=clips.batch,
        )  # fmt: skip
        trainer = Trainer({"transformer": model}, settings, Path(folder), resume="never")
        for number, report in enumerate(trainer.run(objective)):
            assert not report.skipped
            if number + 1 < steps:
                yield report.loss
        # The last one's checkpoint is written by then, which is no part of a step.
        yield report.loss


def plain(model: Any, clips: Clips, steps: int, device: torch.device) -> Iterator[float]:
    """Losses of the half page, drawn from the same numbers."""
    model.to(device)
    model.enable_gradient_checkpointing()
    # As PEFT has it: inputs are widened to the factors' precision.
    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    before = [layer.cast_input_dtype_enabled for layer in layers]
    for layer in layers:
        layer.cast_input_dtype_enabled = True
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=_RATE, weight_decay=_DECAY, betas=_BETAS, eps=_EPS)
    settings = ObjectiveSettings(seed=_SEED)
    dtype = model.patch_embedding.weight.dtype
    try:
        for step in range(steps):
            samples = clips.samples(step)
            batch = [clips.clip(sample.index) for sample in samples]
            x = torch.stack([clip.latents for clip in batch]).to(device).float()
            first = torch.stack([clip.first for clip in batch]).to(device).float()
            text = torch.stack([clip.conditions["states"] for clip in batch]).to(device, dtype)
            draws = draw(settings, [sample.number for sample in samples], x.shape)
            noise, sigmas = draws.noise.to(device), draws.sigmas.to(device)
            level = sigmas.view(-1, 1, 1, 1, 1)
            noisy = (1 - level) * x + level * noise
            more = {}
            if hasattr(model, "learnable_proj"):
                noisy = noisy - project_first_frame(model, first)
                features = fourier_features(first, draws.cutoff.to(device), x.shape[2])
                more = {"fourier_features": features.to(dtype)}
            velocity = model(noisy.to(dtype), 1000 * sigmas, text, **more, return_dict=False)[0]
            loss = F.mse_loss(velocity.float(), noise - x)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, _CLIPPING)
            optimizer.step()
            optimizer.zero_grad()
            yield loss.item()
    finally:
        model.disable_gradient_checkpointing()
        for layer, enabled in zip(layers, before, strict=True):
            layer.cast_input_dtype_enabled = enabled


def reset_lora(model: Any, start: dict[str, Tensor]) -> None:
    """Puts its first values back, so that the next loop begins where the last one began."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(start[name])
                parameter.grad = None


def lora_values(model: Any) -> dict[str, Tensor]:
    """Copies of what is trained."""
    return {n: p.detach().cpu().clone() for n, p in model.named_parameters() if p.requires_grad}
