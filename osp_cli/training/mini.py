"""Makes the embedded model from nothing but a seed: `python -m osp_cli.training.mini --out FOLDER`.

Stages in order: `codec` (fit the transform, train its refinement), `pool` (render and encode
clips), `text_encoder` (teach the tiny Qwen2.5-VL its words), `start` (what of the transformer can
be worked out beforehand), `transformer` (Eq. 22), `export` (the folder that ships). Each but the
last is skipped when its result is there, so a stopped run goes on where it was.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import shutil
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_model

from osp_cli.conditioning.vlm import QwenVLConditioner
from osp_cli.models.autoencoder_linear import AutoencoderLinear
from osp_cli.models.transformer_flash_i2v import FlashI2VTransformer3DModel
from osp_cli.registry import presets_dir
from osp_cli.training.codec import fit_transform, train_refinement
from osp_cli.training.mini_data import load_shard, render_shard, save_shard
from osp_cli.training.mini_dit import (
    GEOMETRY,
    DitObjective,
    Mixture,
    Pool,
    is_block_matrix,
    new_transformer,
    pool_samples,
    training_shortcuts,
)
from osp_cli.training.mini_fit import (
    Sample,
    fit_curved,
    fit_language,
    fit_lookups,
    fit_motion,
    fit_straight,
    motion_groups,
    style_groups,
)
from osp_cli.training.mini_start import protect
from osp_cli.training.mini_vlm import load_vlm, new_conditioner, pretrain, save_vlm
from osp_cli.training.trainer import LoopSettings, Trainer, share_steps

log = logging.getLogger("osp.training")

STAGES = ("codec", "pool", "text_encoder", "start", "transformer", "export")


def load_recipe(path: Path | None = None) -> dict[str, Any]:
    """The recipe's numbers; by default those of `presets/training/osp-mini.toml`."""
    path = path or presets_dir() / "training" / "osp-mini.toml"
    return tomllib.loads(path.read_text(encoding="utf-8"))


def make(out: Path, recipe: dict[str, Any], until: str = "export", processes: int = 1) -> Path:
    """Runs the stages up to `until`; returns the folder to ship, `out / "osp-mini"`.

    Raises:
        ValueError: `until` is not one of `STAGES`.
    """
    if until not in STAGES:
        raise ValueError(f"the stages are {', '.join(STAGES)}, got {until!r}")
    stages = (make_codec, make_pool, make_text_encoder, make_start, make_transformer, export)
    out.mkdir(parents=True, exist_ok=True)
    for name, stage in zip(STAGES, stages, strict=True):
        log.info("stage %s", name)
        if stage is make_transformer:
            make_transformer(out, recipe, processes)
        else:
            stage(out, recipe)
        if name == until:
            break
    return out / "osp-mini"


def make_codec(out: Path, recipe: dict[str, Any]) -> None:
    """`out/vae`: transform, refinement, statistics."""
    if (out / "vae").exists():
        return
    seed = recipe["seed"]
    if not (out / "transform").exists():
        torch.manual_seed(seed)  # the refinement's first weights
        model = AutoencoderLinear(**recipe["codec"].get("geometry", {}))
        fit_transform(model, seed + 99, recipe["codec"]["canvases"])
        _save_whole(model.to(torch.bfloat16).float(), out / "transform")
    # The pool and the shipped model must agree to the bit, so both see the stored precision.
    model = _read_codec(out / "transform")
    train_refinement(model, seed, recipe["codec"]["refinement_steps"], _logger("refinement"))
    _save_whole(model.to(torch.bfloat16), out / "vae")


def make_pool(out: Path, recipe: dict[str, Any]) -> None:
    """`out/pool`: shards not yet there."""
    codec = _read_codec(out / "transform").eval()
    folder = out / "pool"
    folder.mkdir(exist_ok=True)
    for number in range(recipe["pool"]["shards"]):
        path = folder / f"shard-{number:05d}.safetensors"
        if not path.exists():
            with torch.no_grad():
                save_shard(render_shard(codec, recipe["seed"], number), path)
            log.info("pool: shard %d of %d", number + 1, recipe["pool"]["shards"])


def make_text_encoder(out: Path, recipe: dict[str, Any]) -> None:
    """`out/text_encoder`: the frozen language model with its tokenizer and image processor."""
    if (out / "text_encoder").exists():
        return
    conditioner = new_conditioner(recipe["seed"])
    shards = [load_shard(path) for path in sorted((out / "pool").glob("*.safetensors"))]
    shape = shards[0].pictures.shape[2:]
    pictures = torch.cat([s.pictures for s in shards if s.pictures.shape[2:] == shape])
    steps = recipe["text_encoder"]["steps"]
    accuracy = pretrain(conditioner, pictures, recipe["seed"], steps, _logger("text encoder"))
    log.info("text encoder: accuracy %s", accuracy)
    part = out / "text_encoder.part"
    save_vlm(conditioner, part)
    (part / "accuracy.json").write_text(json.dumps(accuracy))
    part.rename(out / "text_encoder")


def make_start(out: Path, recipe: dict[str, Any]) -> None:
    """`out/start`: transformer and adapters before their training."""
    if (out / "start").exists():
        return
    numbers = recipe["start"]
    conditioner = _frozen_conditioner(out, recipe)
    seed = recipe["seed"] + 41
    model = new_transformer(seed, conditioner, recipe["transformer"].get("geometry"))
    pool = Pool(conditioner)
    pool.load(out / "pool", recipe["pool"]["shards"])
    pictures = [shard.pictures for shard in pool.shards]
    channels = model.config.in_channels
    accuracy = fit_language(conditioner, channels, seed, pictures, numbers["sentences"])
    log.info("start: sentences understood %.4f", accuracy)
    error = fit_motion(model, seed, numbers["motion_steps"], numbers["motion_clips"])
    log.info("start: displacement wrong by %.3f cells", error)
    objective = DitObjective(model, conditioner, pool, Mixture(), seed, 1)
    with training_shortcuts(model), torch.no_grad():
        missing = _fit_to_pool(objective, numbers, _channel_weights(out))
    log.info("start: missing %s", missing)
    part = out / "start.part"
    for name, module in _trained_modules(model, conditioner).items():
        module.save_pretrained(part / name)
    facts = {"sentences": accuracy, "displacement_cells": error, "missing": missing}
    (part / "facts.json").write_text(json.dumps(facts))
    part.rename(out / "start")


def _fit_to_pool(
    objective: DitObjective, numbers: dict[str, Any], weights: torch.Tensor
) -> dict[str, float]:
    """Lookups and feed-forward layers, one after the other, each to what those before it miss."""
    model, seed = objective.model, objective.seed

    def plain() -> Iterator[Sample]:
        return pool_samples(objective, numbers["plain_clips"], 5, _is_plain)

    def styled() -> Iterator[Sample]:
        return pool_samples(objective, numbers["styled_clips"], 3, _is_dry)

    missing = {"plain": fit_lookups(model, plain)[-1]}
    last = len(model.blocks) - 1
    fit_straight(model, 1, motion_groups(), plain, weights, repaint_copy=True)
    if last >= 2:
        missing["styled"] = fit_straight(model, 2, style_groups(), styled, weights, False)
    if last >= 3:
        missing["styled, affine"] = fit_curved(model, 3, style_groups(), styled, seed)
    return {name: round(share, 4) for name, share in missing.items()}


def _is_dry(caption: dict[str, str | None]) -> bool:
    """Nothing falls: where a flake is cannot be known."""
    return caption["scene"] not in ("snow", "rain")


def _is_plain(caption: dict[str, str | None]) -> bool:
    return not caption["style"] and _is_dry(caption)


def make_transformer(out: Path, recipe: dict[str, Any], processes: int = 1) -> None:
    """`out/transformer`: the trainer's folder."""
    if processes > 1:
        share_steps(processes, _train, out, recipe)
    else:
        _train(0, out, recipe)


def _train(rank: int, out: Path, recipe: dict[str, Any]) -> None:
    trainer, objective = _trainer(out, recipe, rank)
    if trainer.step >= trainer.settings.steps:
        return
    objective.pool.load(out / "pool", recipe["pool"]["shards"])
    compiled = recipe["transformer"].get("compile", False)
    with training_shortcuts(objective.model, compiled):
        for report in trainer.run(objective):
            if report.step % 20 == 0 and not rank:
                log.info("step %d: loss %.4f, %.1f s", report.step, report.loss, report.seconds)


def _trainer(out: Path, recipe: dict[str, Any], rank: int = 0) -> tuple[Trainer, DitObjective]:
    numbers = recipe["transformer"]
    conditioner = _frozen_conditioner(out, recipe)
    model = FlashI2VTransformer3DModel(**numbers.get("geometry", GEOMETRY))
    modules = _trained_modules(model, conditioner)
    for name, module in modules.items():
        load_model(module, out / "start" / name / "diffusion_pytorch_model.safetensors")
    protect(model, conditioner)
    settings = LoopSettings(
        steps=numbers["steps"],
        learning_rate=numbers["learning_rate"],
        matrix_learning_rate=numbers["matrix_learning_rate"],
        decay_from=numbers["decay_from"],
        seed=recipe["seed"] + 41,
    )
    folder = out / "transformer"
    if settings.matrix_learning_rate:
        trainer = Trainer(modules, settings, folder, is_block_matrix)
    else:
        trainer = Trainer(modules, settings, folder)
    mixture = Mixture(batch_size=numbers["batch_size"])
    pool = Pool(conditioner)
    objective = DitObjective(
        model,
        conditioner,
        pool,
        mixture,
        settings.seed,
        settings.steps,
        _channel_weights(out),
        rank,
    )
    return trainer, objective


def _trained_modules(model: Any, conditioner: QwenVLConditioner) -> dict[str, Any]:
    return {
        "transformer": model,
        "adapter": conditioner.adapter,
        "image_adapter": conditioner.image_adapter,
    }


def _channel_weights(out: Path) -> torch.Tensor:
    """Latents have equal spread, pixels do not: a channel counts by what it moves there."""
    config = AutoencoderLinear.load_config(out / "transform")
    spread = torch.tensor(config["latents_std"])
    return spread / spread.mean()


def _frozen_conditioner(out: Path, recipe: dict[str, Any]) -> QwenVLConditioner:
    geometry = recipe["transformer"].get("geometry", GEOMETRY)
    conditioner = new_conditioner(recipe["seed"], geometry["text_dim"], geometry["in_channels"])
    conditioner.model = load_vlm(out / "text_encoder")
    return conditioner


def export(out: Path, recipe: dict[str, Any]) -> None:
    """`out/osp-mini`: the moving average in bf16, in the layout of every other model."""
    trainer, objective = _trainer(out, recipe)
    trainer.use_average()
    part, final = out / "osp-mini.part", out / "osp-mini"
    for folder in (part, final):
        if folder.exists():
            shutil.rmtree(folder)
    conditioner = objective.conditioner
    _save_bf16(objective.model, part / "transformer")
    _save_bf16(conditioner.adapter, part / "adapter")
    _save_bf16(conditioner.image_adapter, part / "image_adapter")
    _save_bf16(_read_codec(out / "vae"), part / "vae")
    shutil.copytree(out / "text_encoder", part / "text_encoder")
    (part / "text_encoder" / "accuracy.json").unlink()
    card = training_card(out, recipe, trainer)
    (part / "training.json").write_text(json.dumps(card, indent=2, sort_keys=True) + "\n")
    part.rename(final)


def training_card(out: Path, recipe: dict[str, Any], trainer: Trainer) -> dict[str, Any]:
    """What these weights are made of: recipe, steps, data, and a hash of the trained parameters."""
    digest = hashlib.sha256()
    for name, tensor in sorted(trainer.average.items()):
        digest.update(name.encode())
        digest.update(tensor.numpy().tobytes())
    lines = (out / "transformer" / "metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line)["loss"] for line in lines[-100:]]
    shards = sorted((out / "pool").glob("shard-*.safetensors"))[: recipe["pool"]["shards"]]
    return {
        "recipe": recipe,
        "steps": trainer.step,
        "clips": sum(len(load_shard(path).captions) for path in shards),
        "last_losses_mean": round(sum(losses) / len(losses), 4),
        "start": json.loads((out / "start" / "facts.json").read_text()),
        "text_encoder_accuracy": json.loads((out / "text_encoder" / "accuracy.json").read_text()),
        "parameters_sha256": digest.hexdigest(),
    }


def _read_codec(folder: Path) -> AutoencoderLinear:
    """What `_save_whole` wrote, in fp32. Not `from_pretrained`, which would note the folder in the
    config, and so in the model that ships."""
    config = dict(AutoencoderLinear.load_config(folder))
    config.pop("_name_or_path", None)
    model = AutoencoderLinear.from_config(config)
    load_model(model, folder / "diffusion_pytorch_model.safetensors")
    return model


def _save_bf16(module: Any, folder: Path) -> None:
    module.to(torch.bfloat16).save_pretrained(folder)


def _save_whole(module: Any, folder: Path) -> None:
    part = folder.with_name(folder.name + ".part")
    module.save_pretrained(part)
    part.rename(folder)


def _logger(what: str) -> Callable[[int, float], None]:
    def on_step(step: int, loss: float) -> None:
        if step % 50 == 0:
            log.info("%s: step %d, loss %.4f", what, step, loss)

    return on_step


def main() -> None:
    """Command line of the module."""
    parser = argparse.ArgumentParser(description="Train the embedded model from a seed.")
    parser.add_argument("--out", type=Path, required=True, help="run folder, resumed if it exists")
    parser.add_argument(
        "--recipe", type=Path, help="TOML, by default presets/training/osp-mini.toml"
    )
    parser.add_argument("--until", default="export", choices=STAGES, help="last stage to run")
    parser.add_argument("--threads", type=int, default=1, help="torch threads")
    parser.add_argument(
        "--processes", type=int, default=1, help="that share the transformer's steps"
    )
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(options.threads)
    make(options.out, load_recipe(options.recipe), options.until, options.processes)


if __name__ == "__main__":
    main()
