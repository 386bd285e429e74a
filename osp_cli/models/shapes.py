"""Settings of a model, read off the shapes of its weights, for files that come without any.

All take weights under the names of diffusers and transformers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from osp_cli.models.state_dict import Shaped

# Every released Wan image encoder has attention heads of this width (Wan2.1, `wan/modules/clip.py`:
# 1280 channels, 16 heads).
_CLIP_HEAD_DIM = 80


def autoencoder_settings(state: Mapping[str, Shaped]) -> dict[str, Any]:
    """Arguments of `AutoencoderKLWan`: widths, levels, and which of them halve the time."""
    base = state["encoder.conv_in.weight"].shape[0]
    blocks = _numbers(state, r"encoder\.down_blocks\.(\d+)\.")
    mult: list[int] = []
    num_resnets, halves_time = [0], []
    for number in blocks:
        block = f"encoder.down_blocks.{number}"
        if f"{block}.conv1.weight" in state:
            num_resnets[-1] += 1
            width = state[f"{block}.conv1.weight"].shape[0]
            mult[len(num_resnets) - 1 :] = [width // base]
        else:
            halves_time.append(f"{block}.time_conv.weight" in state)
            num_resnets.append(0)
    return {
        "base_dim": base,
        "z_dim": state["post_quant_conv.weight"].shape[0],
        "dim_mult": mult,
        "num_res_blocks": num_resnets[0],
        "temperal_downsample": halves_time,
    }


def umt5_settings(state: Mapping[str, Shaped]) -> dict[str, Any]:
    """Arguments of `UMT5Config`."""
    attention = "encoder.block.0.layer.0.SelfAttention"
    num_buckets, num_heads = state[f"{attention}.relative_attention_bias.weight"].shape
    embedding = state[
        "shared.weight" if "shared.weight" in state else "encoder.embed_tokens.weight"
    ]
    return {
        "vocab_size": embedding.shape[0],
        "d_model": embedding.shape[1],
        "d_kv": state[f"{attention}.q.weight"].shape[0] // num_heads,
        "d_ff": state["encoder.block.0.layer.1.DenseReluDense.wo.weight"].shape[1],
        "num_layers": len(_numbers(state, r"encoder\.block\.(\d+)\.")),
        "num_heads": num_heads,
        "relative_attention_num_buckets": num_buckets,
        "feed_forward_proj": "gated-gelu",
    }


def clip_vision_settings(state: Mapping[str, Shaped]) -> dict[str, Any]:
    """Arguments of `CLIPVisionConfig`; of the activation shapes say nothing, Wan's is the exact."""
    width, _, patch_size, _ = state["embeddings.patch_embedding.weight"].shape
    num_patches = state["embeddings.position_embedding.weight"].shape[0] - 1
    return {
        "hidden_size": width,
        "intermediate_size": state["encoder.layers.0.mlp.fc1.weight"].shape[0],
        "num_hidden_layers": len(_numbers(state, r"encoder\.layers\.(\d+)\.")),
        "num_attention_heads": max(width // _CLIP_HEAD_DIM, 1),
        "patch_size": patch_size,
        "image_size": round(num_patches**0.5) * patch_size,
        "hidden_act": "gelu",
    }


def adapter_settings(state: Mapping[str, Shaped]) -> dict[str, Any]:
    """Arguments of `FeatureAdapter`."""
    hidden, width = state["fc1.weight"].shape
    return {
        "in_features": width,
        "hidden_features": hidden,
        "out_features": state["fc2.weight"].shape[0],
    }


def _numbers(state: Mapping[str, Shaped], pattern: str) -> list[int]:
    """The different numbers that stand in names, in order."""
    found = (re.match(pattern, name) for name in state)
    return sorted({int(match[1]) for match in found if match})
