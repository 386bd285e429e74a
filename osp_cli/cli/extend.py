"""`osp extend`: a video, a picture or the last output goes on, for some seconds or without end."""

from __future__ import annotations

import os
import time
from pathlib import Path

from osp_cli.cli import extend_options as own
from osp_cli.cli import options as opt
from osp_cli.errors import InvalidRequestError

EXAMPLES = """\
\b
Examples:
  osp extend                              the last output, 5 seconds more
  osp extend clip.mp4 "the camera pans left" --seconds 30
  osp extend photo.jpg --realtime         a live stream; type to steer it, q ends
  osp extend photo.jpg --realtime --sink http
  osp extend photo.jpg --realtime -o - | mpv -
  osp extend clip.mp4 -F screenplay.txt -t 60
  osp extend --resume clip.state.safetensors -t 60
"""


def extend(
    source: own.ExtendInputArg = None,
    prompt: opt.PromptArg = None,
    realtime: own.RealtimeOpt = False,
    style: own.ExtendStyleOpt = None,
    text: opt.TextOpt = None,
    output: own.ExtendOutputOpt = None,
    sink: own.SinkOpt = None,
    overwrite: opt.OverwriteOpt = False,
    seconds: own.ExtendSecondsOpt = None,
    num_frames: own.ExtendFramesOpt = None,
    fps: opt.FpsOpt = None,
    from_file: own.ScreenplayOpt = None,
    listen: own.ListenOpt = True,
    from_recipe: own.ExtendFromOpt = None,
    resume: own.ResumeOpt = None,
    seed: own.ExtendSeedOpt = None,
    negative_prompt: opt.NegativePromptOpt = None,
    size: opt.SizeOpt = None,
    width: opt.WidthOpt = None,
    height: opt.HeightOpt = None,
    num_inference_steps: opt.StepsOpt = None,
    guidance_scale: opt.CfgOpt = None,
    cutoff: own.ExtendCutoffOpt = None,
    shift: opt.ShiftOpt = None,
    sampler: own.ExtendSamplerOpt = None,
    context: own.ContextOpt = None,
    latent_frames: own.LatentFramesOpt = None,
    stages: own.StagesOpt = None,
    anchor_color: own.AnchorOpt = None,
    loras: opt.LoraOpt = None,
    cache: opt.CacheOpt = None,
    cache_start: opt.CacheStartOpt = None,
    model: opt.ModelOpt = None,
    device: opt.DeviceOpt = None,
    dtype: opt.DtypeOpt = None,
    offload: opt.OffloadOpt = None,
    quant: opt.QuantOpt = None,
    attention: opt.AttentionOpt = None,
    compile: opt.CompileOpt = None,
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
    """Continue a video, a picture or the last output, also live and without end."""
    started, typed = time.monotonic(), dict(locals())
    # Here, as `osp --help` needs none of it.
    from osp_cli.cli.extend_intake import ExtendCall, gather_extend, print_extend_settings
    from osp_cli.cli.extend_values import input_and_prompt
    from osp_cli.cli.extending import extend_now
    from osp_cli.cli.making import Manner, flags_of
    from osp_cli.config import stored_layers

    if offline:
        # A run fetches nothing by itself; this keeps every library from trying.
        os.environ["HF_HUB_OFFLINE"] = "1"
    if quiet and verbose:
        raise InvalidRequestError("--quiet and --verbose exclude each other")
    name, prompt = input_and_prompt(source, prompt)
    call = ExtendCall(
        source=name,
        prompt=prompt,
        text=text,
        flags=flags_of(typed),
        overwrite=overwrite,
        realtime=realtime,
        screenplay=from_file,
        sinks=tuple(sink or ()),
        context=context,
        latent_frames=latent_frames,
        stages=stages,
        anchor_color=anchor_color,
        from_recipe=from_recipe,
        resume=resume,
        listens=listen,
        stored=stored_layers("extend", None if config is None else Path(config)),
    )
    if print_config:
        print_extend_settings(call, as_json=as_json)
        return
    settled = gather_extend(call)
    extend_now(settled, started, Manner(dry_run, as_json, quiet, verbose))
