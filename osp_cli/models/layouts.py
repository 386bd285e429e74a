"""What weights are, told by their keys and shapes and never by the names of their files.

`describe` reads headers only. It knows the transformers of FlashI2V and Wan, Wan's autoencoder,
umT5, CLIP's picture half, Qwen2.5-VL and the adapters, under the names of the original releases or
of diffusers and transformers; other classes of diffusers are known by their `config.json`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from osp_cli.errors import CheckpointError, WeightsMissingError
from osp_cli.models import kinds
from osp_cli.models.state_dict import Misfits, misfits
from osp_cli.models.stored import StoredTensor, Table, Unit, read_tables, units_in

UNKNOWN = "unknown"
# Of folders that hold whole repositories of folders.
_DEPTH = 5
_SKIPPED = ("blobs", "refs", "__pycache__")
_BYTES = {"float64": 8, "int64": 8, "float32": 4, "int32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundPart:
    """Something that was found on the disk and could be a part of a model.

    Attributes:
        part: the folder of an installed model that it makes, or `unknown`.
        kind: what it is, as in `flash-i2v`, `wan-vae`, `umt5`; see `osp_cli.models.kinds`.
        layout: `diffusers`, `transformers`, `original`, `gguf`, or `files` without weights.
        path: the file, or the folder of several.
        files: with its weights, or all of them where it has no weights.
        index: lists the shards, if there are any and it is there.
        companions: small files that belong to it: settings, vocabularies.
        tensors: by their names in diffusers or transformers.
        dtype: of most of its bytes.
        nbytes: of all tensors, as stored.
        settings: arguments of its class, or of the class's config.
        misfits: what is missing or left over, compared with an empty model of these settings.
        missing_files: shards or settings that are not there, by name.
        branch: `ema` or `raw` where the files hold both, or are named so; else empty.
        ready: loaders can read these very files.
        problem: why it is unknown, as a sentence.
    """

    part: str
    path: Path
    kind: str = UNKNOWN
    layout: str = "files"
    files: tuple[Path, ...] = ()
    index: Path | None = None
    companions: tuple[Path, ...] = ()
    tensors: Mapping[str, StoredTensor] = field(default_factory=dict, repr=False)
    dtype: str = ""
    nbytes: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict, repr=False)
    misfits: Misfits = field(default_factory=lambda: Misfits([], [], []))
    missing_files: tuple[str, ...] = ()
    branch: str = ""
    ready: bool = False
    problem: str = ""

    @property
    def num_tensors(self) -> int:
        """How many weights there are."""
        return len(self.tensors)

    @property
    def parameters(self) -> int:
        """How many numbers they hold."""
        return sum(tensor.numel for tensor in self.tensors.values())

    @property
    def complete(self) -> bool:
        """Every weight is there, and none too many."""
        return not self.missing_files and not self.misfits.sentence

    @property
    def incompleteness(self) -> str:
        """What is missing or left over, in words; empty where it is complete."""
        files = ", ".join(self.missing_files)
        said = [f"missing files: {files}" if files else "", self.misfits.sentence]
        return "; ".join(part for part in said if part)

    @property
    def title(self) -> str:
        """What it is, in words."""
        return kinds.title(self.kind, self.settings)


def describe(path: Path) -> list[FoundPart]:
    """Everything in a file or a folder and its sub-folders that could be part of a model.

    What is not recognised is in the list too, as `unknown` with the reason.

    Raises:
        WeightsMissingError: there is nothing at `path`.
        CheckpointError: `path` is a file that cannot be read.
    """
    path = Path(path).expanduser()
    if path.is_file():
        return list(_describe_unit(Unit(files=(path,))))
    if not path.is_dir():
        raise WeightsMissingError(f"there is nothing at {path}")
    found: list[FoundPart] = []
    for folder in _folders(_snapshot(path)):
        found += _describe_folder(folder)
    return found


def _snapshot(path: Path) -> Path:
    """Of a repository in the hub's cache the snapshot that its main branch names."""
    main = path / "refs" / "main"
    if main.is_file() and (path / "snapshots").is_dir():
        return path / "snapshots" / main.read_text(encoding="utf-8").strip()
    return path


def _folders(root: Path) -> Iterator[Path]:
    seen: set[Path] = set()
    waiting = [(root, 0)]
    while waiting:
        folder, depth = waiting.pop(0)
        # A link may lead back up.
        if folder.resolve() in seen:
            continue
        seen.add(folder.resolve())
        yield folder
        if depth < _DEPTH:
            inner = _inner(folder)
            waiting += [
                (p, depth + 1) for p in inner if p.name[:1] != "." and p.name not in _SKIPPED
            ]


def _inner(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.is_dir())
    except OSError:
        # What may not be looked into is reported with its files.
        return []


def _describe_folder(folder: Path) -> list[FoundPart]:
    found: list[FoundPart] = []
    try:
        units = units_in(folder)
    except (CheckpointError, OSError) as error:
        return [FoundPart(part=UNKNOWN, path=folder, problem=str(error))]
    for unit in units:
        try:
            found += _describe_unit(unit)
        except CheckpointError as error:
            # One file that is none of ours must not hide the others.
            problem = f"{error.message} ({error.hint})" if error.hint else error.message
            found.append(FoundPart(part=UNKNOWN, path=unit.path, files=unit.files, problem=problem))
    if kind := kinds.tokenizer_kind(folder):
        files = kinds.tokenizer_files(folder)
        found.append(FoundPart(part="tokenizer", kind=kind, path=folder, files=files, ready=True))
    for name, part in kinds.SETTINGS_ALONE.items():
        if (settings := folder / name).is_file():
            kind = part.replace("_", "-")
            found.append(
                FoundPart(part=part, kind=kind, path=folder, files=(settings,), ready=True)
            )
    return found


def _describe_unit(unit: Unit) -> Iterator[FoundPart]:
    if not unit.files:
        names = ", ".join(unit.missing)
        yield FoundPart(
            part=UNKNOWN, path=unit.path, missing_files=unit.missing,
            problem=f"none of the files that {unit.index} lists is there: {names}",
        )  # fmt: skip
        return
    tables = read_tables(unit)
    for table in tables:
        yield _describe_table(unit, table, alone=len(tables) == 1)


def _describe_table(unit: Unit, table: Table, *, alone: bool) -> FoundPart:
    folder = unit.files[0].parent
    family = kinds.recognise(table.tensors, folder)
    if family is None:
        return FoundPart(
            part=UNKNOWN, path=unit.path, files=unit.files, tensors=table.tensors,
            missing_files=unit.missing, problem=_why_unknown(unit, table),
        )  # fmt: skip
    layout, tensors, original = family.layout, family.tensors, family.is_original
    if family.name == "qwen2.5-vl" and table.prefix.endswith("model."):
        # Its own name for its trunk, and not a trainer's.
        tensors = {f"model.{name}": tensor for name, tensor in tensors.items()}
    kind, settings = kinds.settle(family, unit.files[0])
    expected, comparable = kinds.expectation(kind, settings, tensors)
    if gguf := unit.files[0].suffix == ".gguf":
        layout = "gguf"
    index = unit.index
    missing = list(unit.missing)
    if kind in kinds.NEED_CONFIG and not (folder / "config.json").is_file():
        missing.append("config.json")
    as_stored = not (original or table.renamed or table.branch) and (
        not table.prefix or (table.prefix == "model." and kind == "qwen2.5-vl")
    )
    safe = all(file.suffix == ".safetensors" for file in unit.files)
    return FoundPart(
        part=family.part,
        kind=kind,
        layout=layout,
        path=unit.path,
        files=unit.files,
        index=index,
        companions=kinds.companions(kind, folder),
        tensors=tensors,
        dtype=_main_dtype(tensors),
        nbytes=sum(_stored_bytes(tensor) for tensor in tensors.values()),
        settings=settings,
        misfits=misfits(expected, comparable),
        missing_files=tuple(missing),
        branch=table.branch or _branch_by_name(unit.files[0]),
        # GGUF is made to be read as it is, under the names it has.
        ready=gguf or (safe and alone and as_stored),
    )


def _branch_by_name(file: Path) -> str:
    """Of files that lie side by side with equal keys, nothing but the name says which is which."""
    if file.stem == "ema_model_state_dict":
        return "ema"
    return "raw" if file.stem == "model_state_dict" else ""


def _main_dtype(tensors: Mapping[str, StoredTensor]) -> str:
    counted: Counter[str] = Counter()
    for tensor in tensors.values():
        counted[tensor.dtype] += _stored_bytes(tensor)
    return counted.most_common(1)[0][0] if counted else ""


def _stored_bytes(tensor: StoredTensor) -> int:
    return tensor.numel * _BYTES.get(tensor.dtype, 1)


def _why_unknown(unit: Unit, table: Table) -> str:
    if unit.missing:
        return f"shards are missing in {unit.path}: {', '.join(unit.missing)}"
    if any("lora_" in name for name in table.tensors):
        return f"{unit.path} is a LoRA, which changes a model and is none"
    few = ", ".join(list(table.tensors)[:3])
    return f"{unit.path} holds {len(table.tensors)} tensors that no model here has, such as {few}"
