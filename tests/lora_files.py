"""LoRA files for tests: the same factors under the names of every layout."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

# Original names, by ours; written by hand, as the code that is tested has its own table.
ORIGINAL = {
    "attn1.to_q": "self_attn.q",
    "attn1.to_k": "self_attn.k",
    "attn1.to_v": "self_attn.v",
    "attn1.to_out.0": "self_attn.o",
    "attn2.to_q": "cross_attn.q",
    "attn2.to_k": "cross_attn.k",
    "attn2.to_v": "cross_attn.v",
    "attn2.to_out.0": "cross_attn.o",
    "ffn.net.0.proj": "ffn.0",
    "ffn.net.2": "ffn.2",
    "condition_embedder.time_embedder.linear_1": "time_embedding.0",
    "condition_embedder.time_embedder.linear_2": "time_embedding.2",
    "condition_embedder.text_embedder.linear_1": "text_embedding.0",
    "condition_embedder.text_embedder.linear_2": "text_embedding.2",
    "condition_embedder.time_proj": "time_projection.1",
    "proj_out": "head.head",
    "patch_embedding": "patch_embedding",
}

Factors = dict[str, tuple[Tensor, Tensor]]


def original(name: str) -> str:
    """What the original code calls a layer of ours."""
    block = re.match(r"blocks\.\d+\.", name)
    start = block[0] if block else ""
    return start + ORIGINAL[name.removeprefix(start)]


def layers(model: nn.Module, pattern: str = r"blocks\..*") -> dict[str, nn.Module]:
    """The layers of a transformer that the layouts have names for."""
    parts = {re.sub(r"^blocks\.\d+\.", "", name): name for name, _ in model.named_modules()}
    assert ORIGINAL.keys() <= parts.keys()
    return {
        name: module
        for name, module in model.named_modules()
        if re.sub(r"^blocks\.\d+\.", "", name) in ORIGINAL and re.fullmatch(pattern, name)
    }


def factors(
    model: nn.Module, pattern: str = r"blocks\..*", rank: int = 3, seed: int = 1
) -> Factors:
    """Random `down` and `up` of the layers that fit the pattern."""
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator) * 0.2

    found = {}
    for name, module in layers(model, pattern).items():
        out, *inside = module.weight.shape
        found[name] = (noise(rank, *inside), noise(out, rank, *(1,) * (len(inside) - 1)))
    return found


def _flat(name: str) -> str:
    return name.replace(".", "_")


LAYOUTS = {
    "videox": lambda n: (f"lora_unet__{_flat(original(n))}", "lora_down", "lora_up"),
    "musubi": lambda n: (f"lora_unet_{_flat(original(n))}", "lora_down", "lora_up"),
    "comfy": lambda n: (f"diffusion_model.{original(n)}", "lora_A", "lora_B"),
    "comfy_alpha": lambda n: (f"diffusion_model.{original(n)}", "lora_down", "lora_up"),
    "peft": lambda n: (original(n), "lora_A", "lora_B"),
    "diffusers": lambda n: (f"transformer.{n}", "lora_A", "lora_B"),
}
# Other spellings of the same.
SPELLINGS = {
    "peft wrapped": lambda n: (f"base_model.model.{original(n)}", "lora_A", "lora_B"),
    "peft wrapped, ours": lambda n: (f"base_model.model.{n}", "lora_A", "lora_B"),
    "peft adapter": lambda n: (original(n), "lora_A.default", "lora_B.default"),
    "kohya, ours": lambda n: (f"lora_transformer_{_flat(n)}", "lora_down", "lora_up"),
    "comfy in full": lambda n: (f"model.diffusion_model.{original(n)}", "lora_down", "lora_up"),
    "diffusers, old": lambda n: (f"transformer.{n}", "lora.down", "lora.up"),
    "compiled": lambda n: (f"module.{original(n)}", "lora_A", "lora_B"),
}


def write(
    path: Path,
    layout: str,
    pairs: Factors,
    alpha: float | dict[str, float] | None = None,
    metadata: dict[str, str] | None = None,
    **extra: Tensor,
) -> Path:
    """Write factors in a layout; `alpha` is a number for all layers, or one each."""
    spell = (LAYOUTS | SPELLINGS)[layout]
    state = dict(extra)
    for name, (down, up) in pairs.items():
        module, down_key, up_key = spell(name)
        state |= {f"{module}.{down_key}.weight": down, f"{module}.{up_key}.weight": up}
        if alpha is not None:
            value = alpha[name] if isinstance(alpha, dict) else alpha
            state[f"{module}.alpha"] = torch.tensor(float(value))
    save_file({key: tensor.contiguous() for key, tensor in state.items()}, path, metadata)
    return path
