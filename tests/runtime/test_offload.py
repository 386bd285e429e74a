"""Weights that wait elsewhere compute exactly the same."""

from __future__ import annotations

import copy
import gc
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import UMT5Config, UMT5EncoderModel

from osp_cli.conditioning.umt5 import UMT5Conditioner
from osp_cli.models.transformer_flash_i2v import FlashI2VTransformer3DModel
from osp_cli.runtime import offload
from osp_cli.runtime.offload import place_encoder, place_transformer
from osp_cli.runtime.runner import run
from osp_cli.runtime.settling import settle
from osp_cli.sampling.latent_shift import project_first_frame
from osp_cli.sampling.step_cache import MagCacheConfig, enable_step_cache

CPU = torch.device("cpu")
WAYS = ("none", "model", "group", "sequential", "disk")


@pytest.fixture
def plan(request_for):
    return settle(request_for())[0].plan


@pytest.fixture(scope="module")
def transformer():
    """Mid-sized: 4 blocks, 14 million random numbers, none of the branches at zero."""
    torch.manual_seed(0)
    model = FlashI2VTransformer3DModel(
        num_attention_heads=8, attention_head_dim=48, ffn_dim=1024, num_layers=4, text_dim=64
    )
    for parameter in model.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.02)
    return model.eval()


@pytest.fixture(scope="module")
def inputs():
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(1, 16, 3, 8, 12, generator=generator)
    context = torch.randn(1, 20, 64, generator=generator)
    return latents, torch.tensor([700.0]), context, latents


@pytest.fixture(scope="module")
def expected(transformer, inputs):
    with torch.no_grad():
        projected = project_first_frame(transformer, inputs[0][:, :, :1])
        return projected, transformer(*inputs, return_dict=False)[0]


@pytest.fixture
def really_on_disk(monkeypatch):
    """On the CPU `disk` would leave weights in their files; here the library writes its own."""
    monkeypatch.setattr(offload, "_uses_disk", lambda plan: plan.offload == "disk")


@pytest.mark.parametrize("way", WAYS)
def test_a_pass_is_the_same_to_the_bit(
    plan, transformer, inputs, expected, tmp_path, really_on_disk, way
):
    placed = place_transformer(
        copy.deepcopy(transformer), replace(plan, offload=way), CPU, tmp_path / "offload"
    )
    projected, output = expected
    with torch.no_grad():
        for _ in range(2):
            # phi runs outside of the model's forward.
            assert torch.equal(project_first_frame(placed, inputs[0][:, :, :1]), projected)
            assert torch.equal(placed(*inputs, return_dict=False)[0], output)
    assert placed.device == CPU


def test_with_a_step_cache_too(plan, transformer, inputs, tmp_path, really_on_disk):
    config = MagCacheConfig(num_inference_steps=4, mag_ratios=(1.0,) * 4, threshold=0.5)

    def steps(model):
        found = []
        with torch.no_grad(), enable_step_cache(model, config) as cache:
            for time in (900.0, 700.0, 500.0, 300.0):
                with model.cache_context("cond"):
                    found.append(
                        model(
                            inputs[0] * time / 900, torch.tensor([time]), *inputs[2:],
                            return_dict=False,
                        )[0]
                    )  # fmt: skip
            assert cache.skipped_steps > 0
        return torch.stack(found)

    plain = steps(copy.deepcopy(transformer))
    for way in ("group", "disk"):
        placed = place_transformer(
            copy.deepcopy(transformer), replace(plan, offload=way), CPU, tmp_path / way
        )
        assert torch.equal(steps(placed), plain)


def test_weights_on_the_disk_are_there_and_gone_with_the_model(
    plan, transformer, inputs, tmp_path, really_on_disk
):
    folder = tmp_path / "offload"
    model = copy.deepcopy(transformer)
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    placed = place_transformer(model, replace(plan, offload="disk"), CPU, folder)
    [own] = folder.iterdir()
    written = sum(path.stat().st_size for path in own.iterdir())
    assert 0.9 * size < written < 1.1 * size
    with torch.no_grad():
        placed(*inputs, return_dict=False)
    del model, placed
    gc.collect()
    assert list(folder.iterdir()) == []


def test_two_models_do_not_share_a_folder(plan, transformer, inputs, tmp_path, really_on_disk):
    """The library names files after blocks, and takes what is there for its own."""
    other = copy.deepcopy(transformer)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(0.5)
        wanted = copy.deepcopy(other)(*inputs, return_dict=False)[0]
        on_disk = replace(plan, offload="disk")
        first = place_transformer(copy.deepcopy(transformer), on_disk, CPU, tmp_path)
        second = place_transformer(other, on_disk, CPU, tmp_path)
        assert torch.equal(second(*inputs, return_dict=False)[0], wanted)
        assert not torch.equal(first(*inputs, return_dict=False)[0], wanted)


def test_a_text_encoder_in_pieces(plan, monkeypatch):
    torch.manual_seed(0)
    config = UMT5Config(
        vocab_size=60, d_model=32, d_kv=8, d_ff=48, num_heads=4, num_layers=2,
        feed_forward_proj="gated-gelu",
    )  # fmt: skip
    encoder = UMT5EncoderModel(config).eval()

    class Tokenizer:
        def __call__(self, prompts, **_):
            ids = torch.arange(12).repeat(len(prompts), 1)
            return {"input_ids": ids, "attention_mask": (ids < 7).long()}

    plain = UMT5Conditioner(Tokenizer(), copy.deepcopy(encoder)).encode(["a"])
    # The device that counts as another one is still the only one that there is here.
    genuine = offload.apply_group_offloading
    monkeypatch.setattr(
        offload,
        "apply_group_offloading",
        lambda module, **settings: genuine(module, **{**settings, "onload_device": CPU}),
    )
    streamed = replace(plan, streamed=("conditioner",))
    place_encoder(encoder, streamed, torch.device("mps"))
    assert any(hasattr(module, "_diffusers_hook") for module in encoder.modules())
    assert torch.equal(UMT5Conditioner(Tokenizer(), encoder, device=CPU).encode(["a"]), plain)


# --- Whole runs ------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS[1:])
def test_the_same_bytes_in_every_way(request_for, tiny_card, way):
    list(run(request_for(output=Path("plain.mp4"))))
    list(run(request_for(output=Path("other.mp4"), offload=way)))
    assert Path("other.mp4").read_bytes() == Path("plain.mp4").read_bytes()


def test_parts_leave_when_their_stage_is_over(request_for, monkeypatch):
    """One part at a time: never the transformer beside what reads the prompt."""
    from osp_cli.runtime.models import Models

    present = []
    genuine = Models._keep
    monkeypatch.setattr(
        Models,
        "_keep",
        lambda self, names: (genuine(self, names), present.append(sorted(self._parts))),
    )
    models = Models()
    list(run(request_for(offload="model"), models=models))
    assert ["vae"] in present
    assert not any({"transformer", "conditioner"} <= set(parts) for parts in present)
    assert sorted(models._parts) == ["vae"]
