"""The models that are in memory, kept from one clip to the next."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from osp_cli.dials import LoraChoice
from osp_cli.events import Loaded
from osp_cli.pipelines.flash_i2v import (
    Conditions,
    FlashI2VPipeline,
    Sampling,
    SamplingInputs,
    SamplingState,
)
from osp_cli.plan import Plan
from osp_cli.realtime_card import RealtimeFigures
from osp_cli.registry import ModelSpec
from osp_cli.runtime.companions import touching
from osp_cli.runtime.loading import PARTS, load_parts
from osp_cli.runtime.loading_wan import make_pipeline

if TYPE_CHECKING:
    from osp_cli.pipelines.realtime import RealtimePipeline
    from osp_cli.runtime.parallel import Leader, SharedSampling

# Parts that turn prompt and picture into conditions; nobody needs them after that.
CONDITIONING = tuple(name for name in PARTS if name != "transformer")
SAMPLING = ("transformer", "vae")
DECODING = ("vae",)


class Models:
    """Loads what a clip needs and keeps it, until a clip needs another model or the memory.

    Where a plan frees parts, only those of the present stage are kept. They come back from the
    files, which the system holds in memory as long as it has some to spare.

    Args:
        leader: of the processes that share a clip with this one, if there are any.
    """

    def __init__(self, leader: Leader | None = None) -> None:
        self._leader = leader
        self._key: tuple[object, ...] = ()
        # Those that each part was loaded with.
        self._loras: dict[str, tuple[LoraChoice, ...]] = {}
        self._parts: dict[str, Any] = {}
        self._spec: ModelSpec | None = None
        self._folder: Path | None = None

    def load(
        self, spec: ModelSpec, plan: Plan, folder: Path, names: tuple[str, ...] = PARTS
    ) -> Iterator[Loaded]:
        """Bring the named parts into memory; yields a `Loaded` for each that was not there.

        Args:
            spec: the card.
            plan: of the clip.
            folder: of the weights.
            names: parts of the next stage. Where the plan keeps all parts, all of them are loaded.

        Raises:
            CheckpointError: files are damaged or do not belong to this card.
            InvalidRequestError: a LoRA does not fit.
        """
        key = (_as_loaded(spec), str(folder), _way(plan))
        if key != self._key:
            # Before the next one is loaded: two large models at once would not fit.
            self.drop()
            self._key = key
        # Latents are decoded without them, even where they are here no more.
        wanted = {} if names == DECODING else touching(plan.loras)
        # They are part of a part's weights; those that they do not touch stay as they are.
        for name in names:
            if wanted.get(name, ()) != self._loras.get(name, ()):
                self._loras[name] = wanted.get(name, ())
                self._keep(tuple(self._parts.keys() - {name}))
        self._spec, self._folder = spec, folder
        if plan.frees_parts:
            self._keep(names)
        if plan.gpus > 1 and self._leader is not None and names != DECODING:
            # They begin now, so that nobody waits for them later.
            self._leader.load(spec, plan, folder)
        missing = [name for name in names if name not in self._parts]
        for loaded, part in load_parts(spec, plan, folder, missing):
            self._parts[loaded.component] = part
            yield loaded
        if "vae" in self._parts:
            set_tiling(self._parts["vae"], plan.vae_tiling)

    def drop(self) -> None:
        """Let go of everything."""
        self._key = ()
        self._keep(())

    @property
    def is_lost(self) -> bool:
        """Whether other devices wait for ever, so that nothing more can be shared with them."""
        return self._leader is not None and self._leader.is_lost

    @property
    def vae(self) -> Any:
        """The autoencoder."""
        return self._parts["vae"]

    @property
    def pipeline(self) -> FlashI2VPipeline:
        """A pipeline of the parts that are there; its stages need theirs."""
        assert self._spec is not None
        return make_pipeline(self._spec, self._parts)

    def stream_pipeline(self, figures: RealtimeFigures) -> RealtimePipeline:
        """A pipeline of the parts that are there, for videos that go on and on.

        Args:
            figures: of the card, with what the user changed of them.
        """
        # Only here: clips do not wait for the import.
        from osp_cli.runtime.loading_streams import make_stream_pipeline

        assert self._spec is not None and self._folder is not None
        return make_stream_pipeline(self._spec, self._parts, self._folder, figures)

    def sampling(
        self,
        plan: Plan,
        inputs: SamplingInputs,
        conditions: Conditions,
        state: SamplingState | None,
    ) -> AbstractContextManager[Sampling | SharedSampling]:
        """The pipeline's `sampling`, on as many devices as the plan says.

        Raises:
            ValueError: that is more than one, and there is no process for the others.
        """
        pipeline = self.pipeline
        if plan.gpus == 1:
            return pipeline.sampling(inputs, conditions, state)
        if self._leader is None:
            raise ValueError("several devices take several processes: run_together starts them")
        return self._leader.sampling(pipeline, inputs, conditions, state)

    def _keep(self, names: tuple[str, ...]) -> None:
        gone = self._parts.keys() - {*names}
        for name in gone:
            del self._parts[name]
        if gone:
            # Modules and their hooks refer to each other.
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()


def set_tiling(vae: Any, tiled: bool) -> None:
    """Of an autoencoder that can; the small one works frame by frame anyway."""
    if hasattr(vae, "use_tiling"):
        vae.enable_tiling() if tiled else vae.disable_tiling()


def _way(plan: Plan) -> tuple[object, ...]:
    """What of a plan shows in the parts."""
    return (
        *(plan.device, plan.dtype, plan.offload, plan.quant, plan.pinned, plan.streamed),
        *(plan.attention, plan.compile and plan.cache),
    )


def _as_loaded(spec: ModelSpec) -> ModelSpec:
    """The card without what only says how to sample: cards may share their weights."""
    return replace(
        spec,
        name="",
        title="",
        description="",
        defaults={},
        teacache=None,
        no_teacache="",
        magcache=None,
        realtime=None,
    )
