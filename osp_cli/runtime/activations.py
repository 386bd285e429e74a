"""What a stage of a run needs beside weights: formulas of its largest intermediate results.

The constants are those of the largest sum of live tensors, traced on the shapes of Wan 1.3B, Wan
14B, their autoencoder and text encoders at 448x256 to 1280x720 pixels and 1 to 81 frames; every
formula lies above the trace, by at most a tenth or 0.1 GB, but for encoding five frames in one go
(`tests/benchmarks/activations.py`).
"""

from __future__ import annotations

from dataclasses import dataclass

from osp_cli.registry import ModelSpec
from osp_cli.runtime.sizes import DTYPE_BYTES, TransformerShape

# Queries, keys, values and their rotations, with the modulated hidden states in single precision;
# and the two sides of the feed-forward layer with the hidden states around it. Per channel.
_ATTENTION_BYTES = {2: 23.0, 4: 39.0}
_FEED_FORWARD_BYTES = {2: 9.5, 4: 18.0}
# What steers the blocks, six numbers a channel, for every token by itself: where clean tokens stand
# beside noise, as in streams. Per channel, on top of either of the two.
_TOKENWISE_BYTES = {2: 43.0, 4: 54.0}
# The conditioning's rows, per channel: embedded, and as keys and values.
_CONTEXT_BYTES = 16.0
# The small model's passes are measured to need no more than this per token.
_LEAST_BYTES_PER_TOKEN = 60_000
# Wan's autoencoder in single precision, per pixel: encoding one frame, or more of them at once;
# decoding one, or more of them, which grows them in time. A tile of 256 pixels needs as much.
_WAN_ENCODE, _WAN_ENCODE_CLIP = 3_900, 14_200
_WAN_DECODE_ONE, _WAN_DECODE = 7_000, 19_700
_WAN_TILE_PIXELS = 256 * 256
# What is read, the finished rows of tiles, and these when they are joined; per pixel of all frames.
_WAN_FRAME, _WAN_TILE_ROWS, _WAN_TILES_JOINED = 13, 18.5, 57
# Rows of a picture as CLIP sees it.
_CLIP_ROWS = 257
# Reading 512 tokens by umT5, or 1024 by Qwen2.5-VL 7B.
_READING = 160_000_000
# The small autoencoder's.
_LINEAR_ENCODE = 200
# Per pixel of all frames of a clip, when they are encoded at once; 24 are measured.
_LINEAR_ENCODE_CLIP = 30
# The finished pictures: in single precision, while they are scaled, rounded and made bytes.
_PICTURE_BYTES = 3 * 4 * 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Activations:
    """Bytes beside the weights, stage by stage.

    Attributes:
        condition: reading the prompt, and encoding the first frame.
        condition_tiled: the same, the frame in tiles.
        sampling: one pass of the transformer, and what is kept from step to step.
        decode: the whole clip in one piece.
        decode_tiled: the same in tiles.
    """

    condition: int
    condition_tiled: int
    sampling: int
    decode: int
    decode_tiled: int


def activations(
    spec: ModelSpec,
    shape: TransformerShape | None,
    *,
    size: tuple[int, int],
    num_frames: int,
    tokens: int,
    dtype: str,
    passes_per_step: int,
    cache: str,
    gpus: int = 1,
    tokenwise: bool = False,
) -> Activations:
    """What each stage of one clip needs.

    Args:
        spec: the card.
        shape: of the transformer; None where nothing is known of it.
        size: width, height in pixels.
        num_frames: of the clip.
        tokens: of the transformer's sequence.
        dtype: that the transformer computes in.
        passes_per_step: of the transformer.
        cache: kind of the step cache; each keeps hidden states of every pass.
        gpus: devices among which the tokens are shared out; the figures are those of the first,
            which does everything else alone.
        tokenwise: each token has a timestep of its own.
    """
    pixels = size[0] * size[1]
    is_wan = spec.vae_class == "AutoencoderKLWan"
    per_token = 0.0 if is_wan and shape is not None else float(_LEAST_BYTES_PER_TOKEN)
    kept = 0
    if shape is not None:
        width = DTYPE_BYTES[dtype]
        per_token = max(
            per_token,
            _ATTENTION_BYTES[width] * shape.width,
            2 * width * shape.ffn + _FEED_FORWARD_BYTES[width] * shape.width,
        )
        if tokenwise:
            per_token += _TOKENWISE_BYTES[width] * shape.width
        rows = spec.max_sequence_length + (_CLIP_ROWS if spec.pipeline == "wan-i2v" else 0)
        kept = int(_CONTEXT_BYTES * rows * shape.width)
        # The old ones stay until the step that makes the new ones is whole.
        copies = {"none": 0, "fbcache": 4}.get(cache, 2)
        kept += copies * passes_per_step * tokens * shape.width * width
    cells = -(-pixels // spec.scale_factor_spatial**2)
    latents = 4 * spec.latent_channels * cells * (1 + (num_frames - 1) // 4)
    pictures = pixels * num_frames * _PICTURE_BYTES
    sampling = _shared(tokens, per_token, kept, shape, dtype, gpus) + 8 * latents
    if not is_wan:
        return Activations(
            condition=pixels * _LINEAR_ENCODE,
            condition_tiled=pixels * _LINEAR_ENCODE,
            sampling=sampling,
            # On the host, what sampling took is not given back before the end.
            decode=pictures + sampling,
            decode_tiled=pictures + sampling,
        )
    # I2V cards encode the first frame with as many empty ones behind it.
    read = num_frames if spec.pipeline == "wan-i2v" else 1
    encode = _WAN_ENCODE if read == 1 else _WAN_ENCODE_CLIP
    decode = _WAN_DECODE_ONE if num_frames == 1 else _WAN_DECODE
    tile = min(pixels, _WAN_TILE_PIXELS)
    given = pixels * read * _WAN_FRAME
    finished = int(pixels * num_frames * _WAN_TILE_ROWS)
    return Activations(
        condition=max(pixels * encode + given, _READING),
        condition_tiled=max(tile * encode + given, _READING),
        sampling=sampling,
        decode=max(pixels * decode + pixels * num_frames * 12, pictures),
        decode_tiled=max(tile * decode + finished, pixels * num_frames * _WAN_TILES_JOINED),
    )


def clip_encoding(spec: ModelSpec, size: tuple[int, int], num_frames: int) -> tuple[int, int]:
    """What it takes to encode all frames of a clip: in one piece, and in tiles."""
    pixels = size[0] * size[1]
    given = pixels * num_frames * _WAN_FRAME
    if spec.vae_class != "AutoencoderKLWan":
        whole = pixels * (num_frames * _LINEAR_ENCODE_CLIP + _LINEAR_ENCODE)
        return whole, whole
    per_pixel = _WAN_ENCODE if num_frames == 1 else _WAN_ENCODE_CLIP
    return pixels * per_pixel + given, min(pixels, _WAN_TILE_PIXELS) * per_pixel + given


def reading() -> int:
    """What it takes to read a caption, beside the encoder's weights."""
    return _READING


def _shared(
    tokens: int, per_token: float, kept: int, shape: TransformerShape | None, dtype: str, gpus: int
) -> int:
    """Of one pass and of what step caches keep, the part of each device."""
    if gpus == 1:
        return int(tokens * per_token) + kept
    # Every device embeds all tokens, adds what they are told, and then keeps its share; the whole
    # is let go of behind the first block.
    whole = 0 if shape is None else tokens * shape.width * DTYPE_BYTES[dtype]
    share = -(-tokens // gpus)
    return max(4 * whole, int(share * per_token) + whole) + -(-kept // gpus)
