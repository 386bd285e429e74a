"""What was trained beside a LoRA: found next to it, judged before torch is there, loaded with it.

A LoRA changes layers of the transformer's blocks. The conditioner's adapters, phi and W^F are small
and trained as a whole; a file of their own holds them, `NAME.adapter.safetensors`, and the LoRA's
metadata names it with its SHA-256.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from osp_cli.dials import LoraChoice
from osp_cli.errors import CheckpointError, InvalidRequestError
from osp_cli.hub.hashes import file_hash
from osp_cli.loras import COMPANION_SUFFIX, find_lora
from osp_cli.models.lora_file import DAMAGED_HINT, Shape
from osp_cli.models.safetensors_header import Header, not_finite, read_header

# Which part of a model holds what a companion may change, by the first part of its names.
PART_OF: Mapping[str, str] = {
    "adapter": "conditioner",
    "image_adapter": "conditioner",
    "learnable_proj": "transformer",
    "fourier_embedding": "transformer",
}
_NAME_KEY, _HASH_KEY = "osp.companion", "osp.companion_sha256"


@dataclass(frozen=True, slots=True)
class Companion:
    """The file beside a LoRA.

    Attributes:
        lora: the LoRA's file.
        header: of the companion.
        sha256: of the companion, as the LoRA names it and as it is.
    """

    lora: Path
    header: Header
    sha256: str

    @property
    def path(self) -> Path:
        """Of the file."""
        return self.header.path

    @property
    def roots(self) -> tuple[str, ...]:
        """Of `PART_OF`, what it changes."""
        return tuple(dict.fromkeys(name.partition(".")[0] for name in self.header.entries))

    @property
    def parts(self) -> frozenset[str]:
        """Of a model, those that it changes."""
        return frozenset(PART_OF[root] for root in self.roots)


def companion_of(lora: Path, metadata: Mapping[str, str]) -> Companion | None:
    """The companion that a LoRA's metadata names, if it names one.

    It lies beside the LoRA, by the name it was written under or by the LoRA's own.

    Raises:
        InvalidRequestError: it is missing, another than the LoRA was trained with, or damaged.
    """
    name, wanted = metadata.get(_NAME_KEY), metadata.get(_HASH_KEY)
    if not name:
        return None
    # What the file says is no path: nothing outside of the folder is looked at.
    names = dict.fromkeys((Path(name.replace("\\", "/")).name, f"{lora.stem}{COMPANION_SUFFIX}"))
    folders = dict.fromkeys((lora.parent, lora.resolve().parent))
    there = [path for folder in folders for n in names if (path := folder / n).is_file()]
    if not there:
        raise InvalidRequestError(
            f"{lora} was trained together with {next(iter(names))}, which is missing",
            hint=f"put it beside the LoRA, as {lora.parent / next(iter(names))}",
        )
    found = next((path for path in there if file_hash(path) == wanted), None)
    if found is None:
        raise InvalidRequestError(
            f"{there[0]} is not the file that {lora.name} was trained with: it has other contents",
            hint="fetch or copy both files again, from the same place",
        )
    header = read_header(found)
    if strangers := [key for key in header.entries if key.partition(".")[0] not in PART_OF]:
        raise InvalidRequestError(
            f"{found} holds what this version does not know: {strangers[0]}",
            hint="a newer version may",
        )
    return Companion(lora, header, str(wanted))


def companions_of(loras: Sequence[LoraChoice]) -> list[tuple[Companion, float]]:
    """The companions of LoRAs, each with the LoRA's strength.

    Raises:
        InvalidRequestError: as `companion_of`.
    """
    found = []
    for choice in loras:
        path = find_lora(choice.name)
        if (companion := companion_of(path, read_header(path).metadata)) is not None:
            found.append((companion, choice.weight))
    return found


def check_companion(
    companion: Companion, folder: Path, shapes: Mapping[str, Shape], model: str, *, numbers: bool
) -> None:
    """Refuse a companion that cannot be put into a model.

    Args:
        companion: of a LoRA that fits the transformer.
        folder: of the model's weights.
        shapes: of the transformer's parameters, by our names; empty where headers do not tell.
        model: what to call it.
        numbers: look at its numbers too.

    Raises:
        InvalidRequestError: the model lacks what it changes, or a number is not finite.
    """
    here = dict(shapes)
    for root in companion.roots:
        if PART_OF[root] == "conditioner":
            for path in (folder / root).glob("*.safetensors"):
                entries = read_header(path).entries
                here |= {f"{root}.{name}": entry.shape for name, entry in entries.items()}
    for key, entry in companion.header.entries.items():
        root = key.partition(".")[0]
        if PART_OF[root] == "transformer" and not shapes:
            continue
        if here.get(key) != entry.shape:
            raise InvalidRequestError(
                f"{companion.path} changes {key} {list(entry.shape)}, which {model} does not have",
                hint=f"use a LoRA that was trained on {model}",
            )
    if numbers and (bad := companion.header.first_not_finite(companion.header.entries)):
        raise InvalidRequestError(not_finite(companion.path, bad), hint=DAMAGED_HINT)


def touching(loras: Sequence[LoraChoice]) -> dict[str, tuple[LoraChoice, ...]]:
    """The LoRAs that change each part of a model: all of them the transformer, and some others."""
    found = {"transformer": tuple(loras)}
    for choice in loras:
        for companion, _ in companions_of([choice]):
            for part in companion.parts - {"transformer"}:
                found[part] = (*found.get(part, ()), choice)
    return found


def apply_companions(part: str, holder: Any, loras: Sequence[LoraChoice]) -> None:
    """Put what companions hold of a part into it, just loaded.

    Args:
        part: of `PART_OF`.
        holder: has the modules as attributes: a transformer or a conditioner.
        loras: as asked for.

    Raises:
        InvalidRequestError: as `companion_of`.
        CheckpointError: the part lacks what they change, or they cannot be read.
    """
    wanted = [(c, strength) for c, strength in companions_of(loras) if part in c.parts]
    if not wanted:
        return
    from safetensors import SafetensorError

    from osp_cli.models.companion import blend

    modules = {}
    for companion, _ in wanted:
        for root in companion.roots:
            if PART_OF[root] == part:
                modules[root] = getattr(holder, root, None)
                if modules[root] is None:
                    raise CheckpointError(
                        f"{companion.path} changes {root}, which this model does not have"
                    )
    try:
        blend(modules, [(companion.path, strength) for companion, strength in wanted])
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"a LoRA's companion cannot be read: {error}") from error
