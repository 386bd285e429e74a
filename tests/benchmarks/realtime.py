"""What `osp extend --realtime` promises, measured from outside of the command.

`python tests/benchmarks/realtime.py` prints one JSON object; `--parts` chooses among

live     a minute to a file and to a pipe that is kept to the clock: is it made as fast as it is
         shown, and how soon does it begin?
memory   300 chunks, after a hundred to warm up: does the process grow?
seam     frame differences at the borders of chunks, of groups of frames, and within those
drift    the meter's numbers over a minute, for several motions and styles

and --keep FOLDER keeps the videos, with a sheet of pictures from each, to be looked at.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from osp_cli.media.video import read_video

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("live", "memory", "seam", "drift")
CASES = (
    ("the camera pans left slowly", "none"),
    ("zoom out slowly", "none"),
    ("gentle waves", "none"),
    ("roll right slowly", "none"),
    ("the camera pans right", "ghibli"),
    ("drifting clouds", "vaporwave"),
    ("the camera tilts up slowly", "ink"),
)
GROUP = 4
# Chunks until the allocator has what it needs: some ten megabytes more than after the first.
WARM_UP = 100
# Pictures of the sheet, in seconds of the stream.
SHEET_SECONDS = (0, 5, 10, 20, 30, 45, 59)


@dataclass
class Watched:
    """One run of the command, as somebody outside sees it.

    Attributes:
        events: lines of `--json` with the second at which they came.
        resident: bytes of the process after each chunk.
        code: its exit code.
        first_byte: seconds until the first byte of a pipe, from the start of the program.
        read_bytes: of the pipe.
    """

    events: list[tuple[float, dict[str, Any]]] = field(default_factory=list)
    resident: list[int] = field(default_factory=list)
    code: int = 0
    first_byte: float | None = None
    read_bytes: int = 0

    def of_type(self, kind: str) -> list[tuple[float, dict[str, Any]]]:
        """The events of one type with their seconds."""
        return [(at, event) for at, event in self.events if event["type"] == kind]


def watch(arguments: Sequence[str], folder: Path) -> Watched:
    """Run `osp extend` with `--json` and look at it from outside.

    Raises:
        RuntimeError: it failed.
    """
    command = [sys.executable, "-m", "osp_cli", "extend", *arguments, "--json", "--no-listen"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    seen = Watched()
    started = time.monotonic()
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    said: list[str] = []
    assert process.stdout is not None and process.stderr is not None
    errors = process.stderr
    drain = threading.Thread(target=lambda: said.extend(errors), daemon=True)
    drain.start()
    for line in process.stdout:
        event = json.loads(line)
        seen.events.append((time.monotonic() - started, event))
        if event["type"] == "stream":
            seen.resident.append(resident_bytes(process.pid))
    seen.code = process.wait()
    drain.join()
    if seen.code:
        raise RuntimeError(f"osp extend ended with {seen.code}: {''.join(said)}")
    return seen


def watch_pipe(arguments: Sequence[str], folder: Path) -> Watched:
    """Run it with `-o -`, and read what comes as a player would."""
    command = [sys.executable, "-m", "osp_cli", "extend", *arguments, "-o", "-", "--no-listen"]
    seen = Watched()
    started = time.monotonic()
    process = subprocess.Popen(
        command,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdout is not None
    while piece := process.stdout.read1(2**16):
        if seen.first_byte is None:
            seen.first_byte = time.monotonic() - started
        seen.read_bytes += len(piece)
    seen.code = process.wait()
    seen.events.append((time.monotonic() - started, {"type": "end"}))
    return seen


def resident_bytes(pid: int) -> int:
    """Memory of a process that is in use now (Linux)."""
    for line in Path(f"/proc/{pid}/status").read_text("utf-8").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    return 0


def live(picture: Path, folder: Path, seconds: float, extra: Sequence[str]) -> dict[str, Any]:
    """How fast a stream is made, to a file and to a pipe."""
    prompt = "the camera pans left slowly"
    common = [str(picture), prompt, "--realtime", "-t", str(seconds), "--seed", "1", *extra]
    seen = watch([*common, "-o", "live.mp4", "-y"], folder)
    loaded = max(at for at, _ in seen.of_type("load"))
    chunks = seen.of_type("stream")
    (first_at, first), (last_at, last) = chunks[0], chunks[-1]
    fps = video_fps(seen)
    made = last["num_frames"] - first["num_frames"]
    piped = watch_pipe(common, folder)
    return {
        "frames": last["num_frames"],
        "first_chunk_after_loading_s": round(first_at - loaded, 2),
        "fps_after_the_first_chunk": round(made / (last_at - first_at), 2),
        "realtime_factor": round(made / (last_at - first_at) / fps, 3),
        "generate_s": stage(chunks, "generate_seconds"),
        "decode_s": stage(chunks, "decode_seconds"),
        "write_s": stage(chunks, "write_seconds"),
        "pipe_seconds_per_second": round(
            (piped.events[-1][0] - (piped.first_byte or 0)) / seconds, 3
        ),
        "pipe_bytes": piped.read_bytes,
    }


def video_fps(seen: Watched) -> float:
    """Pictures a second of the video, as its chunks say."""
    event = seen.of_type("stream")[-1][1]
    return float(event["num_frames"] / event["video_seconds"])


def stage(chunks: list[tuple[float, dict[str, Any]]], name: str) -> float:
    """The median of what a stage took."""
    return round(statistics.median(event[name] for _, event in chunks), 3)


def memory(picture: Path, folder: Path, chunks: int, extra: Sequence[str]) -> dict[str, Any]:
    """Resident memory over many chunks."""
    arguments = [str(picture), "gentle waves", "--realtime", "--seed", "1", "-o", "long.mp4", "-y"]
    probe = watch([*arguments, "-f", "73", *extra], folder)
    per_chunk = (
        probe.of_type("stream")[1][1]["num_frames"] - (probe.of_type("stream")[0][1]["num_frames"])
    )
    frames = 1 + (WARM_UP + chunks) * per_chunk
    seen = watch([*arguments, "-f", str(frames), *extra], folder)
    sizes = seen.resident[WARM_UP:]
    tenth = max(1, len(sizes) // 10)
    early, late = statistics.median(sizes[:tenth]), statistics.median(sizes[-tenth:])
    return {
        "chunks": len(sizes),
        "resident_mb": {
            "at_first": round(seen.resident[0] / 1e6, 1),
            "early": round(early / 1e6, 1),
            "late": round(late / 1e6, 1),
            "most": round(max(sizes) / 1e6, 1),
        },
        "growth_percent": round(100 * (late / early - 1), 2),
        "minutes": round(seen.events[-1][0] / 60, 1),
    }


def differences(video: np.ndarray, first: int, chunk: int) -> dict[str, list[float]]:
    """Mean changes from frame to frame, at borders of chunks, of groups, and within groups."""
    steps = [
        float(np.abs(after.astype(np.int16) - before).mean())
        for before, after in zip(video[first:], video[first + 1 :], strict=False)
    ]
    found: dict[str, list[float]] = {"chunk": [], "group": [], "within": []}
    for index, step in enumerate(steps, 1):
        kind = "chunk" if index % chunk == 0 else "group" if index % GROUP == 0 else "within"
        found[kind].append(step)
    return found


def seam(picture: Path, folder: Path, seconds: float, extra: Sequence[str]) -> dict[str, Any]:
    """Whether the borders of chunks stand out among the others."""
    told = {}
    for number, (prompt, style) in enumerate(CASES[:4]):
        name = f"seam-{number}.mp4"
        line = [str(picture), prompt, "--realtime", "-t", str(seconds), "--seed", "1"]
        seen = watch([*line, "-s", style, "-o", name, "-y", *extra], folder)
        chunks = seen.of_type("stream")
        chunk = chunks[1][1]["num_frames"] - chunks[0][1]["num_frames"]
        video = read_video(folder / name)
        # The first picture is the photo itself, before all chunks.
        found = differences(video, 1, chunk)
        told[prompt] = {
            kind: {
                "median": round(statistics.median(values), 2),
                "most": round(max(values), 2),
            }
            for kind, values in found.items()
            if values
        }
        others = found["group"] + found["within"]
        told[prompt]["chunk_borders_above_all_others"] = sum(
            value > max(others) for value in found["chunk"]
        )
    return told


def drift(picture: Path, folder: Path, seconds: float, extra: Sequence[str]) -> dict[str, Any]:
    """The meter over a stream, and pictures of it."""
    told = {}
    rows = []
    for number, (prompt, style) in enumerate(CASES):
        name = f"drift-{number}.mp4"
        line = [str(picture), prompt, "--realtime", "-t", str(seconds), "--seed", "1"]
        seen = watch([*line, "-s", style, "-o", name, "-y", *extra], folder)
        values = [event["drift"] for _, event in seen.of_type("stream")]
        words = [event["drift_word"] for _, event in seen.of_type("stream") if event["drift_word"]]
        told[f"{prompt} ({style})"] = {
            "last": round(values[-1], 3),
            "most": round(max(values, key=abs), 3),
            "chunks_outside_the_band": len(words),
            "of": len(values),
            "words": sorted(set(words)),
        }
        video = read_video(folder / name)
        rate = len(video) / seconds
        wanted = [min(len(video) - 1, round(second * rate)) for second in SHEET_SECONDS]
        rows.append(np.concatenate([video[index][::2, ::2] for index in wanted], 1))
    Image.fromarray(np.concatenate(rows)).save(folder / "drift.png")
    return told


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure what is asked for and print it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument(
        "--picture", type=Path, help="photo to begin with; a rendered one if left out"
    )
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--chunks", type=int, default=300)
    parser.add_argument("--keep", type=Path, help="folder for the videos")
    options, extra = parser.parse_known_args(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        picture = options.picture or rendered_photo(folder)
        found: dict[str, Any] = {}
        for part in options.parts:
            measure = {"live": live, "memory": memory, "seam": seam, "drift": drift}[part]
            amount = options.chunks if part == "memory" else options.seconds
            found[part] = measure(picture.resolve(), folder, amount, extra)
    print(json.dumps(found, indent=2))  # noqa: T201 - its result
    return found


def rendered_photo(folder: Path) -> Path:
    """A photo that every machine can make."""
    from osp_cli.procedural.example_photo import render

    path = folder / "photo.png"
    Image.fromarray(render()).save(path)
    return path


if __name__ == "__main__":
    main()
