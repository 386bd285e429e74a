"""What is asked of `osp extend`: one video that goes on, for some seconds or without end."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from osp_cli.errors import InvalidRequestError
from osp_cli.outputs import (
    OUTPUT_TEMPLATE,
    STATE_SUFFIX,
    STDOUT,
    STREAM_EXTENSIONS,
    expand_output,
    is_possible_path,
)
from osp_cli.realtime_card import RealtimeFigures
from osp_cli.registry import ModelSpec, model_specs
from osp_cli.requests import GenerateRequest
from osp_cli.stage_sizes import stage_multiple, staged_size_problem

if TYPE_CHECKING:
    from osp_cli.screenplay import Cue

SCREENPLAY_SUFFIX = ".screenplay.txt"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtendRequest(GenerateRequest):
    """One video that is continued chunk by chunk.

    `num_frames` is what the model sees at once: the context and a chunk.

    Attributes:
        video: the clip that goes on; with neither clip nor picture it begins with the prompt.
        realtime: few steps without guidance, in rising resolutions.
        new_frames: pictures to add; None for no end.
        cues: what changes when, of a screenplay.
        screenplay: the file that they were read from.
        sinks: where the pictures go: `file`, `stdout`, `stdout:y4m`, `mpv`, `http`, `http:PORT`,
            an address or a playlist.
        context: latent frames before each chunk.
        latent_frames: of each chunk.
        stage_steps: sampler steps at each resolution.
        anchor_color: how far colours are pulled back to those of the beginning, 0 to 1.
        resume: the state of a stream that is taken up again.
        listens: lines on stdin change the stream.

    Raises:
        InvalidRequestError: a value is out of range; the message names it.
    """

    command: str = "extend"
    video: Path | None = None
    realtime: bool = False
    new_frames: int | None = 80
    cues: tuple[Cue, ...] = ()
    screenplay: str = ""
    sinks: tuple[str, ...] = ("file",)
    context: int = 3
    latent_frames: int = 9
    stage_steps: tuple[int, ...] = (4,)
    anchor_color: float = 0.0
    resume: Path | None = None
    listens: bool = True

    def __post_init__(self) -> None:
        # By name: a dataclass with slots is made anew, and `super()` means the one before.
        GenerateRequest.__post_init__(self)
        if not 0 <= self.anchor_color <= 1:
            raise InvalidRequestError(
                f"--anchor-color must be 0 to 1, got {self.anchor_color:g}",
                hint="0 leaves colours alone, 1 holds those of the beginning",
            )
        if self.new_frames is not None and self.new_frames < 1:
            raise InvalidRequestError(f"--frames must be at least 1, got {self.new_frames}")
        self._check_stages()
        self._check_stream()

    @property
    def figures(self) -> RealtimeFigures:
        """What the card says of continuing."""
        figures = self.spec.realtime
        assert figures is not None
        return figures

    @property
    def is_file(self) -> bool:
        """Whether a file is written."""
        return "file" in self.sinks

    def recipe(self) -> dict[str, Any]:
        """As of the parent, and what is continued, how."""
        from osp_cli.screenplay import format_screenplay

        return {
            **GenerateRequest.recipe(self),
            "video": None if self.video is None else self.video.name,
            "realtime": self.realtime,
            "new_frames": self.new_frames,
            "screenplay": format_screenplay(self.cues) if self.cues else None,
            "context": self.context,
            "latent_frames": self.latent_frames,
            "stage_steps": list(self.stage_steps),
            "anchor_color": self.anchor_color,
        }

    def _check_model(self, spec: ModelSpec) -> None:
        problem = spec.stream_problem()
        if problem is not None:
            able = [name for name, other in model_specs().items() if not other.stream_problem()]
            raise InvalidRequestError(problem, hint=f"models that can: {', '.join(able)}")

    def _check_input(self, spec: ModelSpec) -> None:
        if self.text_only and not spec.text_to_video:
            raise InvalidRequestError(
                f"{spec.name} moves pictures, it cannot invent one: give it a picture or a video",
                hint='osp extend photo.jpg "the camera pans left" --realtime',
            )
        if self.text_only and not self.prompt.strip():
            raise InvalidRequestError("--text needs a prompt, got an empty one")
        self._check_words()

    def _check_frames(self, spec: ModelSpec) -> None:
        """What is seen at once is the card's; how long the video gets, the user's."""
        if self.latent_frames < 1 or self.context < 0:
            raise InvalidRequestError(
                f"--latent-frames must be at least 1 and --context at least 0, "
                f"got {self.latent_frames} and {self.context}"
            )
        group = spec.scale_factor_temporal
        most = 1 + (spec.max_frames - 1) // group
        seen = self.latent_frames + (self.context if self.figures.layout == "osp" else 0)
        if seen > most:
            raise InvalidRequestError(
                f"{spec.name} sees {most} latent frames at once, "
                f"--context {self.context} and --latent-frames {self.latent_frames} are {seen}",
                hint=f"--latent-frames {max(1, most - self.context)}",
            )

    def _check_stages(self) -> None:
        if not self.stage_steps or min(self.stage_steps) < 1:
            raise InvalidRequestError(
                f"--steps {self.num_inference_steps} are too few for {len(self.stage_steps)} "
                "resolutions",
                hint=f"--steps {max(1, len(self.stage_steps))}, or fewer --stages",
            )
        if self.width is None or self.height is None:
            return
        stages, multiple = len(self.stage_steps), self.spec.multiple_of
        nearest = staged_size_problem(self.width, self.height, stages, multiple)
        if nearest is not None:
            if nearest[0] * nearest[1] > self.spec.max_pixels:
                step = stage_multiple(stages, multiple)
                nearest = self.width // step * step or step, self.height // step * step or step
            raise InvalidRequestError(
                f"--size {self.width}x{self.height} cannot be halved {stages - 1} times "
                f"for {stages} stages",
                hint=f"--size {nearest[0]}x{nearest[1]}, or fewer --stages",
            )

    def _check_stream(self) -> None:
        """Refuse what clips may have and an endless stream cannot."""
        for wrong, flag in (
            (self.gpus > 1, f"--gpus {self.gpus}"),
            (bool(self.vae_tiling), "--vae-tiling"),
            (self.preview != "none", f"--preview {self.preview}"),
        ):
            if wrong:
                raise InvalidRequestError(
                    f"osp extend makes one chunk after the other, {flag} is for single clips",
                    hint="leave it out",
                )
        if self.figures.layout == "helios" and (self.sampler != "dmd" or str(self.cache) != "none"):
            raise InvalidRequestError(
                f"{self.model} has a sampler of its own, without step caches",
                hint="leave out --sampler and --cache",
            )
        if self.mix is not None and self.mix.is_morph:
            raise InvalidRequestError(
                f"--style {self.style} morphs over a clip, and a stream has no end",
                hint="a screenplay changes styles: 0s: --style ghibli, then 10s: --style ink",
            )

    def _settle_output(self) -> None:
        if self.output == Path(OUTPUT_TEMPLATE):
            output = expand_output(
                OUTPUT_TEMPLATE,
                image=self.video or self.image,
                prompt=self.prompt,
                style=None if self.mix is None else self.mix.named,
                seed=self.seed,
            )
            object.__setattr__(self, "output", output)
        _check_stream_name(self.output)


def _check_stream_name(output: Path) -> None:
    if output == STDOUT:
        return
    if not is_possible_path(output):
        raise InvalidRequestError(f"--output is no possible file name: {str(output)!r}")
    if output.suffix.lower() not in STREAM_EXTENSIONS:
        raise InvalidRequestError(
            f"--output of osp extend ends in {' or '.join(STREAM_EXTENSIONS)}, got {str(output)!r}",
            hint=f"-o {output.with_suffix('.mp4')}",
        )


def split_steps(num_inference_steps: int, usual: tuple[int, ...]) -> tuple[int, ...]:
    """So many steps over as many resolutions as `usual` has, the remainder to the last ones.

    At the highest resolutions detail is made, and there an extra step shows.
    """
    if sum(usual) == num_inference_steps:
        return usual
    share, left = divmod(num_inference_steps, len(usual))
    return tuple(share + (index >= len(usual) - left) for index in range(len(usual)))


def state_path(output: Path) -> Path:
    """Where the state of a stream lies: `clip.mp4` -> `clip.state.safetensors`."""
    return output.with_name(output.stem + STATE_SUFFIX)


def state_before(path: Path) -> Path:
    """Where the state before the last one lies."""
    return path.with_name(f".{path.stem}.before{path.suffix}")


def screenplay_path(output: Path) -> Path:
    """Where the log of a stream lies: `clip.mp4` -> `clip.screenplay.txt`."""
    return output.with_name(output.stem + SCREENPLAY_SUFFIX)
