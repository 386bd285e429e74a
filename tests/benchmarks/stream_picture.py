"""Makes the README's picture of a stream from real output.

`python tests/benchmarks/stream_picture.py` runs `osp extend --realtime` by a screenplay, and shows
what the video looks like from time to time, with the line that was on by then.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from osp_cli.cli.app import main as osp
from osp_cli.media.sheet import labelled_grid, save_sheet
from osp_cli.media.video import read_video

PRESETS = Path(__file__).parents[2] / "presets"
FPS = 16
SCREENPLAY = """\
0s: the camera pans left
14s: zoom in slowly
24s: the camera pans right --style ghibli
38s: zoom out slowly --style ink
48s: drifting clouds --style vaporwave
"""
# Second of the stream and what had been asked for.
CELLS = (
    (0.0, "the picture"),
    (6.0, "0:06 pan left"),
    (13.0, "0:13 pan left"),
    (23.0, "0:23 zoom in slowly"),
    (29.0, "0:29 pan right, ghibli"),
    (36.0, "0:36 pan right, ghibli"),
    (41.0, "0:41 zoom out slowly, ink"),
    (47.0, "0:47 zoom out slowly, ink"),
    (51.0, "0:51 clouds, vaporwave"),
    (59.5, "0:59 clouds, vaporwave"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photo", type=Path, default=PRESETS / "examples" / "lake.jpg")
    parser.add_argument("--out", type=Path, default=PRESETS / "gallery" / "stream.jpg")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        play, video = Path(folder) / "play.txt", Path(folder) / "stream.mp4"
        play.write_text(SCREENPLAY, "utf-8")
        line = ["extend", str(options.photo), "--realtime", "--no-listen", "-t", "60"]
        if osp([*line, "-F", str(play), "--seed", "7", "-o", str(video)]):
            raise SystemExit("the stream could not be made")
        frames = read_video(video)
    cells = {label: frames[min(len(frames) - 1, round(at * FPS))] for at, label in CELLS}
    save_sheet(labelled_grid(cells, num_columns=5, cell_width=300), options.out)


if __name__ == "__main__":
    main()
