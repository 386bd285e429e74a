"""What a run reports while it runs, one frozen class per kind of event.

Pipelines yield these and never print; the progress display and `--json` only listen.
`type` is the name of the event in the JSON lines.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from osp_cli.plan import Plan
from osp_cli.train_plan import TrainPlan

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Event:
    """Base of all events."""

    type: ClassVar[str]

    def as_json(self) -> dict[str, Any]:
        """The event as one flat object of plain JSON values, `type` first."""
        fields = {key: _plain(value) for key, value in asdict(self).items()}
        return {"type": self.type, **fields}


@dataclass(frozen=True, slots=True)
class Planned(Event):
    """The run is planned; nothing has been loaded yet."""

    type: ClassVar[str] = "plan"
    plan: Plan

    def as_json(self) -> dict[str, Any]:
        return {"type": self.type, **self.plan.as_json()}


@dataclass(frozen=True, slots=True)
class Loaded(Event):
    """One component is in memory. `component` names it, `seconds` is what it took."""

    type: ClassVar[str] = "load"
    component: str
    seconds: float


@dataclass(frozen=True, slots=True)
class StageStarted(Event):
    """A stage without countable steps begins: `condition`, `decode` or `encode`."""

    type: ClassVar[str] = "stage"
    name: str

    def as_json(self) -> dict[str, Any]:
        return {"type": self.type, "name": self.name, "state": "started"}


@dataclass(frozen=True, slots=True)
class StageFinished(Event):
    """The stage of the same name is over after `seconds`."""

    type: ClassVar[str] = "stage"
    name: str
    seconds: float

    def as_json(self) -> dict[str, Any]:
        return {"type": self.type, "name": self.name, "state": "finished", "seconds": self.seconds}


@dataclass(frozen=True, slots=True)
class StepDone(Event):
    """Sampler step `step` of `num_steps` (counted from 1) took `seconds`.

    `cached` tells that the step cache answered instead of the model.
    """

    type: ClassVar[str] = "step"
    step: int
    num_steps: int
    seconds: float
    cached: bool = False


@dataclass(frozen=True, slots=True)
class ChunkDone(Event):
    """Window `chunk` of `num_chunks` (counted from 1) of a long video is made, and on the disk.

    `seconds` is what it took, with reading and conditions; `num_frames` are done of the result.
    """

    type: ClassVar[str] = "chunk"
    chunk: int
    num_chunks: int
    seconds: float
    num_frames: int


@dataclass(frozen=True, slots=True)
class ChunkStreamed(Event):
    """Chunk `chunk` (counted from 1) of a stream has been handed to what it is written to.

    Attributes:
        num_frames: of the stream, up to here.
        video_seconds: that they last.
        fps: frames made in a second, lately.
        realtime_factor: the same in proportion to what is shown in a second; below 1 a stream
            cannot be shown as fast as it is made.
        decode_queue, write_queue: chunks that wait for the decoder, and for being written.
        generate_seconds, decode_seconds, write_seconds: that each stage took for this chunk.
        rebuffers: how often a viewer had to wait, up to here.
        prompt: that directs the chunk.
        prompt_number: of that prompt among `num_prompts` that are known now, counted from 1.
        drift: the change against the first chunk, see `osp_cli.media.drift`; None is not measured.
        drift_word: what that change looks like; empty as long as it can hardly be seen.
    """

    type: ClassVar[str] = "stream"
    chunk: int
    num_frames: int
    video_seconds: float
    fps: float
    realtime_factor: float
    decode_queue: int
    write_queue: int
    generate_seconds: float
    decode_seconds: float
    write_seconds: float
    rebuffers: int
    prompt: str
    prompt_number: int
    num_prompts: int
    drift: float | None = None
    drift_word: str = ""


@dataclass(frozen=True, slots=True)
class LatentsSaved(Event):
    """The latents after `step` of `num_steps` are in a file from which the clip can be finished.

    It is removed when the clip is whole.
    """

    type: ClassVar[str] = "latents"
    path: Path
    step: int
    num_steps: int


@dataclass(frozen=True, slots=True)
class Preview(Event):
    """A picture of what the clip will be, as estimated after `step` of `num_steps`."""

    type: ClassVar[str] = "preview"
    path: Path
    step: int
    num_steps: int


@dataclass(frozen=True, slots=True)
class ItemStarted(Event):
    """Video `item` of `num_items` (counted from 1) begins; the events up to the next are its."""

    type: ClassVar[str] = "item"
    item: int
    num_items: int
    output: Path
    seed: int
    prompt: str


@dataclass(frozen=True, slots=True)
class Notice(Event):
    """Something was done differently from what was asked; `message` says what, in a sentence."""

    type: ClassVar[str] = "notice"
    message: str


@dataclass(frozen=True, slots=True, eq=False)
class FramesReady(Event):
    """Decoded frames on their way to a sink: `(frames, height, width, 3)`, uint8 RGB.

    Listeners see the shape only; pixels have no place in a line of JSON.
    """

    type: ClassVar[str] = "frames"
    frames: NDArray[np.uint8]

    def as_json(self) -> dict[str, Any]:
        num_frames, height, width, _ = self.frames.shape
        return {
            "type": self.type,
            "num_frames": int(num_frames),
            "width": int(width),
            "height": int(height),
        }


@dataclass(frozen=True, slots=True)
class Saved(Event):
    """A result is whole under its final name. `bytes` is the size of the file at `path`."""

    type: ClassVar[str] = "saved"
    path: Path
    bytes: int
    sidecar: Path | None = None


@dataclass(frozen=True, slots=True)
class PartFound(Event):
    """Weights for `part` of a model were found at `path`; `title` says in words what they are.

    `kind` and `layout` are those of `osp_cli.models.layouts`, `bytes` the size of the weights.
    """

    type: ClassVar[str] = "found"
    part: str
    kind: str
    layout: str
    title: str
    path: Path
    dtype: str
    parameters: int
    bytes: int


@dataclass(frozen=True, slots=True)
class ShardConverted(Event):
    """File `shard` of `num_shards` (counted from 1) of a converted part is whole.

    `reused` tells that an earlier, interrupted conversion had written it.
    """

    type: ClassVar[str] = "convert"
    part: str
    path: Path
    shard: int
    num_shards: int
    bytes: int
    sha256: str
    seconds: float
    reused: bool = False


@dataclass(frozen=True, slots=True)
class Installed(Event):
    """A model is whole in its folder `path`; `converted` names the parts that were rewritten."""

    type: ClassVar[str] = "installed"
    model: str
    path: Path
    parts: tuple[str, ...]
    converted: tuple[str, ...]
    seconds: float


@dataclass(frozen=True, slots=True)
class DatasetChecked(Event):
    """The data to train on were looked at; `report` is that of `osp dataset check`."""

    type: ClassVar[str] = "dataset"
    report: dict[str, Any]

    def as_json(self) -> dict[str, Any]:
        return {"type": self.type, **self.report}


@dataclass(frozen=True, slots=True)
class ItemBuilt(Event):
    """Item `item` of `num_items` (counted from 1) has reached a stage of a dataset's making.

    Attributes:
        stage: `gated`, `keyframed`, `stylised` or `done`.
        id: of the row in the manifest.
        accepted: whether it goes on from there.
        reason: why not; None where it does.
        seconds: that it took.
    """

    type: ClassVar[str] = "built"
    stage: str
    item: int
    num_items: int
    id: str
    accepted: bool
    reason: str | None
    seconds: float


@dataclass(frozen=True, slots=True)
class DatasetBuilt(Event):
    """A dataset is built: `path` is its manifest, with `num_clips` clips to train on.

    `num_rejected` rows were given up; `num_rows` are there in all.
    """

    type: ClassVar[str] = "dataset_built"
    path: Path
    num_clips: int
    num_rejected: int
    num_rows: int


@dataclass(frozen=True, slots=True)
class TrainingPlanned(Event):
    """The training run is planned; nothing has been loaded yet."""

    type: ClassVar[str] = "training"
    plan: TrainPlan

    def as_json(self) -> dict[str, Any]:
        return {"type": self.type, **self.plan.as_json()}


@dataclass(frozen=True, slots=True)
class ClipEncoded(Event):
    """Window `clip` of `num_clips` (counted from 1) is in the cache; `cached`: it was there."""

    type: ClassVar[str] = "encoded"
    clip: int
    num_clips: int
    cached: bool
    seconds: float


@dataclass(frozen=True, slots=True)
class TrainStepDone(Event):
    """Step `step` of `num_steps` (counted from 1) is done.

    Attributes:
        loss: mean over its samples; None where it was not finite.
        grad_norm: before clipping, likewise.
        learning_rate: of this step.
        seconds: that it took.
        skipped: loss or gradient were not finite, so nothing was changed.
    """

    type: ClassVar[str] = "train"
    step: int
    num_steps: int
    loss: float | None
    grad_norm: float | None
    learning_rate: float
    seconds: float
    skipped: bool = False


@dataclass(frozen=True, slots=True)
class CheckpointSaved(Event):
    """The run can be taken up again at `step`, from the folder `path`."""

    type: ClassVar[str] = "checkpoint"
    path: Path
    step: int


@dataclass(frozen=True, slots=True)
class SampleMade(Event):
    """A clip that shows what the adapter can do after `step`."""

    type: ClassVar[str] = "sample"
    path: Path
    step: int
    prompt: str


@dataclass(frozen=True, slots=True)
class Failed(Event):
    """A video, or with `item` None the whole run, ended with an error; stderr says the same.

    `kept` are files from which it can go on.
    """

    type: ClassVar[str] = "error"
    message: str
    hint: str | None
    exit_code: int
    kept: tuple[Path, ...] = ()
    item: int | None = None


@dataclass(frozen=True, slots=True)
class Done(Event):
    """The run is over. `seconds` in all, `timings` maps each stage to its seconds.

    `skipped_steps` were answered by the step cache.
    """

    type: ClassVar[str] = "done"
    seconds: float
    timings: dict[str, float]
    skipped_steps: int = 0


@dataclass(frozen=True, slots=True)
class DownloadPlanned(Event):
    """What a download will fetch and where to; nothing has been fetched yet.

    Attributes:
        models: names of the model cards.
        num_files: of all models together.
        total_bytes: of these files.
        cached_bytes: of them that are in the cache, whole.
        partial_bytes: of them that an earlier run left, from which this one goes on.
        fetch_bytes: that are left to fetch.
        cache: the folder that files are fetched into, shared with other programs.
        cache_free_bytes: on its disk; None where the system does not tell.
        home: the folder that models are installed in.
        home_free_bytes: on its disk, likewise.
        convert_bytes: that are written there at most; what fits as it is is only linked.
        unchecked: models whose card was never compared with the hub.
    """

    type: ClassVar[str] = "download"
    models: tuple[str, ...]
    num_files: int
    total_bytes: int
    cached_bytes: int
    partial_bytes: int
    fetch_bytes: int
    cache: Path
    cache_free_bytes: int | None
    home: Path
    home_free_bytes: int | None
    convert_bytes: int
    unchecked: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class FilePlanned(Event):
    """A file of the download. `here_bytes` of its `bytes` need not be fetched."""

    type: ClassVar[str] = "file"
    repo: str
    path: str
    bytes: int
    here_bytes: int


@dataclass(frozen=True, slots=True)
class FileProgress(Event):
    """`done_bytes` of a file's `bytes` have come (stage `fetch`) or were read again (`check`)."""

    type: ClassVar[str] = "progress"
    repo: str
    path: str
    stage: str
    done_bytes: int
    bytes: int


@dataclass(frozen=True, slots=True)
class FileFetched(Event):
    """A file is in the cache, whole, and its contents have the right hash.

    Attributes:
        digest: SHA-256 of a large file, the hash of git (SHA-1) of a small one.
        seconds: that it took.
        cached: it was here already.
    """

    type: ClassVar[str] = "fetched"
    repo: str
    path: str
    bytes: int
    digest: str
    seconds: float
    cached: bool


@dataclass(frozen=True, slots=True)
class FileVerified(Event):
    """The contents of a file were read and compared. `problem` says what is wrong, or is None."""

    type: ClassVar[str] = "verified"
    repo: str
    path: str
    bytes: int
    problem: str | None


@dataclass(frozen=True, slots=True)
class Verified(Event):
    """All of `num_files` files were read, `bytes` in all, and are as they should be.

    `num_own_files` of them are as their installation noted, as no hub published them: they were
    converted, or came from the user's own disk. The others are as they were published.
    """

    type: ClassVar[str] = "as_published"
    num_files: int
    bytes: int
    num_own_files: int = 0


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(part) for part in value]
    return str(value) if isinstance(value, Path) else value
