"""What fits which machine: laws of the choice, over cards, sizes and 4 to 141 GB of memory."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from osp_cli.errors import WontFitError
from osp_cli.registry import find_model
from osp_cli.requests import GenerateRequest
from osp_cli.runtime.planner import make_plan
from osp_cli.runtime.strategy import Machine

GB = 10**9
CARDS = (4, 6, 8, 10, 12, 16, 24, 32, 40, 48, 80, 96, 141)
MODELS = ("osp-mini", "flashi2v-1.3b", "uniworld-osp2-14b")
EXACT = ("none", "gguf")


def machine(device="cuda", vram=24, ram=64, disk=500):
    memory = ram if device == "cpu" else vram
    return Machine(
        device=device,
        device_bytes=int(memory * GB),
        ram_bytes=int(ram * GB),
        disk_bytes=int(disk * GB),
    )


def plan_on(there, model="uniworld-osp2-14b", size=None, **changes):
    """A plan from the card alone, but for the model that is always there."""
    spec = find_model(model)
    settings = {"image": Path("x.png"), "prompt": "x", "seed": 3, "model": model}
    request = GenerateRequest(**{**settings, **changes})
    return make_plan(
        request, spec, size=size or spec.default_size, machine=there, weights=spec.find_weights()
    )


def plan_or_none(there, model, **changes):
    try:
        return plan_on(there, model, **changes)
    except WontFitError:
        return None


# --- What people have ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("there", "model", "offload", "quant", "tiling"),
    [
        # An H200, an H100 and a 48 GB card: the 14B with all that it needs, then stage by stage.
        (machine(vram=141, ram=200), "uniworld-osp2-14b", "none", "none", False),
        (machine(vram=80, ram=128), "uniworld-osp2-14b", "none", "none", False),
        (machine(vram=48, ram=64), "uniworld-osp2-14b", "model", "none", False),
        # 24 GB: exactly, block by block, as it computes longer than it moves.
        (machine(vram=24, ram=64), "uniworld-osp2-14b", "group", "none", False),
        (machine(vram=24, ram=64), "flashi2v-1.3b", "model", "none", False),
        # Only the text encoder is too large for these, and comes in pieces.
        (machine(vram=12, ram=32), "flashi2v-1.3b", "model", "none", False),
        (machine(vram=8, ram=32), "flashi2v-1.3b", "model", "none", True),
        (machine(vram=4, ram=32), "flashi2v-1.3b", "group", "none", True),
        (machine(vram=12, ram=32), "uniworld-osp2-14b", "group", "none", False),
        (machine("cpu", ram=64), "flashi2v-1.3b", "none", "none", False),
        (machine("cpu", ram=16), "flashi2v-1.3b", "model", "none", False),
        (machine("cpu", ram=12), "flashi2v-1.3b", "disk", "none", False),
        (machine("mps", vram=48, ram=60), "flashi2v-1.3b", "none", "none", False),
        (machine("cpu", ram=4), "osp-mini", "none", "none", False),
    ],
)
def test_what_people_have(there, model, offload, quant, tiling):
    plan = plan_on(there, model)
    assert (plan.offload, plan.quant, plan.vae_tiling) == (offload, quant, tiling)


# --- Laws ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("model", "vram"), itertools.product(MODELS, CARDS))
def test_a_plan_keeps_to_what_there_is(model, vram):
    for frames, ram in itertools.product((17, 49, 81), (8, 16, 64)):
        frames = min(frames, find_model(model).max_frames)
        plan = plan_or_none(machine(vram=vram, ram=ram), model, num_frames=frames)
        if plan is not None:
            assert plan.expected_peak_bytes == max(plan.expected_stage_bytes.values())
            assert plan.expected_peak_bytes <= vram * GB
            assert plan.expected_ram_bytes <= ram * GB


@given(
    st.sampled_from(MODELS),
    st.floats(4, 141),
    st.floats(0, 60),
    st.sampled_from((16, 32, 64, 128)),
    st.sampled_from(("cuda", "cpu", "mps")),
)
def test_more_memory_never_makes_worse(model, vram, more, ram, device):
    one = plan_or_none(machine(device, vram, ram), model)
    two = plan_or_none(machine(device, vram + more, ram), model)
    if one is None:
        return
    assert two is not None
    order = ("none", "model", "group", "disk")
    if one.quant in EXACT and not one.vae_tiling:
        assert two.quant in EXACT and not two.vae_tiling
        assert order.index(two.offload) <= order.index(one.offload)


# The built-in model bears no smaller ones.
@given(st.sampled_from(MODELS[1:]), st.sampled_from(CARDS), st.sampled_from(("fp8", "int8", "nf4")))
def test_smaller_weights_need_less(model, vram, quant):
    there = machine(vram=vram)
    plain = plan_or_none(there, model, quant="none", offload="none", vae_tiling=True)
    small = plan_or_none(there, model, quant=quant, offload="none", vae_tiling=True)
    if plain is not None:
        stages = [plan.expected_stage_bytes["sampling"] for plan in (small, plain)]
        assert stages[0] < stages[1]


@pytest.mark.parametrize("offload", ["none", "model", "group", "sequential", "disk"])
@pytest.mark.parametrize("quant", ["none", "fp8"])
def test_what_is_asked_is_done(offload, quant):
    plan = plan_on(machine(vram=141, ram=200), offload=offload, quant=quant, vae_tiling=True)
    assert (plan.offload, plan.quant, plan.vae_tiling) == (offload, quant, True)


def test_each_way_needs_less_of_the_device_than_the_one_before():
    there = machine(vram=141, ram=400)
    peaks = [
        plan_on(there, offload=offload, quant="none", vae_tiling=True).expected_stage_bytes
        for offload in ("none", "model", "group", "sequential")
    ]
    sampling = [stages["sampling"] for stages in peaks]
    assert sampling == sorted(sampling, reverse=True)
    assert len(set(sampling)) == 4


def test_bounds_of_the_user_are_kept():
    large = machine(vram=141, ram=200)
    plan = plan_on(large, max_vram=24 * GB)
    assert plan.expected_peak_bytes <= 24 * GB
    assert plan.offload == "group"
    little = plan_on(large, max_vram=24 * GB, max_ram=12 * GB)
    assert little.expected_ram_bytes <= 12 * GB
    assert not little.pinned
    cpu = plan_on(machine("cpu", ram=64), "flashi2v-1.3b", max_ram=20 * GB)
    assert cpu.expected_peak_bytes <= 20 * GB


def test_weights_wait_in_page_locked_memory_where_there_is_enough():
    assert plan_on(machine(vram=24, ram=64)).pinned
    # Mapped from their files, they need no memory of the host for themselves.
    poor = plan_on(machine(vram=24, ram=8))
    assert not poor.pinned
    assert poor.expected_ram_bytes < 8 * GB


def test_page_locked_memory_is_counted_as_torch_takes_it():
    """Powers of two, and beside what was made on the host until all of it is there."""
    whole = 14_315_062_416
    assert plan_on(machine(vram=24, ram=64)).expected_ram_bytes > 1.5 * 2 * whole
    assert not plan_on(machine(vram=24, ram=40)).pinned
    fp8 = plan_on(machine(vram=12, ram=64), quant="fp8", offload="group")
    assert fp8.pinned
    assert fp8.expected_ram_bytes > 2.5 * whole


def test_smaller_weights_are_made_on_the_host():
    """Also those that wait on the disk afterwards."""
    for offload in ("group", "disk"):
        plain, fp8 = (
            plan_on(machine(vram=24, ram=33), offload=offload, quant=quant).expected_ram_bytes
            for quant in ("none", "fp8")
        )
        assert fp8 > plain + 14e9


def test_files_that_the_memory_cannot_hold_come_from_the_disk():
    quick = replace(machine(vram=24, ram=64), speed=1e18)
    poor = replace(quick, ram_bytes=16 * GB)
    seconds = [
        plan_on(there, offload="group", quant="none").expected_seconds for there in (quick, poor)
    ]
    assert seconds[1] > 10 * seconds[0]


def test_a_text_encoder_too_large_for_the_card_comes_in_pieces():
    assert "conditioner" in plan_on(machine(vram=12, ram=64)).streamed
    assert "conditioner" not in plan_on(machine(vram=24, ram=64)).streamed
    assert plan_on(machine(vram=141, ram=200)).streamed == ()


def test_half_as_quick_again_is_worth_a_small_error():
    """Short clips leave no time for weights to travel from unlocked memory behind the passes."""
    slow_bus = replace(machine(vram=24, ram=20), speed=900e12)
    plan = plan_on(slow_bus, num_frames=17)
    assert plan.quant == "fp8"
    assert plan_on(slow_bus, num_frames=17, quant="none").quant == "none"


# --- Refusals --------------------------------------------------------------------------------


def test_what_fits_in_no_way_is_refused_with_figures():
    with pytest.raises(WontFitError) as refused:
        plan_on(machine(vram=2, ram=64))
    assert refused.value.exit_code == 4
    assert "uniworld-osp2-14b needs about" in refused.value.message
    assert "2.0 GB are free" in refused.value.message
    assert "--frames" in refused.value.hint


def test_what_the_user_forbids_is_offered():
    with pytest.raises(WontFitError) as refused:
        plan_on(machine(vram=24, ram=64), offload="none")
    assert refused.value.hint.startswith("--offload group would fit; else ")


def test_too_little_of_the_host_is_told_as_such():
    with pytest.raises(WontFitError, match=r"of the computer's memory, 1\.0 GB are free"):
        plan_on(machine(vram=141, ram=1))
    with pytest.raises(WontFitError, match="of the disk"):
        plan_on(machine("mps", vram=40, ram=60, disk=1), offload="disk")
