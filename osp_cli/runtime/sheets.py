"""The page on which the videos of a sheet come together."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from osp_cli import __version__
from osp_cli.dials import Seeds
from osp_cli.errors import OspError
from osp_cli.events import Event, Notice, Saved, StageFinished, StageStarted
from osp_cli.media.grid import grid_frames, table_frames
from osp_cli.media.image import cover_resize_crop, load_image
from osp_cli.media.kinds import is_video_file
from osp_cli.media.sheet import contact_sheet, labelled_grid, save_sheet
from osp_cli.media.sinks import open_sink
from osp_cli.media.source_video import probe_source, read_frames
from osp_cli.requests import RestyleRequest, Sheet
from osp_cli.sheets import STILL_SHEETS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from osp_cli.media.sound import AudioTrack

# Of a clip, for a page that does not move: motion is under way by then, the picture still known.
_STILL_MOMENT = 0.5


def with_sheets(
    events: Iterable[Event], sheets: Sequence[Sheet], waiting: Iterable[Path]
) -> Iterator[Event]:
    """The events, and those of each page as soon as all of its videos are there.

    Args:
        events: of the videos.
        sheets: pages to be made.
        waiting: outputs that the events will save; what else a page shows is there already.
    """
    missing = {*waiting}
    left = list(sheets)

    def whole() -> Iterator[Sheet]:
        for sheet in tuple(left):
            outputs = {request.output for request in sheet.requests}
            # One that cannot be made is not waited for, and never there.
            if not outputs & missing and all(output.exists() for output in outputs):
                left.remove(sheet)
                yield sheet

    try:
        for sheet in whole():
            yield from compose(sheet)
        for event in events:
            yield event
            if isinstance(event, Saved):
                missing.discard(event.path)
                for sheet in whole():
                    yield from compose(sheet)
    except OspError:
        yield from map(Notice, filter(None, map(_what_is_there, left)))
        raise


def compose(sheet: Sheet) -> Iterator[Event]:
    """Put a page together of the videos in their files.

    Raises:
        OspError: a video cannot be read, or the page not written.
    """
    yield StageStarted("sheet")
    started = time.perf_counter()
    if sheet.output.suffix.lower() in STILL_SHEETS:
        path = save_sheet(_still_page(sheet), sheet.output, overwrite=sheet.overwrite)
        saved = Saved(path, path.stat().st_size)
    else:
        request = sheet.requests[0]
        sink = open_sink(
            sheet.output,
            fps=request.fps,
            recipe=_recipe(sheet),
            overwrite=sheet.overwrite,
            metadata=request.metadata,
            audio=_sound(sheet),
        )
        saved = sink.write(_moving_page(sheet))
        yield from map(Notice, sink.notices)
    yield StageFinished("sheet", time.perf_counter() - started)
    yield saved


def _what_is_there(sheet: Sheet) -> str:
    """What an unfinished page has come to; empty where that is nothing."""
    there = sum(request.output.exists() for request in sheet.requests)
    if not there:
        return ""
    folder = sheet.requests[0].output.parent
    seeds = Seeds(dict.fromkeys(request.seed for request in sheet.requests))
    return (
        f"no {sheet.output} yet: {there} of its {len(sheet.requests)} videos are in {folder}, "
        f"the same command with --seed {seeds} makes the others"
    )


def _moving_page(sheet: Sheet) -> Iterator[NDArray[np.uint8]]:
    clips = [_frames(request.output, request.fps) for request in sheet.requests]
    if len(sheet.rows) > 1:
        return table_frames(dict(zip(sheet.rows, _rows(sheet, clips), strict=True)))
    shown = dict(zip(sheet.columns, clips, strict=True))
    return grid_frames({**_source_cell(sheet), **shown}, title=sheet.title)


def _still_page(sheet: Sheet) -> Any:
    pictures = [_moment(request.output, request.fps) for request in sheet.requests]
    if len(sheet.rows) > 1:
        rows = {
            label: list(row.values())
            for label, row in zip(sheet.rows, _rows(sheet, pictures), strict=True)
        }
        return contact_sheet(rows, column_labels=sheet.columns, title=sheet.title)
    source = {label: next(iter(frames)) for label, frames in _source_cell(sheet).items()}
    shown = {**source, **dict(zip(sheet.columns, pictures, strict=True))}
    columns = min(5, len(shown))
    return labelled_grid(shown, num_columns=columns, title=sheet.title, cell_width=320)


def _sound(sheet: Sheet) -> AudioTrack | None:
    """Of the video that all are made of, as long as they are."""
    request = sheet.requests[0]
    if not isinstance(request, RestyleRequest):
        return None
    clip = probe_source(request.output)
    return probe_source(request.video).sound(clip.num_frames_at(request.fps) / request.fps)


def _rows(sheet: Sheet, cells: Sequence[Any]) -> list[dict[str, Any]]:
    """The cells of a table, row by row, under their columns' labels."""
    width = len(sheet.columns)
    return [
        dict(zip(sheet.columns, cells[start : start + width], strict=True))
        for start in range(0, len(cells), width)
    ]


def _frames(video: Path, fps: int) -> Iterator[NDArray[np.uint8]]:
    source = probe_source(video)
    return read_frames(source, size=(source.width, source.height), fps=fps)


def _moment(video: Path, fps: int) -> NDArray[np.uint8]:
    """One picture of a video."""
    source = probe_source(video)
    start = round((source.num_frames_at(fps) - 1) * _STILL_MOMENT)
    size = (source.width, source.height)
    return next(read_frames(source, size=size, fps=fps, start_frame=start, num_frames=1))


def _source_cell(sheet: Sheet) -> dict[str, Iterator[NDArray[np.uint8]]]:
    """What all videos of a grid are made of, in their size."""
    if sheet.source is None:
        return {}
    clip = probe_source(sheet.requests[0].output)
    size = (clip.width, clip.height)
    if is_video_file(sheet.source):
        fps = sheet.requests[0].fps
        return {"the video": read_frames(probe_source(sheet.source), size=size, fps=fps)}
    picture = cover_resize_crop(load_image(sheet.source).image, *size)
    return {"the picture": iter([np.asarray(picture)])}


def _recipe(sheet: Sheet) -> dict[str, Any]:
    """What a page says of itself: how to make it again is said in its videos."""
    return {
        "version": __version__,
        "command": "sheet",
        "folder": sheet.requests[0].output.parent.name,
        "rows": list(sheet.rows),
        "columns": list(sheet.columns),
        "videos": [request.output.name for request in sheet.requests],
    }
