"""Makes the embedded model from nothing but a seed: `python -m osp_cli.training.mini --out FOLDER`.

Stages in order: `codec` (fit the transform), `pool` (render and encode clips), `text_encoder`
(teach the tiny Qwen2.5-VL its words), `start` (what of the transformer can be worked out
beforehand), `paint` (its painting layers by themselves), `transformer` (all of it, Eq. 22),
`decoder` (the codec's refinement, on what the transformer makes), `export` (the folder that ships).
Each but the last is skipped when its result is there, so a stopped run goes on where it was.
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
from osp_cli.models.latents import with_surroundings
from osp_cli.models.transformer_flash_i2v import FlashI2VTransformer3DModel
from osp_cli.registry import presets_dir
from osp_cli.training.codec import fit_transform, train_refinement
from osp_cli.training.mini_data import load_shard, render_shard, save_shard
from osp_cli.training.mini_decoder import made_latents
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
from osp_cli.training.mini_fit import fit_guide, fit_language
from osp_cli.training.mini_lookups import Sample, fit_lookups
from osp_cli.training.mini_motion import fit_motion
from osp_cli.training.mini_paint import (
    Painter,
    collect_tokens,
    load_tokens,
    painting_objective,
    save_tokens,
)
from osp_cli.training.mini_start import protect
from osp_cli.training.mini_vlm import load_tokenizer, load_vlm, new_conditioner, pretrain, save_vlm
from osp_cli.training.trainer import LoopSettings, StepReport, Trainer, share_work

log = logging.getLogger("osp.training")

STAGES = ("codec", "pool", "text_encoder", "start", "paint", "transformer", "decoder", "export")


def load_recipe(path: Path | None = None) -> dict[str, Any]:
    """The recipe's numbers; by default those of `presets/training/osp-mini.toml`."""
    path = path or presets_dir() / "training" / "osp-mini.toml"
    return tomllib.loads(path.read_text(encoding="utf-8"))


def make(out: Path, recipe: dict[str, Any], until: str = "export", processes: int = 1) -> Path:
    """Runs the stages up to `until`; returns the folder to ship, `out / "osp-mini"`.

    `recipe["device"]` says where clips are rendered and layers trained, "cpu" if it says nothing;
    the fits of the start are small and stay on the processor.

    Raises:
        ValueError: `until` is not one of `STAGES`.
    """
    if until not in STAGES:
        raise ValueError(f"the stages are {', '.join(STAGES)}, got {until!r}")
    stages: tuple[Callable[[Path, dict[str, Any], int], object], ...] = (
        make_codec,
        make_pool,
        make_text_encoder,
        make_start,
        make_painting,
        make_transformer,
        make_decoder,
        export,
    )
    out.mkdir(parents=True, exist_ok=True)
    for name, stage in zip(STAGES, stages, strict=True):
        log.info("stage %s", name)
        stage(out, recipe, processes)
        if name == until:
            break
    return out / "osp-mini"


def make_codec(out: Path, recipe: dict[str, Any], _processes: int = 1) -> None:
    """`out/transform`: the codec without what its refinement will have learned, and statistics."""
    if (out / "transform").exists():
        return
    seed = recipe["seed"]
    torch.manual_seed(seed)  # the refinement's first weights
    model = AutoencoderLinear(**recipe["codec"].get("geometry", {}))
    fit_transform(model, seed + 99, recipe["codec"]["canvases"])
    # The pool and the shipped model must agree to the bit, so both see the stored precision.
    _save_whole(model.to(torch.bfloat16).float(), out / "transform")


def make_pool(out: Path, recipe: dict[str, Any], processes: int = 1) -> None:
    """`out/pool`: shards not yet there."""
    (out / "pool").mkdir(exist_ok=True)
    share_work(processes, _render_shards, out, recipe, processes)


def _render_shards(rank: int, out: Path, recipe: dict[str, Any], processes: int) -> None:
    device = _device(recipe)
    codec = read_codec(out / "transform").eval().to(device)
    for number in range(rank, recipe["pool"]["shards"], processes):
        path = out / "pool" / f"shard-{number:05d}.safetensors"
        if not path.exists():
            with torch.no_grad():
                save_shard(render_shard(codec, recipe["seed"], number, device=device), path)
            log.info("pool: shard %d of %d", number + 1, recipe["pool"]["shards"])


def _device(recipe: dict[str, Any]) -> str:
    return str(recipe.get("device", "cpu"))


def make_text_encoder(out: Path, recipe: dict[str, Any], _processes: int = 1) -> None:
    """`out/text_encoder`: the frozen language model with its tokenizer and image processor."""
    if (out / "text_encoder").exists():
        return
    conditioner = new_conditioner(recipe["seed"])
    paths = sorted((out / "pool").glob("*.safetensors"))[: recipe["text_encoder"]["shards"]]
    shards = [load_shard(path) for path in paths]
    shape = shards[0].pictures.shape[2:]
    pictures = torch.cat([s.pictures for s in shards if s.pictures.shape[2:] == shape])
    steps = recipe["text_encoder"]["steps"]
    accuracy = pretrain(conditioner, pictures, recipe["seed"], steps, _logger("text encoder"))
    log.info("text encoder: accuracy %s", accuracy)
    part = out / "text_encoder.part"
    save_vlm(conditioner, part)
    (part / "accuracy.json").write_text(json.dumps(accuracy))
    part.rename(out / "text_encoder")


def make_start(out: Path, recipe: dict[str, Any], _processes: int = 1) -> None:
    """`out/start`: transformer and adapters before their training."""
    if (out / "start").exists():
        return
    numbers = recipe["start"]
    conditioner = _frozen_conditioner(out, recipe)
    seed = recipe["seed"] + 41
    model = new_transformer(seed, conditioner, recipe["transformer"].get("geometry"))
    pool = Pool(conditioner)
    pool.load(out / "pool", min(numbers["shards"], recipe["pool"]["shards"]))
    channels = model.config.in_channels
    pictures = [shard.pictures for shard in pool.shards]
    accuracy = fit_language(conditioner, channels, seed, pictures, numbers["sentences"])
    log.info("start: sentences understood %.4f", accuracy)
    error = fit_motion(model, seed, numbers["motion_steps"], numbers["motion_clips"])
    log.info("start: displacement wrong by %.3f cells", error)
    told = fit_guide(model, [shard.first for shard in pool.shards], seed, numbers["guide_steps"])
    log.info("start: cutoffs told %.3f", told)
    surround = _surround(out, recipe)
    objective = DitObjective(model, conditioner, pool, Mixture(), seed, surround=surround)

    def plain() -> Iterator[Sample]:
        return pool_samples(objective, numbers["plain_clips"], _is_plain)

    with training_shortcuts(model), torch.no_grad():
        missing = [round(share, 4) for share in fit_lookups(model, plain)]
    log.info("start: missing of unstyled clips %s", missing)
    facts = {
        "sentences": accuracy,
        "displacement_cells": error,
        "missing": missing,
        "cutoffs": told,
    }
    _save_modules(out / "start", _trained_modules(model, conditioner), facts)


def _save_modules(folder: Path, modules: dict[str, Any], facts: dict[str, Any]) -> None:
    part = folder.with_name(folder.name + ".part")
    for name, module in modules.items():
        module.save_pretrained(part / name)
    (part / "facts.json").write_text(json.dumps(facts))
    part.rename(folder)


def _load_modules(folder: Path, modules: dict[str, Any]) -> None:
    for name, module in modules.items():
        load_model(module, folder / name / "diffusion_pytorch_model.safetensors")


def _surround(out: Path, recipe: dict[str, Any]) -> Callable[[torch.Tensor], torch.Tensor]:
    """What image tokens are made of: the picture with its mirrored surroundings."""
    codec, cells = read_codec(out / "transform"), recipe["conditioning"]["surround"]
    return lambda first: with_surroundings(codec.to(first.device), first, cells)


def _is_dry(caption: dict[str, str | None]) -> bool:
    """Nothing falls: where a flake is cannot be known."""
    return caption["scene"] not in ("snow", "rain")


def _is_plain(caption: dict[str, str | None]) -> bool:
    return not caption["style"] and _is_dry(caption)


def make_painting(out: Path, recipe: dict[str, Any], processes: int = 1) -> None:
    """`out/painted`: the start with painting layers trained on all tokens of the pool."""
    if (out / "painted").exists():
        return
    (out / "tokens").mkdir(exist_ok=True)
    share_work(processes, _collect, out, recipe, processes)
    share_work(processes, _paint, out, recipe, processes)
    model, conditioner = _new_modules(out, recipe)
    modules = _trained_modules(model, conditioner)
    _load_modules(out / "start", modules)
    trainer = _painting_trainer(out, recipe, Painter(model))
    trainer.use_average()
    facts = json.loads((out / "start" / "facts.json").read_text())
    losses = _last_losses(out / "painting")
    _save_modules(out / "painted", modules, facts | {"painting_loss": losses})


def _collect(rank: int, out: Path, recipe: dict[str, Any], processes: int) -> None:
    model, conditioner = _new_modules(out, recipe)
    _load_modules(out / "start", _trained_modules(model, conditioner))
    protect(model, conditioner)  # or shortcuts would take self-attentions for trained ones
    _move(model, conditioner, _device(recipe))
    for number in range(rank, recipe["pool"]["shards"], processes):
        path = out / "tokens" / f"shard-{number:05d}.safetensors"
        if path.exists():
            continue
        pool = Pool(conditioner)
        pool.load(out / "pool", chosen=number)
        objective = DitObjective(
            model,
            conditioner,
            pool,
            Mixture(),
            recipe["seed"] + 41 + number,
            surround=_surround(out, recipe),
        )
        with training_shortcuts(model):
            save_tokens(collect_tokens(objective, 0), path)
        log.info("paint: tokens of shard %d of %d", number + 1, recipe["pool"]["shards"])


def _paint(rank: int, out: Path, recipe: dict[str, Any], processes: int) -> None:
    model, conditioner = _new_modules(out, recipe)
    _load_modules(out / "start", _trained_modules(model, conditioner))
    protect(model, conditioner)  # or the first layer would move what later lookups go by
    device = _device(recipe)
    painter = Painter(model.to(device))
    trainer = _painting_trainer(out, recipe, painter)
    paths = sorted((out / "tokens").glob("*.safetensors"))[rank::processes]
    patch = model.config.patch_size[1] * model.config.patch_size[2]
    objective = painting_objective(
        painter,
        load_tokens(paths, device),
        _channel_weights(out).repeat_interleave(patch).to(device),
        trainer.settings.seed,
        recipe["paint"]["batch_size"],
        rank,
        recipe["paint"]["plain_weight"],
    )
    for report in trainer.run(objective):
        if report.step % 100 == 0 and not rank:
            log.info("paint: step %d, loss %.4f, %.1f s", *_told(report))


def _told(report: StepReport) -> tuple[int, float, float]:
    return report.step, report.loss, report.seconds


def _painting_trainer(out: Path, recipe: dict[str, Any], painter: Painter) -> Trainer:
    numbers = recipe["paint"]
    settings = LoopSettings(
        steps=numbers["steps"],
        learning_rate=numbers["learning_rate"],
        warmup=100,
        decay_from=numbers["decay_from"],
        save_every=500,
        seed=recipe["seed"] + 43,
    )
    return Trainer({"painter": painter}, settings, out / "painting")


def make_transformer(out: Path, recipe: dict[str, Any], processes: int = 1) -> None:
    """`out/transformer`: the trainer's folder."""
    share_work(processes, _train, out, recipe)


def _train(rank: int, out: Path, recipe: dict[str, Any]) -> None:
    trainer, objective = _trainer(out, recipe, rank)
    if trainer.step >= trainer.settings.steps:
        return
    objective.pool.load(out / "pool", recipe["pool"]["shards"])
    compiled = recipe["transformer"].get("compile", False)
    with training_shortcuts(objective.model, compiled):
        for report in trainer.run(objective):
            if report.step % 20 == 0 and not rank:
                log.info("step %d: loss %.4f, %.1f s", *_told(report))


def _move(model: Any, conditioner: QwenVLConditioner, device: str) -> None:
    assert conditioner.image_adapter is not None
    for module in (model, conditioner.model, conditioner.adapter, conditioner.image_adapter):
        module.to(device)


def _new_modules(
    out: Path, recipe: dict[str, Any]
) -> tuple[FlashI2VTransformer3DModel, QwenVLConditioner]:
    conditioner = _frozen_conditioner(out, recipe)
    return FlashI2VTransformer3DModel(
        **recipe["transformer"].get("geometry", GEOMETRY)
    ), conditioner


def _trainer(out: Path, recipe: dict[str, Any], rank: int = 0) -> tuple[Trainer, DitObjective]:
    numbers = recipe["transformer"]
    model, conditioner = _new_modules(out, recipe)
    modules = _trained_modules(model, conditioner)
    _load_modules(out / "painted", modules)
    protect(model, conditioner)
    _move(model, conditioner, _device(recipe))
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
    mixture = Mixture(
        batch_size=numbers["batch_size"],
        continuation=numbers["continuation"],
        **numbers.get("mixture", {}),
    )
    objective = DitObjective(
        model,
        conditioner,
        Pool(conditioner),
        mixture,
        settings.seed,
        _channel_weights(out).to(_device(recipe)),
        _surround(out, recipe),
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
    # The vocabulary follows from the words of the prompts, which may have changed since.
    conditioner.tokenizer = load_tokenizer(out / "text_encoder")
    return conditioner


def make_decoder(out: Path, recipe: dict[str, Any], _processes: int = 1) -> None:
    """`out/vae`: the codec with its refinement, trained on latents that the transformer made."""
    if (out / "vae").exists():
        return
    numbers = recipe["decoder"]
    trainer, objective = _trainer(out, recipe)
    trainer.use_average()
    codec = read_codec(out / "transform")
    made = made_latents(objective, codec, recipe["seed"] + 47, numbers["pictures"])
    codec.to(_device(recipe))
    train_refinement(
        codec,
        made,
        recipe["seed"],
        numbers["steps"],
        _logger("decoder"),
        texture=numbers.get("texture", 0.0),
    )
    _save_whole(codec.to(torch.bfloat16), out / "vae")


def export(out: Path, recipe: dict[str, Any], _processes: int = 1) -> None:
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
    _save_bf16(read_codec(out / "vae"), part / "vae")
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
        digest.update(tensor.cpu().numpy().tobytes())
    shards = sorted((out / "pool").glob("shard-*.safetensors"))[: recipe["pool"]["shards"]]
    return {
        "recipe": recipe,
        "steps": trainer.step,
        "clips": sum(len(load_shard(path).captions) for path in shards),
        "last_losses_mean": _last_losses(out / "transformer"),
        "start": json.loads((out / "painted" / "facts.json").read_text()),
        "text_encoder_accuracy": json.loads((out / "text_encoder" / "accuracy.json").read_text()),
        "parameters_sha256": digest.hexdigest(),
    }


def _last_losses(folder: Path) -> float:
    lines = (folder / "metrics.jsonl").read_text().splitlines()[-100:]
    # A skipped step may have none.
    losses = [loss for line in lines if (loss := json.loads(line)["loss"]) is not None]
    return round(sum(losses) / len(losses), 4)


def read_codec(folder: Path) -> AutoencoderLinear:
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
    parser.add_argument("--device", help="where to render and train, in place of the recipe's")
    parser.add_argument("--until", default="export", choices=STAGES, help="last stage to run")
    parser.add_argument("--threads", type=int, default=1, help="torch threads")
    parser.add_argument(
        "--processes", type=int, default=1, help="that share the work, one thread each"
    )
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(options.threads)
    recipe = load_recipe(options.recipe)
    if options.device:
        recipe["device"] = options.device
    make(options.out, recipe, options.until, options.processes)


if __name__ == "__main__":
    main()
