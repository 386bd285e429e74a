"""The embedded model's vision-language model: a tiny Qwen2.5-VL, taught to understand what it will
be told.

The paper's language model is pretrained and frozen. So is this one: it first learns, by itself, to
say which motion, speed and style a sentence asks for and what colours a picture has; then it is
frozen, and the video model is trained on its hidden states. It knows the words of
`procedural.prompts`, not the world.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLModel,
    Qwen2VLImageProcessorPil,
)

from osp_cli.conditioning.image_tokens import POSITION_FEATURES
from osp_cli.conditioning.vlm import QwenVLConditioner, multimodal_states
from osp_cli.models.adapter import FeatureAdapter
from osp_cli.procedural.motions import CAMERA_MOTIONS, SCENE_MOTIONS, SPEEDS
from osp_cli.procedural.prompts import random_motion, random_prompt, random_style
from osp_cli.procedural.styles import STYLE_OPERATORS

VOCABULARY = 1024
MAX_PICTURE_PIXELS = 16 * 28 * 28  # at most sixteen image tokens
MAX_SEQUENCE_LENGTH = 96
SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
# As `multimodal_states` takes them.
_ModelInputs = tuple[Tensor, Tensor, Tensor | None, Tensor | None]
_CLASSES = {
    "camera": (None, *CAMERA_MOTIONS),
    "scene": (None, *SCENE_MOTIONS),
    "speed": SPEEDS,
    "style": (None, *STYLE_OPERATORS),
}


def build_tokenizer(seed: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE fitted to sentences of `procedural.prompts`; every byte is a token, so any
    language is accepted."""
    rng = random.Random(seed)
    corpus = []
    for _ in range(20000):
        motion = random_motion(rng)
        corpus.append(random_prompt(rng, motion, random_style(rng)))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        additional_special_tokens=list(SPECIAL_TOKENS[1:]),
    )


def build_image_processor() -> Qwen2VLImageProcessorPil:
    """Pictures of 2 to 16 tokens, any aspect."""
    return Qwen2VLImageProcessorPil(min_pixels=2 * 28 * 28, max_pixels=MAX_PICTURE_PIXELS)


def build_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> Qwen2_5_VLModel:
    """0.8 M random parameters in the library's own class."""
    torch.manual_seed(seed)
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS}
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": VOCABULARY,
            "hidden_size": 128,
            "intermediate_size": 384,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 1024,
            "rope_parameters": {
                "rope_type": "default",
                "mrope_section": [4, 6, 6],
                "rope_theta": 10000.0,
            },
            "bos_token_id": ids["<|endoftext|>"],
            "eos_token_id": ids["<|im_end|>"],
            "pad_token_id": ids["<|endoftext|>"],
        },
        vision_config={
            "depth": 2,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_heads": 4,
            "out_hidden_size": 128,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "window_size": 112,
            "fullatt_block_indexes": [1],
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )
    return Qwen2_5_VLModel(config)


class Questions(nn.Module):
    """What pretraining asks of the last state; thrown away afterwards."""

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        self.heads = nn.ModuleDict(
            {name: nn.Linear(width, len(labels)) for name, labels in _CLASSES.items()}
        )
        self.colours = nn.Linear(width, 12)  # mean colour of each quarter

    def loss(self, state: Tensor, targets: dict[str, Tensor], colours: Tensor | None) -> Tensor:
        """Cross-entropy of every answer, plus squared error of the picture's colours."""
        answers = [F.cross_entropy(self.heads[k](state), targets[k]) for k in self.heads]
        total = torch.stack(answers).sum()
        if colours is not None:
            total = total + 4 * F.mse_loss(self.colours(state), colours)
        return total

    @torch.no_grad()
    def accuracy(self, state: Tensor, targets: dict[str, Tensor]) -> dict[str, float]:
        """Share of right answers per question."""
        return {
            k: (head(state).argmax(-1) == targets[k]).float().mean().item()
            for k, head in self.heads.items()
        }


def pretrain(
    conditioner: QwenVLConditioner,
    pictures: Tensor,
    seed: int,
    steps: int,
    on_step: Callable[[int, float], None],
    batch_size: int = 48,
) -> dict[str, float]:
    """Teaches the conditioner's model; returns its accuracy on sentences drawn afterwards.

    Args:
        conditioner: around the random model.
        pictures: uint8 `(count, 3, height, width)`, shown with every other batch.
        seed: of sentences and choices.
        steps: optimiser steps.
        on_step: told (step, loss).
    """
    model = conditioner.model
    questions = Questions()
    parameters = [*model.parameters(), *questions.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    batches = _batches(conditioner, pictures, random.Random(seed), batch_size)
    model.train()
    for step in range(1, steps + 1):
        inputs, last, targets, colours = next(batches)
        state = multimodal_states(model, *inputs)[torch.arange(len(last)), last]
        loss = questions.loss(state, targets, colours)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        on_step(step, loss.item())
    model.eval().requires_grad_(False)
    totals: dict[str, float] = dict.fromkeys(_CLASSES, 0.0)
    for _ in range(20):
        inputs, last, targets, _ = next(batches)
        with torch.no_grad():
            state = multimodal_states(model, *inputs)[torch.arange(len(last)), last]
        for name, value in questions.accuracy(state, targets).items():
            totals[name] += value / 20
    return totals


def _batches(
    conditioner: QwenVLConditioner, pictures: Tensor, rng: random.Random, batch_size: int
) -> Iterator[tuple[_ModelInputs, Tensor, dict[str, Tensor], Tensor | None]]:
    """Endless sentences, every other batch with pictures of one shape."""
    step = 0
    while True:
        step += 1
        prompts, labels = [], []
        for _ in range(batch_size):
            motion, style = random_motion(rng), random_style(rng)
            prompts.append(random_prompt(rng, motion, style))
            labels.append({"camera": motion.camera, "scene": motion.scene, "style": style})
            labels[-1]["speed"] = "normal" if motion.gentle else motion.speed
        targets = {
            name: torch.tensor([_CLASSES[name].index(label[name]) for label in labels])
            for name in _CLASSES
        }
        images, colours = None, None
        if step % 2:
            chosen = pictures[torch.tensor(rng.choices(range(len(pictures)), k=batch_size))]
            images = [Image.fromarray(p.permute(1, 2, 0).numpy()) for p in chosen]
            colours = F.adaptive_avg_pool2d(chosen.float() / 127.5 - 1, 2).flatten(1)
        inputs, mask = conditioner.inputs(prompts, images)
        yield inputs, mask.sum(1) - 1, targets, colours


def save_vlm(conditioner: QwenVLConditioner, folder: Path) -> None:
    """Model in bf16, tokenizer and image processor, in the layout of the hub."""
    conditioner.model.to(torch.bfloat16).save_pretrained(folder)
    conditioner.tokenizer.save_pretrained(folder)
    conditioner.image_processor.save_pretrained(folder)


def load_vlm(folder: Path) -> Qwen2_5_VLModel:
    """The frozen model in fp32, for training on its states."""
    model = Qwen2_5_VLModel.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    return model.eval().requires_grad_(False)


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The vocabulary that the model beside it was trained with."""
    return PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)


def new_conditioner(seed: int, text_dim: int = 480, latent_channels: int = 48) -> QwenVLConditioner:
    """The embedded conditioning before any training."""
    tokenizer = build_tokenizer(seed)
    return QwenVLConditioner(
        build_model(tokenizer, seed),
        tokenizer,
        build_image_processor(),
        FeatureAdapter(128, text_dim, text_dim),
        FeatureAdapter(latent_channels + POSITION_FEATURES, text_dim, text_dim),
        max_sequence_length=MAX_SEQUENCE_LENGTH,
        image_token_patch=1,
        image_token_positions=True,
    )
