"""Where the embedded transformer starts: with what can be worked out, rather than learned.

A model of this size has no pretrained parent, and finding out how to copy a picture, how to move it
and what a prompt asks for costs it most of a short training. All three are known here: the picture
is among the tokens, the motions are formulas of `procedural.motions`, and the frozen language model
says in its last state what a sentence asks for. So they are written into the weights before the
first step, and what is left to learn is how things are painted and what a shift by a fraction of a
cell does to a cell.

The stream of a token holds, in this order:

- the content, a quarter of (t times the velocity). The exit divides it by t. Blocks write there but
  do not read: it is full of noise, and a small model that reads it copies the noise's mean;
- a copy of the picture's stronger channels as this token sees them, for blocks to read and to
  repaint, and beside it the ring of cells around;
- its address: the place in the picture where its content comes from. It begins as the token's own
  place; the first feed-forward layer, which knows every motion, adds the displacement. Beside it
  stand the fraction of a cell, the speed, how the displacement grows over a cell, and whether the
  content has left its place;
- coordinates, the codes of what the prompt asks for, the guide (what the Fourier features say),
  some means, free channels, constants.

Every cross-attention is a lookup of the image tokens around the address: one head looks half a cell
to the left, another right there. Its queries and keys are distances, so it interpolates; they and
the first block stay as they are, the values and all else are free.

What has not moved is exact by these lookups. Those of the last block look between cells and turn
away from it; a regression says what they add to what has moved.

The Fourier features (Eq. 20) reach every token as a mean over the clip; a few hidden units tell
from their spectrum at which percentile they were cut, and lookups of channels that are finer than
that turn away from the picture (Fig. 8b). No Fourier features at all mean that a clip is continued:
its picture is painted already, so the codes of styles are taken back.

Where there are no image tokens (text to video) the lookups find nothing. These weights are not
trained for that.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor, nn

from osp_cli.conditioning.image_tokens import POSITION_FEATURES
from osp_cli.conditioning.vlm import QwenVLConditioner
from osp_cli.models.latent_projector import LatentProjector
from osp_cli.models.mini_stream import (
    CODE_SCALE,
    CODES,
    COPY_CHANNELS,
    CUTOFF_STEPS,
    FRACTION_SCALE,
    GUIDE_SCALE,
    JACOBIAN_SCALE,
    PLACE_SCALE,
    RING_CHANNELS,
    SLICES,
    SPECTRUM,
    Layout,
    ring_offsets,
    stream_layout,
)
from osp_cli.models.positions import CELLS_PER_UNIT, GRID_CHANNELS
from osp_cli.models.transformer_flash_i2v import FlashI2VTransformer3DModel

# phi(s) = -k s at the start, and k = 0 is the paper's own. Any other k has to be taken out again,
# which a model that is not sure of s does with the mean over frames: that mean holds the noise's
# mean too, and the clip keeps it (15 dB after training with k = 1, from 27 dB at the start).
PROJECTION_GAIN = 0.0

CONTENT_SCALE = 0.25  # faint, so that layer norms hardly measure the noise
CONSTANT = 32.0  # loud, so that layer norms hardly measure anything else
_TOKEN_SCALE = 0.25  # keeps tokens where a shifted GELU is straight
_GELU_BIAS = 6.0
_TIME_SCALE = 0.5
_SMALLEST_TIME = 0.06
# Sharpness of a lookup, in 1 / cell^2: e^-8 of the weight for a neighbouring cell.
_OWN_SHARPNESS = 8.0
_NEAR_SHARPNESS = 4.0
_STAIR_SHARPNESS = 16.0
_SEARCH_LOGIT = 16.0  # image tokens against all the other rows
_SLICE = 16  # channels that a head carries
_STILL_CHANNELS = 48  # from here on, only what has not moved is looked up
SPECTRUM_GAIN = 64.0  # of the mean over the clip against the token's own
_TURN_AWAY = 16000.0  # logit; a lookup in the corner of a large frame reaches an eighth of that
_TURN_FROM = 0.6  # of a full answer: half an answer is none
GUIDE_UNITS = 64  # hidden units of the first feed-forward layer that read the spectrum


@dataclass(frozen=True, slots=True)
class Lookup:
    """What one head of a cross-attention brings.

    Attributes:
        offset: x, y in cells from the middle of the token's address.
        sharpness: of the search; 0 takes the mean over the picture.
        channels: first of the picture's channels that it carries, or -1 for coordinates.
        stop: last of them, exclusive.
        corner: row and column of the token's cell that is exactly there, if one is.
        ring: number of the cell of the ring that is there, if one is.
        cutoff: percentile from which on the picture is not looked at, if there is one.
        moved: whether only tokens look whose content has left its place (True), or only the others
            (False), or all.
    """

    offset: tuple[float, float]
    sharpness: float
    channels: int
    stop: int = 0
    corner: tuple[int, int] | None = None
    ring: int | None = None
    cutoff: float | None = None
    moved: bool | None = None


def lookups(channels: int, patch: int) -> list[Lookup]:
    """All lookups worth having, the most telling first; blocks take them in this order."""
    middle = (patch - 1) / 2
    corners = list(product(range(patch), range(patch)))
    steps = (-1.0, -0.5, 0.0, 0.5, 1.0)
    near = sorted(((x, y) for x in steps for y in steps), key=lambda o: (o[0] ** 2 + o[1] ** 2, o))
    slices = [(a, min(b, channels), cut) for a, b, cut in SLICES if a < channels]
    # From a cell's middle to the nearest cell's: zero, not a step, where nothing moves.
    result = [Lookup((middle, middle), _STAIR_SHARPNESS, -1)]
    for (start, stop, cutoff), (row, column) in product(slices, corners):
        offset = (column - middle, row - middle)
        # The finest waves would only ring around edges that have moved.
        moved = False if start >= _STILL_CHANNELS else None
        result.append(
            Lookup(offset, _OWN_SHARPNESS, start, stop, (row, column), cutoff=cutoff, moved=moved)
        )
    result.append(Lookup((0.0, 0.0), 0.0, 0, min(6, channels)))
    for number, offset in enumerate(ring_offsets(patch)):
        result.append(Lookup(offset, _OWN_SHARPNESS, 0, min(_SLICE, channels), ring=number))
    # What is fitted to all that moves; a token's own cells are among it, to be weakened.
    for start, stop, cutoff in ((0, _SLICE, None), (_SLICE, 2 * _SLICE, 0.6)):
        result += [
            Lookup(offset, _NEAR_SHARPNESS, start, min(stop, channels), cutoff=cutoff, moved=True)
            for offset in near
            if start < channels
        ]
    return result


@torch.no_grad()
def write_start(model: FlashI2VTransformer3DModel, conditioner: QwenVLConditioner) -> None:
    """Writes the structure into a model and its image adapter: a still clip of the picture.

    Raises:
        ValueError: the geometry has no room, or its heads are too narrow.
    """
    layout = stream_layout(model)
    if model.config.attention_head_dim < _SLICE:
        raise ValueError(f"attention_head_dim must be at least {_SLICE}")
    channels = model.config.in_channels
    start_as_identity(model.learnable_proj, PROJECTION_GAIN)
    _start_embedding(model, layout)
    _start_modulation(model)
    for number, block in enumerate(model.blocks):
        for layer in (block.attn1.to_out[0], block.attn2.to_out[0], block.ffn.net[2]):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        _start_keys(block.attn2, channels)
        if number:
            _start_reading(block.ffn.net[0].proj, layout)
    _start_guide(model, layout)
    _start_language(model.blocks[0].attn2, layout, channels)
    wanted = lookups(channels, model.config.patch_size[1])
    heads = model.config.num_attention_heads
    for number, block in enumerate(list(model.blocks)[1:]):
        _start_lookups(block.attn2, layout, wanted[number * heads : (number + 1) * heads], channels)
    _start_exit(model, layout)
    assert conditioner.image_adapter is not None
    _pass_image_tokens(conditioner.image_adapter, channels)
    _pass_through(model.condition_embedder.text_embedder, channels + 5 + len(CODES))


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


def _start_embedding(model: FlashI2VTransformer3DModel, layout: Layout) -> None:
    """Content, address, coordinates and constants."""
    embedding, positions = model.patch_embedding, model.position_embedding
    for parameter in (embedding.weight, embedding.bias, positions.weight, positions.bias):
        nn.init.zeros_(parameter)
    content = layout.content.stop
    embedding.weight.flatten(1)[:content] = torch.eye(content) * CONTENT_SCALE
    embedding.bias[layout.constants] = CONSTANT * _signs()
    sines = model.config.position_channels
    for axis in (0, 1):
        # Both signs: their sum is zero, so the layer norms' mean stays where it is.
        positions.weight[layout.place.start + 2 * axis, sines + axis] = PLACE_SCALE
        positions.weight[layout.place.start + 2 * axis + 1, sines + axis] = -PLACE_SCALE
        positions.weight[layout.fraction.start + axis, sines + axis] = FRACTION_SCALE
    others = list(range(sines + 2, sines + GRID_CHANNELS)) + list(range(sines))
    for row, column in zip(range(*layout.coordinates.indices(layout.width)), others, strict=True):
        positions.weight[row, column] = 1.0


def _start_guide(model: FlashI2VTransformer3DModel, layout: Layout) -> None:
    """Every token learns the clip's mean Fourier magnitudes, by groups of channels.

    The first block's self-attention is uniform: it takes means.
    """
    patch, mix = model.fourier_embedding
    nn.init.zeros_(patch.weight)
    for row, (start, stop) in enumerate(SPECTRUM):
        group = slice(start, min(stop, model.config.in_channels))
        if group.start < group.stop:
            # Faint, so that layer norms hardly measure it.
            patch.weight[row, group] = 0.03125 / patch.weight[row, group].numel()
        mix.weight[layout.spectrum.start + row, row] = 1.0
    attention = model.blocks[0].attn1
    for layer in (attention.to_q, attention.to_k, attention.to_v):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    divisor = (12 * CONSTANT**2 / layout.width) ** 0.5
    for row in range(len(SPECTRUM)):
        attention.to_v.weight[row, layout.spectrum.start + row] = divisor
        # The stream's mean, which the layer norm took out: the gain below would multiply it.
        attention.to_v.weight[row, layout.constants] = -divisor / 12
        attention.to_out[0].weight[layout.spectrum.start + row, row] = SPECTRUM_GAIN


def _signs() -> Tensor:
    return torch.tensor([1.0, -1.0]).repeat(6)


def _start_modulation(model: FlashI2VTransformer3DModel) -> None:
    """Blocks do not know the time yet: what they compute is the clip, the same at every time."""
    nn.init.zeros_(model.condition_embedder.time_proj.weight)
    nn.init.zeros_(model.condition_embedder.time_proj.bias)
    for block in model.blocks:
        nn.init.zeros_(block.scale_shift_table)
        block.scale_shift_table[:, 2] = 1.0
        block.scale_shift_table[:, 5] = 1.0


# Dimensions of a head's queries and keys: the address, the kind of row, and constants that both
# sides keep to themselves, so that the norms over all heads measure nothing else.
_ADDRESS = slice(0, 3)
_IMAGE, _LAST = 3, 4
_OF_QUERY, _OF_KEY = slice(5, 10), slice(10, 15)
_NORM_CONSTANT = 12.0


def _start_keys(attention: nn.Module, channels: int) -> None:
    """Keys of every head: the coordinates, half their square, what kind of row it is."""
    heads, size = attention.heads, attention.to_q.out_features // attention.heads
    for layer in (attention.to_q, attention.to_k, attention.to_v):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    keys = attention.to_k.weight.view(heads, size, -1)
    keys[:, 0, channels] = keys[:, 1, channels + 1] = 1.0
    keys[:, 2, channels + 2] = -1.0
    keys[:, _IMAGE, channels + 3] = keys[:, _LAST, channels + 4] = 1.0
    attention.to_k.bias.view(heads, size)[:, _OF_KEY] = _NORM_CONSTANT
    # q . k / sqrt(size) of the normed vectors is then the product of the raw ones times the unit.
    square = _NORM_CONSTANT**2 * 5 / size
    weight = (_logit_unit() * square * size**0.5) ** 0.5
    for norm in (attention.norm_q, attention.norm_k):
        norm.weight.fill_(1.0)
        norm.weight.view(heads, size)[:, :5] = weight


def _logit_unit() -> float:
    """Logit of a raw product of one: that of the sharpest lookup."""
    return 2 * _STAIR_SHARPNESS * CELLS_PER_UNIT**2


def _read_constant(layout: Layout) -> Tensor:
    """Weights that read one from the constants; like all else, over the layer norm's divisor."""
    row = torch.zeros(layout.width)
    row[layout.constants] = _signs() / 12 / CONSTANT
    return row


def _start_language(attention: nn.Module, layout: Layout, channels: int) -> None:
    """The first block's first heads fetch the codes from the last row of the prompt."""
    heads, size = attention.heads, attention.to_q.out_features // attention.heads
    one = _read_constant(layout)
    queries = attention.to_q.weight.view(heads, size, -1)
    queries[:, _OF_QUERY] = _NORM_CONSTANT * one
    queries[:, _LAST] = 2 * _SEARCH_LOGIT / _logit_unit() * one
    for number in range(len(CODES)):
        attention.to_v.weight[number, channels + 5 + number] = 1.0
        attention.to_out[0].weight[layout.codes.start + number, number] = CODE_SCALE


def _start_lookups(
    attention: nn.Module, layout: Layout, wanted: list[Lookup], channels: int
) -> None:
    """Queries and values of a block's heads; what is exactly the token's own is written at once."""
    heads, size = attention.heads, attention.to_q.out_features // attention.heads
    one = _read_constant(layout)
    queries = attention.to_q.weight.view(heads, size, -1)
    queries[:, _OF_QUERY] = _NORM_CONSTANT * one
    queries[:, _IMAGE] = _SEARCH_LOGIT / _logit_unit() * one
    place, out = layout.place.start, attention.to_out[0].weight
    for head, lookup in enumerate(wanted):
        strength = lookup.sharpness / _STAIR_SHARPNESS
        for axis in (0, 1):
            row = lookup.offset[axis] / CELLS_PER_UNIT * one
            if lookup.channels >= 0:  # where the picture grows or turns, so does what is around
                for along in (0, 1):
                    slope = lookup.offset[along] / CELLS_PER_UNIT / JACOBIAN_SCALE
                    row[layout.jacobian.start + 2 * axis + along] = slope
            row[place + 2 * axis] += 0.5 / PLACE_SCALE
            row[place + 2 * axis + 1] -= 0.5 / PLACE_SCALE
            queries[head, axis] = strength * row
        queries[head, 2] = strength * one
        if lookup.cutoff is not None or lookup.moved is not None:
            _turn_away(queries[head, _LAST], lookup, layout)
        first = head * size
        if lookup.channels < 0:
            for axis in (0, 1):
                attention.to_v.weight[first + axis, channels + axis] = 1.0
                out[layout.fraction.start + axis, first + axis] = -FRACTION_SCALE
                here = lookup.offset[axis] / CELLS_PER_UNIT * FRACTION_SCALE
                attention.to_out[0].bias[layout.fraction.start + axis] = here
            continue
        for number, channel in enumerate(range(lookup.channels, lookup.stop)):
            attention.to_v.weight[first + number, channel] = 1.0
            for target, scale in _targets(lookup, channel, layout, channels):
                out[target, first + number] = scale / _TOKEN_SCALE


def _targets(
    lookup: Lookup, channel: int, layout: Layout, channels: int
) -> list[tuple[int, float]]:
    """Where in the stream a channel of a lookup belongs, and how strong."""
    if lookup.corner is not None:
        patch = round((layout.content.stop // channels) ** 0.5)
        cell = (channel * patch + lookup.corner[0]) * patch + lookup.corner[1]
        inside = layout.copy.start + cell < layout.copy.stop
        copied = [(layout.copy.start + cell, 1.0)] if inside else []
        return [(layout.content.start + cell, -CONTENT_SCALE), *copied]
    if lookup.ring is not None:
        inside = channel < RING_CHANNELS
        return [(layout.ring.start + lookup.ring * RING_CHANNELS + channel, 1.0)] if inside else []
    if not lookup.sharpness:
        return [(layout.means.start + channel, 1.0)]
    return []


def _turn_away(row: Tensor, lookup: Lookup, layout: Layout) -> None:
    """Lets the prompt's last row, which holds nothing of the picture, outshine it.

    Any one reason is enough: each adds one, and less than `_TURN_FROM` of one is none.
    """
    strength = _TURN_AWAY / _logit_unit()
    least = _TURN_FROM
    if lookup.cutoff is not None:
        step = layout.guide.start + CUTOFF_STEPS.index(lookup.cutoff)
        row[step] = strength / GUIDE_SCALE
    if lookup.moved is not None:
        row[layout.moved] = (-1.0 if lookup.moved else 1.0) * strength / GUIDE_SCALE
        if lookup.moved:
            least = -_TURN_FROM  # for moving must have been told surely too
            _turn_together(row, lookup, layout)
    row -= least * strength * _read_constant(layout)
    if lookup.channels >= COPY_CHANNELS:
        # What no block can read, no block could repaint.
        styles = [number for number, (kind, _) in enumerate(CODES) if kind == "style"]
        row[[layout.codes.start + number for number in styles]] = strength / CODE_SCALE


def _turn_together(row: Tensor, lookup: Lookup, layout: Layout) -> None:
    """Lets lookups around one address turn away at the same moment.

    What a lookup finds at x scores x^2 more than the prompt's rows. All of them but the address'
    own square goes to the last row as well: the fit balances large answers against each other, and
    half of them make no picture.
    """
    sharpness = lookup.sharpness / _STAIR_SHARPNESS
    for axis in (0, 1):
        offset = lookup.offset[axis] / CELLS_PER_UNIT
        place = layout.place.start + 2 * axis
        row[place] += 0.5 * sharpness * offset / PLACE_SCALE
        row[place + 1] -= 0.5 * sharpness * offset / PLACE_SCALE
        row += 0.5 * sharpness * offset**2 * _read_constant(layout)


def _start_reading(layer: nn.Linear, layout: Layout) -> None:
    """Hidden units that each see a bit of everything at about the same strength.

    After a norm that the constants rule, everything else is small.
    """
    square = 12 * CONSTANT**2 + 300.0
    divisor = (square / layout.width) ** 0.5
    nn.init.zeros_(layer.weight)
    strengths = {
        "copy": layout.copy.stop - layout.copy.start,
        "fraction": 0.5,
        "velocity": 2.0,
        "jacobian": 2.0,
        "moved": 8.0,
        "codes": 2.0 * CODE_SCALE**2,
        "ring": layout.ring.stop - layout.ring.start,
        "means": 12.0,
        "coordinates": 24.0,
    }
    for name, energy in strengths.items():
        part = getattr(layout, name)
        share = {"copy": 1.0, "codes": 1.0, "ring": 0.7}.get(name, 0.4)
        nn.init.normal_(layer.weight[:, part], std=share * divisor / energy**0.5)
    nn.init.normal_(layer.bias, std=0.3)


def _start_exit(model: FlashI2VTransformer3DModel, layout: Layout) -> None:
    """v = content / t, by the modulation of the last norm."""
    content = layout.content.stop
    embedder = model.condition_embedder.time_embedder
    shared = torch.cat([torch.arange(content), torch.arange(layout.width - 12, layout.width)])
    time_row, offset = _fit_reciprocal(model)
    embedder.linear_2.weight[shared] = time_row
    embedder.linear_2.bias[shared] = offset
    nn.init.zeros_(model.scale_shift_table)
    norm = ((12 * CONSTANT**2 + 300.0) / layout.width) ** 0.5
    gain = norm / _TIME_SCALE / CONTENT_SCALE
    weight = torch.zeros_like(model.proj_out.weight)
    channels = model.config.out_channels
    patches = content // channels
    for channel in range(content):
        # Content is (channel, patch), the exit is (patch, channel).
        row = channel % patches * channels + channel // patches
        weight[row, channel] = gain
        # Scale and shift share the time embedding: constants of both signs leave only the shift.
        weight[row, layout.constants] = -gain / 12
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


def _pass_image_tokens(adapter: nn.Module, channels: int) -> None:
    """Picture, coordinates, and a one that says what kind of row it is."""
    used = channels + POSITION_FEATURES
    _straight(adapter.fc1, adapter.fc2, used)
    adapter.fc1.weight[:channels, :channels] *= _TOKEN_SCALE
    adapter.fc2.bias[channels + 3] = 1.0


def _pass_through(projection: nn.Module, used: int) -> None:
    _straight(projection.linear_1, projection.linear_2, used)


def _straight(first: nn.Linear, last: nn.Linear, used: int) -> None:
    """The first channels pass a GELU where it is straight, the others do not pass."""
    for layer in (first, last):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
        layer.weight[:used, :used] = torch.eye(used)
    first.bias[:used] = _GELU_BIAS
    last.bias[:used] = -_GELU_BIAS


def protect(model: FlashI2VTransformer3DModel, conditioner: QwenVLConditioner) -> None:
    """Freezes what the start has worked out, and masks gradients so that trained layers neither
    write over addresses and codes nor read the noisy content.

    A masked row or column of a gradient stays zero in Muon and in AdamW without decay, so these
    weights keep their values exactly.
    """
    layout = stream_layout(model)
    assert conditioner.image_adapter is not None
    modules: tuple[nn.Module, ...] = (model, conditioner.adapter, conditioner.image_adapter)
    for module in modules:
        module.requires_grad_(False)
    model.learnable_proj.requires_grad_(True)
    for block in list(model.blocks)[1:]:
        out = block.attn2.to_out[0]
        for layer in (out, block.ffn):
            layer.requires_grad_(True)
        for layer in (out, block.ffn.net[2]):
            _mask_rows(layer, layout.writable)
        _mask(block.ffn.net[0].proj.weight, layout.readable[None])


def _mask_rows(layer: nn.Module, mask: Tensor) -> None:
    _mask(layer.weight, mask.reshape(-1, *[1] * (layer.weight.ndim - 1)))
    _mask(layer.bias, mask)


def _mask(parameter: nn.Parameter, mask: Tensor) -> None:
    parameter.register_hook(lambda gradient: gradient * mask.to(gradient.device))
