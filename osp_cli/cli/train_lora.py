"""`osp train-lora`: a style of one's own, from a folder of clips."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from osp_cli.cli import options as opt
from osp_cli.cli import train_options as own
from osp_cli.errors import InvalidRequestError

EXAMPLES = """\
\b
Examples:
  osp train-lora clips/ --out stainedglass --trigger "stained glass"
  osp generate photo.jpg "the camera pans left" --style stainedglass
  osp train-lora clips/ --validate-only
  osp train-lora clips/ -o glass --dry-run -m uniworld-osp2-14b --quant fp8
  osp train-lora clips/ -o glass -m flashi2v-1.3b --gpus 4
  osp train-lora clips/ -o glass --max-steps 800      goes on with a finished run
"""


@own.with_train_flags
def train_lora(
    dataset: own.DatasetArg = None,
    output: own.OutOpt = None,
    title: own.TitleOpt = None,
    resume: own.ResumeOpt = "auto",
    allow_empty: own.AllowEmptyOpt = False,
    allow_upscale: own.AllowUpscaleOpt = False,
    skip_invalid: own.SkipInvalidOpt = False,
    validate_only: own.ValidateOnlyOpt = False,
    cache_only: own.CacheOnlyOpt = False,
    overwrite: own.OverwriteOpt = False,
    offline: opt.OfflineOpt = False,
    config: opt.ConfigOpt = None,
    print_config: opt.PrintConfigOpt = False,
    dry_run: opt.DryRunOpt = False,
    as_json: opt.JsonOpt = False,
    quiet: opt.QuietOpt = False,
    verbose: opt.VerboseOpt = False,
    debug: opt.DebugOpt = False,
    **flags: Any,
) -> None:
    """Train a style or a subject of your own from a folder of clips."""
    started = time.monotonic()
    # Here, as `osp --help` needs none of it.
    from osp_cli.cli.making import Manner
    from osp_cli.cli.training import show_training_settings, train_now
    from osp_cli.config import TRAINING, stored_layers
    from osp_cli.train_settings import settle_training

    if offline:
        # A run fetches nothing by itself; this keeps every library from trying.
        os.environ["HF_HUB_OFFLINE"] = "1"
    if quiet and verbose:
        raise InvalidRequestError("--quiet and --verbose exclude each other")
    for field in ("sample_prompts", "sample_images", "logs"):
        flags[field] = tuple(flags[field]) if flags[field] else None
    needs_name = not (validate_only or cache_only or print_config)
    settled = settle_training(
        _dataset(dataset, print_config=print_config),
        _output(output, dataset, needed=needs_name),
        layers=stored_layers(TRAINING, None if config is None else Path(config)),
        manner={
            "title": title or "",
            "resume": resume,
            "allow_empty": allow_empty,
            "allow_upscale": allow_upscale,
            "skip_invalid": skip_invalid,
            "validate_only": validate_only,
            "cache_only": cache_only,
            "overwrite": overwrite,
        },
        **flags,
    )
    if print_config:
        show_training_settings(settled, as_json=as_json)
        return
    train_now(settled, started, Manner(dry_run, as_json, quiet, verbose))


def _dataset(dataset: str | None, *, print_config: bool) -> Path:
    if dataset is None:
        if print_config:
            return Path()
        raise InvalidRequestError(
            "the data are missing",
            hint='osp train-lora ./clips --out mystyle --trigger "my style"',
        )
    return Path(os.path.expanduser(dataset))  # noqa: PTH111 - the method fails on ~nobody


def _output(output: str | None, dataset: str | None, *, needed: bool) -> Path:
    """The run's folder; what writes nothing there may do without."""
    if output is not None:
        if not Path(output).name.strip("."):
            raise InvalidRequestError(f"--out {output!r} is no name", hint="--out mystyle")
        return Path(os.path.expanduser(output))  # noqa: PTH111
    if needed:
        raise InvalidRequestError(
            "the adapter has no name",
            hint=f"osp train-lora {dataset} --out mystyle",
        )
    return Path("unnamed")
