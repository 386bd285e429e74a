"""Parameter names of the original Wan, FlashI2V, umT5 and CLIP checkpoints, as our classes say.

Each function takes a state dict under either naming and returns it under the diffusers or
transformers one; names it does not know pass through and are reported by whoever fills a model.
Values are only handed on, so they may be tensors or what stands for them in a file.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, TypeAlias, TypeVar

if TYPE_CHECKING:
    # Names alone are told without torch, before anything is loaded.
    from torch import Tensor

    from osp_cli.models.stored import StoredTensor

State: TypeAlias = "dict[str, Tensor]"
_T = TypeVar("_T")

TRANSFORMER_ROOTS = {
    "time_embedding.0": "condition_embedder.time_embedder.linear_1",
    "time_embedding.2": "condition_embedder.time_embedder.linear_2",
    "text_embedding.0": "condition_embedder.text_embedder.linear_1",
    "text_embedding.2": "condition_embedder.text_embedder.linear_2",
    "time_projection.1": "condition_embedder.time_proj",
    "head.head": "proj_out",
    "head.modulation": "scale_shift_table",
    # Image-to-video transformers: what CLIP saw of the picture; emb_pos where it saw two.
    "img_emb.proj.0": "condition_embedder.image_embedder.norm1",
    "img_emb.proj.1": "condition_embedder.image_embedder.ff.net.0.proj",
    "img_emb.proj.3": "condition_embedder.image_embedder.ff.net.2",
    "img_emb.proj.4": "condition_embedder.image_embedder.norm2",
    "img_emb.emb_pos": "condition_embedder.image_embedder.pos_embed",
}
TRANSFORMER_BLOCK_PARTS = {
    "modulation": "scale_shift_table",
    # Ours: norm1 and norm3 are without weights, norm2 is the one before cross-attention.
    "norm3": "norm2",
    "ffn.0": "ffn.net.0.proj",
    "ffn.2": "ffn.net.2",
    **{
        f"{theirs}.{old}": f"{ours}.{new}"
        for theirs, ours in (("self_attn", "attn1"), ("cross_attn", "attn2"))
        for old, new in (
            ("q", "to_q"),
            ("k", "to_k"),
            ("v", "to_v"),
            ("o", "to_out.0"),
            ("norm_q", "norm_q"),
            ("norm_k", "norm_k"),
        )
    },
    # Image-to-video transformers only.
    "cross_attn.k_img": "attn2.add_k_proj",
    "cross_attn.v_img": "attn2.add_v_proj",
    "cross_attn.norm_k_img": "attn2.norm_added_k",
}

_VAE_RESIDUAL_PARTS = {
    "residual.0": "norm1",
    "residual.2": "conv1",
    "residual.3": "norm2",
    "residual.6": "conv2",
    "shortcut": "conv_shortcut",
}
_VAE_ROOTS = {
    "conv1": "quant_conv",
    "conv2": "post_quant_conv",
    **{
        f"{half}.{old}": f"{half}.{new}"
        for half in ("encoder", "decoder")
        for old, new in (
            ("conv1", "conv_in"),
            ("middle.0", "mid_block.resnets.0"),
            ("middle.1", "mid_block.attentions.0"),
            ("middle.2", "mid_block.resnets.1"),
            ("head.0", "norm_out"),
            ("head.2", "conv_out"),
        )
    },
}

_UMT5_BLOCK_PARTS = {
    "norm1": "layer.0.layer_norm",
    "norm2": "layer.1.layer_norm",
    "pos_embedding.embedding": "layer.0.SelfAttention.relative_attention_bias",
    "ffn.gate.0": "layer.1.DenseReluDense.wi_0",
    "ffn.fc1": "layer.1.DenseReluDense.wi_1",
    "ffn.fc2": "layer.1.DenseReluDense.wo",
    **{f"attn.{name}": f"layer.0.SelfAttention.{name}" for name in "qkvo"},
}

_CLIP_ROOTS = {
    "patch_embedding": "embeddings.patch_embedding",
    # transformers spells it so.
    "pre_norm": "pre_layrnorm",
    "post_norm": "post_layernorm",
}
_CLIP_LAYER_PARTS = {
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
    "attn.proj": "self_attn.out_proj",
    "mlp.0": "mlp.fc1",
    "mlp.2": "mlp.fc2",
}


def transformer_from_original(state: Mapping[str, _T]) -> dict[str, _T]:
    """Wan and FlashI2V transformers; `fourier_embedding` and `learnable_proj` keep their names."""
    if not any(name.startswith("head.") or ".self_attn." in name for name in state):
        return dict(state)
    return _renamed(state, transformer_name)


def transformer_name(name: str) -> str:
    """One name of a Wan or FlashI2V transformer, of a parameter or a module; ours stay."""
    if block := re.fullmatch(r"(blocks\.\d+)\.(.+)", name):
        return f"{block[1]}.{_replace_head(block[2], TRANSFORMER_BLOCK_PARTS)}"
    return _replace_head(name, TRANSFORMER_ROOTS)


def autoencoder_from_original(state: Mapping[str, _T]) -> dict[str, _T]:
    """`Wan2.1_VAE.pth`, with any number of levels and residual blocks."""
    if not any(".residual." in name for name in state):
        return dict(state)
    decoder_blocks = _decoder_blocks(state)

    def rename(name: str) -> str:
        if block := re.fullmatch(r"encoder\.downsamples\.(\d+)\.(.+)", name):
            return f"encoder.down_blocks.{block[1]}.{_replace_head(block[2], _VAE_RESIDUAL_PARTS)}"
        if block := re.fullmatch(r"decoder\.upsamples\.(\d+)\.(.+)", name):
            return f"{decoder_blocks[int(block[1])]}.{_replace_head(block[2], _VAE_RESIDUAL_PARTS)}"
        if block := re.fullmatch(r"((?:en|de)coder\.middle\.[02])\.(.+)", name):
            return f"{_VAE_ROOTS[block[1]]}.{_replace_head(block[2], _VAE_RESIDUAL_PARTS)}"
        return _replace_head(name, _VAE_ROOTS)

    return _renamed(state, rename)


def umt5_from_original(state: Mapping[str, _T]) -> dict[str, _T]:
    """`models_t5_umt5-xxl-enc-bf16.pth` into `UMT5EncoderModel`."""
    if "token_embedding.weight" not in state:
        return dict(state)

    def rename(name: str) -> str:
        if block := re.fullmatch(r"blocks\.(\d+)\.(.+)", name):
            return f"encoder.block.{block[1]}.{_replace_head(block[2], _UMT5_BLOCK_PARTS)}"
        return {
            "token_embedding.weight": "shared.weight",
            "norm.weight": "encoder.final_layer_norm.weight",
        }.get(name, name)

    renamed = _renamed(state, rename)
    # One tensor under both of its names.
    renamed["encoder.embed_tokens.weight"] = renamed["shared.weight"]
    return renamed


def clip_vision_from_original(state: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """The picture's half of `models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth`.

    Its three attention projections lie in one matrix, queries first. The text half, the head that
    joins the two and the temperature are dropped: video models read the layers below.

    Names and order follow the published class (Wan2.1, `wan/modules/clip.py`); the published file
    itself could not be read when this was written.
    """
    if "visual.cls_embedding" not in state:
        return dict(state)
    renamed: dict[str, StoredTensor] = {}
    for name, tensor in state.items():
        if name.startswith("textual.") or name in ("visual.head", "log_scale"):
            continue
        inner = name.removeprefix("visual.")
        if inner == "cls_embedding":
            renamed["embeddings.class_embedding"] = tensor.reshaped(tensor.shape[-1:])
        elif inner == "pos_embedding":
            renamed["embeddings.position_embedding.weight"] = tensor.reshaped(tensor.shape[-2:])
        elif fused := re.fullmatch(r"transformer\.(\d+)\.attn\.to_qkv\.(\w+)", inner):
            third = tensor.shape[0] // 3
            for index, part in enumerate("qkv"):
                new = f"encoder.layers.{fused[1]}.self_attn.{part}_proj.{fused[2]}"
                renamed[new] = tensor.part(index * third, (index + 1) * third)
        elif layer := re.fullmatch(r"transformer\.(\d+)\.(.+)", inner):
            new = _replace_head(layer[2], _CLIP_LAYER_PARTS)
            renamed[f"encoder.layers.{layer[1]}.{new}"] = tensor
        else:
            renamed[_replace_head(inner, _CLIP_ROOTS)] = tensor
    return renamed


def _decoder_blocks(names: Iterable[str]) -> dict[int, str]:
    """New name of every `decoder.upsamples.N`: the flat list cut after each resampling layer."""
    matches = [re.match(r"decoder\.upsamples\.(\d+)\.(\w+)", name) for name in names]
    kinds = {int(match[1]): match[2] for match in matches if match}
    resampling = {
        int(match[1]) for match in matches if match and match[2] in ("resample", "time_conv")
    }
    blocks, level, resnet = {}, 0, 0
    for index in sorted(kinds):
        if index in resampling:
            blocks[index] = f"decoder.up_blocks.{level}.upsamplers.0"
            level, resnet = level + 1, 0
        else:
            blocks[index] = f"decoder.up_blocks.{level}.resnets.{resnet}"
            resnet += 1
    return blocks


def _replace_head(name: str, table: Mapping[str, str]) -> str:
    """Replace the longest leading run of dotted parts that `table` knows."""
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        if (new := table.get(".".join(parts[:count]))) is not None:
            return ".".join([new, *parts[count:]])
    return name


def _renamed(state: Mapping[str, _T], rename: Callable[[str], str]) -> dict[str, _T]:
    return {rename(name): tensor for name, tensor in state.items()}
