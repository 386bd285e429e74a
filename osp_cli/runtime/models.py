"""The models that are in memory, kept from one clip to the next."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from osp_cli.events import Loaded
from osp_cli.pipelines.flash_i2v import FlashI2VPipeline
from osp_cli.plan import Plan
from osp_cli.registry import ModelSpec
from osp_cli.runtime.loading import PARTS, load_parts


class Models:
    """Loads what a clip needs and keeps it, until a clip needs another model."""

    def __init__(self) -> None:
        self._key: tuple[object, ...] = ()
        self._parts: dict[str, Any] = {}
        self._surround = 0

    def load(
        self, spec: ModelSpec, plan: Plan, folder: Path, names: tuple[str, ...] = PARTS
    ) -> Iterator[Loaded]:
        """Bring the named parts into memory; yields a `Loaded` for each that was not there.

        Raises:
            CheckpointError: files are damaged or do not belong to this card.
        """
        key = (_as_loaded(spec), str(folder), plan.device, plan.dtype)
        if key != self._key:
            # Before the next one is loaded: two large models at once would not fit.
            self._key, self._parts = key, {}
        self._surround = spec.image_token_surround
        missing = [name for name in names if name not in self._parts]
        for loaded, part in load_parts(spec, plan, folder, missing):
            self._parts[loaded.component] = part
            yield loaded

    @property
    def vae(self) -> Any:
        """The autoencoder."""
        return self._parts["vae"]

    @property
    def pipeline(self) -> FlashI2VPipeline:
        """A pipeline of all parts."""
        transformer, vae, conditioner = (self._parts[name] for name in PARTS)
        return FlashI2VPipeline(transformer, vae, conditioner, self._surround)


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
    )
