"""Endless videos through an autoencoder, piece by piece: what it remembers goes from one to the
next.

For `AutoencoderKLWan`, whose convolutions look back in time, and `AutoencoderLinear`, whose groups
of frames know nothing of each other. What comes out, pushed in any pieces, is what
`encode_latents` and `decode_latents` make of the whole: Wan's own loop takes one latent frame at a
time too, and the same numbers meet there in the same order.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from osp_cli.models.autoencoder_linear import AutoencoderLinear
from osp_cli.models.latents import decode_latents, encode_latents, latent_statistics


class StreamingEncoder:
    """Encodes a video that comes in pieces.

    It shares nothing but weights with the autoencoder: between two pieces, others may encode and
    decode with that as they like.

    Args:
        vae: the autoencoder.

    Raises:
        ValueError: the autoencoder works in tiles, each of which would need a memory of its own.
    """

    def __init__(self, vae: Any) -> None:
        self._vae = vae
        self._stream = _stream_of(vae)
        self._begun = False

    @torch.no_grad()
    def push(self, video: Tensor) -> Tensor:
        """The next frames' normalised latents, fp32.

        Args:
            video: `(batch, 3, frames, height, width)` in [-1, 1]. The first piece has `1 + 4k`
                frames, every other one `4k`.

        Returns:
            `(batch, channels, latent frames, h, w)`, one latent frame for the video's first frame
            and one for every four that follow.

        Raises:
            ValueError: another number of frames.
        """
        vae, group = self._vae, self._vae.config.scale_factor_temporal
        first = 0 if self._begun else 1
        if video.ndim != 5 or (video.shape[2] - first) % group or not video.shape[2]:
            wanted = f"1 + {group}k" if first else f"{group}k"
            raise ValueError(
                f"expected (batch, 3, {wanted} frames, height, width), got {tuple(video.shape)}"
            )
        latents = self._stream.encode(video.to(vae.device, vae.dtype), first=not self._begun)
        self._begun = True
        mean, std = latent_statistics(vae, latents)
        return (latents.float() - mean) / std

    def rest(self) -> None:
        """Keep what is remembered on the host until the next piece comes."""
        self._stream.rest()


class StreamingDecoder:
    """Decodes latents that come in pieces; the counterpart of `StreamingEncoder`.

    Args:
        vae: the autoencoder.

    Raises:
        ValueError: the autoencoder works in tiles, each of which would need a memory of its own.
    """

    def __init__(self, vae: Any) -> None:
        self._vae = vae
        self._stream = _stream_of(vae)
        self._begun = False

    @torch.no_grad()
    def push(self, latents: Tensor) -> Tensor:
        """The next pixels, fp32 in [-1, 1].

        Args:
            latents: normalised, `(batch, channels, latent frames, h, w)`; any number of frames.

        Returns:
            `(batch, 3, frames, height, width)`: one frame for the very first latent frame, four
            for every other one.

        Raises:
            ValueError: no latent frame.
        """
        if latents.ndim != 5 or not latents.shape[2]:
            raise ValueError(
                f"expected (batch, channels, frames, h, w), got {tuple(latents.shape)}"
            )
        vae = self._vae
        latents = latents.to(vae.device, torch.float32)
        mean, std = latent_statistics(vae, latents)
        raw = (latents * std + mean).to(vae.dtype)
        video = self._stream.decode(raw, first=not self._begun)
        self._begun = True
        return video.float().clamp(-1.0, 1.0)

    def warm(self, latents: Tensor) -> None:
        """Be as if these had just been pushed, as far as what comes next depends on them.

        Args:
            latents: that come right before, as `push` takes them; the very first of a stream, or
                enough for what came before them to be forgotten.
        """
        if isinstance(self._stream, _LinearStream):
            self._begun = True
        else:
            self.push(latents)

    def rest(self) -> None:
        """Keep what is remembered on the host until the next piece comes."""
        self._stream.rest()


class PictureEncoder:
    """Encodes every frame of a video as a picture of its own, as if each began a clip.

    Args:
        vae: the autoencoder.
    """

    def __init__(self, vae: Any) -> None:
        self._vae = vae

    def push(self, video: Tensor) -> Tensor:
        """One latent frame for each of the frames; otherwise as of `StreamingEncoder`."""
        latents = encode_latents(self._vae, video[0].transpose(0, 1)[:, :, None])
        return latents[:, :, 0].transpose(0, 1)[None]

    def rest(self) -> None:
        """Nothing is remembered."""


class PictureDecoder:
    """Decodes every latent frame as a picture of its own; the counterpart of `PictureEncoder`.

    Args:
        vae: the autoencoder.
    """

    def __init__(self, vae: Any) -> None:
        self._vae = vae

    def push(self, latents: Tensor) -> Tensor:
        """One frame for each of the latent frames; otherwise as of `StreamingDecoder`."""
        video = decode_latents(self._vae, latents[0].transpose(0, 1)[:, :, None])
        return video[:, :, 0].transpose(0, 1)[None]

    def rest(self) -> None:
        """Nothing is remembered."""


class _Stream(Protocol):
    """One direction of one autoencoder; `first` says that the piece is the very first."""

    def encode(self, video: Tensor, *, first: bool) -> Tensor: ...

    def decode(self, latents: Tensor, *, first: bool) -> Tensor: ...

    def rest(self) -> None: ...


def _stream_of(vae: Any) -> _Stream:
    if isinstance(vae, AutoencoderLinear):
        return _LinearStream(vae)
    if vae.use_tiling:
        raise ValueError("tiles cannot be streamed: each would need a memory of its own")
    return _WanStream(vae)


class _LinearStream:
    """Nothing is remembered but whether the clip has begun."""

    def __init__(self, vae: AutoencoderLinear) -> None:
        self._vae = vae

    def encode(self, video: Tensor, *, first: bool) -> Tensor:
        latents: Tensor = self._vae.encode(video, return_dict=False, first=first)[0].mode()
        return latents

    def decode(self, latents: Tensor, *, first: bool) -> Tensor:
        video: Tensor = self._vae.decode(latents, return_dict=False, first=first)[0]
        return video

    def rest(self) -> None:
        pass


class _WanStream:
    """Wan's own loops over latent frames, with a memory that outlives the call.

    diffusers' `encode` and `decode` clear theirs when they begin and when they end.
    """

    def __init__(self, vae: Any) -> None:
        self._vae = vae
        # Two frames of the input of each convolution in time, None before the first, or the word
        # "Rep" where the very first frame was only repeated.
        self._memory: list[Any] = []

    def encode(self, video: Tensor, *, first: bool) -> Tensor:
        from diffusers.models.autoencoders.autoencoder_kl_wan import patchify

        vae, group = self._vae, self._vae.config.scale_factor_temporal
        if vae.config.patch_size is not None:
            video = patchify(video, patch_size=vae.config.patch_size)
        self._wake(vae.encoder, video.device)
        sizes = [1] * first + [group] * ((video.shape[2] - first) // group)
        pieces = [
            # Alone through its convolution too: how many frames there are may change the last bit.
            vae.quant_conv(vae.encoder(piece, feat_cache=self._memory, feat_idx=[0]))
            for piece in video.split(sizes, dim=2)
        ]
        # The means; deviations are the other half of the channels.
        return torch.cat(pieces, 2).chunk(2, dim=1)[0]

    def decode(self, latents: Tensor, *, first: bool) -> Tensor:
        from diffusers.models.autoencoders.autoencoder_kl_wan import unpatchify

        vae = self._vae
        self._wake(vae.decoder, latents.device)
        pieces = []
        for index, piece in enumerate(latents.split(1, dim=2)):
            very_first = first and index == 0
            piece = vae.post_quant_conv(piece)
            pieces.append(
                vae.decoder(piece, feat_cache=self._memory, feat_idx=[0], first_chunk=very_first)
            )
        video = torch.cat(pieces, 2)
        if vae.config.patch_size is not None:
            video = unpatchify(video, patch_size=vae.config.patch_size)
        return video

    def rest(self) -> None:
        self._memory = [_moved(entry, torch.device("cpu")) for entry in self._memory]

    def _wake(self, coder: Any, device: torch.device) -> None:
        if not self._memory:
            from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d

            places = sum(isinstance(module, WanCausalConv3d) for module in coder.modules())
            self._memory = [None] * places
        self._memory = [_moved(entry, device) for entry in self._memory]


def _moved(entry: Any, device: torch.device) -> Any:
    return entry.to(device) if isinstance(entry, Tensor) else entry
