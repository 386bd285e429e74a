"""What is asked of `osp train-lora`, settled and checked before any heavy library is imported."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from osp_cli import __version__
from osp_cli.errors import InvalidRequestError
from osp_cli.registry import ModelSpec, find_model, model_specs, style_presets

MODES = ("flash", "t2v", "inpaint")
CONDITIONS = ("auto", "first", "source", "plain")
TIMESTEPS = ("uniform", "logit-normal", "logit-normal-shift")
OPTIMIZERS = ("adamw", "adamw8bit", "muon")
LR_SCHEDULES = ("constant", "linear", "cosine")
SAVE_FORMATS = ("native", "kohya", "peft")
LOGS = ("jsonl", "tensorboard")
TRAIN_QUANTS = ("none", "fp8")
# Gradients of half precision leave its range, and nothing here scales them.
TRAIN_DTYPES = ("auto", "bfloat16", "float32")
MAX_RANK = 1024
NEVER = "never"
AUTO = "auto"

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*", re.ASCII)
# What stands for no style and for all of them.
_STYLE_WORDS = ("none", "all")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainRequest:
    """One adapter from one folder of clips. Defaults are the paper's (section 6.4).

    Attributes:
        dataset: a folder, or a file that lists clips.
        name: what `--lora` and `--style` will call it.
        output: folder of the run: checkpoints, samples, metrics and the finished files.
        trigger: words that call it up; the style's prompt begins with them.
        model: name of the base's card.
        mode: `flash` (Eq. 22), `t2v` (no picture) or `inpaint` (36-channel bases).
        condition: the picture that a clip is to follow from: its `first` frame, the `source`
            picture beside it (as it was before it was styled), `plain`, its first frame with its
            colours and lines taken away, or `auto`: the source where there is one, else the
            card's.
        full: all weights are trained, not an adapter (section 5.1).
        train_adapter: the conditioner's adapters too.
        rank, alpha, targets: of the LoRA; targets are a preset's name or names of layers.
        width, height: of the bucket that others are made of; frames are scaled to cover theirs.
        num_frames: `4k + 1`, of the longest clips.
        fps: that clips are resampled to by time stamps.
        stride: every n-th frame of the file instead, whatever its rate.
        bucket: clips keep their shapes; otherwise all are cut to one size.
        windows: parts of a long clip that are used, at most.
        epochs: passes over all windows, unless `max_steps` says otherwise.
        max_steps: optimiser steps; None for as many as the epochs take.
        batch_size: samples that each device takes at once.
        accumulate: such passes in one step. A step has batch_size * accumulate * processes.
        learning_rate, weight_decay, betas, eps, max_grad_norm, optimizer, lr_schedule, warmup: of
            the optimiser.
        ema: decay of the moving average of weights; 0 keeps none.
        seed: of every random choice.
        caption_drop: share of samples with an empty prompt.
        cutoff: range of the Fourier cutoff percentile.
        timesteps: how noise levels are drawn.
        sigma_shift: of the noise levels.
        sigma_power: weight of a sample, `sigma ** sigma_power`; see `training.losses.flash_loss`.
        latent_frames: of a clip that a step looks at, for models that know the places of frames;
            0 for all.
        device, dtype, quant, gpus, max_vram, max_ram: as in `GenerateRequest`; `quant` is that of
            the frozen base.
        context_parallel: processes that share one sample (Ulysses).
        grad_checkpoint: activations are computed again in the backward pass.
        swap_blocks: blocks of the frozen base that wait in the host's memory; -1 for as many as
            the memory asks for.
        offload_activations: what checkpointing keeps waits in the host's memory.
        save_every: steps between checkpoints; 0 for none but the last.
        keep: checkpoints that are kept.
        resume: `auto`, `never` or a checkpoint.
        sample_every: steps between samples; 0 for none.
        sample_prompts: of the samples; empty for the built-in ones.
        sample_images: pictures that the samples begin with; empty for the built-in one.
        save_format: layout of the finished file.
        logs: beside metrics.jsonl.
        cache_dir: where encoded clips are kept; None for a folder of the program's own.
        allow_empty, allow_upscale, skip_invalid: what the check of the data lets pass.
        validate_only: stop after the check.
        cache_only: stop when all clips are encoded.
        overwrite: an adapter of that name may be replaced.

    Raises:
        InvalidRequestError: a value is out of range; the message names it.
    """

    dataset: Path
    name: str
    output: Path
    trigger: str = ""
    title: str = ""
    model: str = "osp-mini"
    mode: str = "flash"
    condition: str = "auto"
    full: bool = False
    train_adapter: bool = False
    rank: int = 8
    alpha: float = 4.0
    targets: str = "qkv-ffn"
    width: int = 512
    height: int = 512
    num_frames: int = 49
    fps: int = 16
    stride: int | None = None
    bucket: bool = True
    windows: int = 4
    epochs: int = 1
    max_steps: int | None = None
    batch_size: int = 1
    accumulate: int = 1
    learning_rate: float = 1e-4
    weight_decay: float = 0.03
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-10
    max_grad_norm: float = 0.05
    optimizer: str = "adamw"
    lr_schedule: str = "constant"
    warmup: int = 0
    ema: float = 0.0
    seed: int = 42
    caption_drop: float = 0.1
    cutoff: tuple[float, float] = (0.05, 0.95)
    timesteps: str = "uniform"
    sigma_shift: float = 1.0
    sigma_power: float = 0.0
    latent_frames: int = 0
    device: str = "auto"
    dtype: str = "auto"
    quant: str = "none"
    gpus: int = 1
    context_parallel: int = 1
    max_vram: int | None = None
    max_ram: int | None = None
    grad_checkpoint: bool = True
    swap_blocks: int = -1
    offload_activations: bool = False
    save_every: int = 250
    keep: int = 3
    resume: str = AUTO
    sample_every: int = 250
    sample_prompts: tuple[str, ...] = ()
    sample_images: tuple[Path, ...] = ()
    save_format: str = "native"
    logs: tuple[str, ...] = ("jsonl",)
    cache_dir: Path | None = None
    allow_empty: bool = False
    allow_upscale: bool = False
    skip_invalid: bool = False
    validate_only: bool = False
    cache_only: bool = False
    overwrite: bool = False

    def __post_init__(self) -> None:
        self._check_words()
        self._check_numbers()
        self._check_model()
        self._check_machine()

    @property
    def spec(self) -> ModelSpec:
        """The base's card."""
        return find_model(self.model)

    def fingerprint(self) -> dict[str, Any]:
        """What a run may not change when it is resumed, as JSON values.

        Not how long it is, where it runs, on how many processes, or what it shows meanwhile.
        """
        free = (
            *("dataset", "output", "title", "epochs", "max_steps", "device", "gpus", "name"),
            *("context_parallel", "max_vram", "max_ram", "grad_checkpoint", "swap_blocks"),
            *("offload_activations", "save_every", "keep", "resume", "sample_every"),
            *("sample_prompts", "sample_images", "save_format", "logs", "cache_dir"),
            *("allow_empty", "allow_upscale", "skip_invalid", "validate_only", "cache_only"),
            *("overwrite", "batch_size", "accumulate"),
        )
        values = {key: value for key, value in asdict(self).items() if key not in free}
        return {"version": __version__, **values, "betas": list(self.betas)} | {
            "cutoff": list(self.cutoff)
        }

    def _check_words(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise InvalidRequestError(
                f"--out {self.name!r} is no name: letters, digits, dots, dashes, underscores",
                hint="osp train-lora ./clips --out stainedglass",
            )
        self._check_style_name()
        for flag, value, known in (
            ("--mode", self.mode, MODES),
            ("--condition", self.condition, CONDITIONS),
            ("--timesteps", self.timesteps, TIMESTEPS),
            ("--optimizer", self.optimizer, OPTIMIZERS),
            ("--lr-schedule", self.lr_schedule, LR_SCHEDULES),
            ("--save-format", self.save_format, SAVE_FORMATS),
            ("--quant", self.quant, TRAIN_QUANTS),
            ("--dtype", self.dtype, TRAIN_DTYPES),
            *(("--log", log, LOGS) for log in self.logs),
        ):
            if value not in known:
                raise InvalidRequestError(
                    f"unknown {flag} {value!r}", hint=f"there are: {', '.join(known)}"
                )

    def _check_style_name(self) -> None:
        """Refuse, before hours of training, a name that `--style` would not take for this one."""
        style = self.name.lower().replace("_", "-")
        if self.full:
            return
        if "." in style:
            raise InvalidRequestError(
                f"--out {self.name!r} could not be called by --style, which takes no dots",
                hint=f"--out {self.name.replace('.', '-')}",
            )
        if style in style_presets() or style in _STYLE_WORDS:
            raise InvalidRequestError(
                f"--style {style} means something already, so --out cannot be {self.name!r}",
                hint=f"--out my-{style}",
            )

    def _check_numbers(self) -> None:
        for flag, value, low, high in (
            ("--rank", self.rank, 1, MAX_RANK),
            ("--frames", self.num_frames, 1, 1000),
            ("--fps", self.fps, 1, 240),
            ("--stride", 1 if self.stride is None else self.stride, 1, 1000),
            ("--windows", self.windows, 1, 1000),
            ("--epochs", self.epochs, 1, 10**6),
            ("--max-steps", 1 if self.max_steps is None else self.max_steps, 1, 10**8),
            ("--batch-size", self.batch_size, 1, 4096),
            ("--accumulate", self.accumulate, 1, 4096),
            ("--warmup", self.warmup, 0, 10**6),
            ("--weight-decay", self.weight_decay, 0, 10),
            ("--ema", self.ema, 0, 0.999999),
            ("--sigma-power", self.sigma_power, 0, 4),
            ("--latent-frames", self.latent_frames, 0, 1000),
            ("--caption-drop", self.caption_drop, 0, 1),
            ("--sigma-shift", self.sigma_shift, 0.01, 100),
            ("--gpus", self.gpus, 1, 1024),
            ("--context-parallel", self.context_parallel, 1, 1024),
            ("--save-every", self.save_every, 0, 10**8),
            ("--sample-every", self.sample_every, 0, 10**8),
            ("--keep", self.keep, 1, 10**6),
            ("--swap-blocks", self.swap_blocks, -1, 1000),
        ):
            # Written so that nan is refused.
            if not low <= value <= high:
                raise InvalidRequestError(f"{flag} must be {low} to {high}, got {value}")
        for flag, value in (
            ("--lr", self.learning_rate),
            ("--alpha", self.alpha),
            ("--eps", self.eps),
            ("--max-grad-norm", self.max_grad_norm),
        ):
            if not 0 < value < float("inf"):
                raise InvalidRequestError(f"{flag} must be above 0, got {value:g}")
        low, high = self.cutoff
        if not 0 <= low <= high <= 1:
            raise InvalidRequestError(
                f"--cutoff is a range within 0 to 1, got {low:g} to {high:g}",
                hint="--cutoff 0.05:0.95",
            )
        if not all(0 <= beta < 1 for beta in self.betas):
            raise InvalidRequestError(f"--betas must be 0 to 1, got {self.betas}")
        if (self.num_frames - 1) % 4:
            raise InvalidRequestError(
                f"--frames must be 4k+1, got {self.num_frames}",
                hint=f"--frames {(self.num_frames - 1) // 4 * 4 + 5}",
            )

    def _check_model(self) -> None:
        spec = self.spec
        if problem := spec.train_problem(self.mode):
            other = spec.train_mode
            if spec.train_problem(other) is None:
                raise InvalidRequestError(problem, hint=f"--mode {other}")
            able = [s.name for s in model_specs().values() if not s.train_problem(s.train_mode)]
            raise InvalidRequestError(problem, hint=f"--model takes: {', '.join(able)}")
        if self.train_adapter and spec.conditioner == "umt5":
            raise InvalidRequestError(
                f"{spec.name} reads its prompts without an adapter, so there is none to train",
                hint="leave --train-adapter out",
            )
        if self.width % spec.multiple_of or self.height % spec.multiple_of:
            raise InvalidRequestError(
                f"--size of {spec.name} takes multiples of {spec.multiple_of}, "
                f"got {self.width}x{self.height}"
            )
        if self.num_frames > spec.max_frames:
            raise InvalidRequestError(
                f"{spec.name} sees at most {spec.max_frames} frames, got {self.num_frames}",
                hint=f"--frames {spec.max_frames}",
            )
        if self.latent_frames and not spec.has_latent_shifting:
            raise InvalidRequestError(
                f"--latent-frames leaves out some of a clip, and {spec.name} takes the rest to "
                "follow one another",
                hint="leave it out, or fewer --frames",
            )
        if self.quant != "none" and (problem := spec.precision_problem("auto", self.quant)):
            raise InvalidRequestError(problem, hint="leave it out, the model is small as it is")

    def _check_machine(self) -> None:
        if not re.fullmatch(r"auto|cpu|mps|cuda(:\d{1,3})?", self.device):
            raise InvalidRequestError(
                f"unknown --device {self.device!r}", hint="there are: auto, cpu, cuda, cuda:N, mps"
            )
        if self.gpus % self.context_parallel:
            raise InvalidRequestError(
                f"--gpus {self.gpus} cannot be shared out in groups of --context-parallel "
                f"{self.context_parallel}"
            )
        if self.full and self.swap_blocks > 0:
            raise InvalidRequestError("--swap-blocks moves frozen weights, with --full none are")
