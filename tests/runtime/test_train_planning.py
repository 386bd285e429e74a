"""Cards of all sizes are planned for on any machine, and what does not fit is told a way out."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from osp_cli.errors import InvalidRequestError, WeightsMissingError, WontFitError
from osp_cli.registry import find_model
from osp_cli.runtime.strategy import Machine
from osp_cli.runtime.train_planning import plan_training
from osp_cli.train_request import TrainRequest
from osp_cli.training.block_swap import pieces
from osp_cli.training.dataset.entries import DatasetReport, Entry, Window

GB = 10**9
LARGE, SMALL = "uniworld-osp2-14b", "flashi2v-1.3b"


def request_of(model=LARGE, **changes):
    return TrainRequest(
        **{
            "dataset": Path("clips"),
            "name": "glass",
            "output": Path("runs"),
            "model": model,
            "sample_every": 0,
            **changes,
        }
    )


def machine_of(gigabytes, *, ram=128, kind="cuda", speed=None):
    return Machine(
        device=kind, device_bytes=int(gigabytes * GB), ram_bytes=int(ram * GB), speed=speed
    )


def report_of(*shapes, repeats=1):
    """A window for each of `(size, frames)`."""
    windows = tuple(
        Window(
            entry=Entry(path=Path(f"{n}.mp4"), kind="video", caption="x", place="x",
                        repeats=repeats),
            start=0.0, num_frames=frames, size=size, content=f"{n:064x}",
        )
        for n, (size, frames) in enumerate(shapes)
    )  # fmt: skip
    return DatasetReport(
        root=Path("clips"), layout="folder", windows=windows, findings=(), num_entries=len(windows),
        seconds=1.0, sha256="0" * 64,
    )  # fmt: skip


def planned(gigabytes, *, ram=128, kind="cuda", report=None, speed=None, weights=None, **changes):
    machine = machine_of(gigabytes, ram=ram, kind=kind, speed=speed)
    return plan_training(request_of(**changes), report, machine=machine, weights=weights)


@pytest.mark.parametrize(
    ("changes", "gigabytes"),
    [
        ({"model": SMALL, "swap_blocks": 0}, 8),
        ({"swap_blocks": 0}, 43),
        ({"quant": "fp8", "swap_blocks": 0}, 29),
        ({"quant": "fp8", "swap_blocks": 20}, 21),
        ({"swap_blocks": 30}, 21),
        ({"quant": "fp8", "swap_blocks": 0, "offload_activations": True}, 23),
    ],
)
def test_what_training_at_512_by_49_frames_takes(changes, gigabytes):
    plan = planned(1000, **changes)
    assert plan.expected_stage_bytes["train"] == pytest.approx(gigabytes * GB, rel=0.15)
    assert plan.num_tokens == 13312


def test_measured_figures_are_in_it():
    """Of 13,312 tokens: inputs of all blocks, and what one keeps, as measured."""
    large, small = planned(1000), planned(1000, model=SMALL)
    assert large.expected_parts["inputs"] == 13312 * 5120 * 2 * 40
    assert large.expected_parts["block"] == pytest.approx(13312 * 312e3, rel=0.01)
    assert small.expected_parts["inputs"] == 13312 * 1536 * 2 * 30
    assert small.expected_parts["block"] == pytest.approx(13312 * 113e3, rel=0.01)
    free = planned(1000, grad_checkpoint=False, swap_blocks=0)
    assert free.expected_parts["inputs"] == 0
    assert free.expected_parts["block"] == pytest.approx(166e9, rel=0.02)


def test_a_lora_is_in_single_precision_with_two_moments():
    plan = planned(80)
    assert plan.trained_parameters == pytest.approx(31.8e6, rel=0.01)
    assert plan.expected_parts["adapter"] == plan.trained_parameters * 8
    assert plan.expected_parts["optimizer"] == plan.trained_parameters * 8
    averaged = planned(80, ema=0.999)
    assert averaged.expected_parts["optimizer"] == plan.trained_parameters * 12
    assert averaged.checkpoint_bytes - plan.checkpoint_bytes == plan.trained_parameters * 4


@pytest.mark.parametrize(
    ("gigabytes", "changes", "swapped"),
    [(80, {}, 0), (48, {}, 0), (24, {"model": SMALL}, 0), (32, {"quant": "fp8"}, 0)],
)
def test_what_fits_stays(gigabytes, changes, swapped):
    assert planned(gigabytes, **changes).swap_blocks == swapped


@pytest.mark.parametrize("gigabytes", [40, 32, 24, 16])
@pytest.mark.parametrize("quant", ["none", "fp8"])
def test_the_least_number_of_blocks_that_fits_waits(gigabytes, quant):
    plan = planned(gigabytes, quant=quant)
    assert plan.expected_peak_bytes <= gigabytes * GB
    assert plan.quant == quant
    if plan.swap_blocks == 0:
        return
    assert plan.swap_blocks > 2
    fewer = planned(1000, quant=quant, swap_blocks=plan.swap_blocks - 1)
    assert fewer.expected_peak_bytes > gigabytes * GB
    told = planned(gigabytes, quant=quant, swap_blocks=plan.swap_blocks)
    assert told == plan


def test_blocks_that_wait_are_in_the_hosts_memory_without_waste():
    none, some = planned(1000, swap_blocks=0), planned(1000, swap_blocks=30)
    block = (some.expected_ram_bytes - none.expected_ram_bytes) / 30
    assert block == pytest.approx(0.7e9, rel=0.01)
    assert sum(pieces(int(block))) - block < 2**20
    # Two of the thirty have their places on the device.
    assert none.weights_bytes - some.weights_bytes == pytest.approx(28 * block, rel=0.001)


def flags_of(hint):
    """What a hint says to type, as changes of a request."""
    changes, words = {}, iter(hint.removesuffix(" would fit").split())
    for word in words:
        match word:
            case "--swap-blocks":
                changes["swap_blocks"] = int(next(words))
            case "--quant":
                changes["quant"] = next(words)
            case "--frames":
                changes["num_frames"] = int(next(words))
            case "--batch-size":
                changes["batch_size"] = int(next(words))
            case "--accumulate":
                changes["accumulate"] = int(next(words))
            case "--size":
                width, height = next(words).split("x")
                changes |= {"width": int(width), "height": int(height)}
            case "--offload-activations":
                changes["offload_activations"] = True
            case "--grad-checkpoint":
                changes["grad_checkpoint"] = True
            case _:
                raise AssertionError(hint)
    assert changes
    return changes


@pytest.mark.parametrize(
    ("gigabytes", "ram", "changes", "begins"),
    [
        (24, 128, {"swap_blocks": 0}, "--swap-blocks"),
        (24, 20, {}, "--quant fp8"),
        (24, 20, {"swap_blocks": 0}, "--quant fp8 --swap-blocks"),
        (12, 128, {}, "--offload-activations"),
        (12, 22, {}, "--quant fp8 --offload-activations"),
        (8, 128, {}, "--frames"),
        (6, 20, {}, "--"),
        (80, 128, {"grad_checkpoint": False}, "--grad-checkpoint"),
        (40, 128, {"batch_size": 8}, "--batch-size 1 --accumulate 8"),
        (4, 128, {"model": SMALL}, "--"),
        (80, 128, {"gpus": 2, "batch_size": 8}, "--"),
    ],
)
def test_what_does_not_fit_is_told_a_way_that_does(gigabytes, ram, changes, begins):
    with pytest.raises(WontFitError, match=r"needs about \d+\.\d GB") as caught:
        planned(gigabytes, ram=ram, **changes)
    assert caught.value.hint.startswith(begins)
    # The hint is taken at its word.
    plan = planned(gigabytes, ram=ram, **{**changes, **flags_of(caught.value.hint)})
    assert plan.expected_peak_bytes <= gigabytes * GB
    assert plan.expected_ram_bytes <= ram * GB


def test_figures_of_the_error_are_of_the_least_demanding_way():
    with pytest.raises(WontFitError) as caught:
        planned(12)
    needed = float(re.search(r"about (\d+\.\d) GB of cuda's memory to train", str(caught.value))[1])
    least = planned(1000, swap_blocks=40).expected_stage_bytes["train"]
    assert needed == pytest.approx(least / GB, abs=0.06)
    with pytest.raises(WontFitError, match=r"8\.0 GB are allowed"):
        planned(80, max_vram=8 * GB)
    with pytest.raises(WontFitError, match=r"of the computer's memory, 20\.0 GB are free"):
        planned(24, ram=20)


def test_where_nothing_fits_the_small_model_is_named():
    with pytest.raises(WontFitError) as caught:
        planned(1)
    assert caught.value.hint == "nothing smaller fits either; --model osp-mini would"


def test_on_a_laptop_without_a_card():
    weights = find_model("osp-mini").find_weights()
    size = {"width": 448, "height": 256}
    plan = planned(4, ram=4, kind="cpu", model="osp-mini", weights=weights, **size)
    assert plan.dtype == "float32"
    assert plan.swap_blocks == 0
    assert plan.expected_peak_bytes < 4 * GB
    with pytest.raises(WontFitError, match=r"GB of memory to train, 16\.0 GB are free") as caught:
        planned(16, ram=16, kind="cpu")
    assert "--swap-blocks" not in caught.value.hint
    # There, weights are the host's anyway.
    assert planned(64, ram=64, kind="cpu").swap_blocks == 0


def test_apple_gpus_have_no_float8():
    with pytest.raises(InvalidRequestError, match="Apple"):
        planned(64, kind="mps", quant="fp8")
    assert planned(64, kind="mps").swap_blocks == 0
    with pytest.raises(WontFitError) as caught:
        planned(24, kind="mps")
    assert "fp8" not in caught.value.hint


def test_all_weights_need_several_cards():
    with pytest.raises(WontFitError, match="to train"):
        planned(80, full=True)
    plan = planned(80, full=True, gpus=8)
    assert plan.sharded
    assert plan.trained_parameters == 14315062416
    assert plan.expected_parts["optimizer"] == plan.trained_parameters * 8 // 8


def test_several_cards_share_weights_unless_they_are_swapped_or_rounded():
    one, four = planned(80), planned(80, gpus=4)
    assert four.sharded
    assert four.weights_bytes < 0.35 * one.weights_bytes
    assert four.expected_parts["inputs"] == one.expected_parts["inputs"]
    for changes in ({"quant": "fp8"}, {"swap_blocks": 20}):
        plan = planned(80, gpus=4, **changes)
        assert not plan.sharded
        assert plan.weights_bytes == planned(80, **changes).weights_bytes
    # Each process has its own blocks in the one host's memory.
    with pytest.raises(WontFitError, match="the computer's memory"):
        planned(80, ram=60, gpus=4, swap_blocks=30)


def test_processes_that_share_a_sample_share_its_tokens():
    one, two = planned(80, gpus=2), planned(80, gpus=2, context_parallel=2)
    assert two.expected_parts["inputs"] * 2 == one.expected_parts["inputs"]
    assert (one.batch, two.batch) == (2, 1)


def test_each_stage_counts():
    plan = planned(80, model=SMALL, sample_every=250)
    assert set(plan.expected_stage_bytes) == {"encode", "train", "samples"}
    assert plan.expected_peak_bytes == max(plan.expected_stage_bytes.values())
    # umT5 in one piece is more than all that is trained; on a smaller card it comes in pieces.
    assert plan.expected_peak_bytes == plan.expected_stage_bytes["encode"] > 12 * GB
    assert plan.streamed == ()
    small = planned(10, model=SMALL, sample_every=250)
    assert small.streamed == ("conditioner",)
    assert small.expected_peak_bytes <= 10 * GB
    assert set(planned(80, model=SMALL).expected_stage_bytes) == {"encode", "train"}


def test_clips_are_encoded_in_tiles_where_there_is_no_room():
    changes = {"model": SMALL, "width": 832, "height": 480, "num_frames": 49}
    assert not planned(80, **changes).encode_tiling
    assert not planned(24, **changes).encode_tiling
    changes = {"model": SMALL, "width": 512, "height": 512, "num_frames": 5}
    tight = planned(5, **changes)
    assert tight.encode_tiling
    assert tight.expected_stage_bytes["encode"] <= 5 * GB


def test_a_step_that_looks_at_some_frames_takes_less():
    whole, some = planned(80), planned(80, latent_frames=4)
    assert some.num_tokens == 4 * 32 * 32
    assert some.expected_parts["inputs"] * 13 == whole.expected_parts["inputs"] * 4
    assert planned(80, latent_frames=99) == whole


def test_samples_are_decoded_in_tiles_where_there_is_no_room():
    changes = {"model": SMALL, "sample_every": 250}
    assert not planned(80, **changes).sample_tiling
    tight = planned(8, **changes)
    assert tight.sample_tiling
    assert tight.expected_peak_bytes <= 8 * GB


def test_steps_follow_from_windows_of_each_shape():
    square, wide = ((512, 512), 49), ((640, 384), 33)
    report = report_of(*[square] * 5, *[wide] * 3, repeats=2)
    plan = planned(80, report=report, batch_size=2, accumulate=2, epochs=3)
    assert (plan.num_windows, plan.batch) == (16, 4)
    # Ten and six of a kind: three and two steps, the last of each not full.
    assert (plan.steps, plan.epochs) == (15, 3)
    limited = planned(80, report=report, batch_size=4, max_steps=7)
    assert (limited.steps, limited.epochs) == (7, 2)


def test_memory_is_that_of_the_largest_window():
    small, large = ((256, 256), 17), ((512, 512), 49)
    one = planned(80, report=report_of(small))
    assert one.num_tokens == 5 * 16 * 16
    both = planned(80, report=report_of(small, large, small))
    assert both.expected_parts == planned(80).expected_parts
    assert one.expected_peak_bytes < both.expected_peak_bytes


def test_the_cache_holds_latents_and_two_variants_of_words():
    report = report_of(*[((512, 512), 49)] * 10)
    plan = planned(80, report=report)
    latents, words = 2 * 16 * 14 * 64 * 64, 2 * 2 * 1024 * 3584
    assert 10 * (latents + words) < plan.cache_bytes < 10.1 * (latents + words)
    assert planned(80).cache_bytes == 0
    # Windows that are used twice are kept once.
    twice = report_of(*[((512, 512), 49)] * 10, repeats=2)
    assert planned(80, report=twice).cache_bytes == plan.cache_bytes


def test_the_cache_holds_what_is_known_of_a_clip():
    report = report_of(*[((512, 512), 49)] * 10)
    base = {"model": "wan2.1-i2v-14b-480p", "mode": "inpaint", "report": report}
    latents, known, words = 2 * 16 * 14 * 64 * 64, 4 * 2 * 20 * 13 * 64 * 64, 2 * 2 * 512 * 4096
    view = 2 * 4 * 257 * 1280
    total = 10 * (latents + known + words + view)
    assert total < planned(80, **base).cache_bytes < 1.01 * total


@pytest.mark.parametrize(
    ("free", "what"),
    [({"cache_free": GB // 10}, "encoded clips"), ({"output_free": GB}, "4 checkpoints")],
)
def test_disks_that_are_too_small(free, what):
    report = report_of(*[((512, 512), 49)] * 10)
    with pytest.raises(WontFitError, match=f"{what} take up to"):
        plan_training(request_of(), report, machine=machine_of(80), **free)
    enough = dict.fromkeys(free, 100 * GB)
    plan_training(request_of(), report, machine=machine_of(80), **enough)


def test_time_follows_from_what_is_computed_and_moved():
    report = report_of(*[((512, 512), 49)] * 10)
    assert planned(80, report=report).expected_seconds is None
    quick = planned(80, report=report, speed=400e12)
    # 43 TFLOP of weights thrice and of attention four and a half times; at half of the speed.
    assert quick.expected_seconds == pytest.approx(10 * 8.5, rel=0.15)
    assert planned(80, report=report, speed=200e12).expected_seconds == pytest.approx(
        2 * quick.expected_seconds, rel=0.01
    )
    two = planned(80, report=report, speed=400e12, gpus=2)
    assert two.expected_seconds == pytest.approx(quick.expected_seconds / 2, rel=0.01)
    # Samples count, not places in steps that stay empty, each with its own length.
    assert planned(80, report=report, speed=400e12, batch_size=4).expected_seconds == (
        quick.expected_seconds
    )
    mixed = report_of(*[((512, 512), 49)] * 10, *[((256, 256), 17)] * 10)
    assert 1.0 < planned(80, report=mixed, speed=400e12).expected_seconds / (
        quick.expected_seconds
    ) < 1.1  # fmt: skip
    # So quick a device would wait for its weights.
    waits = planned(80, report=report, speed=1e18, swap_blocks=40)
    assert waits.expected_seconds == pytest.approx(10 * 2 * 28 / 20, rel=0.05)


@pytest.mark.parametrize("changes", [{"swap_blocks": 3}, {"offload_activations": True}])
def test_what_waits_needs_checkpointing(changes):
    with pytest.raises(InvalidRequestError, match="gradient checkpointing alone") as caught:
        planned(80, grad_checkpoint=False, **changes)
    assert caught.value.hint == "--grad-checkpoint"


def test_a_plan_needs_a_shape():
    with pytest.raises(InvalidRequestError, match="how large osp-mini is"):
        planned(80, model="osp-mini", width=448, height=256)


def test_the_planner_loads_nothing(monkeypatch):
    monkeypatch.setattr(torch, "empty", None)
    assert planned(80).as_json()["expected_parts"]["weights"] > 28 * GB


def test_adapters_of_the_conditioner_are_counted_where_they_are_trained():
    assert planned(80, train_adapter=True).trained_parameters == (
        planned(80).trained_parameters + 31465472
    )
    weights = find_model("osp-mini").find_weights()
    small = {"model": "osp-mini", "width": 448, "height": 256, "kind": "cpu", "weights": weights}
    count = sum(
        tensor.numel()
        for part in ("adapter", "image_adapter")
        for path in (weights / part).glob("*.safetensors")
        for tensor in load_file(path).values()
    )
    assert count > 0
    alone, both = planned(8, **small), planned(8, **small, train_adapter=True)
    assert both.trained_parameters == alone.trained_parameters + count


def test_this_machine_is_looked_at_where_none_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("OSP_HOME", str(tmp_path))
    request = request_of(
        "osp-mini", width=448, height=256, device="cpu", max_steps=10, output=tmp_path / "run"
    )
    plan = plan_training(request, report_of(*[((448, 256), 17)] * 3))
    assert plan.device == "cpu"
    assert plan.steps == 10
    assert plan.expected_seconds > 0
    assert 0 < plan.device_bytes < 1 << 62
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: SimpleNamespace(free=10))
    with pytest.raises(WontFitError, match="of the disk"):
        plan_training(request, report_of(*[((448, 256), 17)] * 3))


def test_a_plan_is_made_before_the_weights_are_there(monkeypatch, tmp_path):
    from osp_cli.events import Notice, TrainingPlanned
    from osp_cli.runtime import train_planning
    from osp_cli.runtime.training import train

    monkeypatch.setenv("OSP_HOME", str(tmp_path))
    monkeypatch.setattr(train_planning, "this_machine", lambda *_, **__: machine_of(80, kind="cpu"))
    request, report = request_of(SMALL, device="cpu"), report_of(((512, 512), 49))
    planned, told = train(request, report, dry_run=True)
    assert isinstance(planned, TrainingPlanned)
    assert planned.plan.weights_bytes > 2 * GB
    assert isinstance(told, Notice)
    assert "not installed" in told.message
    with pytest.raises(WeightsMissingError):
        next(train(request, report))
