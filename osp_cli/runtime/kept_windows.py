"""The finished windows of a long video on the disk, until it is whole.

A folder beside the output holds the recipe, and one safetensors file for each window with the
latent frames that it added. Every file appears whole or not at all, so whatever ends a run, the
next one goes on from the first window that is missing.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from osp_cli.errors import UnreadableMediaError
from osp_cli.media.files import atomic_output, explained, make_folder
from osp_cli.media.frame_folder import RECIPE_NAME
from osp_cli.media.recipes import canonical_json, read_recipe
from osp_cli.pipelines.restyle import Window
from osp_cli.runtime.replay import same_clip, unfinished_work

_NAME = "window-{:05d}.safetensors"
# What may be in the folder that is ours, with what a killed process was writing.
_OURS = ("window-*.safetensors", ".window-*", f".{RECIPE_NAME}.*", RECIPE_NAME)


class KeptWindows:
    """The folder of one video.

    Args:
        folder: it is made when the first window is kept.
        recipe: of the video.
        windows: all there will be.
        overwrite: what is there of another video may be replaced.
        dtype: of the latents on the disk, from which the video is made in any case.

    Raises:
        InvalidRequestError: windows of another video are in the way.

    Attributes:
        folder: as given.
        count: how many windows are kept, from the first on without a gap.
        damaged: the first window that is there but cannot be used, counted from 1; or None.
    """

    def __init__(
        self,
        folder: Path,
        recipe: Mapping[str, Any],
        windows: Sequence[Window],
        *,
        overwrite: bool,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.folder = folder
        self.count = 0
        self.damaged: int | None = None
        self._recipe = recipe
        self._windows = tuple(windows)
        self._is_stale = False
        self._dtype = dtype
        if not folder.exists():
            return
        if not self._is_mine():
            if not overwrite:
                raise unfinished_work(folder)
            # Not before there is something to put in its place.
            self._is_stale = True
            return
        while self.count < len(windows) and self._path(self.count).exists():
            try:
                self.latents(self.count)
            except UnreadableMediaError:
                self.damaged = self.count + 1
                break
            self.count += 1

    def add(self, latents: Tensor) -> None:
        """Keep the next window.

        Args:
            latents: the frames that it adds to what was known,
                `(1, channels, latent frames, h, w)`.

        Raises:
            InvalidRequestError: the folder may not be written to.
            WontFitError: the disk is full.
        """
        if not self.count:
            if self._is_stale:
                self.discard()
            with explained(self.folder):
                self.folder.parent.mkdir(parents=True, exist_ok=True)
            make_folder(self.folder)
            with atomic_output(self.folder / RECIPE_NAME, overwrite=True) as part:
                part.write_text(canonical_json(self._recipe, indent=2) + "\n", "utf-8")
        data = save({"latents": latents.to(self._dtype).cpu().contiguous()})
        with atomic_output(self._path(self.count), overwrite=True) as part:
            part.write_bytes(data)
        self.count += 1

    def latents(self, index: int) -> Tensor:
        """What window `index`, counted from 0, added.

        Raises:
            UnreadableMediaError: it is missing or damaged.
        """
        path, window = self._path(index), self._windows[index]
        try:
            latents = load_file(path)["latents"]
        except (OSError, SafetensorError, KeyError) as error:
            raise UnreadableMediaError(f"{path} is damaged or gone: {error}") from error
        if latents.ndim != 5 or latents.shape[2] != window.num_frames - window.known:
            raise UnreadableMediaError(f"{path} is damaged: it has another number of frames")
        return latents.float()

    def known(self, like: Tensor) -> Tensor:
        """The latent frames that the next window knows, as many as that says; none of none.

        Args:
            like: latents of that window.
        """
        wanted = self._windows[self.count].known
        if not wanted:
            return like[:, :, :0]
        parts: list[Tensor] = []
        for index in reversed(range(self.count)):
            parts.insert(0, self.latents(index))
            if sum(part.shape[2] for part in parts) >= wanted:
                break
        return torch.cat(parts, 2)[:, :, -wanted:].to(like.device)

    def all_latents(self) -> Iterator[Tensor]:
        """The video's latents in order, one window at a time."""
        yield from map(self.latents, range(self.count))

    def discard(self) -> None:
        """Remove what is ours; anything else that lies there stays, with its folder."""
        with explained(self.folder):
            for pattern in _OURS:
                for path in self.folder.glob(pattern):
                    path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.folder.rmdir()
        self.count, self._is_stale = 0, False

    def _is_mine(self) -> bool:
        if not (self.folder / RECIPE_NAME).exists():
            # Made, and killed before it held anything.
            return self.folder.is_dir() and not any(self.folder.glob("[!.]*"))
        recipe = read_recipe(self.folder)
        # As it reads when it has been a file.
        mine = json.loads(canonical_json(self._recipe))
        return recipe is not None and same_clip(recipe, mine)

    def _path(self, index: int) -> Path:
        return self.folder / _NAME.format(index + 1)
