"""What `osp stylize` promises, measured through the command itself.

`python tests/benchmarks/stylize.py` prints one JSON object; `--parts` chooses among

identify  the thirteen styles on held-out photos, judged as `osp bench mini` judges them
restyle   videos of known motion with a little sensor noise: is the motion kept, and is the result
          calmer than each frame painted by itself?
strength  a restyled video between its source and the style, over --strength
morph     a clip from one style to another: does it jump, and does it arrive?

and --keep FOLDER keeps all videos, and a sheet of them, to be looked at.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from osp_cli.cli.app import main as osp
from osp_cli.evaluation.metrics import Frames, mean_motion
from osp_cli.evaluation.mini_bench import FULL, QUICK, MiniBench
from osp_cli.evaluation.photos import Photo, held_out_photos, photos_in
from osp_cli.evaluation.restyle_measures import (
    BackwardMap,
    flicker,
    flow_correlation,
    is_monotone,
    jump,
    look_distance,
    operator_video,
    true_maps,
    way_between,
)
from osp_cli.media.grid import table_frames
from osp_cli.media.image import cover_resize_crop, load_image
from osp_cli.media.video import read_video, write_video
from osp_cli.procedural.motions import Motion, render_clip
from osp_cli.procedural.styles import STYLE_OPERATORS
from osp_cli.runtime.studio import Studio

SIZE = (448, 256)
# Grey levels, standard deviation: a good camera by daylight.
NOISE = 2.0
LEAST_CORRELATION = 0.8
STYLES = ("ghibli", "ink", "watercolor", "cyberpunk")
STRENGTHS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
MORPHS = (("ghibli", "ink"), ("none", "vaporwave"), ("watercolor", "cyberpunk"))
# A value may fall by so much of the whole range and still be called monotone: rounding, and noise.
SLACK = 0.01


# --- the command -----------------------------------------------------------------------------


class Command:
    """Runs `osp stylize` in this process.

    Args:
        folder: for its videos.
        extra: further arguments of every call, as `--model`.
    """

    def __init__(self, folder: Path, extra: list[str]) -> None:
        self.folder, self.extra = folder, extra

    def __call__(self, source: Path, style: str, name: str, *arguments: str) -> Frames:
        """Frames of what it makes.

        Raises:
            SystemExit: it failed; what it said is shown.
        """
        path = self.folder / f"{name}.mp4"
        said = io.StringIO()
        line = [str(source), "--style", style, "--output", str(path), "--overwrite", "--seed", "1"]
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
            code = osp(["stylize", *line, *arguments, *self.extra])
        if code:
            raise SystemExit(f"osp stylize {' '.join(line)} ended with {code}:\n{said.getvalue()}")
        return read_video(path)


class CommandMaker:
    """Clips for `MiniBench`, made by the command; the codec's round trips by a studio."""

    def __init__(self, command: Command, studio: Studio) -> None:
        self.command, self.round_trip = command, studio.round_trip

    def clip(
        self, photo: Path, size: tuple[int, int], num_frames: int, *,
        prompt: str | None = None, style: str | None = None, cutoff: float | None = None,
    ) -> Frames:  # fmt: skip
        """Frames of one clip."""
        assert prompt is None and cutoff is None
        arguments = ("--size", "x".join(map(str, size)), "--frames", str(num_frames))
        return self.command(photo, style or "none", f"{photo.stem}-{style}", *arguments)


# --- videos of known motion ------------------------------------------------------------------


@dataclass(frozen=True)
class Film:
    """A video whose motion is known.

    Attributes:
        name: of the motion.
        path: of the MP4.
        frames: as read from it, noise and coding included.
        maps: where each pixel's content was a frame before.
    """

    name: str
    path: Path
    frames: Frames
    maps: list[BackwardMap]


def films(photos: list[Photo], folder: Path, num_frames: int) -> Iterator[Film]:
    """Each of another photo: a pan, a zoom, a roll, ripples, and a disc that goes its own way."""
    motions = {
        "pan": Motion(camera="pan-left"),
        "zoom": Motion(camera="zoom-in"),
        "roll": Motion(camera="roll-right"),
        "ripples": Motion(scene="ripples"),
    }
    for index, (name, motion) in enumerate(motions.items()):
        clip = rendered(photos[index % len(photos)], motion, num_frames)
        yield recorded(name, clip, true_maps(motion, SIZE[::-1], num_frames), folder)
    yield recorded("disc", *disc(photos, num_frames), folder)


def rendered(photo: Photo, motion: Motion, num_frames: int) -> Frames:
    """A photo seen under a motion, without noise."""
    picture = cover_resize_crop(load_image(photo.path).image, *SIZE)
    canvas = torch.from_numpy(np.array(picture)).permute(2, 0, 1).float()
    clip = render_clip(canvas, motion, SIZE[::-1], torch.arange(num_frames, dtype=torch.float32))
    frames: Frames = clip.clamp(0, 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    return frames


def disc(photos: list[Photo], num_frames: int) -> tuple[Frames, list[BackwardMap]]:
    """A disc cut out of one photo that crosses another one, which pans the other way."""
    motion, pace = Motion(camera="pan-left"), 3
    frames = rendered(photos[0], motion, num_frames)
    maps = true_maps(motion, SIZE[::-1], num_frames)
    other = np.asarray(cover_resize_crop(load_image(photos[-1].path).image, *SIZE))
    y, x = np.mgrid[: SIZE[1], : SIZE[0]]
    place = np.stack([x, y], -1).astype(np.float32)
    for k in range(num_frames):
        # Begins near the right border and moves to the left, things behind it to the right.
        shift = -pace * k
        inside = np.hypot(x - (SIZE[0] * 0.75 + shift), y - SIZE[1] * 0.5) < 70
        frames[k][inside] = np.roll(other, shift, 1)[inside]
        if k:
            maps[k - 1][inside] = (place + np.float32([pace, 0]))[inside]
    return frames, maps


def recorded(name: str, frames: Frames, maps: list[BackwardMap], folder: Path) -> Film:
    """The same as a camera's file."""
    noise = np.random.default_rng(0).normal(0, NOISE, frames.shape)
    noisy = (frames + noise).clip(0, 255).round().astype(np.uint8)
    path = folder / f"film-{name}.mp4"
    write_video(noisy, path)
    return Film(name, path, read_video(path), maps)


# --- the parts -------------------------------------------------------------------------------


def identify(command: Command, photos: list[Photo], options: argparse.Namespace) -> dict[str, Any]:
    extent = QUICK if options.quick else FULL
    studio = Studio(options.model, folder=command.folder)
    bench = MiniBench(CommandMaker(command, studio), photos, extent, tell)
    return {line.key: line.as_json() for line in bench.styles()}


@dataclass(frozen=True)
class Restyled:
    """One film in one style.

    Attributes:
        film, style: their names.
        flow_correlation, flicker: of what the command made.
        operators_correlation, operators_flicker: of each frame painted by itself.
        operators_flicker_in_codec: of the same after the model's codec, without which the model can
            show nothing: what the painting alone adds is the difference of ours to this.
        source_flicker, source_flicker_in_codec: of the film: noise, and what coding makes of it.
        flicker_by_phase: of each fourth pair of frames, from the first pair on: where latent frames
            meet, it may jump.
        motion: mean difference of neighbouring frames.
    """

    film: str
    style: str
    flow_correlation: float
    operators_correlation: float
    flicker: float
    operators_flicker: float
    operators_flicker_in_codec: float
    source_flicker: float
    source_flicker_in_codec: float
    flicker_by_phase: list[float]
    motion: float

    def verdicts(self) -> dict[str, bool]:
        """What is promised, one by one."""
        return {
            "motion_is_kept": self.flow_correlation >= LEAST_CORRELATION,
            "calmer_than_operator": self.flicker < self.operators_flicker,
            "calmer_than_operator_in_codec": self.flicker < self.operators_flicker_in_codec,
        }


def restyle(command: Command, photos: list[Photo], options: argparse.Namespace) -> dict[str, Any]:
    found, shown = [], {}
    studio = Studio(options.model, folder=command.folder)
    for film in films(photos, command.folder, options.frames):
        shown[film.name] = {"source": film.frames}
        for style in options.styles:
            tell(f"restyle: {film.name}, {style}")
            frames = restyled(command, film, style, f"{film.name}-{style}")
            painted = command.folder / "painted.mp4"
            write_video(operator_video(style, film.frames), painted)
            operators = read_video(painted)
            shown[film.name][style] = frames
            measured = Restyled(
                film.name,
                style,
                flow_correlation(frames, film.frames),
                flow_correlation(operators, film.frames),
                flicker(frames, film.maps),
                flicker(operators, film.maps),
                flicker(studio.video_round_trip(operators), film.maps),
                flicker(film.frames, film.maps),
                flicker(studio.video_round_trip(film.frames), film.maps),
                [flicker_of_phase(frames, film.maps, phase) for phase in range(4)],
                mean_motion(frames),
            )
            found.append({**rounded(asdict(measured)), **measured.verdicts()})
    if options.keep:
        write_video(table_frames(shown, title="osp stylize"), options.keep / "restyle.mp4")
    return {"least_correlation": LEAST_CORRELATION, "videos": found}


def strength(command: Command, photos: list[Photo], options: argparse.Namespace) -> dict[str, Any]:
    film = next(films(photos, command.folder, options.frames))
    found = {}
    for style in options.styles:
        goal = operator_video(style, film.frames)
        distances, shares = [], []
        for value in STRENGTHS:
            tell(f"strength: {style}, {value}")
            name = f"strength-{style}-{value:g}"
            frames = restyled(command, film, style, name, "--strength", str(value))
            distances.append(look_distance(frames, film.frames))
            shares.append(way_between(frames, film.frames, goal))
        found[style] = {
            "strengths": list(STRENGTHS),
            "distance_to_source": rounded(distances),
            "share_of_style": rounded(shares),
            "distance_is_monotone": is_monotone(distances, SLACK * max(distances)),
            "share_is_monotone": is_monotone(shares, SLACK),
        }
    return found


def morph(command: Command, photos: list[Photo], options: argparse.Namespace) -> dict[str, Any]:
    found = {}
    for photo, (start, end) in zip(photos, MORPHS, strict=False):
        tell(f"morph: {photo.name}, {start}..{end}")
        size = ("--size", "x".join(map(str, SIZE)), "--frames", str(options.frames))

        def made(style: str, photo: Photo = photo, size: tuple[str, ...] = size) -> Frames:
            name = f"morph-{photo.name}-{style.replace('..', '-to-')}"
            return command(photo.path, style, name, *size)

        between, first, last = made(f"{start}..{end}"), made(start), made(end)
        marks = [slice(k, k + 1) for k in range(len(between))]
        ways = [way_between(between[k], first[k], last[k]) for k in marks]
        found[f"{photo.name}, {start}..{end}"] = {
            "jump": round(jump(between), 2),
            "jump_of_the_pure": [round(jump(first), 2), round(jump(last), 2)],
            "way": rounded(ways),
            "way_is_monotone": is_monotone(ways, 5 * SLACK),
            "largest_step_of_the_way": round(float(np.diff(ways).max()), 3),
        }
    return found


PARTS = {"identify": identify, "restyle": restyle, "strength": strength, "morph": morph}


def flicker_of_phase(frames: Frames, maps: list[BackwardMap], phase: int) -> float:
    pairs = range(phase, len(maps), 4)
    return float(np.mean([flicker(frames[k : k + 2], maps[k : k + 1]) for k in pairs]))


def restyled(command: Command, film: Film, style: str, name: str, *arguments: str) -> Frames:
    """What the command makes of a film, which must be of its length and size."""
    frames = command(film.path, style, name, "--frames", str(len(film.frames)), *arguments)
    if frames.shape != film.frames.shape:
        raise SystemExit(f"{film.name} of {film.frames.shape} became {frames.shape}")
    return frames


def rounded(values: Any) -> Any:
    if isinstance(values, dict):
        return {name: rounded(value) for name, value in values.items()}
    if isinstance(values, list):
        return [rounded(value) for value in values]
    return round(values, 3) if isinstance(values, float) else values


def tell(text: str) -> None:
    sys.stderr.write(f"{text}\n")


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )

    def listed(text: str) -> list[str]:
        return text.split(",")

    parser.add_argument("--parts", type=listed, default=list(PARTS))
    parser.add_argument("--photos", type=Path, help="a folder [seven photos]")
    parser.add_argument("--model", default="osp-mini")
    parser.add_argument("--styles", type=listed, default=list(STYLES), help="or all")
    parser.add_argument("--frames", type=int, default=33, help="of films and morphs, 4k + 1")
    parser.add_argument("--quick", action="store_true", help="identify: fewer photos and frames")
    parser.add_argument("--keep", type=Path, help="a folder for the videos")
    return parser


def main(argv: list[str] | None = None) -> dict[str, Any]:
    options = arguments().parse_args(argv)
    if unknown := set(options.parts) - set(PARTS):
        raise SystemExit(
            f"unknown parts {', '.join(sorted(unknown))}, there are {', '.join(PARTS)}"
        )
    if options.styles == ["all"]:
        options.styles = list(STYLE_OPERATORS)
    photos = held_out_photos() if options.photos is None else photos_in(options.photos)
    with tempfile.TemporaryDirectory(prefix="osp-stylize-") as scratch:
        folder = Path(scratch)
        if options.keep:
            options.keep.mkdir(parents=True, exist_ok=True)
            folder = options.keep
        command = Command(folder, ["--model", options.model])
        found = {part: PARTS[part](command, photos, options) for part in options.parts}
    sys.stdout.write(json.dumps(found, indent=1) + "\n")
    return found


if __name__ == "__main__":
    main()
