"""`osp generate`: a picture becomes a video."""

from __future__ import annotations

import os
import time
from pathlib import Path

from osp_cli.cli import options as opt
from osp_cli.errors import InvalidRequestError

EXAMPLES = """\
\b
Examples:
  osp generate photo.jpg "the camera pans left"
  osp generate photo.jpg "snow falls" --style ghibli --seed 1-4
  osp generate photo.jpg @prompt.txt -s ink -o ink.gif -y
  osp generate photo.jpg "zoom in" --style ghibli:0.3+oil:0.5
  osp generate photo.jpg "zoom in" --lora style.safetensors:0.8
  osp generate --from clip.mp4 --style oil
  osp generate photo.jpg --from-file prompts.txt -o videos/
  curl -s URL | osp generate - "zoom in" -o - | ffplay -
"""


def generate(
    image: opt.ImageArg = None,
    prompt: opt.PromptArg = None,
    style: opt.StyleOpt = None,
    output: opt.OutputOpt = None,
    overwrite: opt.OverwriteOpt = False,
    seed: opt.SeedOpt = None,
    count: opt.CountOpt = None,
    negative_prompt: opt.NegativePromptOpt = None,
    text: opt.TextOpt = None,
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
    """Turn a picture into a video."""
    started, typed = time.monotonic(), dict(locals())
    # Here, as `osp --help` needs none of it.
    from osp_cli.cli.intake import Call
    from osp_cli.cli.making import Manner, flags_of, make, print_settings
    from osp_cli.config import stored_layers

    if offline:
        # A run fetches nothing by itself; this keeps every library from trying.
        os.environ["HF_HUB_OFFLINE"] = "1"
    if quiet and verbose:
        raise InvalidRequestError("--quiet and --verbose exclude each other")
    call = Call(
        image=image,
        prompt=prompt,
        text=text,
        flags=flags_of(typed),
        overwrite=overwrite,
        recipe_file=from_recipe,
        batch_file=from_file,
        pick=pick,
        stored=stored_layers("generate", None if config is None else Path(config)),
    )
    if print_config:
        print_settings(call, as_json=as_json)
        return
    make(call, started, Manner(dry_run, as_json, quiet, verbose))
