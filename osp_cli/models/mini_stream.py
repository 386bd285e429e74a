"""The stream of the embedded transformer: which of a token's numbers mean what.

Its start is written into the weights (`training.mini_start`, which tells what the parts are for);
whoever tells its tokens something, in training or in an endless video, writes it where this says.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from osp_cli.models.positions import CELLS_PER_UNIT, GRID_CHANNELS
from osp_cli.models.transformer_flash_i2v import FlashI2VTransformer3DModel
from osp_cli.procedural.motions import CAMERA_MOTIONS, SCENE_MOTIONS, Motion
from osp_cli.procedural.styles import STYLE_OPERATORS

# What the language model is asked; no answer (no camera, normal speed, no style) is all zeros.
CODES: tuple[tuple[str, str], ...] = (
    *(("style", name) for name in STYLE_OPERATORS),
    *(("camera", name) for name in CAMERA_MOTIONS),
    *(("scene", name) for name in SCENE_MOTIONS),
    ("speed", "slow"),
    ("speed", "fast"),
)
CODE_SCALE = 4.0
PLACE_SCALE = 4.0
FRACTION_SCALE = CELLS_PER_UNIT  # of a cell, from -1/2 to 1/2
VELOCITY_SCALE = 4.0
JACOBIAN_SCALE = 8.0
GUIDE_SCALE = 4.0
# Slices of the picture's channels, each a head for every cell of a token; the last two are too fine
# for blocks to read. Beside each: after which cutoff percentile it is left out.
SLICES: tuple[tuple[int, int, float | None], ...] = (
    (0, 8, None),
    (8, 20, 0.8),
    (20, 32, 0.6),
    (32, 48, 0.42),
    (48, 64, 0.25),
)
COPY_CHANNELS = 32
RING_CHANNELS = 5  # of each of the twelve cells around a token
CUTOFF_STEPS = tuple(sorted(step for *_, step in SLICES if step))
# Groups of channels whose mean Fourier magnitude is told apart.
SPECTRUM = ((0, 1), (1, 2), (2, 3), (3, 6), (6, 11), (11, 21), (21, 41), (41, 64))


@dataclass(frozen=True, slots=True)
class Layout:
    """Where things are in the stream of a token, as slices."""

    width: int
    content: slice
    copy: slice
    place: slice  # +x, -x, +y, -y
    fraction: slice  # x, y
    velocity: slice  # x, y
    jacobian: slice  # how the displacement grows over a cell: of x along x, along y, of y likewise
    moved: slice  # whether the content has left its place
    codes: slice
    guide: slice  # a step for every cutoff of `CUTOFF_STEPS`
    spectrum: slice
    means: slice
    coordinates: slice  # frame size, time, sines
    ring: slice
    free: slice
    constants: slice

    @property
    def writable(self) -> Tensor:
        """Mask over the stream of what trained layers may write to."""
        mask = torch.zeros(self.width)
        for part in (self.content, self.copy, self.ring, self.free, self.means):
            mask[part] = 1.0
        return mask

    @property
    def readable(self) -> Tensor:
        """Mask over the stream of what trained layers may read."""
        mask = torch.ones(self.width)
        mask[self.content] = 0.0
        return mask


def stream_layout(model: FlashI2VTransformer3DModel) -> Layout:
    """The layout of a model's stream.

    Raises:
        ValueError: its geometry has no room.
    """
    width = model.proj_out.in_features
    cells = model.config.patch_size[1] * model.config.patch_size[2]
    sizes = {
        "content": model.config.in_channels * cells,
        "copy": min(COPY_CHANNELS, model.config.in_channels) * cells,
        "place": 4,
        "fraction": 2,
        "velocity": 2,
        "jacobian": 4,
        "moved": 1,
        "codes": len(CODES),
        "guide": len(CUTOFF_STEPS),
        "spectrum": len(SPECTRUM),
        "means": 6,
        "coordinates": model.config.position_channels + GRID_CHANNELS - 2,
        "ring": len(ring_offsets(model.config.patch_size[1])) * RING_CHANNELS,
    }
    parts, start = {}, 0
    for name, size in sizes.items():
        parts[name] = slice(start, start + size)
        start += size
    if start + 12 > width or model.config.text_dim != width:
        raise ValueError(f"width {width} cannot hold {start + 12} channels")
    return Layout(
        width=width,
        **parts,
        free=slice(start, width - 12),
        constants=slice(width - 12, width),
    )


def ring_offsets(patch: int) -> list[tuple[float, float]]:
    """Offsets of the cells around a token, in cells from its middle."""
    places = [step - (patch + 1) / 2 for step in range(patch + 2)]
    edge = (places[0], places[-1])
    return [(x, y) for y in places for x in places if x in edge or y in edge]


# What tokens know of a motion, in cells: displacement and speed (x, y each), how displacement grows
# over a cell (of x along x and y, of y along both), whether the content has left its place.
MOTION_NUMBERS = 9


def motion_rows(layout: Layout) -> Iterator[tuple[int, int, float]]:
    """Channels of the stream, the one of `MOTION_NUMBERS` that is added there, and its scale."""
    per_cell = PLACE_SCALE / CELLS_PER_UNIT
    for axis in (0, 1):
        yield layout.place.start + 2 * axis, axis, per_cell
        yield layout.place.start + 2 * axis + 1, axis, -per_cell
        yield layout.fraction.start + axis, axis, FRACTION_SCALE / CELLS_PER_UNIT
        yield layout.velocity.start + axis, 2 + axis, VELOCITY_SCALE
    for entry in range(4):
        yield layout.jacobian.start + entry, 4 + entry, JACOBIAN_SCALE
    yield layout.moved.start, 8, GUIDE_SCALE


@contextmanager
def told(model: FlashI2VTransformer3DModel, moved: Tensor) -> Iterator[None]:
    """Lets tokens go where they are told, rather than where the first feed-forward layer says.

    Args:
        model: the embedded transformer.
        moved: `(clips, tokens, MOTION_NUMBERS)`, the tokens as the model is called with.
    """
    layout = stream_layout(model)

    def tell(_module: object, _args: object, result: Tensor) -> Tensor:
        result = result.clone()
        for row, column, scale in motion_rows(layout):
            result[..., row] = scale * moved[..., column].to(result)
        return result

    handle = model.blocks[0].ffn.register_forward_hook(tell)
    try:
        yield
    finally:
        handle.remove()


def heard_motion(model: FlashI2VTransformer3DModel, rows: Tensor) -> Motion:
    """The motion that the model takes a prompt for.

    Args:
        model: the embedded transformer.
        rows: of a prompt as the transformer attends to them, `(1, length, text_dim)`; the last row
            of the prompt holds the answers.
    """
    channels = model.config.in_channels
    answers = rows[0, int(rows[0, :, channels + 4].argmax()), channels + 5 :]
    best: dict[str, tuple[float, str]] = {}
    for (kind, name), answer in zip(CODES, answers.tolist(), strict=False):
        if answer > max(0.5, best.get(kind, (0.0, ""))[0]):
            best[kind] = answer, name
    camera, scene, speed = (best.get(kind) for kind in ("camera", "scene", "speed"))
    return Motion(
        camera[1] if camera else None, scene[1] if scene else None, speed[1] if speed else "normal"
    )
