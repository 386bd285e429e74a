"""What is asked of `osp dataset build`, settled before any heavy library is imported."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from osp_cli.errors import InvalidRequestError
from osp_cli.media.gates import GateSettings
from osp_cli.own_styles import find_any_style, known_name
from osp_cli.registry import ModelSpec, StylePreset, find_model, style_presets
from osp_cli.training.building.quality_settings import QualitySettings
from osp_cli.training.building.settings import BuildSettings, Style
from osp_cli.training.building.sources import Source

PROCEDURAL = "procedural"
ALL_STYLES = "all"
# Clips of the paper are 5 seconds; 81 frames at 16 fps are that, and what Wan2.1 makes at most.
_FULL_FRAMES = 81
_FULL_SIDE = 480
_PAPER_SIDE = 720


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildRequest:
    """One dataset to build, or to go on with.

    Attributes:
        folder: of the dataset.
        sources: in their order.
        captions: by the id of a source.
        styles: that every source is shown in.
        settings: of all rows.
        device: for engines with weights.
        overwrite: what other settings have made in the folder may be thrown away.
    """

    folder: Path
    sources: tuple[Source, ...]
    captions: dict[str, str]
    styles: tuple[Style, ...]
    settings: BuildSettings
    device: str = "auto"
    overwrite: bool = False


def settle_build(
    *,
    stylizer: str,
    animator: str,
    judge: str | None = None,
    num_frames: int | None,
    fps: int | None,
    size: tuple[int, int] | None,
    seed: int,
    caption: str | None,
    prompt: str | None,
    gates: bool,
    min_seconds: float | None,
    max_seconds: float | None,
    min_side: int | None,
    allow_cuts: bool,
) -> tuple[BuildSettings, list[str]]:
    """Settings, with what was not asked taken from the animator's card, and sentences about it.

    Raises:
        InvalidRequestError: the animator is unknown, cannot move pictures, or not that size.
    """
    notices = []
    # Drawn clips have the sizes and lengths of the built-in model, which learns from them.
    spec = find_model("osp-mini" if animator == PROCEDURAL else animator)
    frames = num_frames or min(_FULL_FRAMES, spec.max_frames)
    rounded = -(-(frames - 1) // spec.scale_factor_temporal) * spec.scale_factor_temporal + 1
    if rounded != frames:
        notices.append(f"--frames is 4k+1: {rounded}, not {frames}")
    settings = BuildSettings(
        stylizer=stylizer,
        animator=animator,
        judge=judge,
        num_frames=rounded,
        fps=fps or 16,
        size=size,
        sizes=(spec.default_size, *(one for one in spec.sizes if one != spec.default_size)),
        seed=seed,
        caption=caption,
        prompt=prompt,
        gates=_gates(spec, min_seconds, max_seconds, min_side, allow_cuts) if gates else None,
        quality=QualitySettings() if gates else None,
    )
    _check_clip(settings, spec, is_drawn=animator == PROCEDURAL)
    return settings, notices


def find_styles(names: Sequence[str], stylizer: str) -> tuple[Style, ...]:
    """The styles by name, `all` for all of ours.

    Raises:
        InvalidRequestError: there is no such style, or the stylizer does not know it.
    """
    ours = style_presets()
    if list(names) == [ALL_STYLES]:
        names = list(ours)
    presets = [find_any_style(known_name(name)) for name in names]
    for preset in presets:
        if stylizer == PROCEDURAL and preset.name not in ours:
            raise InvalidRequestError(
                f"the procedural stylizer does not know the style {preset.name}",
                hint=f"it knows {', '.join(ours)}; others take another --stylizer",
            )
    return tuple({preset.name: _style(preset) for preset in presets}.values())


def _style(preset: StylePreset) -> Style:
    words = preset.prompt_template.replace("{prompt}", "").strip(" ,;:")
    instruction = f"Redraw this picture. Keep its content, composition and poses. Style: {words}"
    return Style(preset.name, preset.title, instruction, preset.short or preset.title)


def judged_words(styles: Sequence[Style]) -> dict[str, str]:
    """What a judge chooses from, by name: these styles and all of ours."""
    ours = {name: preset.short or preset.title for name, preset in style_presets().items()}
    return {**ours, **{style.name: style.words or style.title for style in styles}}


def _gates(
    spec: ModelSpec,
    min_seconds: float | None,
    max_seconds: float | None,
    min_side: int | None,
    allow_cuts: bool,
) -> GateSettings:
    default = GateSettings()
    # 720 lines are the paper's, for clips of 480; small clips need no more than their own.
    side = _PAPER_SIDE if min(spec.default_size) >= _FULL_SIDE else min(spec.default_size)
    return GateSettings(
        min_seconds=default.min_seconds if min_seconds is None else min_seconds,
        max_seconds=default.max_seconds if max_seconds is None else max_seconds,
        min_side=side if min_side is None else min_side,
        allow_cuts=allow_cuts,
    )


def _check_clip(settings: BuildSettings, spec: ModelSpec, *, is_drawn: bool) -> None:
    """Refuse clips that the animator cannot make."""
    if settings.num_frames < 5 or settings.fps < 1:
        raise InvalidRequestError(
            f"a clip has at least 5 frames, at 1 or more a second, got {settings.num_frames} "
            f"at {settings.fps}"
        )
    if is_drawn:
        for side in settings.size or ():
            if side % 2 or side < 32:
                raise InvalidRequestError(f"--size takes even sides from 32 on, got {side}")
        return
    # The request that every clip will be made with, less its picture.
    from osp_cli.requests import GenerateRequest

    if not spec.image_to_video:
        raise InvalidRequestError(
            f"{spec.name} cannot be shown a picture", hint="osp models lists those that can"
        )
    width, height = settings.size or spec.default_size
    GenerateRequest(
        image=Path("picture.png"),
        model=spec.name,
        width=width,
        height=height,
        num_frames=settings.num_frames,
        fps=settings.fps,
        seed=0,
    )
