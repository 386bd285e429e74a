"""Encoded clips, kept on the disk: each is encoded once, whatever it is called and wherever it is.

A file holds what one window became: `latents`, `first` where the clip follows from another picture,
`conditions.*` of its caption and `empty.*` of an empty one. Names of files are made of what went
into them, so nothing that is found here can be out of date.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import zlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from osp_cli.errors import RuntimeFailureError
from osp_cli.media.files import atomic_output, check_free_space, explained
from osp_cli.training.dataset.entries import Window
from osp_cli.training.samples import EncodedClip

_logger = logging.getLogger(__name__)

# Raised when what is kept, or how it is made, changes.
_FORMAT = "osp-clip-1"
_CHECKSUM = "osp.crc32"
_CONDITIONS, _EMPTY = "conditions.", "empty."


def cache_home() -> Path:
    """The folder of encoded clips: `$OSP_HOME/cache/clips` if set."""
    home = os.environ.get("OSP_HOME")
    if home:
        return Path(home).expanduser() / "cache" / "clips"
    import platformdirs  # not needed by most runs: they set it, or a folder of their own

    return Path(platformdirs.user_cache_dir("osp", appauthor=False)) / "clips"


class ClipCache:
    """Encoded clips in a folder, which processes and runs may share.

    Args:
        folder: made when something is written; `cache_home()` if not told.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = cache_home() if folder is None else folder

    def key(
        self,
        window: Window,
        *,
        vae_sha: str,
        conditions_sha: str,
        fps: int,
        stride: int | None = None,
        condition: str = "auto",
        caption: str | None = None,
    ) -> str:
        """What a window is kept under: hex digits that follow from all that goes into it.

        Args:
            vae_sha: of the autoencoder's weights and settings.
            conditions_sha: of whatever makes conditions of a caption and a picture.
            fps, stride: frames are taken so.
            condition: which picture it follows from, of `train_request.CONDITIONS`.
            caption: as it is encoded; the entry's own if not told.
        """
        caption = (window.entry.caption or "") if caption is None else caption
        made_of = [
            *(_FORMAT, window.content, window.source_content, vae_sha, conditions_sha),
            *(list(window.size), window.num_frames, f"{window.start:.6f}", fps, stride),
            *(condition, caption),
        ]
        return hashlib.sha256(json.dumps(made_of).encode()).hexdigest()

    def path(self, key: str) -> Path:
        """Where a clip is, or would be."""
        return self.folder / key[:2] / f"{key}.safetensors"

    def __contains__(self, key: str) -> bool:
        """Whether there is a file; it may be damaged."""
        return self.path(key).is_file()

    def read(self, key: str) -> EncodedClip | None:
        """An encoded clip on the CPU; None where there is none, or none that is whole."""
        path = self.path(key)
        if not path.is_file():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError, ValueError) as error:
            _logger.warning("%s is damaged and will be made again (%s)", path, error)
            return None
        if metadata.get(_CHECKSUM) != _checksum(key, tensors) or "latents" not in tensors:
            _logger.warning("%s is damaged and will be made again", path)
            return None
        latents = tensors["latents"]
        return EncodedClip(
            latents=latents,
            first=tensors.get("first", latents[:, :1]),
            conditions=_named(tensors, _CONDITIONS),
            empty=_named(tensors, _EMPTY),
        )

    def write(self, key: str, clip: EncodedClip) -> int:
        """Keep an encoded clip, latents in bfloat16; its bytes. It appears whole or not at all.

        Raises:
            RuntimeFailureError: it holds numbers that are not finite, which nothing would notice
                again; or the folder disappears.
            InvalidRequestError: the folder may not be written to.
            WontFitError: the disk is full.
        """
        latents = clip.latents.to(torch.bfloat16)
        first = clip.first.to(torch.bfloat16)
        tensors = {"latents": latents}
        # The autoencoder is causal: a clip's own first frame is what its first latent shows.
        if not torch.equal(first.cpu(), latents[:, :1].cpu()):
            tensors["first"] = first
        tensors |= {_CONDITIONS + name: value for name, value in clip.conditions.items()}
        tensors |= {_EMPTY + name: value for name, value in clip.empty.items()}
        # A copy each: the format refuses tensors that share their memory.
        tensors = {
            name: value.detach().to("cpu", copy=True).contiguous()
            for name, value in tensors.items()
        }
        for name, value in tensors.items():
            if value.is_floating_point() and not bool(value.isfinite().all()):
                raise RuntimeFailureError(
                    f"encoding a clip gave numbers that are not finite, in {name}",
                    hint="--dtype float32 has more range",
                )
        path = self.path(key)
        with explained(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_output(path, overwrite=True) as part:
            save_file(tensors, part, metadata={_CHECKSUM: _checksum(key, tensors)})
            return part.stat().st_size

    def check_room(self, needed_bytes: int) -> None:
        """Refuse to begin what will not fit.

        Raises:
            WontFitError: with what is free and what is needed.
        """
        check_free_space(
            self.folder,
            needed_bytes,
            what="the encoded clips",
            hint="--cache-dir names another folder, --windows 1 takes fewer parts of long clips",
        )

    def size_bytes(self) -> int:
        """Of all clips that are kept."""
        return sum(path.stat().st_size for path in self.folder.glob("??/*.safetensors"))


def latent_bytes(
    size: tuple[int, int], num_frames: int, *, channels: int, spatial: int, temporal: int
) -> int:
    """What the latents of a window take: 1.7 MB for 49 frames of 512x512 and Wan's autoencoder."""
    frames = (num_frames - 1) // temporal + 1
    return 2 * channels * frames * (size[0] // spatial) * (size[1] // spatial)


def _named(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }


def _checksum(key: str, tensors: Mapping[str, Tensor]) -> str:
    """Of the key, and of all numbers with their names: a bit that turned over is noticed."""
    total = zlib.crc32(key.encode())
    for name in sorted(tensors):
        value = tensors[name]
        total = zlib.crc32(f"{name}{tuple(value.shape)}{value.dtype}".encode(), total)
        total = zlib.crc32(value.reshape(-1).view(torch.uint8).numpy().data, total)
    return f"{total:08x}"
