"""The stages of a build: sources, gates, keyframe, style, motion, gates again, manifest.

Each stage takes the accepted rows of the one before it and moves them on, one at a time. A row is
noted when its file is whole, so whatever ends a run, the same build goes on where it was; and as
everything follows from the row's own seed, to the same files and the same manifest.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from PIL import Image

from osp_cli.errors import UnreadableMediaError
from osp_cli.events import ItemBuilt
from osp_cli.media.files import atomic_output
from osp_cli.media.gates import (
    ClipMeasures,
    Problem,
    gate_problems,
    measure_clip,
    measure_picture,
    picture_gate_problems,
)
from osp_cli.media.image import choose_bucket, cover_resize_crop, load_image
from osp_cli.media.source_video import probe_source, read_frames
from osp_cli.media.video import write_video
from osp_cli.stopping import StopSignal
from osp_cli.training.building.engines import Animator, Shot, StyleJudge, Stylizer
from osp_cli.training.building.manifest import Manifest, Row
from osp_cli.training.building.quality import (
    clip_problems,
    clip_scores,
    picture_problems,
    picture_scores,
)
from osp_cli.training.building.settings import MAX_RETRIES, BuildSettings, Style
from osp_cli.training.building.sources import PICTURE, SCENE, VIDEO, Source

SOURCES, KEYFRAMES, VIDEOS = "sources", "keyframes", "videos"
FOLDERS = (SOURCES, KEYFRAMES, VIDEOS)
_MAX_SEED = 2**48


class Build:
    """One dataset that is being built.

    Args:
        folder: where it is, or will be.
        settings: of all rows.
        stop: looked at between two items; inside one, the first signal is only noted.

    Raises:
        InvalidRequestError: the manifest there cannot be read.
    """

    def __init__(
        self, folder: Path, settings: BuildSettings, manifest: Manifest, stop: StopSignal
    ) -> None:
        self.folder, self.settings, self.manifest, self.stop = folder, settings, manifest, stop
        for name in FOLDERS:
            (folder / name).mkdir(exist_ok=True)

    def gate(
        self, sources: Sequence[Source], captions: Mapping[str, str], styles: Sequence[Style]
    ) -> Iterator[ItemBuilt]:
        """Looks at the sources and begins a row for each in each style, where there is none.

        Args:
            sources: in the order of the dataset.
            captions: by the id of a source; `{style}` in one stands for the style's title.
            styles: that each source will be shown in.
        """
        pairs = [(source, style) for source in sources for style in styles]
        new = [pair for pair in pairs if self.manifest.get(_row_id(*pair)) is None]
        known: dict[str, dict[str, Any]] = {
            row["source_id"]: {key: row[key] for key in _OF_SOURCE}
            for row in self.manifest
            if "source_id" in row
        }

        def begin(pair: tuple[Source, Style]) -> Row:
            source, style = pair
            if source.id not in known:
                known[source.id] = self._looked_at(source)
            caption = captions[source.id]
            seed = f"osp build {self.settings.seed} {source.sha256} {style.name}"
            return {
                "id": _row_id(source, style),
                "stage": "gated",
                "caption": caption.replace("{style}", style.title),
                "style": style.name,
                # Without what is said of the style: the picture shows that already.
                "prompt": self.settings.prompt or source.caption or "",
                "instruction": style.instruction,
                "seed": int(hashlib.sha256(seed.encode()).hexdigest(), 16) % _MAX_SEED,
                **known[source.id],
                "accepted": not known[source.id]["origin"]["problems"],
                "problems": known[source.id]["origin"]["problems"],
                "reason": known[source.id]["origin"]["reason"],
            }

        yield from self._each("gated", new, begin)

    def take_keyframes(self, sources: Sequence[Source]) -> Iterator[ItemBuilt]:
        """Takes the middle picture of every source, at the size of its clip (section 6.2)."""
        by_id = {source.id: source for source in sources}
        rows = [row for row in self.manifest.at("gated") if row["source_id"] in by_id]
        # Styles of one source share its picture.
        made: dict[str, str] = {}

        def take(row: Row) -> Row:
            name = row["source_id"]
            path = self.folder / SOURCES / f"{name}.png"
            try:
                if name not in made:
                    picture = _keyframe(by_id[name], (row["width"], row["height"]))
                    made[name] = _save_picture(picture, path)
            except UnreadableMediaError as error:
                return {**row, **_verdict([Problem("unreadable", error.message)])}
            files = _file_of(self.folder, "source", path, made[name])
            return {**row, "stage": "keyframed", **files}

        yield from self._each("keyframed", rows, take)

    def stylise(self, stylizer: Stylizer, judge: StyleJudge | None = None) -> Iterator[ItemBuilt]:
        """Has every keyframe painted in its style, again with other seeds where that fails."""

        def paint(row: Row) -> Row:
            source = _open(self.folder / row["source"])
            path = self.folder / KEYFRAMES / f"{row['id']}.png"
            tries = 0
            while True:
                seed = row["seed"] + tries
                styled = stylizer.stylise(source, row["style"], row["instruction"], seed)
                if styled.size != source.size:
                    # Models have sizes of their own; what they cut or add shows in the gates.
                    styled = cover_resize_crop(styled, *source.size)
                scores = picture_scores(source, styled, judge)
                quality = self.settings.quality
                problems = picture_problems(scores, row["style"], quality) if quality else []
                if not problems or not stylizer.is_seeded or tries == MAX_RETRIES:
                    break
                tries += 1
            done = {
                **row,
                "stage": "stylised",
                "stylizer": stylizer.describe(),
                "style_tries": tries + 1,
                "style_scores": scores,
                **_verdict(problems),
            }
            if problems:
                return done
            return {**done, **_file_of(self.folder, "keyframe", path, _save_picture(styled, path))}

        yield from self._each("stylised", self.manifest.at("keyframed"), paint)

    def animate(self, animator: Animator, judge: StyleJudge | None = None) -> Iterator[ItemBuilt]:
        """Makes a clip of every styled picture and looks at it; again with other seeds."""

        def move(row: Row) -> Row:
            path = self.folder / VIDEOS / f"{row['id']}.mp4"
            while True:
                if row["stage"] == "stylised":
                    row = self._shot(row, animator, path)
                    # The longest part of the work: not to be lost if looking at it goes wrong.
                    self.manifest.put(row)
                scores = clip_scores(path, _open(self.folder / row["keyframe"]), judge)
                quality = self.settings.quality
                problems = clip_problems(scores, row["style"], quality) if quality else []
                if not problems or not animator.is_seeded or row["clip_tries"] > MAX_RETRIES:
                    break
                row = {**row, "stage": "stylised"}
                self.manifest.put(row)
            row = {**row, "stage": "done", "clip_scores": scores, **_verdict(problems)}
            if problems:
                # A row without its file first: a file without its row is only made again.
                row = {key: value for key, value in row.items() if key not in _OF_VIDEO}
                self.manifest.put(row)
                path.unlink(missing_ok=True)
            return row

        yield from self._each("done", self.manifest.at("stylised", "animated"), move)

    def _shot(self, row: Row, animator: Animator, path: Path) -> Row:
        tries = row.get("clip_tries", 0)
        shot = Shot(
            picture=_open(self.folder / row["keyframe"]),
            source=_open(self.folder / row["source"]),
            style=row["style"],
            prompt=row["prompt"],
            seed=row["seed"] + tries,
            num_frames=self.settings.num_frames,
            fps=self.settings.fps,
        )
        write_video(animator.animate(shot), path, fps=self.settings.fps)
        return {
            **row,
            "stage": "animated",
            "animator": animator.describe(),
            "clip_tries": tries + 1,
            "num_frames": self.settings.num_frames,
            "fps": self.settings.fps,
            **_file_of(self.folder, "video", path, _sha256(path)),
        }

    def _looked_at(self, source: Source) -> dict[str, Any]:
        """What a row says of its source, with the verdict of the gates."""
        gates = self.settings.gates
        problems: list[Problem] = []
        measures: ClipMeasures | None = None
        width, height = self.settings.size or self.settings.sizes[0]
        seconds: float | None = None
        try:
            if source.kind == VIDEO:
                assert source.path is not None
                video = probe_source(source.path)
                width, height, seconds = video.width, video.height, video.duration
                if gates:
                    # Its length and shape first: they take no decoding.
                    problems = gate_problems(video, None, gates)
                    measures = None if problems else measure_clip(video)
                    problems = gate_problems(video, measures, gates)
            elif source.kind == PICTURE:
                assert source.path is not None
                picture = load_image(source.path).image
                width, height = picture.size
                if gates:
                    measures = measure_picture(picture)
                    problems = picture_gate_problems(picture.size, measures, gates)
        except UnreadableMediaError as error:
            problems = [Problem("unreadable", error.message)]
        size = self.settings.size or choose_bucket(width, height, self.settings.sizes)
        return {
            "source_id": source.id,
            "origin": {
                "name": source.name,
                "kind": source.kind,
                "sha256": source.sha256,
                "width": width,
                "height": height,
                "seconds": None if seconds is None else round(seconds, 3),
                **_told(problems),
            },
            "width": size[0],
            "height": size[1],
            "gates": None if measures is None else _rounded(asdict(measures)),
        }

    def _each(
        self, stage: str, items: Sequence[Any], work: Callable[[Any], Row]
    ) -> Iterator[ItemBuilt]:
        """Does one item after the other; a signal waits for the end of the present one."""
        try:
            for number, item in enumerate(items, 1):
                started = time.perf_counter()
                with self.stop.patience():
                    row = work(item)
                    self.manifest.put(row)
                yield ItemBuilt(
                    stage=stage,
                    item=number,
                    num_items=len(items),
                    id=row["id"],
                    accepted=row["accepted"],
                    reason=row["reason"],
                    seconds=time.perf_counter() - started,
                )
                if self.stop.requested:
                    raise self.stop.error(
                        f"interrupted after item {number} of {len(items)} of a stage"
                    )
        finally:
            self.manifest.save()


# What rows of one source have in common, and what goes with a video that is not kept.
_OF_SOURCE = ("source_id", "origin", "width", "height", "gates")
_OF_VIDEO = ("video", "video_sha256", "video_bytes")


def check_files(folder: Path, manifest: Manifest) -> int:
    """Sends rows whose files are gone, or cut short, back to the stage that makes them.

    Returns:
        How many.
    """
    count = 0
    steps = (("video", "stylised"), ("keyframe", "keyframed"), ("source", "gated"))
    for row in manifest:
        before = None
        for name, stage in steps:
            if name in row and not _is_there(folder, row, name):
                before = stage
        if before is not None and row.get("accepted") is True:
            count += 1
            tries = row.get("clip_tries", 0)
            # The clip that is gone was the last try's: it is made with the same seed again.
            again = {"clip_tries": tries - 1} if tries and row["stage"] != "stylised" else {}
            manifest.put({**row, **again, "stage": before})
    return count


def _is_there(folder: Path, row: Row, name: str) -> bool:
    path = folder / str(row[name])
    if not path.is_file() or path.stat().st_size != row[f"{name}_bytes"]:
        return False
    # A run that was killed may have made another try's clip already, unknown to the row.
    return row["stage"] != "animated" or _sha256(path) == row[f"{name}_sha256"]


def forget(folder: Path, manifest: Manifest) -> None:
    """Removes all rows and the files that they name, and nothing else."""
    for row in manifest:
        for name in ("video", "keyframe", "source"):
            path = Path(str(row.get(name, "")))
            if len(path.parts) == 2 and path.parts[0] in FOLDERS:
                (folder / path).unlink(missing_ok=True)
    manifest.clear()
    manifest.save()


def _row_id(source: Source, style: Style) -> str:
    return f"{source.id}--{style.name}"


def _verdict(problems: Sequence[Problem]) -> dict[str, Any]:
    return {"accepted": not problems, **_told(problems)}


def _told(problems: Sequence[Problem]) -> dict[str, Any]:
    reason = "; ".join(problem.message for problem in problems)
    return {"problems": [problem.code for problem in problems], "reason": reason or None}


def _keyframe(source: Source, size: tuple[int, int]) -> Image.Image:
    """The picture at the middle of the timeline, frame floor(N / 2), filling `size`."""
    if source.kind == SCENE:
        from osp_cli.training.building.procedural import draw_scene

        return draw_scene(source.seed, size)
    assert source.path is not None
    if source.kind == PICTURE:
        return cover_resize_crop(load_image(source.path).image, *size)
    video = probe_source(source.path)
    middle = video.num_frames_at(video.fps) // 2
    [frame] = read_frames(
        video, (video.width, video.height), video.fps, start_frame=middle, num_frames=1
    )
    return cover_resize_crop(Image.fromarray(frame), *size)


def _save_picture(picture: Image.Image, path: Path) -> str:
    with atomic_output(path, overwrite=True) as part:
        picture.convert("RGB").save(part, "PNG")
    return _sha256(path)


def _file_of(folder: Path, name: str, path: Path, sha256: str) -> dict[str, Any]:
    """What a row says of a file: its place below the manifest, hash and size."""
    return {
        name: path.relative_to(folder).as_posix(),
        f"{name}_sha256": sha256,
        f"{name}_bytes": path.stat().st_size,
    }


def _open(path: Path) -> Image.Image:
    with Image.open(path) as picture:
        return picture.convert("RGB")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _rounded(values: Mapping[str, float]) -> dict[str, float]:
    return {name: round(value, 4) for name, value in values.items()}
