"""The largest sum of live tensors of each stage, traced without computing, beside the formulas.

    python tests/benchmarks/activations.py                  # everything, some minutes
    python tests/benchmarks/activations.py --only vae --json vae.json

Real models on the meta device; every tensor that an operation makes counts from then until nothing
refers to it. Attention counts as what fused kernels keep: their output. A library's workspace and
an allocator's waste are not in it. The last column is formula / traced: below 1 the planner would
promise what is not there, and the program ends with code 1.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from diffusers import AutoencoderKLWan, HeliosTransformer3DModel, WanTransformer3DModel
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from osp_cli.models.latents import decode_latents, encode_latents, uint8_frames
from osp_cli.models.state_dict import kept_in_fp32
from osp_cli.models.transformer_flash_i2v import FlashI2VTransformer3DModel
from osp_cli.pipelines.layouts import HeliosLayout
from osp_cli.pipelines.stream import StreamState
from osp_cli.registry import ModelSpec, find_model
from osp_cli.runtime.activations import Activations, activations
from osp_cli.runtime.planner import history_tokens
from osp_cli.runtime.sizes import transformer_shape

# Of each kind of transformer one; of the first two also their text encoders.
CARDS = ("flashi2v-1.3b", "uniworld-osp2-14b", "wan2.1-i2v-14b-720p")
SIZES = ((448, 256), (832, 480), (1280, 720))
FRAMES = (1, 5, 9, 17, 49, 81)
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
# What a pass needs does not grow with the number of blocks: nothing is kept of one in the next.
NUM_LAYERS = 2
META = torch.device("meta")


@dataclass(frozen=True)
class Row:
    """One trace.

    Attributes:
        what: was computed.
        traced: bytes of live tensors at the highest point.
        formula: bytes that the planner counts.
    """

    what: str
    traced: int
    formula: int

    @property
    def ratio(self) -> float:
        """Formula / traced."""
        return self.formula / self.traced


class LiveBytes(TorchDispatchMode):
    """Inside, adds up the storages that operations make, as long as they live.

    Args:
        model: whose weights do not count.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        tensors = (*model.parameters(), *model.buffers())
        # Held, so that no new storage gets the address of one of them.
        self._weights = [tensor.untyped_storage() for tensor in tensors]
        self._known = {storage._cdata for storage in self._weights}
        self._live: dict[int, tuple[StorageWeakRef, int]] = {}
        self._now = 0
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_iter(result):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        if self._now > self.peak:
            # Only here does it matter what has gone; looking after each operation takes minutes.
            self._forget()
            self.peak = max(self.peak, self._now)
        return result

    def _forget(self) -> None:
        gone = [key for key, (reference, _) in self._live.items() if reference.expired()]
        self._now -= sum(self._live.pop(key)[1] for key in gone)

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._known and key not in self._live:
            self._live[key] = StorageWeakRef(storage), storage.nbytes()
            self._now += storage.nbytes()


@contextmanager
def fused_attention() -> Iterator[None]:
    """Inside, attention takes the memory of its output, not of all pairs of tokens."""
    real = nn.functional.scaled_dot_product_attention

    def attention(query: torch.Tensor, key: Any, value: torch.Tensor, *_: Any, **__: Any) -> Any:
        return query.new_empty(*query.shape[:-1], value.shape[-1])

    nn.functional.scaled_dot_product_attention = attention
    try:
        yield
    finally:
        nn.functional.scaled_dot_product_attention = real


def traced(model: nn.Module, work: Callable[[], Any]) -> int:
    """Bytes of the highest point of `work`, with what it is given made inside of it."""
    with torch.no_grad(), fused_attention(), LiveBytes(model) as live:
        work()
    return live.peak


def formulas(
    spec: ModelSpec, size: tuple[int, int], num_frames: int, dtype: str = "bfloat16"
) -> Activations:
    """What the planner counts for one clip, without a step cache."""
    # Two latent cells along each side make a token.
    cell = 2 * spec.scale_factor_spatial
    frames = 1 + (num_frames - 1) // spec.scale_factor_temporal
    return activations(
        spec,
        transformer_shape(spec, None),
        size=size,
        num_frames=num_frames,
        tokens=frames * (size[0] // cell) * (size[1] // cell),
        dtype=dtype,
        passes_per_step=2,
        cache="none",
    )


def make_transformer(spec: ModelSpec, dtype: torch.dtype) -> Any:
    """The card's transformer with few layers, its precisions as they are loaded."""
    card = spec.architecture
    assert card is not None
    settings: dict[str, Any] = {
        "num_attention_heads": card.heads,
        "attention_head_dim": card.width // card.heads,
        "ffn_dim": card.ffn,
        "num_layers": NUM_LAYERS,
    }
    with META:
        if spec.pipeline == "wan-i2v":
            picture = {"in_channels": 36, "image_dim": 1280, "added_kv_proj_dim": card.width}
            model = WanTransformer3DModel(**settings, **picture)
        else:
            model = FlashI2VTransformer3DModel(**settings)
    keep = set(model._keep_in_fp32_modules)
    for name, parameter in model.named_parameters():
        parameter.data = parameter.data.to(torch.float32 if keep & set(name.split(".")) else dtype)
    return model


def passes(sizes: Iterable[tuple[int, int]], frames: Iterable[int]) -> Iterator[Row]:
    """One pass of each transformer."""
    clips = list(itertools.product(sizes, frames))
    for card, (name, dtype) in itertools.product(CARDS, DTYPES.items()):
        spec = find_model(card)
        model = make_transformer(spec, dtype)
        for size, num_frames in clips:
            found = traced(model, partial(_one_pass, model, spec, size, num_frames, dtype))
            needed = formulas(spec, size, num_frames, name).sampling
            yield Row(f"{card} {name} pass {_clip(size, num_frames)}", found, needed)


def _one_pass(
    model: Any, spec: ModelSpec, size: tuple[int, int], num_frames: int, dtype: torch.dtype
) -> None:
    shape = _latent_shape(size, num_frames)
    latents = torch.empty(1, model.config.in_channels, *shape[2:], dtype=dtype, device=META)
    text = torch.empty(1, spec.max_sequence_length, 4096, dtype=dtype, device=META)
    timestep = torch.empty(1, device=META)
    if spec.pipeline == "wan-i2v":
        picture = torch.empty(1, 257, 1280, dtype=dtype, device=META)
        model(latents, timestep, text, picture, return_dict=False)
    else:
        model(latents, timestep, text, torch.empty_like(latents), return_dict=False)


def streams(sizes: Iterable[tuple[int, int]], context: int = 3) -> Iterator[Row]:
    """One pass over a chunk of a stream, whose clean tokens have a timestep of their own."""
    sizes = list(sizes)
    spec = find_model("uniworld-osp2-14b")
    for name, dtype in DTYPES.items():
        model = make_transformer(spec, dtype)
        for size in sizes:
            num_frames = 1 + 4 * (8 + context)
            found = traced(model, partial(_stream_pass, model, size, num_frames, dtype))
            needed = _stream_formula(spec, size, num_frames, 0, name)
            yield Row(f"osp {name} chunk {_clip(size, 33)}", found, needed)
    spec = find_model("helios-14b-distilled")
    with META:
        helios = HeliosTransformer3DModel(num_layers=NUM_LAYERS)
    for name, parameter in helios.named_parameters():
        kept = kept_in_fp32(helios, name)
        parameter.data = parameter.data.to(torch.float32 if kept else torch.bfloat16)
    for size in sizes:
        # diffusers asks for autocast of the device, which there is none of here.
        with patch.object(torch, "autocast", lambda **_: nullcontext()):
            found = traced(helios, partial(_helios_pass, helios, size))
        history = history_tokens(size[0] // 16, size[1] // 16)
        needed = _stream_formula(spec, size, 33, history, "bfloat16")
        yield Row(f"helios bfloat16 chunk {_clip(size, 33)}", found, needed)


def _stream_formula(
    spec: ModelSpec, size: tuple[int, int], num_frames: int, history: int, dtype: str
) -> int:
    frames = 1 + (num_frames - 1) // 4
    return activations(
        spec,
        transformer_shape(spec, None),
        size=size,
        num_frames=num_frames,
        tokens=frames * (size[0] // 16) * (size[1] // 16) + history,
        dtype=dtype,
        passes_per_step=1,
        cache="none",
        tokenwise=True,
    ).sampling


def _stream_pass(model: Any, size: tuple[int, int], num_frames: int, dtype: torch.dtype) -> None:
    latents = torch.empty(*_latent_shape(size, num_frames), dtype=dtype, device=META)
    text = torch.empty(1, 1024, 4096, dtype=dtype, device=META)
    tokens = latents[0, 0].numel() // 4
    timestep = torch.empty(1, tokens, device=META)
    model(latents, timestep, text, torch.empty_like(latents), return_dict=False)


def _helios_pass(model: Any, size: tuple[int, int]) -> None:
    history = torch.empty(1, 16, HeliosLayout.lookback, size[1] // 8, size[0] // 8, device=META)
    state = StreamState(1, history, history[:, :, :1], torch.empty(0, dtype=torch.uint8))
    latents = torch.empty(_latent_shape(size, 33), device=META)
    view = HeliosLayout().view(model, state, tuple(latents.shape), None)
    text = torch.empty(1, 512, 4096, dtype=torch.bfloat16, device=META)
    view(latents, torch.empty((), dtype=torch.int64, device=META), text)


def codings(sizes: Iterable[tuple[int, int]], frames: Iterable[int]) -> Iterator[Row]:
    """Wan's autoencoder, whole and in tiles: the first frame, a clip as I2V models are given it,
    and the way back to pictures."""
    first, clip = find_model(CARDS[0]), find_model(CARDS[2])
    with META:
        vae = AutoencoderKLWan()

    def encode(shape: tuple[int, ...]) -> None:
        encode_latents(vae, torch.empty(shape, device=META))

    def decode(shape: tuple[int, ...]) -> None:
        uint8_frames(decode_latents(vae, torch.empty(shape, device=META)))

    for size, count, tiled in itertools.product(sizes, frames, (False, True)):
        vae.enable_tiling() if tiled else vae.disable_tiling()
        how = f"{'tiled' if tiled else 'whole'} {_clip(size, count)}"
        needed = formulas(first if count == 1 else clip, size, count)
        yield Row(
            f"encode {how}",
            traced(vae, partial(encode, (1, 3, count, size[1], size[0]))),
            needed.condition_tiled if tiled else needed.condition,
        )
        yield Row(
            f"decode {how}",
            traced(vae, partial(decode, _latent_shape(size, count))),
            needed.decode_tiled if tiled else needed.decode,
        )


def texts() -> Iterator[Row]:
    """The text encoders, beside what the planner counts for the smallest picture."""
    for card, make in zip(CARDS, (_umt5, _qwen), strict=False):
        spec = find_model(card)
        model = make().eval()
        length = spec.max_sequence_length
        found = traced(model, partial(_read, model, length))
        needed = formulas(spec, (16, 16), 1).condition
        yield Row(f"{type(model).__name__} {length} tokens", found, needed)


def _read(model: nn.Module, length: int) -> None:
    ids = torch.zeros(1, length, dtype=torch.long, device=META)
    # As wide as it becomes inside; whether it masks anything cannot be asked here.
    mask = torch.zeros(1, 1, length, length, dtype=torch.bfloat16, device=META)
    model(input_ids=ids, attention_mask=mask)


def _umt5() -> nn.Module:
    from transformers import UMT5Config, UMT5EncoderModel

    config = UMT5Config(
        vocab_size=256384,
        d_model=4096,
        d_kv=64,
        d_ff=10240,
        num_layers=NUM_LAYERS,
        num_heads=64,
        feed_forward_proj="gated-gelu",
        dtype=torch.bfloat16,
    )
    with META:
        return UMT5EncoderModel(config).to(torch.bfloat16)


def _qwen() -> nn.Module:
    from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLTextConfig
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLTextModel

    config = Qwen2_5_VLTextConfig(
        vocab_size=152064,
        hidden_size=3584,
        intermediate_size=18944,
        num_hidden_layers=NUM_LAYERS,
        num_attention_heads=28,
        num_key_value_heads=4,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": 1e6,
            "mrope_section": [16, 24, 24],
        },
        use_cache=False,
    )
    with META:
        return Qwen2_5_VLTextModel(config).to(torch.bfloat16)


def _latent_shape(size: tuple[int, int], num_frames: int) -> tuple[int, ...]:
    return (1, 16, 1 + (num_frames - 1) // 4, size[1] // 8, size[0] // 8)


def _clip(size: tuple[int, int], num_frames: int) -> str:
    return f"{size[0]}x{size[1]}x{num_frames}"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=("transformer", "stream", "vae", "text"))
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--tiny", action="store_true", help="the smallest size and clips alone")
    options = parser.parse_args()
    sizes, frames = (SIZES[:1], FRAMES[:2]) if options.tiny else (SIZES, FRAMES)
    parts = {
        "transformer": lambda: passes(sizes, frames),
        "stream": lambda: streams([(640, 384)] if options.tiny else [(640, 384), (1280, 704)]),
        "vae": lambda: codings(sizes, frames),
        "text": texts,
    }
    rows = []
    for name, part in parts.items():
        if options.only not in (None, name):
            continue
        for row in part():
            rows.append(row)
            line = f"{row.what:48}{row.traced / 1e9:9.3f}{row.formula / 1e9:9.3f}{row.ratio:8.2f}\n"
            sys.stdout.write(line)
            sys.stdout.flush()
    if options.json is not None:
        found = [{**asdict(row), "ratio": round(row.ratio, 3)} for row in rows]
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    return int(any(row.ratio < 1 for row in rows))


if __name__ == "__main__":
    sys.exit(main())
