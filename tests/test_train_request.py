"""What `osp train-lora` refuses before anything is loaded, and what a run may not change."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from osp_cli.errors import InvalidRequestError
from osp_cli.registry import find_model
from osp_cli.train_request import (
    CONDITIONS,
    LOGS,
    LR_SCHEDULES,
    MAX_RANK,
    OPTIMIZERS,
    SAVE_FORMATS,
    TIMESTEPS,
    TrainRequest,
)

LARGE = "uniworld-osp2-14b"


def request(**values):
    known = {"dataset": Path("clips"), "name": "glass", "output": Path("glass")}
    return TrainRequest(**{**known, "width": 64, "height": 64, **values})


def refused(**values):
    with pytest.raises(InvalidRequestError) as caught:
        request(**values)
    assert not caught.value.message.endswith(".")
    return caught.value


# Numbers

NUMBERS = [
    ("rank", "--rank", 1, MAX_RANK),
    ("stride", "--stride", 1, 1000),
    ("fps", "--fps", 1, 240),
    ("windows", "--windows", 1, 1000),
    ("epochs", "--epochs", 1, 10**6),
    ("max_steps", "--max-steps", 1, 10**8),
    ("batch_size", "--batch-size", 1, 4096),
    ("accumulate", "--accumulate", 1, 4096),
    ("warmup", "--warmup", 0, 10**6),
    ("weight_decay", "--weight-decay", 0, 10),
    ("ema", "--ema", 0, 0.999999),
    ("sigma_power", "--sigma-power", 0, 4),
    ("latent_frames", "--latent-frames", 0, 1000),
    ("caption_drop", "--caption-drop", 0, 1),
    ("sigma_shift", "--sigma-shift", 0.01, 100),
    ("gpus", "--gpus", 1, 1024),
    ("save_every", "--save-every", 0, 10**8),
    ("sample_every", "--sample-every", 0, 10**8),
    ("keep", "--keep", 1, 10**6),
    ("swap_blocks", "--swap-blocks", -1, 1000),
]


@pytest.mark.parametrize(("field", "flag", "low", "high"), NUMBERS)
def test_limits_are_allowed_and_what_is_beyond_is_not(field, flag, low, high):
    for value in (low, high):
        assert getattr(request(**{field: value}), field) == value
    for value in (math.nextafter(low, -math.inf), math.nextafter(high, math.inf), math.nan):
        message = refused(**{field: value}).message
        assert message.startswith(f"{flag} must be ")
        assert f"{low} to {high}" in message


@pytest.mark.parametrize(
    ("field", "flag"),
    [("learning_rate", "--lr"), ("alpha", "--alpha"), ("eps", "--eps"),
     ("max_grad_norm", "--max-grad-norm")],
)  # fmt: skip
@given(value=st.one_of(st.floats(max_value=0.0), st.sampled_from([math.nan, math.inf])))
def test_what_must_be_above_zero(field, flag, value):
    assert refused(**{field: value}).message.startswith(f"{flag} must be above 0")


@given(st.integers(1, 20))
def test_frames_come_as_4k_and_1(frames):
    if frames % 4 == 1 and frames <= find_model("osp-mini").max_frames:
        assert request(num_frames=frames).num_frames == frames
    else:
        error = refused(num_frames=frames)
        assert "--frames" in error.message
        # What the hint says works.
        assert request(num_frames=int(error.hint.split()[-1]))


def test_no_more_frames_than_the_model_sees():
    most = find_model("osp-mini").max_frames
    error = refused(num_frames=most + 4)
    assert f"at most {most} frames" in error.message
    assert error.hint == f"--frames {most}"


@given(st.tuples(*[st.floats()] * 2))
def test_cutoff_is_a_range(cutoff):
    low, high = cutoff
    if 0 <= low <= high <= 1:
        assert request(cutoff=cutoff).cutoff == cutoff
    else:
        assert "--cutoff" in refused(cutoff=cutoff).message


@given(st.tuples(*[st.floats()] * 2))
def test_betas(betas):
    if all(0 <= beta < 1 for beta in betas):
        assert request(betas=betas).betas == betas
    else:
        assert "--betas" in refused(betas=betas).message


@given(st.integers(1, 4000), st.integers(1, 4000))
def test_sizes_are_multiples_of_what_the_model_takes(width, height):
    unit = find_model("osp-mini").multiple_of
    if width % unit or height % unit:
        assert (
            f"multiples of {unit}, got {width}x{height}"
            in refused(width=width, height=height).message
        )
    else:
        assert request(width=width, height=height).width == width


# Words


@pytest.mark.parametrize(
    ("field", "flag", "known"),
    [
        ("mode", "--mode", ("flash",)),
        ("condition", "--condition", CONDITIONS),
        ("timesteps", "--timesteps", TIMESTEPS),
        ("optimizer", "--optimizer", OPTIMIZERS),
        ("lr_schedule", "--lr-schedule", LR_SCHEDULES),
        ("save_format", "--save-format", SAVE_FORMATS),
        ("dtype", "--dtype", ("auto", "float32", "bfloat16")),
        ("logs", "--log", [(log,) for log in LOGS]),
    ],
)
def test_words_that_are_known(field, flag, known):
    for value in known:
        assert getattr(request(**{field: value}), field) == value
    wrong = ("nothing",) if field == "logs" else "nothing"
    error = refused(**{field: wrong})
    assert error.message == f"unknown {flag} 'nothing'"
    for value in known:
        assert (value[0] if field == "logs" else value) in error.hint


@given(st.text(max_size=12))
def test_a_name_is_safe_as_a_file_s(name):
    """Whatever is accepted is one part of a path, and no hidden one."""
    try:
        accepted = request(name=name)
    except InvalidRequestError as error:
        assert "--out" in error.message
        return
    assert Path(accepted.name).name == name
    assert not name.startswith((".", "-"))
    assert name.isascii()
    assert not set(name) & set('/\\:*?"<>| \n\0')


# Models, and the machine


def test_what_a_base_cannot_be_trained_for():
    assert "osp-mini" in refused(mode="t2v").message
    assert refused(mode="t2v").hint == "--mode flash"
    assert request(model="wan2.1-t2v-1.3b", mode="t2v", width=512, height=512)
    assert refused(model="wan2.1-t2v-1.3b", mode="flash").hint == "--mode t2v"
    assert refused(model="wan2.1-i2v-14b-480p", mode="flash").hint == "--mode inpaint"
    assert "cannot be trained here" in refused(model="helios-14b-distilled").message
    assert "osp-mini" in (refused(model="osp-mimi").hint or "")


def test_only_what_has_an_adapter_has_one_to_train():
    assert request(train_adapter=True).train_adapter
    error = refused(model="flashi2v-1.3b", train_adapter=True, width=512, height=512)
    assert "without an adapter" in error.message


def test_precision_is_the_base_s():
    assert request(model=LARGE, quant="fp8", width=512, height=512).quant == "fp8"
    assert "osp-mini" in refused(quant="fp8").message
    assert "--quant" in refused(quant="nf4").message


@pytest.mark.parametrize("device", ["auto", "cpu", "mps", "cuda", "cuda:0", "cuda:11"])
def test_devices(device):
    assert request(device=device).device == device


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:-1", "cuda:1 ", "CPU", "", "cpu:0"])
def test_no_devices(device):
    assert refused(device=device).message == f"unknown --device {device!r}"


@given(st.integers(1, 16), st.integers(1, 16))
def test_processes_come_out_even(gpus, together):
    if gpus % together:
        message = refused(gpus=gpus, context_parallel=together).message
        assert f"--gpus {gpus}" in message
        assert f"--context-parallel {together}" in message
    else:
        assert request(gpus=gpus, context_parallel=together)


@pytest.mark.parametrize("number", [0, -1])
def test_nobody_shares_a_sample(number):
    assert "--context-parallel" in refused(context_parallel=number).message


def test_trained_weights_stay_where_they_are():
    assert request(full=True).swap_blocks == -1
    assert "--swap-blocks" in refused(full=True, swap_blocks=3).message


# What a run may not change

# Fields that another run of the same may have otherwise: not what is learnt, but how, or what is
# shown of it. A new field belongs to neither until somebody has thought about it.
FREE = {
    *("dataset", "name", "output", "title", "epochs", "max_steps", "batch_size", "accumulate"),
    *("device", "gpus", "context_parallel", "max_vram", "max_ram", "grad_checkpoint"),
    *("swap_blocks", "offload_activations", "save_every", "keep", "resume", "sample_every"),
    *("sample_prompts", "sample_images", "save_format", "logs", "cache_dir", "allow_empty"),
    *("allow_upscale", "skip_invalid", "validate_only", "cache_only", "overwrite"),
}
KEPT = {
    *("trigger", "model", "mode", "condition", "full", "train_adapter", "rank", "alpha"),
    *("targets", "width", "height", "num_frames", "fps", "stride", "bucket", "windows"),
    *("learning_rate", "weight_decay", "betas", "eps", "max_grad_norm", "optimizer"),
    *("lr_schedule", "warmup", "ema", "seed", "caption_drop", "cutoff", "timesteps"),
    *("sigma_shift", "sigma_power", "latent_frames", "dtype", "quant"),
}


def test_every_field_is_either_kept_or_free():
    fields = {field.name for field in dataclasses.fields(TrainRequest)}
    assert fields == FREE | KEPT
    assert request().fingerprint().keys() - {"version"} == KEPT


def test_a_fingerprint_is_json_and_says_what_differs():
    plain = request().fingerprint()
    assert json.loads(json.dumps(plain)) == plain
    assert request(trigger="glass").fingerprint() != plain
    assert request(seed=1).fingerprint() != plain
    assert request(output=Path("else"), max_steps=9, device="cpu").fingerprint() == plain


@pytest.mark.parametrize(
    ("model", "mode"), [("wan2.1-t2v-1.3b", "t2v"), ("wan2.1-i2v-14b-480p", "inpaint")]
)
def test_models_that_know_no_places_of_frames_see_all_of_a_clip(model, mode):
    values = {"model": model, "mode": mode}
    assert request(**values).latent_frames == 0
    assert refused(**values, latent_frames=3).message.startswith("--latent-frames ")
    assert request(model="flashi2v-1.3b", latent_frames=3).latent_frames == 3
