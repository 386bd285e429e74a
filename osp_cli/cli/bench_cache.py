"""`osp bench cache`: what step caches save and cost on a model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from osp_cli.cli import console
from osp_cli.dials import NO_CACHE, StepCacheChoice, number_text, step_cache
from osp_cli.errors import InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Callable

    from osp_cli.evaluation.cache_bench import CacheLine
    from osp_cli.evaluation.photos import Photo
    from osp_cli.registry import ModelSpec
    from osp_cli.stopping import StopSignal

HEADINGS = ("cache", "skipped", "seconds", "time", "PSNR", "largest", "motion", "note")


def read_caches(text: str | None) -> list[StepCacheChoice] | None:
    """What `--caches` lists, parted by commas; None where nothing was typed.

    Raises:
        InvalidRequestError: one is unknown, stands there twice, or is none.
    """
    if text is None:
        return None
    caches = [step_cache(part) for part in text.split(",")]
    for cache in caches:
        if cache == NO_CACHE or caches.count(cache) > 1:
            problem = "is measured anyway" if cache == NO_CACHE else "stands there twice"
            raise InvalidRequestError(f"--caches: {cache} {problem}", hint="leave it out")
    return caches


def usable_caches(
    spec: ModelSpec, asked: Sequence[StepCacheChoice], *, typed: bool
) -> tuple[list[StepCacheChoice], list[str]]:
    """Those that work with a model, and a sentence for each kind that does not.

    Raises:
        InvalidRequestError: none does, and they were `typed`.
    """
    problems = {cache.kind: spec.cache_problem(cache.kind) for cache in asked}
    usable = [cache for cache in asked if problems[cache.kind] is None]
    sentences = [problem for problem in problems.values() if problem is not None]
    if not usable and typed:
        raise InvalidRequestError("; ".join(sentences), hint="osp bench cache without --caches")
    return usable, [f"{sentence}, so it is left out" for sentence in sentences]


def measure_caches(
    spec: ModelSpec,
    weights: Path,
    photos: Sequence[Photo],
    asked: Sequence[StepCacheChoice] | None,
    stop: StopSignal,
    tell: Callable[[str], None],
    *,
    quick: bool,
    steps: int | None,
    style: str | None,
    out: Path | None,
) -> list[CacheLine]:
    """All lines; with `out`, the report and a sheet there.

    Raises:
        InvalidRequestError: none of the caches that were asked for works with the model.
    """
    import tempfile

    from osp_cli.runtime.start_up import light_imports

    usable_caches(spec, asked or (), typed=asked is not None)
    with tempfile.TemporaryDirectory(prefix="osp-bench-") as scratch:
        tell("load")
        with light_imports(for_good=True):
            from osp_cli.runtime.studio import Studio  # torch starts here
        from osp_cli.evaluation.cache_bench import (
            CACHE_FULL,
            CACHE_QUICK,
            CACHES,
            QUICK_CACHES,
            CacheBench,
        )
        from osp_cli.runtime.caching import with_threshold

        default = with_threshold(spec, step_cache(str(spec.defaults.get("cache", "none"))))
        caches, left_out = usable_caches(
            spec, asked or (QUICK_CACHES if quick else CACHES), typed=asked is not None
        )
        caches = [with_threshold(spec, cache) for cache in caches]
        if default not in (NO_CACHE, *caches) and asked is None:
            caches.insert(0, default)
        for sentence in left_out:
            tell(sentence)
        bench = CacheBench(
            Studio(spec.name, weights=weights, folder=Path(scratch), stop=stop),
            photos,
            list(dict.fromkeys(caches)),
            default=default,
            extent=CACHE_QUICK if quick else CACHE_FULL,
            max_frames=spec.max_frames,
            steps=steps,
            style=style,
            tell=tell,
        )
        lines = bench.lines()
    if out is not None:
        about = {"model": spec.name, "quick": quick, "left_out": left_out}
        _write_report(out / "report.json", lines, about)
        tell(f"saved {out / 'report.json'}")
        tell(f"saved {bench.save_sheet(out / 'caches.png')}")
    return lines


def show_caches(lines: Sequence[CacheLine]) -> None:
    """The table; on stdout, as it is what was asked for."""
    console.write_table(HEADINGS, [_row(line) for line in lines])


def _row(line: CacheLine) -> tuple[str, ...]:
    same = line.psnr == float("inf")
    return (
        line.cache,
        f"{number_text(round(line.skipped, 1))} of {line.num_steps}",
        f"{line.seconds:.2f} s",
        f"{line.time_ratio:.0%}",
        "same" if same else f"{line.psnr:.1f} dB",
        f"{line.largest:.1f}",
        f"{line.motion_kept:.0%}",
        ", ".join(_notes(line)),
    )


def _notes(line: CacheLine) -> list[str]:
    notes = ["best at its speed"] if line.on_front else []
    notes += ["the model's own"] if line.is_default else []
    return [*notes, *(f"{photo} went still" for photo in line.went_still)]


def _write_report(path: Path, lines: Sequence[CacheLine], about: dict[str, Any]) -> None:
    import json

    from osp_cli import __version__
    from osp_cli.media.files import atomic_output

    report = {"version": __version__, **about, "lines": [line.as_json() for line in lines]}
    with atomic_output(path, overwrite=True) as part:
        part.write_text(json.dumps(report, indent=1) + "\n", "utf-8")
