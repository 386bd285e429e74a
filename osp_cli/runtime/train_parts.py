"""What a training run is made of: its clips, its encoders, its transformer."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from osp_cli.events import (
    Event,
    StageStarted,
)
from osp_cli.plan import Plan
from osp_cli.registry import ModelSpec, presets_dir
from osp_cli.runtime.loading import load_parts
from osp_cli.runtime.models import set_tiling
from osp_cli.runtime.train_encoding import ClipStore, Encoders
from osp_cli.runtime.train_samples import TrainingSamples, sample_pictures
from osp_cli.stopping import StopSignal
from osp_cli.train_plan import TrainPlan
from osp_cli.train_request import TrainRequest
from osp_cli.training.adapters import (
    add_adapter,
    unfreeze,
    unfreeze_conditioner,
)
from osp_cli.training.conditions import condition_source
from osp_cli.training.dataset.cache import ClipCache
from osp_cli.training.dataset.entries import DatasetReport, condition_of
from osp_cli.training.dataset.windows import read_source, read_window
from osp_cli.training.distributed import (
    DataGroup,
)

# Pictures that samples begin with, where the user names none.
_PICTURES = 3
_PHOTO = "photo.jpg"


@dataclass(slots=True)
class Run:
    """What the stages of a run hand on."""

    request: TrainRequest
    report: DatasetReport
    plan: TrainPlan
    spec: ModelSpec
    weights: Path
    group: DataGroup
    store: ClipStore
    samples: TrainingSamples | None
    vae: Any = None
    conditions: Any = None
    conditioner: Any = None
    transformer: Any = None

    @property
    def device(self) -> torch.device:
        return torch.device(self.plan.device)


def new_run(
    request: TrainRequest, report: DatasetReport, plan: TrainPlan, weights: Path, group: DataGroup
) -> Run:
    from osp_cli.hub.hashes import part_hash, weights_hash

    spec = request.spec
    hashes = weights_hash(weights)
    # By what they are: files that were renamed are the same data, and come in the same order.
    windows = sorted(
        report.windows, key=lambda w: (w.content, w.start, w.entry.caption or "", w.num_frames)
    )
    report = replace(report, windows=tuple(windows))
    told = [part for part in spec.parts if part not in ("transformer", "vae")]
    store = ClipStore(
        ClipCache(request.cache_dir),
        report.windows,
        request,
        part_hash(hashes, "vae"),
        # Models may share an encoder, and yet read prompts in other ways.
        "/".join(
            [
                *(spec.conditioner, str(spec.max_sequence_length)),
                *(part_hash(hashes, part) for part in told),
            ]
        ),
    )
    samples = None
    if request.sample_every and not request.cache_only:
        samples = TrainingSamples(spec, request, _pictures(request, report))
    return Run(request, report, plan, spec, weights, group, store, samples)


def _pictures(request: TrainRequest, report: DatasetReport) -> list[Any]:
    """What samples begin with: the user's pictures, or a photo and some of the data's own.

    Not first frames that have the style already, where the adapter is to bring it to plain ones.
    """
    from PIL import Image

    if request.mode == "t2v":
        return []
    if request.sample_images:
        return sample_pictures(request.sample_images)
    found: list[Any] = [Image.open(presets_dir() / "training" / _PHOTO).convert("RGB")]
    seen: set[Path] = set()
    for window in report.windows:
        kind = condition_of(window, request)
        if kind == "plain" or window.entry.path in seen:
            continue
        seen.add(window.entry.path)
        if kind == "source":
            found.append(read_source(window))
        else:
            found.append(Image.fromarray(read_window(window, request.fps, request.stride)[0]))
        if len(found) == _PICTURES:
            break
    return found


def encode(run: Run, stop: StopSignal) -> Iterator[Event]:
    """Encode what is not in the cache, and prepare the samples; then the encoders go."""
    loaded: list[Event] = []

    def load() -> Encoders:
        return _load_encoders(run, loaded.append)

    if run.store.missing():
        yield StageStarted("encode clips")
    for event in run.store.encode(load):
        yield from loaded
        loaded.clear()
        yield event
        if stop.requested:
            raise stop.error("interrupted; what was encoded is kept, the same command goes on")


def _load_encoders(run: Run, tell: Callable[[Event], object]) -> Encoders:
    if run.vae is None:
        plan = _loading_plan(run, str(run.device))
        for loaded, part in load_parts(run.spec, plan, run.weights, ("vae", "conditioner")):
            tell(loaded)
            if loaded.component == "vae":
                run.vae = part
                set_tiling(run.vae, run.plan.encode_tiling)
            else:
                run.conditioner = part
        run.conditions = condition_source(run.conditioner, run.vae, run.spec.image_token_surround)
    return Encoders(run.vae, run.conditions)


def load(run: Run) -> Iterator[Event]:
    """The transformer with what will be trained; of the conditioner only what steps need."""
    request, plan = run.request, run.plan
    loaded: list[Event] = []
    _load_encoders(run, loaded.append)
    yield from loaded
    set_tiling(run.vae, plan.sample_tiling)
    if run.samples is not None:
        source = run.conditions if request.train_adapter else None
        run.samples.prepare(run.vae, run.conditioner, source)
    for adapter in run.conditions.adapters.values():
        # Or every step would work out gradients that nobody asks for.
        adapter.requires_grad_(False)
    if request.train_adapter:
        unfreeze_conditioner(run.conditioner)
    run.conditions.unload()
    run.conditioner = None
    if not run.spec.image_token_surround:
        # Needed for samples alone by now; small ones help to join conditions.
        run.vae.to("cpu")
    gc.collect()
    for event, part in load_parts(
        run.spec, _loading_plan(run, "cpu"), run.weights, ("transformer",)
    ):
        run.transformer = part
        yield event
    if request.full:
        run.transformer.float()
        unfreeze(run.transformer)
    else:
        add_adapter(run.transformer, plan.targets, plan.rank, plan.alpha, request.seed)


def _loading_plan(run: Run, device: str) -> Plan:
    """A plan of clips that loads everything as it is."""
    request, plan = run.request, run.plan
    return Plan(
        model=plan.model,
        device=device,
        dtype=plan.dtype,
        width=request.width,
        height=request.height,
        num_frames=request.num_frames,
        num_latent_frames=1 + (request.num_frames - 1) // run.spec.scale_factor_temporal,
        num_tokens=plan.num_tokens,
        seed=request.seed,
        steps=1,
        sampler="euler",
        cache="none",
        guidance=1.0,
        streamed=plan.streamed,
        weights_bytes=plan.weights_bytes,
        expected_peak_bytes=plan.expected_peak_bytes,
        disk_bytes=0,
        operations=None,
    )
