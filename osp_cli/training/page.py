"""The page of a run: how the loss fell, and what samples looked like on the way.

One file that needs neither network nor other files: curves are drawn in it, samples are inside.
"""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from osp_cli.media.files import atomic_output

_WIDTH, _HEIGHT = 900, 260
_LEFT, _BOTTOM, _TOP = 56, 26, 12
_POINTS = 600  # of a curve; more cannot be told apart
_STRIP_FRAMES = 5
_STRIP_HEIGHT = 144
_QUALITY = 82

_STYLE = """
:root { color-scheme: light dark; --line: #2a6fdb; --soft: #8884; --text: #222; --back: #fff; }
@media (prefers-color-scheme: dark) {
  :root { --line: #7db0ff; --soft: #8886; --text: #ddd; --back: #16181c; }
}
body { font: 15px/1.5 system-ui, sans-serif; color: var(--text); background: var(--back);
       max-width: 1080px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
table { border-collapse: collapse; } td, th { padding: .15rem .8rem .15rem 0; text-align: left;
  vertical-align: top; } th { font-weight: 600; }
svg text { fill: currentColor; font-size: 11px; } img, video { max-width: 100%; border-radius: 4px;
  display: block; } figure { margin: .6rem 0; } figcaption { opacity: .75; font-size: .9em; }
"""


@dataclass(frozen=True, slots=True)
class SampleRecord:
    """One sample of a run: `step` 0 is the base without the adapter.

    Attributes:
        step: after which it was made.
        prompt: that it was made with.
        path: of the video.
        strip: JPEG of some of its frames side by side.
    """

    step: int
    prompt: str
    path: Path
    strip: Path


def write_strip(frames: NDArray[np.uint8], path: Path) -> None:
    """A few frames of a clip side by side, as JPEG.

    Args:
        frames: `(frames, height, width, 3)`.
        path: of the file; one that is there is replaced.
    """
    count = min(_STRIP_FRAMES, len(frames))
    chosen = [round(index * (len(frames) - 1) / max(1, count - 1)) for index in range(count)]
    pictures = []
    for index in chosen:
        picture = Image.fromarray(frames[index])
        width = round(picture.width * _STRIP_HEIGHT / picture.height)
        pictures.append(
            np.asarray(picture.resize((width, _STRIP_HEIGHT), Image.Resampling.LANCZOS))
        )
    buffer = io.BytesIO()
    Image.fromarray(np.concatenate(pictures, axis=1)).save(buffer, "JPEG", quality=_QUALITY)
    with atomic_output(path, overwrite=True) as part:
        part.write_bytes(buffer.getvalue())


def write_page(
    path: Path,
    title: str,
    facts: Mapping[str, Any],
    metrics: Path,
    samples: Sequence[SampleRecord],
) -> None:
    """Write the page anew, whole or not at all.

    Args:
        path: of the page.
        title: what the run is called.
        facts: of the run, shown as a table.
        metrics: `metrics.jsonl` of the run.
        samples: in the order of their steps.
    """
    rows = _read_metrics(metrics)
    # Whoever clears the folder meanwhile does not end the run by that.
    samples = [sample for sample in samples if sample.strip.is_file() and sample.path.is_file()]
    parts = [f"<h1>{html.escape(title)}</h1>", _table(facts), "<h2>Loss</h2>", _loss_curve(rows)]
    if any(row.get("grad_norm") is not None for row in rows):
        parts += ["<h2>Gradient norm</h2>", _curve(_series(rows, "grad_norm"))]
    if samples:
        parts.append("<h2>Samples</h2>")
    for step in sorted({sample.step for sample in samples}, reverse=True):
        here = [sample for sample in samples if sample.step == step]
        name = "Before training" if step == 0 else f"After step {step}"
        last = step == max(sample.step for sample in samples)
        parts.append(f"<h3>{name}</h3>" + "".join(_figure(s, moving=last) for s in here))
    document = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style>'
        f"<body>{''.join(parts)}</body></html>\n"
    )
    with atomic_output(path, overwrite=True) as part:
        part.write_text(document, encoding="utf-8")


def _read_metrics(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            # The last line of a run that was killed.
            continue
    return [row for row in rows if isinstance(row, dict) and "step" in row]


def _table(facts: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<tr><th>{html.escape(str(key))}</th><td>{html.escape(str(value))}</td></tr>"
        for key, value in facts.items()
    )
    return f"<table>{rows}</table>"


def _loss_curve(rows: Sequence[Mapping[str, Any]]) -> str:
    return _curve(_series(rows, "loss"))


def _series(rows: Sequence[Mapping[str, Any]], key: str) -> list[tuple[int, float]]:
    """Steps and finite values; skipped steps leave a gap."""
    found = []
    for row in rows:
        value = row.get(key)
        if isinstance(value, int | float) and np.isfinite(value) and not row.get("skipped"):
            found.append((int(row["step"]), float(value)))
    return found


def _curve(points: Sequence[tuple[int, float]]) -> str:
    """An SVG of all values, faint, and of their running mean."""
    if len(points) < 2:
        return "<p>Nothing to draw yet.</p>"
    steps = np.array([step for step, _ in points], dtype=np.float64)
    values = np.array([value for _, value in points])
    low, high = float(values.min()), float(values.max())
    high = high if high > low else low + 1.0
    x = _LEFT + (steps - steps[0]) / (steps[-1] - steps[0]) * (_WIDTH - _LEFT - 8)
    floor = _HEIGHT - _BOTTOM

    def line(heights: NDArray[np.float64], style: str) -> str:
        y = floor - (heights - low) / (high - low) * (floor - _TOP)
        every = max(1, len(x) // _POINTS)
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x[::every], y[::every], strict=True))
        return f'<polyline points="{path}" fill="none" {style}/>'

    marks = "".join(
        f'<line x1="{_LEFT}" x2="{_WIDTH - 8}" y1="{y}" y2="{y}" stroke="var(--soft)"/>'
        f'<text x="{_LEFT - 6}" y="{y + 4}" text-anchor="end">{value:.3g}</text>'
        for value, y in ((low, floor), ((low + high) / 2, (floor + _TOP) / 2), (high, _TOP))
    )
    ends = (
        f'<text x="{_LEFT}" y="{_HEIGHT - 6}">step {int(steps[0])}</text>'
        f'<text x="{_WIDTH - 8}" y="{_HEIGHT - 6}" text-anchor="end">{int(steps[-1])}</text>'
    )
    lines = line(values, 'stroke="var(--soft)" stroke-width="1"')
    lines += line(_running_mean(values), 'stroke="var(--line)" stroke-width="2"')
    return f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img">{marks}{lines}{ends}</svg>'


def _running_mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean of the steps around each one; of fewer at the ends."""
    reach = max(1, len(values) // 40)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    ends = np.minimum(np.arange(len(values)) + reach + 1, len(values))
    starts = np.maximum(np.arange(len(values)) - reach, 0)
    return np.asarray((sums[ends] - sums[starts]) / (ends - starts))


def _figure(sample: SampleRecord, *, moving: bool) -> str:
    """A sample: its frames side by side, and, of the last ones, the clip itself."""
    strip = base64.b64encode(sample.strip.read_bytes()).decode()
    shown = f'<img alt="" src="data:image/jpeg;base64,{strip}">'
    if moving and sample.path.suffix == ".mp4":
        clip = base64.b64encode(sample.path.read_bytes()).decode()
        shown += (
            '<video controls loop muted playsinline style="margin-top:.4rem" '
            f'src="data:video/mp4;base64,{clip}"></video>'
        )
    return f"<figure>{shown}<figcaption>{html.escape(sample.prompt)}</figcaption></figure>"
