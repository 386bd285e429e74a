"""What a model card says of endless continuation (paper, section 7.1): its table `[realtime]`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

LAYOUTS = ("osp", "helios")
CONTINUATION_CONDITIONS = ("none", "context")
VAE_CHUNKS = ("continuous", "independent")
MEMORIES = ("none", "picture")
LIVE_SAMPLERS = ("dmd", "euler", "unipc")


@dataclass(frozen=True, slots=True, kw_only=True)
class RealtimeFigures:
    """How a model continues its own video, chunk by chunk.

    Attributes:
        layout: where the context stands: `osp` before the noise latents in time, as the paper has
            it; `helios` as a history at three scales.
        context: latent frames of it. `helios` counts its own.
        latent_frames: noise latent frames of each chunk.
        stages: resolutions that a chunk passes, each twice the one before.
        steps: of the sampler at each of them.
        vae_chunks: `continuous`, one long sequence of latents: only the very first is a single
            frame; or `independent`, every chunk is a clip of its own to the autoencoder.
        sampler: `dmd` for few steps with fresh noise; else an ordinary one.
        trained: the weights were made for few steps. Others take their own steps and guidance.
        conditions: what the model is told of the context besides: `none`, or `context`, its image
            tokens, as if it were a picture.
        paints: a style or a cutoff is painted in one chunk, with latent shifting and Fourier
            features of the context; what follows holds it.
        context_noise: a picture or video that the user brings gets a little noise, as what the
            model makes itself is never as clean.
        crossfade: chunks over which one prompt passes into the next.
        memory: what is kept besides the context: `none`, or `picture`, the picture that the stream
            began with, in which a model that only looks finds all that it ever shows.
    """

    layout: str = "osp"
    context: int = 3
    latent_frames: int = 9
    stages: int = 1
    steps: tuple[int, ...] = (4,)
    vae_chunks: str = "continuous"
    sampler: str = "dmd"
    trained: bool = False
    conditions: str = "none"
    paints: bool = False
    crossfade: int = 1
    context_noise: bool = False
    memory: str = "none"

    def num_frames(self, *, first: bool, group: int = 4) -> int:
        """Pictures that a chunk decodes to.

        Args:
            first: its first latent frame is the very first of the stream.
            group: pictures of every other latent frame.
        """
        single = first or self.vae_chunks == "independent"
        return self.latent_frames * group - (group - 1) * single


class CardTable(Protocol):
    """The part of a card's reader that is used here."""

    def text(self, key: str, among: tuple[str, ...] = ()) -> str: ...
    def boolean(self, key: str, default: bool | None = None) -> bool: ...
    def count(self, key: str) -> int: ...
    def numbers(self, key: str) -> tuple[float, ...]: ...
    def has(self, key: str) -> bool: ...
    def refuse(self, key: str, problem: str) -> Exception: ...
    def done(self) -> None: ...


def read_realtime(table: CardTable) -> RealtimeFigures:
    """The table `[realtime]` of a card.

    Raises:
        InvalidRequestError: a key or a value that makes no sense.
    """
    plain = RealtimeFigures()
    steps = tuple(int(number) for number in table.numbers("steps"))
    figures = RealtimeFigures(
        layout=table.text("layout", LAYOUTS),
        context=table.count("context") if table.has("context") else plain.context,
        latent_frames=(
            table.count("latent_frames") if table.has("latent_frames") else plain.latent_frames
        ),
        stages=len(steps),
        steps=steps,
        vae_chunks=table.text("vae_chunks", VAE_CHUNKS),
        sampler=table.text("sampler", LIVE_SAMPLERS),
        trained=table.boolean("trained"),
        conditions=(
            table.text("conditions", CONTINUATION_CONDITIONS)
            if table.has("conditions")
            else plain.conditions
        ),
        paints=table.boolean("paints", default=False),
        context_noise=table.boolean("context_noise", default=False),
        crossfade=table.count("crossfade") if table.has("crossfade") else plain.crossfade,
        memory=table.text("memory", MEMORIES) if table.has("memory") else plain.memory,
    )
    table.done()
    if min(figures.steps) < 1 or figures.stages > 4:
        raise table.refuse("steps", f"must be 1 to 4 positive numbers, got {list(steps)}")
    return figures
