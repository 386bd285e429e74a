"""`osp stylize`: pictures and videos become clips in a style."""

from __future__ import annotations

import os
import time
from pathlib import Path

from osp_cli.cli import options as opt
from osp_cli.errors import InvalidRequestError

EXAMPLES = """\
\b
Examples:
  osp stylize photo.jpg --style ink
  osp stylize photo.jpg "the camera zooms in" -s ghibli:0.7
  osp stylize photo.jpg -s all            a grid of all thirteen
  osp stylize photo.jpg -s ink --seed 1-9
  osp stylize photos/ -s oil -o painted/
  osp stylize film.mp4 -s watercolor --strength 0.5
  osp stylize photo.jpg -s none..vaporwave
  osp stylize photo.jpg -s mine.toml --cutoff 0.05,0.1,0.5
"""


def stylize(
    inputs: opt.InputsArg = None,
    style: opt.StylizeStyleOpt = None,
    output: opt.SheetOutputOpt = None,
    overwrite: opt.OverwriteOpt = False,
    seed: opt.SeedOpt = None,
    count: opt.CountOpt = None,
    strength: opt.StrengthOpt = None,
    negative_prompt: opt.NegativePromptOpt = None,
    size: opt.SizeOpt = None,
    width: opt.WidthOpt = None,
    height: opt.HeightOpt = None,
    num_frames: opt.FramesOpt = None,
    seconds: opt.SecondsOpt = None,
    fps: opt.FpsOpt = None,
    num_inference_steps: opt.StepsOpt = None,
    guidance_scale: opt.CfgOpt = None,
    cutoff: opt.CutoffOpt = None,
    shift: opt.ShiftOpt = None,
    sampler: opt.SamplerOpt = None,
    loras: opt.LoraOpt = None,
    cache: opt.CacheOpt = None,
    cache_start: opt.CacheStartOpt = None,
    preview: opt.PreviewOpt = None,
    pick: opt.PickOpt = None,
    from_recipe: opt.FromOpt = None,
    from_file: opt.FromFileOpt = None,
    model: opt.ModelOpt = None,
    device: opt.DeviceOpt = None,
    dtype: opt.DtypeOpt = None,
    offload: opt.OffloadOpt = None,
    quant: opt.QuantOpt = None,
    attention: opt.AttentionOpt = None,
    vae_tiling: opt.VaeTilingOpt = None,
    compile: opt.CompileOpt = None,
    gpus: opt.GpusOpt = None,
    max_vram: opt.MaxVramOpt = None,
    max_ram: opt.MaxRamOpt = None,
    offline: opt.OfflineOpt = False,
    metadata: opt.MetadataOpt = None,
    config: opt.ConfigOpt = None,
    print_config: opt.PrintConfigOpt = False,
    dry_run: opt.DryRunOpt = False,
    as_json: opt.JsonOpt = False,
    quiet: opt.QuietOpt = False,
    verbose: opt.VerboseOpt = False,
    debug: opt.DebugOpt = False,
) -> None:
    """Turn pictures and videos into clips in a style."""
    started, typed = time.monotonic(), dict(locals())
    # Here, as `osp --help` needs none of it.
    from osp_cli.cli.inputs import split_arguments, unfolded
    from osp_cli.cli.intake import Call
    from osp_cli.cli.making import Manner, flags_of, make, print_settings
    from osp_cli.config import stored_layers

    if offline:
        # A run fetches nothing by itself; this keeps every library from trying.
        os.environ["HF_HUB_OFFLINE"] = "1"
    if quiet and verbose:
        raise InvalidRequestError("--quiet and --verbose exclude each other")
    words, prompt = split_arguments(inputs or [])
    names, notices = unfolded(words)
    if "-" in names and len(names) > 1:
        raise InvalidRequestError("- reads one picture from stdin and stands alone")
    call = Call(
        command="stylize",
        image=names[0] if names else None,
        inputs=tuple(names),
        prompt=prompt,
        notices=tuple(notices),
        flags=flags_of(typed),
        overwrite=overwrite,
        recipe_file=from_recipe,
        batch_file=from_file,
        pick=pick,
        stored=stored_layers("stylize", None if config is None else Path(config)),
    )
    if print_config:
        print_settings(call, as_json=as_json)
        return
    make(call, started, Manner(dry_run, as_json, quiet, verbose))
