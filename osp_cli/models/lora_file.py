"""What a LoRA file holds, told from its header: every layout seen in the wild, without torch.

All of them say the same thing, `W += strength * (alpha / rank) * up @ down`, under other names:

    videox        lora_unet__blocks_0_self_attn_q.{lora_down.weight,lora_up.weight,alpha}
    videox_peft   the same without alpha
    musubi        lora_unet_blocks_0_self_attn_q.{lora_down.weight,lora_up.weight,alpha}
    comfy         diffusion_model.blocks.0.self_attn.q.{lora_A,lora_B}.weight
    comfy_alpha   diffusion_model.blocks.0.self_attn.q.{lora_down.weight,lora_up.weight,alpha}
    peft          blocks.0.self_attn.q.lora_A.weight, also base_model.model. and lora_A.default
    diffusers     transformer.blocks.0.attn1.to_q.lora_A.weight

Modules may have their original names or those of diffusers under any prefix. Where nothing says
alpha, it is the rank; PEFT keeps it in `adapter_config.json`, diffusers in the header.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from osp_cli.errors import InvalidRequestError
from osp_cli.models.lora_alpha import adapter_alphas
from osp_cli.models.lora_names import module_name
from osp_cli.models.safetensors_header import Header, read_header

Shape = tuple[int, ...]

DAMAGED_HINT = "fetch or train the LoRA again, or leave it out"

_KEY = re.compile(
    r"(?P<module>.+?)"
    r"(?:[._]lora(?:_linear_layer)?[._](?P<side>A|B|down|up)(?:\.(?P<adapter>[^.]+))?\.weight"
    r"|\.(?P<other>alpha|diff|diff_b))"
)
_SIDES = {"A": "down", "B": "up", "down": "down", "up": "up"}
# What else there is beside LoRA, by what its keys end with.
_OTHER_KINDS = {
    "DoRA": r"\.(dora_scale|lora_magnitude_vector(\.\w+)?(\.weight)?)",
    "LoHa": r"\.hada_[\w.]+",
    "LoKr": r"\.lokr_[\w.]+",
    "OFT": r"\.oft_[\w.]+",
    "Tucker-decomposed LoRA": r"\.lora_mid\.weight",
}
# Other models' LoRAs, by what only their keys hold.
_FAMILIES = {
    "Flux or HunyuanVideo": r"double_blocks|single_blocks|single_transformer_blocks",
    "Stable Diffusion": r"(input|output|down|up|mid)_blocks?[._]",
    "another transformer": r"transformer_blocks[._]\d|[._]layers?[._]\d",
}


class Size(NamedTuple):
    """What tells one Wan transformer from another; None where a file does not tell it."""

    width: int | None
    ffn: int | None
    layers: int

    def __str__(self) -> str:
        parts = [f"width {self.width}"] if self.width else []
        parts += [f"feed-forward {self.ffn}"] if self.ffn else []
        return ", ".join([*parts, f"{self.layers} blocks"])


@dataclass(frozen=True, slots=True, kw_only=True)
class LowRank:
    """The two factors of one layer.

    Attributes:
        name: of the layer in our transformer, as in `blocks.0.attn1.to_q`.
        down, up: keys of the factors.
        shape: of the weight that `up @ down` is added to.
        rank: of the product, at most.
        alpha: as the file says it, or None.
        scale: `alpha / rank`, by which the product counts.
    """

    name: str
    down: str
    up: str
    shape: Shape
    rank: int
    alpha: float | None
    scale: float

    @property
    def target(self) -> str:
        """The parameter that is changed."""
        return f"{self.name}.weight"

    @property
    def keys(self) -> tuple[str, ...]:
        """The file's keys that make it, the smaller numbers left out."""
        return (self.down, self.up)


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A parameter's whole difference, as in `.diff` and `.diff_b`: added as it is."""

    name: str
    key: str
    target: str
    shape: Shape

    @property
    def keys(self) -> tuple[str, ...]:
        """The file's keys that make it."""
        return (self.key,)


Change = LowRank | Difference


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraFile:
    """A LoRA file, as its header tells.

    Attributes:
        path: of the file.
        layout: one of those at the top of this module, or several joined by `+`.
        changes: to layers that Wan-style transformers have.
        strangers: keys that belong to nothing known, or to a text encoder.
        dtypes: of the numbers, by the format's names.
        num_bytes: of the file.
        metadata: of the header.
        notes: sentences about how alphas were found.
    """

    path: Path
    layout: str
    changes: tuple[Change, ...]
    strangers: tuple[str, ...]
    dtypes: tuple[str, ...]
    num_bytes: int
    metadata: Mapping[str, str]
    notes: tuple[str, ...]

    @property
    def low_rank(self) -> tuple[LowRank, ...]:
        """The changes that are products of two factors."""
        return tuple(change for change in self.changes if isinstance(change, LowRank))

    @property
    def ranks(self) -> tuple[int, ...]:
        """All ranks that occur, in order."""
        return tuple(sorted({change.rank for change in self.low_rank}))

    @property
    def alphas(self) -> tuple[float | None, ...]:
        """All alphas that occur, in order; None last, for layers of which nothing is said."""
        found = {change.alpha for change in self.low_rank}
        known: list[float | None] = [*sorted(alpha for alpha in found if alpha is not None)]
        return tuple([*known, None] if None in found else known)

    @property
    def size(self) -> Size:
        """Of the transformer that it was made for; `layers` is the least that it must have."""
        return size_of({change.target: change.shape for change in self.changes})

    @property
    def misfits(self) -> tuple[Change, ...]:
        """Changes of a transformer of another width than most of them are made for."""
        width = self.size.width
        told = ((change, _told(change.target, change.shape)) for change in self.changes)
        return tuple(change for change, size in told if size and size.width != width)


def read_lora(path: Path) -> LoraFile:
    """Read the header of a LoRA file and tell what is in it.

    Raises:
        InvalidRequestError: no safetensors file, no LoRA, one of another family of models, or of
            a kind that is more than a LoRA.
    """
    return lora_of(read_header(path))


def is_lora(header: Header) -> bool:
    """Whether a file looks like a LoRA of whatever model."""
    kinds = "|".join(_OTHER_KINDS.values())
    for key in header.entries:
        found = _KEY.fullmatch(key)
        # Other models have an alpha, too.
        if (found and found["other"] != "alpha") or re.search(f"({kinds})$", key):
            return True
    return False


def lora_of(header: Header) -> LoraFile:
    """As `read_lora`, of a header that was read already."""
    path = header.path
    for kind, pattern in _OTHER_KINDS.items():
        if any(re.search(rf"{pattern}$", key) for key in header.entries):
            raise InvalidRequestError(
                f"{path} is a {kind} file, and this program applies plain LoRA only",
                hint="extract or merge it to a plain LoRA with the tool that made it",
            )
    parts: dict[str, dict[str, str]] = defaultdict(dict)
    written: dict[str, str] = {}
    layouts: dict[str, None] = {}
    strangers = []
    for key in header.entries:
        # Some call the difference of a modulation so, as if it were the block's own.
        found = _KEY.fullmatch(re.sub(r"\.diff_m$", ".modulation.diff", key))
        named = module_name(found["module"]) if found else None
        if found is None or named is None:
            strangers.append(key)
            continue
        layout, name = named
        layouts[layout] = None
        written[name] = found["module"]
        part = _SIDES[found["side"]] if found["side"] else found["other"]
        if part in parts[name]:
            raise InvalidRequestError(
                f"{path} holds more than one LoRA: {key} and {parts[name][part]} are the same layer"
            )
        parts[name][part] = key
    if not parts:
        raise _no_lora(header, strangers)
    alphas, notes = _alphas(header, parts, written, set(layouts))
    changes: list[Change] = []
    for name, keys in parts.items():
        changes += _changes(header, name, keys, alphas.get(name))
        if not keys.keys() & {"diff", "diff_b"} and not {"down", "up"} <= keys.keys():
            strangers += keys.values()
    if not changes:
        raise InvalidRequestError(f"{path} is incomplete: no layer in it has both its factors")
    return LoraFile(
        path=path,
        layout=_layout(list(layouts), parts),
        changes=tuple(changes),
        strangers=tuple(strangers),
        dtypes=tuple(sorted({header.entries[c.keys[0]].dtype for c in changes})),
        num_bytes=path.stat().st_size,
        metadata=header.metadata,
        notes=notes,
    )


def size_of(shapes: Mapping[str, Shape]) -> Size:
    """What the shapes of weights, by their names in our transformer, say of its size.

    Where they contradict each other, the width of most layers counts, and only blocks of it do.
    """
    told = {name: found for name, shape in shapes.items() if (found := _told(name, shape))}
    width = _most(found.width for found in told.values())
    ffn = _most(found.ffn for found in told.values() if found.width == width)
    others = {name.split(".")[1] for name, found in told.items() if found.width != width}
    others -= {name.split(".")[1] for name, found in told.items() if found.width == width}
    matches = (re.fullmatch(r"blocks\.(\d+)\..+\.weight", name) for name in shapes)
    blocks = [match[1] for match in matches if match]
    layers = max((int(block) + 1 for block in blocks if block not in others), default=0)
    return Size(width, ffn, layers)


class _Told(NamedTuple):
    """What one weight says of the transformer."""

    width: int
    ffn: int | None = None


def _told(name: str, shape: Shape) -> _Told | None:
    block = re.fullmatch(r"blocks\.\d+\.(.+)\.weight", name)
    if block is None or len(shape) < 2:
        return None
    if block[1] == "ffn.net.0.proj":
        return _Told(shape[1], shape[0])
    if block[1] == "ffn.net.2":
        return _Told(shape[0], shape[1])
    if re.fullmatch(r"attn[12]\.to_(q|k|v|out\.0)", block[1]):
        return _Told(shape[0])
    return None


def _most(numbers: Iterable[int | None]) -> int | None:
    """The most frequent of those that are numbers."""
    counts = Counter(number for number in numbers if number is not None)
    return counts.most_common(1)[0][0] if counts else None


def _layout(layouts: list[str], parts: Mapping[str, Mapping[str, str]]) -> str:
    has_alpha = any("alpha" in keys for keys in parts.values())
    names = {
        "videox": "videox" if has_alpha else "videox_peft",
        "comfy": "comfy_alpha" if has_alpha else "comfy",
    }
    return "+".join(names.get(layout, layout) for layout in layouts)


def _alphas(
    header: Header,
    parts: Mapping[str, Mapping[str, str]],
    written: Mapping[str, str],
    layouts: set[str],
) -> tuple[dict[str, float], tuple[str, ...]]:
    """Alpha of each layer that has one: its own key's, else what PEFT or diffusers noted.

    `written` is how the file itself calls each layer, which is what PEFT's patterns go by.
    """
    own = {name: header.number(keys["alpha"]) for name, keys in parts.items() if "alpha" in keys}
    if bad := [name for name, alpha in own.items() if not math.isfinite(alpha)]:
        raise InvalidRequestError(f"{header.path} is damaged: alpha of {bad[0]} is no number")
    if own or not layouts <= {"peft", "diffusers"}:
        return own, ()
    ranks = {
        name: header.entries[keys["down"]].shape[0]
        for name, keys in parts.items()
        if "down" in keys and header.entries[keys["down"]].shape
    }
    return adapter_alphas(header, ranks, written)


def _changes(
    header: Header, name: str, keys: Mapping[str, str], alpha: float | None
) -> Iterable[Change]:
    if {"down", "up"} <= keys.keys():
        down, up = header.entries[keys["down"]].shape, header.entries[keys["up"]].shape
        # Factors of convolutions have the kernel in one of them, and ones in the other.
        if len(down) < 2 or len(up) < 2 or down[0] != up[1] or any(n != 1 for n in up[2:]):
            raise InvalidRequestError(
                f"{header.path} is damaged: {keys['down']} {list(down)} and {keys['up']} "
                f"{list(up)} are no two factors"
            )
        rank = down[0]
        if not rank:
            raise InvalidRequestError(f"{header.path} is damaged: {keys['down']} is empty")
        yield LowRank(
            name=name,
            down=keys["down"],
            up=keys["up"],
            shape=(up[0], *down[1:]),
            rank=rank,
            alpha=alpha,
            scale=1.0 if alpha is None else alpha / rank,
        )
    for part, ending in (("diff", "weight"), ("diff_b", "bias")):
        if part in keys:
            # A modulation table is a parameter itself, and no layer.
            target = name if name.endswith("scale_shift_table") else f"{name}.{ending}"
            shape = header.entries[keys[part]].shape
            yield Difference(name=name, key=keys[part], target=target, shape=shape)


def _no_lora(header: Header, strangers: Iterable[str]) -> InvalidRequestError:
    keys = list(strangers)
    if not is_lora(header):
        return InvalidRequestError(
            f"{header.path} holds no LoRA",
            hint=f"osp models inspect {header.path} tells what it is",
        )
    for family, pattern in _FAMILIES.items():
        if any(re.search(pattern, key) for key in keys):
            guess = f": its keys look like those of {family}"
            break
    else:
        guess = f": it has keys such as {keys[0]}"
    return InvalidRequestError(
        f"{header.path} is not a LoRA of a Wan-style video transformer{guess}",
        hint="--lora takes LoRAs of Wan2.1, FlashI2V and models trained from them",
    )
