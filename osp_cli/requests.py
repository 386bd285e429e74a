"""What is asked of `osp`, settled and checked before any heavy library is imported.

A request that exists is valid as far as its own values go: everything is refused here, in
milliseconds, rather than after a large model has loaded.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from osp_cli import __version__
from osp_cli.dials import NO_CACHE, LoraChoice, StepCacheChoice
from osp_cli.errors import InvalidRequestError
from osp_cli.loras import name_in_recipe
from osp_cli.outputs import OUTPUT_TEMPLATE, check_output_name, expand_output
from osp_cli.own_styles import styles_to_recipe
from osp_cli.registry import DTYPES, ModelSpec, find_model, model_specs
from osp_cli.style_mix import StyleMix, WeightedPrompt, prompts_to_recipe, read_style

COMMANDS = ("generate", "stylize", "extend")
SAMPLERS = ("euler", "unipc")
# One for weights made for few steps, in osp extend.
STREAM_SAMPLERS = (*SAMPLERS, "dmd")
DEVICES = ("auto", "cpu", "cuda", "mps")
OFFLOADS = ("auto", "none", "model", "group", "sequential", "disk")
QUANTS = ("auto", "none", "fp8", "int8", "nf4", "gguf")
ATTENTIONS = ("auto", "sdpa", "flash", "sage")
PREVIEWS = ("none", "latent", "contact")
MAX_SEED = 2**63 - 1
MAX_LORA_WEIGHT = 10
MAX_GPUS = 64
STDIN = Path("-")


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateRequest:
    """One video from one picture, or from a prompt alone.

    Attributes:
        command: what was typed, `generate` or `stylize`; they differ in their defaults.
        image: the picture; None only with `text_only`, or with `latents`. `-` was read from stdin.
        image_data: the bytes of that picture, where it came from stdin.
        text_only: text to video, the gamma = 0 case of Eq. 15.
        prompt: as the user gave it, without the style's words.
        style: a style preset, a mixture of some with their weights, or a way from one mixture to
            another; brought into the canonical form of `StyleMix`.
        negative_prompt: what to steer away from.
        output: the video's path, `FOLDER/%04d.png` for frames or `-` for stdout; by default a
            name made of picture, style and seed.
        model: name of a model card.
        width, height: in pixels; both None for the bucket nearest to the picture.
        buckets: `(width, height)` to choose from then; empty for the card's.
        num_frames: `4k + 1`.
        fps: frames per second of the file.
        num_inference_steps: of the sampler.
        guidance_scale: of classifier-free guidance; 1 and below switch it off.
        shift: of the sampler's sigmas, `s * l / (1 + (s - 1) * l)`.
        sampler: `euler` or `unipc`.
        loras: what is added to the model, and how strongly: 1 as it was trained, less than 0 the
            opposite of it. One of weight 0 does nothing and is left out.
        cache: the step cache and its threshold.
        cache_start: steps at the start of the clip that are always computed.
        cutoff: percentile of the Fourier filter at the first and at the last step.
        seed: of the noise.
        device: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`.
        dtype: of the transformer: `auto` (the card's), `bfloat16`, `float16` or `float32`.
        offload: where weights wait that are not in use: `auto` (what fits), `none`, `model`,
            `group`, `sequential` or `disk`.
        quant: how the transformer's weights are stored: `auto`, `none`, `fp8`, `int8`, `nf4`,
            `gguf`.
        attention: which kernels: `auto`, `sdpa`, `flash` or `sage`.
        vae_tiling: encode and decode in tiles; None does so where the memory asks for it.
        compile: the transformer's blocks, which takes minutes and pays off over many steps.
        gpus: how many CUDA devices share the sampling; on `cpu`, how many processes.
        max_vram: bytes of the device's memory that may be used; None for all that are free.
        max_ram: bytes of the host's memory likewise.
        overwrite: an existing output may be replaced.
        metadata: the recipe is kept in the video and beside it.
        preview: `latent` keeps a picture of the estimate beside the output while sampling,
            `contact` stops after a few steps and shows only that picture.
        latents: a file of latents to go on from, instead of from noise.
        makes_folder: the output's folder was asked for by its name alone, as in `-o videos/`; it is
            made where it is missing.
        place: the line of a batch that asks for it, for messages.
        replayed: the recipe that is made again, to compare its hashes with today's.
        replayed_from: what to call that recipe.

    Raises:
        InvalidRequestError: a value is out of range; the message names it.
    """

    command: str = "generate"
    image: Path | None = None
    image_data: bytes | None = field(default=None, repr=False)
    text_only: bool = False
    prompt: str = ""
    style: str | None = None
    negative_prompt: str = ""
    output: Path = Path(OUTPUT_TEMPLATE)
    model: str = "osp-mini"
    width: int | None = None
    height: int | None = None
    buckets: tuple[tuple[int, int], ...] = ()
    num_frames: int = 49
    fps: int = 16
    num_inference_steps: int = 50
    guidance_scale: float = 5.0
    shift: float = 7.0
    sampler: str = "euler"
    loras: tuple[LoraChoice, ...] = ()
    cache: StepCacheChoice = NO_CACHE
    cache_start: int = 5
    cutoff: tuple[float, float] = (0.1, 0.1)
    seed: int
    device: str = "auto"
    dtype: str = "auto"
    offload: str = "auto"
    quant: str = "auto"
    attention: str = "auto"
    vae_tiling: bool | None = None
    compile: bool = False
    gpus: int = 1
    max_vram: int | None = None
    max_ram: int | None = None
    overwrite: bool = False
    metadata: bool = True
    preview: str = "none"
    latents: Path | None = None
    makes_folder: bool = False
    place: str = ""
    replayed: Mapping[str, Any] | None = field(default=None, repr=False)
    replayed_from: str = ""

    def __post_init__(self) -> None:
        spec = find_model(self.model)
        self._check_model(spec)
        object.__setattr__(self, "style", None if self.mix is None else str(self.mix))
        self._check_input(spec)
        self._check_dials()
        self._check_loras()
        self._check_cache(spec)
        self._check_frames(spec)
        self._check_size(spec)
        self._check_machine()
        self._settle_output()

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """`(width, height)` to choose from where none is asked."""
        return self.buckets or self.spec.sizes

    @property
    def spec(self) -> ModelSpec:
        """The model card."""
        return find_model(self.model)

    @property
    def mix(self) -> StyleMix | None:
        """The styles with their weights, or None without a style."""
        return None if self.style is None else read_style(self.style, self.replayed)

    @property
    def prompts(self) -> tuple[WeightedPrompt, ...]:
        """What the model reads: the prompt in each style's words, in the form of the card."""
        return prompts_of(self.mix, self.model, self.prompt)

    @property
    def full_prompt(self) -> str | list[dict[str, Any]]:
        """`prompts` as the recipe holds them: a text, or several with their weights."""
        return prompts_to_recipe(self.prompts)

    def recipe(self) -> dict[str, Any]:
        """All that made the video, as JSON values: neither output path, time nor host.

        Equal recipes on equal inputs and weights give equal bytes, so the picture appears
        by its file name alone; whoever writes the recipe adds hashes.
        """
        mix = self.mix
        own = {} if mix is None else styles_to_recipe(mix.presets)
        return {
            "version": __version__,
            "command": self.command,
            "model": self.model,
            "image": None if self.image is None else _name_in_recipe(self.image),
            "prompt": self.prompt,
            "style": None if mix is None else mix.named,
            **({"own_styles": own} if own else {}),
            "full_prompt": self.full_prompt,
            "negative_prompt": self.negative_prompt,
            "width": self.width,
            "height": self.height,
            "num_frames": self.num_frames,
            "fps": self.fps,
            "num_inference_steps": self.num_inference_steps,
            "guidance_scale": self.guidance_scale,
            "shift": self.shift,
            "sampler": self.sampler,
            "loras": [
                {
                    "file": name_in_recipe(choice.name),
                    "weight": choice.weight,
                    **({"style": choice.style} if choice.style else {}),
                }
                for choice in self.loras
            ],
            "cache": str(self.cache),
            "cache_start": self.cache_start,
            # Without latent shifting there is nothing that it would have cut.
            "cutoff": list(self.cutoff) if self.spec.has_latent_shifting else None,
            "seed": self.seed,
            "dtype": self.dtype,
            "quant": self.quant,
            "vae_tiling": self.vae_tiling,
            "compile": self.compile,
            "attention": self.attention,
        }

    def _check_model(self, spec: ModelSpec) -> None:
        """Refuse a card that this command cannot run."""
        problem = spec.run_problem()
        if problem is not None:
            raise InvalidRequestError(problem, hint="osp models lists those that make videos")

    def _check_input(self, spec: ModelSpec) -> None:
        if self.image is None and not self.text_only and self.latents is None:
            if not spec.image_to_video:
                raise InvalidRequestError(
                    f"{spec.name} makes videos of a text, and there is none",
                    hint=f'osp generate --model {spec.name} --text "a red fox runs through snow"',
                )
            if self.command == "stylize":
                raise InvalidRequestError(
                    "a picture or video is missing",
                    hint=f"osp stylize photo.jpg --style {self.style or 'ink'}, or film.mp4",
                )
            raise InvalidRequestError(
                "a picture is missing",
                hint='osp generate photo.jpg "the camera pans left"'
                + (", or --text PROMPT alone" if spec.text_to_video else ""),
            )
        if self.image is not None and self.text_only:
            raise InvalidRequestError(
                f"--text makes a video without a picture, but {str(self.image)!r} was given too",
                hint="leave out one of the two",
            )
        if self.image is not None and not spec.image_to_video:
            raise InvalidRequestError(
                f"{spec.name} makes videos of a text alone, it cannot be shown a picture",
                hint="--text PROMPT instead of the picture, or a model that moves pictures: "
                + ", ".join(_names(lambda other: other.image_to_video)),
            )
        if self.text_only and not self.prompt.strip():
            raise InvalidRequestError("--text needs a prompt, got an empty one")
        if self.text_only and not spec.text_to_video:
            raise InvalidRequestError(
                f"{spec.name} moves pictures, it cannot invent one: give it a picture",
                hint=f'osp generate photo.jpg "{self.prompt}", or a --model that can: '
                + ", ".join(_names(lambda other: other.text_to_video)),
            )
        self._check_words()

    def _check_words(self) -> None:
        for flag, text in (("PROMPT", self.prompt), ("--negative-prompt", self.negative_prompt)):
            if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
                raise InvalidRequestError(f"{flag} is not valid text: {text!r}")

    def _check_dials(self) -> None:
        if self.command not in COMMANDS:
            raise ValueError(f"no such command: {self.command!r}")
        _check_range("--steps", self.num_inference_steps, 1, 1000)
        check_fps(self.fps)
        _check_range("--cfg", self.guidance_scale, 0, 100)
        _check_range("--shift", self.shift, 0.01, 100)
        for cutoff in self.cutoff:
            if not 0.0 <= cutoff <= 1.0:
                raise InvalidRequestError(
                    f"--cutoff is a percentile between 0 and 1, got {cutoff:g}",
                    hint="--cutoff 0.1 keeps fine detail, higher values keep less",
                )
        if not 0 <= self.seed <= MAX_SEED:
            raise InvalidRequestError(f"--seed must be 0 to {MAX_SEED}, got {self.seed}")
        known = STREAM_SAMPLERS if self.command == "extend" else SAMPLERS
        if self.sampler not in known:
            raise InvalidRequestError(
                f"unknown sampler {self.sampler!r}", hint=f"the samplers are: {', '.join(known)}"
            )
        if self.preview not in PREVIEWS:
            raise InvalidRequestError(
                f"unknown preview {self.preview!r}", hint=f"the previews are: {', '.join(PREVIEWS)}"
            )

    def _check_loras(self) -> None:
        for choice in self.loras:
            # Written so that nan is refused.
            if not -MAX_LORA_WEIGHT <= choice.weight <= MAX_LORA_WEIGHT:
                raise InvalidRequestError(
                    f"the weight of --lora must be -{MAX_LORA_WEIGHT} to {MAX_LORA_WEIGHT}, "
                    f"got {choice}",
                    hint=f"--lora {choice.name}:1 is as strong as it was trained",
                )
        used = tuple(choice for choice in self.loras if choice.weight)
        object.__setattr__(self, "loras", used)

    def _check_cache(self, spec: ModelSpec) -> None:
        _check_range("--cache-start", self.cache_start, 0, 1000)
        if self.cache.threshold is not None and not 0 < self.cache.threshold <= 100:
            raise InvalidRequestError(
                f"the threshold of --cache must be above 0 and at most 100, got {self.cache}",
                hint="--cache teacache:0.1",
            )
        problem = spec.cache_problem(self.cache.kind)
        if problem is not None:
            raise InvalidRequestError(problem, hint="--cache none, or another cache or model")

    def _check_frames(self, spec: ModelSpec) -> None:
        _check_range("--frames", self.num_frames, 1, math.inf)
        if self.num_frames > spec.max_frames:
            raise InvalidRequestError(
                f"{spec.name} makes at most {spec.max_frames} frames, got {self.num_frames}",
                hint=f"--frames {spec.max_frames} is "
                f"{spec.max_frames / self.fps:.2g} seconds at {self.fps} fps",
            )
        if (self.num_frames - 1) % spec.scale_factor_temporal:
            raise InvalidRequestError(
                f"--frames must be {spec.scale_factor_temporal}k+1, got {self.num_frames}",
                hint=f"--frames {round_up_frames(self.num_frames, spec)}",
            )

    def _check_size(self, spec: ModelSpec) -> None:
        if self.width is None and self.height is None:
            return
        if self.width is None or self.height is None:
            given, missing = ("--width", "--height") if self.width else ("--height", "--width")
            raise InvalidRequestError(f"{given} needs {missing} too", hint="or use --size WxH")
        size = f"{self.width}x{self.height}"
        hint = f"sizes of {spec.name}: {', '.join(f'{w}x{h}' for w, h in spec.sizes)}"
        if self.width < 1 or self.height < 1:
            raise InvalidRequestError(f"--size must be positive, got {size}", hint=hint)
        if self.width % spec.multiple_of or self.height % spec.multiple_of:
            raise InvalidRequestError(
                f"--size of {spec.name} takes multiples of {spec.multiple_of}, got {size}",
                hint=hint,
            )
        if self.width * self.height > spec.max_pixels:
            raise InvalidRequestError(
                f"--size {size} is more than the {spec.max_pixels} pixels of {spec.name}",
                hint=hint,
            )

    def _check_machine(self) -> None:
        if not re.fullmatch(r"auto|cpu|mps|cuda(:\d{1,3})?", self.device):
            raise InvalidRequestError(
                f"unknown device {self.device!r}", hint=f"the devices are: {', '.join(DEVICES)}"
            )
        if self.dtype not in ("auto", *DTYPES):
            raise InvalidRequestError(
                f"unknown dtype {self.dtype!r}", hint=f"the dtypes are: auto, {', '.join(DTYPES)}"
            )
        for flag, value, known in (
            ("offload", self.offload, OFFLOADS),
            ("quant", self.quant, QUANTS),
            ("attention", self.attention, ATTENTIONS),
        ):
            if value not in known:
                raise InvalidRequestError(
                    f"unknown {flag} {value!r}", hint=f"the kinds are: {', '.join(known)}"
                )
        self._check_gpus()
        if problem := self.spec.precision_problem(self.dtype, self.quant):
            raise InvalidRequestError(problem, hint="leave it out, the model is small as it is")
        for flag, limit in (("--max-vram", self.max_vram), ("--max-ram", self.max_ram)):
            if limit is not None and limit < 10**8:
                raise InvalidRequestError(
                    f"{flag} is at least 0.1 GB, got {limit / 1e9:g} GB", hint=f"{flag} 12GB"
                )

    def _check_gpus(self) -> None:
        _check_range("--gpus", self.gpus, 1, MAX_GPUS)
        if self.gpus == 1:
            return
        if self.device not in ("auto", "cuda", "cpu"):
            raise InvalidRequestError(
                f"--gpus {self.gpus} and --device {self.device}, which is one, exclude each other",
                hint=f"--device cuda with CUDA_VISIBLE_DEVICES={_first_numbers(self.gpus)}",
            )
        if self.offload == "disk":
            raise InvalidRequestError(
                "--offload disk takes the weights from the disk for one GPU only",
                hint="--offload group, or leave out --gpus",
            )
        if self.compile:
            raise InvalidRequestError(
                "--compile has not been made to work with --gpus", hint="leave out one of the two"
            )

    def _settle_output(self) -> None:
        output = self.output
        if output == Path(OUTPUT_TEMPLATE):
            output = expand_output(
                OUTPUT_TEMPLATE,
                image=self.image,
                prompt=self.prompt,
                style=None if self.mix is None else self.mix.named,
                seed=self.seed,
            )
            object.__setattr__(self, "output", output)
        check_output_name(output)


@dataclass(frozen=True, slots=True, kw_only=True)
class RestyleRequest(GenerateRequest):
    """One video from another: its latents are partly re-noised and sampled anew, in a style.

    `num_frames` is the length of a window, which is what the model sees at once.

    Attributes:
        video: the source.
        strength: how far it is re-noised: 0 leaves it as it is, 1 keeps nothing but what the model
            is shown of it. Of `num_inference_steps` that share is done. A model that is shown every
            frame as a picture takes one step instead, and strength weighs its answer against the
            source.
        total_frames: of the result at most; None for the whole source.

    Raises:
        InvalidRequestError: a value is out of range; the message names it.
    """

    video: Path
    strength: float = 0.6
    total_frames: int | None = None

    def __post_init__(self) -> None:
        # By name: a dataclass with slots is made anew, and `super()` means the one before.
        GenerateRequest.__post_init__(self)
        _check_range("--strength", self.strength, 0, 1)
        if self.preview != "none":
            raise InvalidRequestError(
                f"--preview {self.preview} shows a clip while it is made, and a video is made "
                "window by window",
                hint="leave it out; --seconds 2 makes a short piece first",
            )
        if self.gpus > 1:
            raise InvalidRequestError(
                f"a video is restyled on one device, --gpus {self.gpus} cannot share it out",
                hint="leave --gpus out, or restyle parts of the video at the same time",
            )
        if self.vae_tiling:
            raise InvalidRequestError(
                "--vae-tiling cuts a clip into tiles, and a video passes the autoencoder as a "
                "stream",
                hint="leave it out, or use a smaller --size",
            )
        if self.total_frames is not None:
            _check_range("--frames", self.total_frames, 1, math.inf)
        self._check_stream()

    def recipe(self) -> dict[str, Any]:
        """As of the parent, and what was restyled."""
        return {
            **GenerateRequest.recipe(self),
            "video": _name_in_recipe(self.video),
            "strength": self.strength,
            "total_frames": self.total_frames,
        }

    def _check_stream(self) -> None:
        """Refuse what clips may have and a stream of windows cannot."""
        if self.gpus > 1:
            raise InvalidRequestError(
                f"a video is restyled on one device, --gpus {self.gpus} cannot share it out",
                hint="leave --gpus out, or restyle parts of the video at the same time",
            )
        if self.vae_tiling:
            raise InvalidRequestError(
                "a video passes the autoencoder as a stream, which --vae-tiling cannot cut",
                hint="leave it out, or use a smaller --size",
            )
        if self.preview != "none":
            raise InvalidRequestError(
                f"--preview {self.preview} is for clips of pictures, {self.video} is a video",
                hint="--frames 9 restyles its beginning",
            )

    def _check_input(self, spec: ModelSpec) -> None:
        problem = spec.restyle_problem()
        if problem is not None:
            able = _names(lambda other: other.restyle_problem() is None)
            raise InvalidRequestError(problem, hint=f"models that can: {', '.join(able)}")
        self._check_words()

    def _settle_output(self) -> None:
        if self.output == Path(OUTPUT_TEMPLATE):
            output = expand_output(
                OUTPUT_TEMPLATE,
                image=self.video,
                prompt=self.prompt,
                style=None if self.mix is None else self.mix.named,
                seed=self.seed,
            )
            object.__setattr__(self, "output", output)
        check_output_name(self.output)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sheet:
    """Several videos of one input on one page, to be compared; each has a file of its own, too.

    Attributes:
        output: of the page: a video in which all play, or a still picture.
        title: a line above everything.
        rows, columns: labels of a table; one row without a label is a grid.
        requests: of the cells, row by row.
        source: the picture or video that all are made of, shown first in a grid; None for none.
        overwrite: an existing page may be replaced.
        makes_folder: its folder was asked for by its name alone, and is made where it is missing.
    """

    output: Path
    title: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    requests: tuple[GenerateRequest, ...]
    source: Path | None = None
    overwrite: bool = False
    makes_folder: bool = False


def prompts_of(style: StyleMix | str | None, model: str, prompt: str) -> tuple[WeightedPrompt, ...]:
    """What a model reads: `prompt` in each style's words, in the form of its card."""
    mix = read_style(style) if isinstance(style, str) else style
    if mix is None:
        return (WeightedPrompt(prompt, 1.0),)
    return mix.prompts_for(find_model(model), prompt)


def _names(able: Callable[[ModelSpec], bool]) -> list[str]:
    """The models that can be run, of those that are able."""
    return [name for name, s in model_specs().items() if able(s) and s.run_problem() is None]


def _first_numbers(count: int) -> str:
    return ",".join(map(str, range(count)))


def round_up_frames(num_frames: int, spec: ModelSpec) -> int:
    """The smallest clip of at least `num_frames` that the autoencoder can make, `4k + 1`."""
    every = spec.scale_factor_temporal
    return -(-(num_frames - 1) // every) * every + 1


def check_fps(fps: int) -> None:
    """Refuse a rate that no player knows.

    Raises:
        InvalidRequestError: below 1 or above 120 frames per second.
    """
    _check_range("--fps", fps, 1, 120)


def _check_range(flag: str, value: float, low: float, high: float) -> None:
    # Written so that nan, which no comparison accepts, is refused.
    if not low <= value <= high or value == math.inf:
        limits = f"at least {low}" if math.isinf(high) else f"{low} to {high}"
        raise InvalidRequestError(f"{flag} must be {limits}, got {value}")


def _name_in_recipe(image: Path) -> str:
    """A picture's file name; nothing of the folder it lies in, which is the user's business."""
    return "stdin" if image == STDIN else image.name
