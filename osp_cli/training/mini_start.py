"""Where the embedded transformer starts: at a still clip of its picture, found by hand.

A model of this size has no pretrained parent to start from, and finding out how to copy a picture
costs it most of a short training. That part has a closed form, so it is written into the weights
before the first step; what is left to learn is what moves and how it is painted. The maps that
bring image tokens to the first block stay as they are (a step there moves the whole picture, since
their hidden units sit far up on a GELU); every other weight is free.

The velocity of a still clip is v = (z + phi - x) / t with x = s. The start computes it exactly
where the image tokens are there: the patch embedding passes the shifted latents through, the
cross-attention of the first block finds the image token at its own place (both know their sine
coordinates) and subtracts (k + 1) s, and the exit's modulation divides by t. Constant channels
beside the content keep the layer norms from measuring it.

Channels, in order: the content (t times the velocity), a copy of s for later blocks to paint and to
move, position features with both signs, free ones, 16 constants.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from osp_cli.conditioning.image_tokens import POSITION_FEATURES
from osp_cli.conditioning.vlm import QwenVLConditioner
from osp_cli.models.adapter import FeatureAdapter
from osp_cli.models.latent_projector import LatentProjector
from osp_cli.models.transformer_flash_i2v import FlashI2VTransformer3DModel

# phi(s) = -k s at the start, and k = 0 is the paper's own. Any other k has to be taken out again,
# which a model that is not sure of s does with the mean over frames: that mean holds the noise's
# mean too, and the clip keeps it (15 dB after training with k = 1, from 27 dB at the start).
PROJECTION_GAIN = 0.0

_POSITION_SCALE = 6.0
_CONSTANT = 14.0
_COPY_SCALE = 0.5  # small beside the constants, so that norms hardly see it
_TOKEN_SCALE = 0.2  # keeps tokens where a shifted GELU is straight
_GELU_BIAS = 5.0
_ATTENTION_SCALE = 2.24  # squared: a neighbouring token gets e^-6 of the right one's weight
_LATER_SCALE = 1.3  # e^-2: later blocks look around themselves, to learn where to look
_TIME_SCALE = 0.5
_SMALLEST_TIME = 0.06


@torch.no_grad()
def start_as_still(model: FlashI2VTransformer3DModel, conditioner: QwenVLConditioner) -> None:
    """Writes the start into a model and its adapters.

    Raises:
        ValueError: the geometry has no room: the width must hold a patch twice, two channels for
            each position feature and 16 constants, and positions must be those of image tokens.
    """
    content = model.config.in_channels * model.config.patch_size[1] * model.config.patch_size[2]
    width = model.proj_out.in_features
    positions = model.config.position_channels
    if 2 * (content + positions) + 16 > width or model.config.text_dim != width:
        raise ValueError(f"width {width} cannot hold 2 * ({content} + {positions}) + 16 channels")
    if positions * 2 // 3 != POSITION_FEATURES:
        raise ValueError(f"position_channels must be {POSITION_FEATURES * 3 // 2}, got {positions}")
    start_as_identity(model.learnable_proj, PROJECTION_GAIN)
    _start_embedding(model, content)
    _start_blocks(model)
    _start_lookup(model, content)
    _start_reading(model, content)
    _start_exit(model, content)
    assert conditioner.image_adapter is not None
    _pass_through(conditioner.image_adapter.fc1, conditioner.image_adapter.fc2, content, True)
    embedder = model.condition_embedder.text_embedder
    _pass_through(embedder.linear_1, embedder.linear_2, content, False)
    _keep_clear(conditioner.adapter, content + POSITION_FEATURES)
    conditioner.image_adapter.requires_grad_(False)
    embedder.requires_grad_(False)


def start_as_identity(projector: LatentProjector, gain: float) -> None:
    """phi(s) = -gain s exactly, since silu(x) - silu(-x) = x.

    The paper starts from phi = 0 to keep a pretrained parent's distribution; here there is none.
    """
    first, last = projector.proj[0], projector.proj[2]
    channels = first.in_channels
    if first.out_channels < 2 * channels:
        raise ValueError(f"the identity needs {2 * channels} projection channels")
    centre = tuple(size // 2 for size in first.kernel_size)
    with torch.no_grad():
        first.weight.mul_(0.1)
        for parameter in (first.bias, last.weight, last.bias):
            nn.init.zeros_(parameter)
        for channel in range(channels):
            for row, sign in ((channel, 1.0), (channels + channel, -1.0)):
                first.weight[row] = 0.0
                first.weight[(row, channel, *centre)] = sign
                last.weight[(channel, row, *centre)] = -gain * sign


def _start_embedding(model: FlashI2VTransformer3DModel, content: int) -> None:
    """Content unchanged, then each position feature with both signs, then 16 constants."""
    embedding, positions = model.patch_embedding, model.position_embedding
    for parameter in (embedding.weight, embedding.bias, positions.weight, positions.bias):
        nn.init.zeros_(parameter)
    embedding.weight.flatten(1)[:content] = torch.eye(content)
    embedding.bias[-16:-8] = _CONSTANT
    embedding.bias[-8:] = -_CONSTANT
    for feature in range(positions.in_features):
        # Both signs: their sum is zero, so the layer norm's mean stays where it is.
        positions.weight[2 * (content + feature), feature] = _POSITION_SCALE
        positions.weight[2 * (content + feature) + 1, feature] = -_POSITION_SCALE


def _start_blocks(model: FlashI2VTransformer3DModel) -> None:
    """Every branch is there but adds nothing yet; gates are open, so that gradients reach it."""
    nn.init.normal_(model.condition_embedder.time_proj.weight, std=0.02)
    nn.init.zeros_(model.condition_embedder.time_proj.bias)
    for block in model.blocks:
        nn.init.zeros_(block.scale_shift_table)
        block.scale_shift_table[:, 2] = 1.0
        block.scale_shift_table[:, 5] = 1.0
        for layer in (block.attn1.to_out[0], block.attn2.to_out[0], block.ffn.net[2]):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)


def _start_lookup(model: FlashI2VTransformer3DModel, content: int) -> None:
    """Every block may look at the picture at its own place; the first acts on what it finds."""
    size = model.config.attention_head_dim
    heads = -(-content // size)
    for number, block in enumerate(model.blocks):
        scale = _LATER_SCALE if number else _ATTENTION_SCALE
        _look_at_own_place(block.attn2, content, heads, size, scale)
    written = model.blocks[0].attn2.to_out[0].weight
    channels = torch.arange(content)
    written[channels, channels] = -(PROJECTION_GAIN + 1) / _TOKEN_SCALE
    written[channels + content, channels] = _COPY_SCALE / _TOKEN_SCALE


def _look_at_own_place(
    attention: nn.Module, content: int, heads: int, size: int, scale: float
) -> None:
    """Queries and keys of some heads are the plane features of both sides, values the picture."""
    used = heads * size
    for layer in (attention.to_q, attention.to_k):
        nn.init.normal_(layer.weight[:used], std=1e-3)
        nn.init.zeros_(layer.bias[:used])
    for head in range(heads):
        for feature in range(min(POSITION_FEATURES, size)):
            row = head * size + feature
            attention.to_q.weight[row, 2 * (content + feature)] = 0.5
            attention.to_q.weight[row, 2 * (content + feature) + 1] = -0.5
            attention.to_k.weight[row, content + feature] = 1.0
    nn.init.constant_(attention.norm_q.weight[:used], scale)
    nn.init.constant_(attention.norm_k.weight[:used], scale)
    attention.to_v.weight[:content] = 0.0
    attention.to_v.weight[:content, :content] = torch.eye(content)
    nn.init.zeros_(attention.to_v.bias)


def _start_reading(model: FlashI2VTransformer3DModel, content: int) -> None:
    """Feed-forward layers read the picture's copy at full size, the constants faintly.

    After a norm the copy is an eighth of what it was and the constants are the largest of all; left
    so, every hidden unit would sit where the constants put it and bend for nothing.
    """
    positions = 2 * model.config.position_channels
    for block in model.blocks:
        weight = block.ffn.net[0].proj.weight
        weight[:, :content] *= 2.0
        weight[:, content : 2 * content] *= 8.0
        weight[:, 2 * content : 2 * content + positions] *= 0.3
        weight[:, -16:] *= 0.3


def _start_exit(model: FlashI2VTransformer3DModel, content: int) -> None:
    """v = content / t, by the modulation of the last norm."""
    positions = model.config.position_channels
    embedder = model.condition_embedder.time_embedder
    shared = torch.cat(
        [torch.arange(content), torch.arange(-16, 0) + embedder.linear_2.out_features]
    )
    time_row, offset = _fit_reciprocal(model)
    embedder.linear_2.weight[shared] = time_row
    embedder.linear_2.bias[shared] = offset
    # The block modulations read the time from the other channels, which are not stretched.
    model.condition_embedder.time_proj.weight[:, shared] = 0.0
    nn.init.zeros_(model.scale_shift_table)
    # The squares of a sine and a cosine sum to one; each feature is there twice.
    constants = positions * _POSITION_SCALE**2 + 16 * _CONSTANT**2
    norm = ((constants + 200.0) / model.proj_out.in_features) ** 0.5
    weight = torch.zeros_like(model.proj_out.weight)
    patches = content // model.config.out_channels
    for channel in range(content):
        # Content is (channel, patch), the exit is (patch, channel).
        row = channel % patches * model.config.out_channels + channel // patches
        weight[row, channel] = norm / _TIME_SCALE
        # Scale and shift share the time embedding: the constants cancel the shift.
        weight[row, -16:] = -norm / _TIME_SCALE / 16
    model.proj_out.weight.copy_(weight)
    nn.init.zeros_(model.proj_out.bias)


def _fit_reciprocal(model: FlashI2VTransformer3DModel) -> tuple[Tensor, Tensor]:
    """Weights of one time channel, `_TIME_SCALE / t - 1`, by ridge regression on its features."""
    embedder = model.condition_embedder
    time = torch.linspace(0.02, 1.0, 2000)
    features = embedder.timesteps_proj(time * 1000).float()
    features = nn.functional.silu(embedder.time_embedder.linear_1(features))
    target = _TIME_SCALE / time.clamp_min(_SMALLEST_TIME) - 1
    design = torch.cat([features, torch.ones(len(time), 1)], 1).double()
    weight = 1 / (target.double() + 1)  # relative accuracy counts
    design, wanted = design * weight[:, None], target.double() * weight
    gram = design.T @ design + 1e-5 * torch.eye(design.shape[1], dtype=torch.float64)
    solution = torch.linalg.solve(gram, design.T @ wanted).float()
    return solution[:-1], solution[-1]


def _pass_through(first: nn.Linear, last: nn.Linear, content: int, scale: bool) -> None:
    """Content and plane features pass a GELU where it is straight; the other channels are free."""
    used = content + POSITION_FEATURES
    first.weight[:used] = 0.0
    first.weight[:used, :used] = torch.eye(used)
    if scale:
        first.weight[:content, :content] *= _TOKEN_SCALE
    first.bias[:used] = _GELU_BIAS
    last.weight[:used] = 0.0
    last.weight[:used, :used] = torch.eye(used)
    last.weight[used:, :used] = 0.0
    last.bias[:used] = -_GELU_BIAS


def _keep_clear(adapter: FeatureAdapter, used: int) -> None:
    """Language stays out of the channels in which the picture travels, until it learns better."""
    adapter.fc2.weight[:used] = 0.0
    adapter.fc2.bias[:used] = 0.0
