"""Reading weights: diffusers folders and single files, under new or original names.

Nothing is ever unpickled into code: `.pt` and `.pth` files go through torch's restricted reader,
which knows tensors and plain containers only. A key that is missing or left over is an error.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from accelerate import init_empty_weights
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from osp_cli.errors import CheckpointError, WeightsMissingError
from osp_cli.models.adapter import FeatureAdapter
from osp_cli.models.original_names import (
    State,
    autoencoder_from_original,
    transformer_from_original,
    umt5_from_original,
)
from osp_cli.models.positions import GRID_CHANNELS
from osp_cli.models.stored import PICKLED, load_pickled, strip_prefixes
from osp_cli.models.transformer_flash_i2v import FlashI2VTransformer3DModel

if TYPE_CHECKING:
    from diffusers import AutoencoderKLWan, WanTransformer3DModel

Config = Mapping[str, Any] | Path | None

BRANCHES = ("fourier_embedding", "learnable_proj")
_MOST_NAMED = 20
# Every released Wan transformer has heads of this width.
_RELEASED_HEAD_DIM = 128

_ORIGINAL_TRANSFORMER_CONFIG = {
    "in_dim": "in_channels",
    "out_dim": "out_channels",
    "num_heads": "num_attention_heads",
}
_ORIGINAL_VAE_CONFIG = {"dim": "base_dim"}


class Shaped(Protocol):
    """A tensor, or what stands for one."""

    @property
    def shape(self) -> Sequence[int]: ...


def load_transformer(
    path: Path,
    *,
    dtype: torch.dtype | None = None,
    allow_missing_branches: bool = False,
    config: Config = None,
) -> FlashI2VTransformer3DModel:
    """Load a video transformer from a folder or a single file, on the CPU, in eval mode.

    Args:
        path: A folder with safetensors (sharded or not) and `config.json`, or one file.
        dtype: Of the weights; None keeps what is stored. Layers that lose too much in half
            precision (time embedding, modulation, norms, phi) stay fp32 either way.
        allow_missing_branches: Accept plain Wan weights. Fourier embedding and phi then start at
            zero and the model computes exactly what Wan computes.
        config: Settings under diffusers or original names, or a JSON file of them. None takes the
            `config.json` beside the weights, and shapes for what it leaves out.

    Raises:
        WeightsMissingError: There are no weights at `path`.
        CheckpointError: They are damaged, or their keys or shapes do not fit; all named.
    """
    state = transformer_from_original(read_state_dict(path))
    settings = transformer_config(read_config(path, config), state, path)
    with init_empty_weights():
        model = FlashI2VTransformer3DModel(**settings)
    absent = [name for name in BRANCHES if not any(key.startswith(f"{name}.") for key in state)]
    left_out = absent if allow_missing_branches else []
    fill(model, state, path, dtype=dtype, left_out=left_out)
    model.reset_branches(left_out)
    if "fourier_embedding" in left_out:
        model.fourier_embedding.to(model.patch_embedding.weight.dtype)
    return model.eval()


def load_wan_transformer(
    path: Path, *, dtype: torch.dtype | None = None, config: Config = None
) -> WanTransformer3DModel:
    """Load a plain Wan transformer, text to video or image to video; as `load_transformer`.

    Raises:
        CheckpointError: also where the weights are those of a FlashI2V model, whose branches would
            have to be left out.
    """
    from diffusers import WanTransformer3DModel

    state = transformer_from_original(read_state_dict(path))
    # Published with some image-to-video models, and used by none.
    state = {name: tensor for name, tensor in state.items() if ".norm_added_q." not in name}
    settings = transformer_config(read_config(path, config), state, path)
    with init_empty_weights():
        model = WanTransformer3DModel(**accepted(WanTransformer3DModel, settings))
    fill(model, state, path, dtype=dtype)
    return model.eval()


def load_autoencoder(
    path: Path, *, dtype: torch.dtype | None = None, config: Config = None
) -> AutoencoderKLWan:
    """Load a Wan VAE from a diffusers folder or `Wan2.1_VAE.pth`; errors as `load_transformer`.

    Args:
        config: None means `config.json` beside the weights, else the released Wan2.1 settings.
    """
    # Only here: the small model has an autoencoder of its own.
    from diffusers import AutoencoderKLWan

    state = autoencoder_from_original(read_state_dict(path))
    settings = _rename_config(read_config(path, config), _ORIGINAL_VAE_CONFIG)
    with init_empty_weights():
        model = AutoencoderKLWan(**accepted(AutoencoderKLWan, settings))
    fill(model, state, path, dtype=dtype)
    return model.eval()


def load_umt5(path: Path, *, config: Config, dtype: torch.dtype | None = None) -> Any:
    """Load the umT5 encoder from its original file into `UMT5EncoderModel`; errors as above.

    A folder in transformers layout needs no conversion: use `UMT5EncoderModel.from_pretrained`.

    Args:
        config: Original names (`dim`, `dim_attn`, `dim_ffn`, `num_heads`, `encoder_layers`,
            `num_buckets`, `vocab_size`).
    """
    # Only here: the small model does without umT5, and its start must not wait for the import.
    from transformers import UMT5Config, UMT5EncoderModel

    state = umt5_from_original(read_state_dict(path))
    original = read_config(path, config)
    settings = UMT5Config(
        vocab_size=original["vocab_size"],
        d_model=original["dim"],
        d_kv=original["dim_attn"] // original["num_heads"],
        d_ff=original["dim_ffn"],
        num_heads=original["num_heads"],
        num_layers=original["encoder_layers"],
        relative_attention_num_buckets=original["num_buckets"],
        feed_forward_proj="gated-gelu",
    )
    with init_empty_weights():
        model = UMT5EncoderModel(settings)
    fill(model, state, path, dtype=dtype)
    model.tie_weights()
    return model.eval()


def load_adapter(path: Path, *, dtype: torch.dtype | None = None) -> FeatureAdapter:
    """Load a two-layer adapter, its widths taken from the shapes; errors as `load_transformer`."""
    state = read_state_dict(path)
    first, last = state.get("fc1.weight"), state.get("fc2.weight")
    settings = {}
    if first is not None and last is not None:
        settings = {
            "in_features": first.shape[1],
            "hidden_features": first.shape[0],
            "out_features": last.shape[0],
        }
    with init_empty_weights():
        model = FeatureAdapter(**settings)
    fill(model, state, path, dtype=dtype)
    return model.eval()


def read_state_dict(path: Path) -> State:
    """All tensors of a file or folder, on the CPU, prefixes of trainers removed.

    Raises:
        WeightsMissingError: Nothing there.
        CheckpointError: The file is damaged, or could only be read by running code from it.
    """
    state: State = {}
    for file in _weight_files(Path(path)):
        state.update(_read_file(file))
    prefix = strip_prefixes(state)
    return {name.removeprefix(prefix): tensor for name, tensor in state.items()}


def fill(
    model: nn.Module,
    state: Mapping[str, Tensor],
    source: Path,
    *,
    dtype: torch.dtype | None = None,
    left_out: Sequence[str] = (),
) -> None:
    """Put `state` into `model`, which may be on the meta device, without copying where possible.

    Args:
        source: Where `state` came from, for the message.
        dtype: As in `load_transformer`.
        left_out: Submodules that may be missing as a whole.

    Raises:
        CheckpointError: Keys missing, left over, or of another shape; named.
    """
    wanted = {
        name: tensor
        for name, tensor in model.state_dict().items()
        if name in state or name.split(".")[0] not in left_out
    }
    if problem := misfits(wanted, state).sentence:
        raise CheckpointError(
            f"the weights in {source} do not fit {type(model).__name__}: {problem}"
        )

    def cast(name: str, tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        return tensor.to(torch.float32 if kept_in_fp32(model, name) else dtype or tensor.dtype)

    model.load_state_dict(
        {name: cast(name, tensor) for name, tensor in state.items()}, strict=False, assign=True
    )


def kept_in_fp32(model: object, name: str) -> bool:
    """Whether a weight of a model, or of its class, loses too much in half precision."""
    kept = set(getattr(model, "_keep_in_fp32_modules", None) or ())
    return bool(kept & set(name.split(".")))


@dataclass(frozen=True, slots=True)
class Misfits:
    """In what the weights of a file are others than a model's, by name."""

    missing: list[str]
    unexpected: list[str]
    misshapen: list[str]

    @property
    def sentence(self) -> str:
        """Everything that does not fit; empty where all does."""
        kinds = {
            "missing": self.missing,
            "unexpected": self.unexpected,
            "of another shape": self.misshapen,
        }
        return "; ".join(
            f"{len(names)} {kind}: {_listed(names)}" for kind, names in kinds.items() if names
        )


def misfits(expected: Mapping[str, Shaped], found: Mapping[str, Shaped]) -> Misfits:
    """Compare names and shapes of what a model has with those of what was found."""
    return Misfits(
        [name for name in expected if name not in found],
        [name for name in found if name not in expected],
        [
            f"{name} {tuple(tensor.shape)} instead of {tuple(expected[name].shape)}"
            for name, tensor in found.items()
            if name in expected and tuple(tensor.shape) != tuple(expected[name].shape)
        ],
    )


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:_MOST_NAMED])
    return shown if len(names) <= _MOST_NAMED else f"{shown} and {len(names) - _MOST_NAMED} more"


def _weight_files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if path.is_dir():
        # The index of a sharded checkpoint decides; without one the folder holds a single file.
        for index in sorted(path.glob("*.safetensors.index.json")):
            shards = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
            return [path / name for name in sorted(set(shards))]
        files = sorted(path.glob("*.safetensors"))
        if len(files) == 1:
            return files
        if files:
            names = ", ".join(file.name for file in files)
            raise CheckpointError(f"{path} holds several weight files and no index: {names}")
    raise WeightsMissingError(f"there are no weights at {path}")


def _read_file(path: Path) -> State:
    if not path.is_file():
        raise WeightsMissingError(f"the weight file {path} is missing")
    if path.suffix not in PICKLED:
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path} cannot be read as weights: {error}") from error
    contents = load_pickled(path)
    if not (isinstance(contents, dict) and _only_tensors(contents.values())):
        raise CheckpointError(f"{path} is not a plain table of named tensors")
    return dict(contents)


def _only_tensors(values: Iterable[object]) -> bool:
    return all(isinstance(value, Tensor) for value in values)


def read_config(path: Path, config: Config = None) -> dict[str, Any]:
    """The settings that are given, or those in `config.json` beside the weights, if any."""
    if isinstance(config, Mapping):
        return dict(config)
    if config is None:
        config = (path if Path(path).is_dir() else Path(path).parent) / "config.json"
        if not config.is_file():
            return {}
    return dict(json.loads(Path(config).read_text(encoding="utf-8")))


def _rename_config(config: Mapping[str, Any], table: Mapping[str, str]) -> dict[str, Any]:
    return {table.get(name, name): value for name, value in config.items()}


def accepted(model_class: Any, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that a class of diffusers has an argument for."""
    known = model_class._get_init_keys(model_class)
    return {name: value for name, value in settings.items() if name in known}


def transformer_config(
    config: Mapping[str, Any], state: Mapping[str, Shaped], path: Path
) -> dict[str, Any]:
    """Arguments of the transformer: what `config` says, else what the shapes say."""
    settings = _rename_config(config, _ORIGINAL_TRANSFORMER_CONFIG)
    if tuple(settings.get("window_size") or (-1, -1)) != (-1, -1):
        raise CheckpointError(f"{path} uses windowed attention, which is not supported")
    if isinstance(settings.get("qk_norm"), bool):
        # Original configs only say whether; the one kind there is has this name in diffusers.
        settings["qk_norm"] = "rms_norm_across_heads" if settings["qk_norm"] else None
    inner_dim = settings.get("dim")
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    if patch := shapes.get("patch_embedding.weight"):
        inner_dim = patch[0]
        settings.setdefault("in_channels", patch[1])
        settings.setdefault("patch_size", tuple(patch[2:]))
    if "num_attention_heads" not in settings and inner_dim:
        if inner_dim % _RELEASED_HEAD_DIM:
            raise CheckpointError(
                f"{path} does not say how many attention heads its {inner_dim} channels make",
                hint="put its config.json beside it",
            )
        settings["num_attention_heads"] = inner_dim // _RELEASED_HEAD_DIM
    if "attention_head_dim" not in settings and inner_dim:
        settings["attention_head_dim"] = inner_dim // settings["num_attention_heads"]
    settings.setdefault("num_layers", len({n.split(".")[1] for n in shapes if n[:7] == "blocks."}))
    settings.setdefault("cross_attn_norm", "blocks.0.norm2.weight" in shapes)
    for name, key, axis in (
        ("text_dim", "condition_embedder.text_embedder.linear_1.weight", 1),
        ("freq_dim", "condition_embedder.time_embedder.linear_1.weight", 1),
        ("ffn_dim", "blocks.0.ffn.net.0.proj.weight", 0),
        ("projection_channels", "learnable_proj.proj.0.weight", 0),
        # Of image-to-video transformers, which are told what CLIP saw.
        ("image_dim", "condition_embedder.image_embedder.norm1.weight", 0),
        ("added_kv_proj_dim", "blocks.0.attn2.add_k_proj.weight", 1),
        ("pos_embed_seq_len", "condition_embedder.image_embedder.pos_embed", 1),
    ):
        if key in shapes:
            settings.setdefault(name, shapes[key][axis])
    if coordinates := shapes.get("position_embedding.weight"):
        settings.setdefault("position_channels", coordinates[1] - GRID_CHANNELS)
    if "proj_out.weight" in shapes and "patch_size" in settings:
        volume = math.prod(settings["patch_size"])
        settings.setdefault("out_channels", shapes["proj_out.weight"][0] // volume)
    if "learnable_proj.proj.0.weight" in shapes:
        kernel = shapes["learnable_proj.proj.0.weight"][2]
        settings.setdefault("conv3x3x3_proj", kernel == 3)
    return accepted(FlashI2VTransformer3DModel, settings)
