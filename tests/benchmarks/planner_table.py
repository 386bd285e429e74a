"""What the planner chooses on graphics cards of 4 to 141 GB, as Markdown.

    python tests/benchmarks/planner_table.py --ram 16 64 > table.md

Arithmetic on the model cards alone, whatever is installed: nothing is loaded and no device is
asked. A card of N GB is one with N * 10^9 bytes free. Each cell names the way, then the expected
peak on the device and the memory of the host, both in GB, and roughly how long sampling takes on a
device of `--speed` operations a second; a dash is a refusal.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from osp_cli.errors import InvalidRequestError, WontFitError
from osp_cli.plan import Plan
from osp_cli.registry import ModelSpec, model_specs
from osp_cli.requests import GenerateRequest
from osp_cli.runtime.planner import make_plan
from osp_cli.runtime.strategy import Machine

GB = 10**9
CARDS = (4, 6, 8, 10, 12, 16, 24, 32, 40, 48, 80, 96, 141)
FRAMES = (49, 81)
SMALL = (448, 256)
# A modest card's; whoever runs a clip gets the speed of the device that is there.
SPEED = 80e12


def clips(spec: ModelSpec) -> list[tuple[tuple[int, int], int]]:
    """Sizes and numbers of frames: a small, the card's own, and the largest that it takes."""
    sizes = [SMALL] if all(edge % spec.multiple_of == 0 for edge in SMALL) else []
    sizes.append(spec.default_size)
    largest = _widescreen(spec, spec.max_pixels)
    if largest[0] * largest[1] > max(width * height for width, height in spec.sizes):
        sizes.append(largest)
    frames = sorted({min(count, spec.max_frames) for count in FRAMES})
    return [(size, count) for size in dict.fromkeys(sizes) for count in frames]


def _widescreen(spec: ModelSpec, pixels: int) -> tuple[int, int]:
    """About 16:9, of so many pixels at most, as the card takes them."""
    every = spec.multiple_of
    height = int((pixels * 9 / 16) ** 0.5) // every * every
    return pixels // height // every * every, height


def plan_or_none(
    spec: ModelSpec, machine: Machine, size: tuple[int, int], num_frames: int
) -> Plan | None:
    """What a run with no other dial touched would do; None where it is refused."""
    defaults = {
        name: value
        for name, value in spec.defaults.items()
        if name in ("num_inference_steps", "guidance_scale", "shift")
    }
    given = {"image": Path("picture.png")} if spec.image_to_video else {"text_only": True}
    request = GenerateRequest(
        **{"image": None, "prompt": "a text", **given, **defaults},
        model=spec.name,
        num_frames=num_frames,
        seed=0,
    )
    # What comes with the package is there; of the others, the card alone speaks.
    weights = spec.find_weights() if spec.embedded else None
    try:
        return make_plan(request, spec, size=size, machine=machine, weights=weights)
    except WontFitError:
        return None


def cell(plan: Plan | None) -> str:
    """One plan in a few words."""
    if plan is None:
        return "-"
    way = plan.offload
    way += "" if plan.quant == "none" else f" {plan.quant}"
    way += " tiles" if plan.vae_tiling else ""
    way += " paged" if plan.offload == "group" and not plan.pinned else ""
    way += " text in pieces" if "conditioner" in plan.streamed else ""
    return f"{way}, {plan.expected_peak_bytes / GB:.1f} / {plan.expected_ram_bytes / GB:.1f}, " + (
        "?" if plan.expected_seconds is None else _duration(plan.expected_seconds)
    )


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def table(spec: ModelSpec, ram: int, cards: Sequence[int], speed: float) -> Iterator[str]:
    """The lines of one model's table."""
    asked = clips(spec)
    # Before the heading, as it refuses what makes no videos.
    rows = list(_rows(spec, asked, ram, cards, speed))
    yield f"### {spec.name}, {ram} GB of RAM"
    yield ""
    yield "|".join(["", "GB", *(f"{w}x{h}, {frames} frames" for (w, h), frames in asked), ""])
    yield "|".join(["", *["---"] * (len(asked) + 1), ""])
    yield from rows
    yield ""


def _rows(
    spec: ModelSpec,
    asked: Iterable[tuple[tuple[int, int], int]],
    ram: int,
    cards: Iterable[int],
    speed: float,
) -> Iterator[str]:
    for vram in cards:
        machine = Machine(
            device="cuda", device_bytes=vram * GB, ram_bytes=ram * GB, disk_bytes=200 * GB,
            speed=speed,
        )  # fmt: skip
        cells = [cell(plan_or_none(spec, machine, size, frames)) for size, frames in asked]
        yield "|".join(["", str(vram), *cells, ""])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ram", type=int, nargs="+", default=[64], metavar="GB")
    parser.add_argument("--cards", type=int, nargs="+", default=CARDS, metavar="GB")
    parser.add_argument("--models", nargs="+", help="leave out the others")
    parser.add_argument("--speed", type=float, default=SPEED)
    options = parser.parse_args()
    for name, spec in model_specs().items():
        if spec.pipeline == "none" or (options.models and name not in options.models):
            continue
        try:
            for ram in options.ram:
                for line in table(spec, ram, options.cards, options.speed):
                    sys.stdout.write(line + "\n")
        except InvalidRequestError as error:
            sys.stderr.write(f"{name}: {error}\n")


if __name__ == "__main__":
    main()
