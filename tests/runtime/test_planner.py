"""Plans are arithmetic on the card and on file sizes: an 80 GB card is tested on a laptop."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path

import pytest

from osp_cli.registry import find_model
from osp_cli.requests import GenerateRequest
from osp_cli.runtime.planner import make_plan
from osp_cli.runtime.strategy import Machine

LARGE = 1 << 40
# Unlike the small one it bears any precision.
LARGER = "flashi2v-1.3b"


def write(path, tensors):
    """A weight file as far as its header goes: the rest is a hole that takes no room."""
    header, end = {}, 0
    for name, (dtype, shape) in tensors.items():
        size = math.prod(shape) * {"BF16": 2, "F32": 4}[dtype]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    path.parent.mkdir(exist_ok=True)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)


@pytest.fixture
def weights(tmp_path):
    """Three million bytes of weights in two parts, and files that are none."""
    write(tmp_path / "transformer" / "a.safetensors", {"x": ("BF16", [1000, 1000])})
    write(tmp_path / "vae" / "b.safetensors", {"x": ("F32", [250, 1000])})
    (tmp_path / "vae" / "config.json").write_text("{}" * 5000)
    return tmp_path


def plan_for(weights, model="osp-mini", size=None, device="cpu", speed=None, **changes):
    spec = find_model(model)
    settings = {"image": Path("x.png"), "prompt": "x", "seed": 3, "model": model}
    request = GenerateRequest(**{**settings, **changes})
    machine = Machine(device=device, device_bytes=LARGE, ram_bytes=LARGE, speed=speed)
    return make_plan(
        request, spec, size=size or spec.default_size, machine=machine, weights=weights
    )


@pytest.mark.parametrize(
    ("model", "size", "num_frames", "latent_frames", "tokens"),
    [
        ("osp-mini", (448, 256), 49, 13, 1456),
        ("osp-mini", (352, 352), 49, 13, 1573),
        ("osp-mini", (256, 448), 5, 2, 224),
        ("osp-mini", (448, 256), 1, 1, 112),
        ("flashi2v-1.3b", (832, 480), 49, 13, 20280),
        ("flashi2v-1.3b", (480, 832), 81, 21, 32760),
        ("uniworld-osp2-14b", (832, 480), 49, 13, 20280),
    ],
)
def test_lengths(weights, model, size, num_frames, latent_frames, tokens):
    plan = plan_for(weights, model, size, num_frames=num_frames)
    assert (plan.num_latent_frames, plan.num_tokens) == (latent_frames, tokens)
    assert (plan.width, plan.height, plan.num_frames) == (*size, num_frames)


def test_a_plan_repeats_what_was_asked(weights):
    plan = plan_for(weights, device="cuda:1", num_inference_steps=9, guidance_scale=3.5, seed=77)
    assert (plan.model, plan.device, plan.steps, plan.guidance, plan.seed) == (
        *("osp-mini", "cuda:1", 9, 3.5, 77),
    )
    files = [path.stat().st_size for path in weights.rglob("*.safetensors")]
    assert plan.weights_bytes == sum(files) > 3_000_000


@pytest.mark.parametrize("model", ["osp-mini", "flashi2v-1.3b"])
def test_auto_is_the_cards_dtype(weights, model):
    assert plan_for(weights, model).dtype == find_model(model).dtypes["transformer"]
    assert plan_for(weights, model, dtype="float16").dtype == "float16"


@pytest.mark.parametrize(
    ("style", "guidance", "passes"),
    [
        (None, 1.0, 1),
        (None, 5.0, 2),
        ("ink", 1.0, 1),
        ("ink:1", 5.0, 2),
        ("ink:0.5", 1.0, 2),
        ("ink+oil", 1.0, 2),
        ("ink:0.3+oil:0.5", 5.0, 4),
    ],
)
def test_each_look_of_a_mixture_is_a_pass_more(style, guidance, passes):
    weights = find_model("osp-mini").weights_dir()
    plan = plan_for(weights, speed=1e12, style=style, guidance_scale=guidance)
    assert plan.passes_per_step == passes
    once = plan_for(weights, speed=1e12, guidance_scale=1.0)
    assert plan.operations == pytest.approx(passes * once.operations)
    assert plan.expected_seconds == pytest.approx(passes * once.expected_seconds, rel=0.01)


def test_more_of_anything_needs_more_memory(weights):
    base = plan_for(weights, LARGER, num_frames=25, dtype="bfloat16").expected_peak_bytes
    more = [
        plan_for(weights, LARGER, num_frames=29, dtype="bfloat16"),
        plan_for(weights, LARGER, num_frames=25, dtype="float32"),
        plan_for(weights, LARGER, size=(864, 512), num_frames=25, dtype="bfloat16"),
    ]
    assert all(plan.expected_peak_bytes > base for plan in more)


def test_weights_count_in_the_precision_of_the_plan(weights):
    write(weights / "transformer" / "a.safetensors", {"x": ("BF16", [10_000, 1000])})
    half, full = (plan_for(weights, LARGER, dtype=name) for name in ("bfloat16", "float32"))
    assert half.weights_bytes == full.weights_bytes
    more = full.expected_peak_bytes - half.expected_peak_bytes
    assert more == pytest.approx(1.05 * 20_000_000, rel=0.01)


def test_the_embedded_model_fits_a_small_machine():
    plan = plan_for(find_model("osp-mini").weights_dir())
    assert plan.expected_peak_bytes < 2e9
    assert (plan.offload, plan.quant, plan.vae_tiling) == ("none", "none", False)


# --- work and disk ---------------------------------------------------------------------------


@pytest.fixture
def told(weights):
    """Weights that say how many numbers they hold: 6 million, in a transformer of two layers."""
    write(weights / "transformer" / "a.safetensors", {"x": ("BF16", [2000, 3000])})
    config = {"num_attention_heads": 4, "attention_head_dim": 8, "num_layers": 2, "ffn_dim": 9}
    (weights / "transformer" / "config.json").write_text(json.dumps(config))
    return weights


def test_operations_are_those_of_all_passes(told):
    one = plan_for(told, num_inference_steps=1, guidance_scale=1.0)
    # 96 tokens of text and one image token per latent cell of 28 x 16.
    rows = 96 + 28 * 16
    tokens = one.num_tokens
    assert one.operations == 2 * 6_000_000 * tokens + 2 * 4 * 32 * tokens * (tokens + rows)
    assert plan_for(told, num_inference_steps=3, guidance_scale=1.0).operations == pytest.approx(
        3 * one.operations
    )
    assert plan_for(told, num_inference_steps=1, guidance_scale=5.0).operations == pytest.approx(
        2 * one.operations
    )


def test_time_is_work_by_speed(told):
    slow, fast = plan_for(told, speed=1e9), plan_for(told, speed=1e10)
    assert slow.expected_seconds == pytest.approx(10 * fast.expected_seconds, rel=1e-3)
    assert plan_for(told).expected_seconds is None


def test_time_is_that_of_the_transfers_where_these_are_slower(told):
    settings = {"device": "cuda", "speed": 1e18, "num_inference_steps": 10, "guidance_scale": 1.0}
    # 6 million numbers in single precision for each of ten passes, from a disk.
    plan = plan_for(told, **settings, offload="disk", quant="none")
    assert plan.expected_seconds == pytest.approx(10 * 4 * 6e6 / 1.5e9, rel=0.01)
    assert plan_for(told, **settings, offload="none").expected_seconds < 1e-3


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"num_layers": 2}'])
def test_what_files_do_not_tell_is_not_made_up(told, damage):
    (told / "transformer" / "config.json").write_text(damage)
    plan = plan_for(told)
    assert plan.operations is None
    assert plan_for(told, speed=1e9).expected_seconds is None


def test_room_is_asked_for_by_the_kind_of_file(weights):
    def disk(name):
        return plan_for(weights, output=Path(name)).disk_bytes

    # 49 frames of 448x256 in three bytes a pixel, and latents of 48 channels in four.
    frames, latents = 3 * 49 * 448 * 256, 4 * 48 * 13 * 28 * 16
    assert disk("x/%04d.png") > frames + latents
    assert latents < disk("x.mp4") < disk("x.gif") < disk("x/%04d.png") < 2 * frames


def test_what_the_user_allows_is_what_there_is(weights):
    assert plan_for(weights).device_bytes == LARGE
    assert plan_for(weights, max_ram=10**11).device_bytes == 10**11
    assert plan_for(weights, max_ram=2 * LARGE).device_bytes == LARGE
    # Each of two processes has a half of the host, and may not have more than is allowed.
    assert plan_for(weights, gpus=2, max_ram=2 * LARGE).device_bytes == LARGE // 2
    card = plan_for(weights, device="cuda", max_vram=10**11, max_ram=10**12)
    assert card.device_bytes == 10**11
    assert plan_for(weights, max_vram=10**11).device_bytes == LARGE
