"""What a stream is made of: its settings, what it reads, and where it stands."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from osp_cli.sampling.step_cache import NoCacheConfig, StepCacheConfig

_MEMORY = "memory."  # before the names of what a model keeps


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamInputs:
    """What stays the same over a whole stream.

    Attributes:
        width, height: in pixels.
        latent_frames: noise latent frames of each chunk.
        num_inference_steps: at each resolution, one number for each.
        guidance_scale: above 1, each step takes a second pass with the negative prompt.
        shift: of the sampler's grid; that of several trained stages follows from their sizes.
        sampler: `dmd`, `euler` or `unipc`.
        seed: of all noise, drawn on the CPU so that devices agree on it.
        step_cache: what may be skipped within a chunk.
        amplify_first: the first chunk takes twice its steps, where the model has trained stages.
    """

    width: int
    height: int
    latent_frames: int = 9
    num_inference_steps: tuple[int, ...] = (4,)
    guidance_scale: float = 1.0
    shift: float = 5.0
    sampler: str = "dmd"
    seed: int = 0
    step_cache: StepCacheConfig = field(default_factory=NoCacheConfig)
    amplify_first: bool = True

    def __post_init__(self) -> None:
        if not self.num_inference_steps or min(self.num_inference_steps) < 1:
            raise ValueError(f"every stage needs a step, got {self.num_inference_steps}")
        if self.latent_frames < 1:
            raise ValueError(f"a chunk needs latent frames, got {self.latent_frames}")

    @property
    def stages(self) -> int:
        """Resolutions that a chunk passes."""
        return len(self.num_inference_steps)


@dataclass(frozen=True, slots=True)
class Words:
    """What the model reads of a prompt; the same for every chunk until another is said.

    Attributes:
        cond: rows of the prompt, `(1, length, text_dim)`.
        uncond: rows of the negative prompt; None without guidance.
    """

    cond: Tensor
    uncond: Tensor | None = None

    def blend(self, other: Words, share: float) -> Words:
        """On the way from these words to others.

        Args:
            other: of the same model.
            share: 0 is all these, 1 all the others; between, rows lie on a straight line.

        Raises:
            ValueError: a share outside of [0, 1], or guidance in only one of them.
        """
        if not 0 <= share <= 1:
            raise ValueError(f"a share lies in [0, 1], got {share}")
        if (self.uncond is None) != (other.uncond is None):
            raise ValueError("words with and without guidance cannot be blended")
        if share in (0, 1):
            return other if share else self
        uncond = None
        if self.uncond is not None and other.uncond is not None:
            uncond = torch.lerp(self.uncond, other.uncond, share)
        return Words(torch.lerp(self.cond, other.cond, share), uncond)


@dataclass(frozen=True, slots=True)
class StreamState:
    """A stream between two chunks.

    With the same inputs and words, it is all that is needed to go on bit-exactly.

    Attributes:
        chunk: how many are done.
        history: the newest clean latents, `(1, channels, n, h, w)` fp32, newest last; at most as
            many as the model looks back, none before anything is known.
        sink: the stream's very first latent frame, `(1, channels, 1, h, w)`; None before it is
            known.
        generator: state of the random numbers, as `torch.Generator.get_state` gives it.
        memory: of a model that keeps more than latents, by name; of all others empty.
    """

    chunk: int
    history: Tensor
    sink: Tensor | None
    generator: Tensor
    memory: Mapping[str, Tensor] = field(default_factory=dict)

    def tensors(self) -> dict[str, Tensor]:
        """All of it for safetensors, on the CPU; the counterpart of `from_tensors`."""
        tensors = {
            "chunk": torch.tensor(self.chunk),
            "history": self.history,
            "generator": self.generator,
        }
        if self.sink is not None:
            tensors["sink"] = self.sink
        tensors |= {f"{_MEMORY}{name}": tensor for name, tensor in self.memory.items()}
        return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> StreamState:
        """The state of which these are the `tensors`.

        Raises:
            ValueError: something is missing, or not what it should be.
        """
        try:
            state = cls(
                int(tensors["chunk"].item()),
                tensors["history"],
                tensors.get("sink"),
                tensors["generator"],
                {
                    name.removeprefix(_MEMORY): tensor
                    for name, tensor in tensors.items()
                    if name.startswith(_MEMORY)
                },
            )
        except (KeyError, RuntimeError) as error:
            raise ValueError(f"the state of a stream lacks {error}") from error
        if state.chunk < 0 or state.history.ndim != 5 or state.generator.dtype != torch.uint8:
            raise ValueError("the state of a stream is damaged")
        return state
