"""The memory ends in the middle of a clip: it goes on in another way, from the latents it has."""

from __future__ import annotations

import weakref
from pathlib import Path

import pytest
import torch

from osp_cli.dials import step_cache
from osp_cli.errors import WontFitError
from osp_cli.events import Notice, StageFinished, StepDone
from osp_cli.media.recipes import read_recipe
from osp_cli.models.transformer_flash_i2v import FlashI2VTransformer3DModel
from osp_cli.runtime import devices, stages
from osp_cli.runtime.contact import run_contact
from osp_cli.runtime.runner import run
from osp_cli.runtime.strategy import Machine

LARGE = 1 << 40
GB = 10**9


@pytest.fixture
def card_of_a_gigabyte(monkeypatch):
    """The processor in the part of a graphics card of one gigabyte, beside a large host."""

    def build(device, measure=False):
        return Machine(device="cpu", device_bytes=GB, ram_bytes=LARGE, disk_bytes=LARGE)

    for module in ("settling", "devices"):
        monkeypatch.setattr(f"osp_cli.runtime.{module}.this_machine", build)


def fail_at(monkeypatch, *calls, error=None):
    """The transformer runs out of memory at these of its passes, counted from 1."""
    genuine = FlashI2VTransformer3DModel.forward
    count = 0

    def forward(self, *args, **kwargs):
        nonlocal count
        count += 1
        if count in calls:
            raise error or torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return genuine(self, *args, **kwargs)

    monkeypatch.setattr(FlashI2VTransformer3DModel, "forward", forward)


def of(events, kind):
    return [event for event in events if isinstance(event, kind)]


@pytest.mark.parametrize("sampler", ["euler", "unipc"])
@pytest.mark.parametrize("cache", ["none", "fbcache:0.5", "magcache:0.5"])
@pytest.mark.parametrize("call", [1, 4])
def test_the_clip_is_the_very_same(request_for, monkeypatch, sampler, cache, call):
    """Two passes a step: the fourth is the second one of the second step."""
    settings = {"num_inference_steps": 4, "sampler": sampler, "cache": step_cache(cache)}
    list(run(request_for(output=Path("plain.mp4"), **settings)))
    fail_at(monkeypatch, call)
    events = list(run(request_for(output=Path("again.mp4"), **settings)))
    assert Path("again.mp4").read_bytes() == Path("plain.mp4").read_bytes()
    where = "before the first step" if call == 1 else "after step 1"
    [notice] = of(events, Notice)[-1:]
    assert notice.message == f"out of memory {where}, going on with --offload model"
    # No step is done twice.
    assert [step.step for step in of(events, StepDone)] == [1, 2, 3, 4]


def test_it_goes_down_step_by_step(request_for, monkeypatch):
    fail_at(monkeypatch, 1, 2)
    told = [notice.message for notice in of(run(request_for()), Notice)]
    assert [text.rpartition(" with ")[2] for text in told if "out of memory" in text] == [
        "--offload model",
        "--offload disk",
    ]


def test_where_nothing_is_left_the_latents_are_kept(request_for, monkeypatch):
    settings = {"num_inference_steps": 3, "guidance_scale": 1.0}
    list(run(request_for(output=Path("plain.mp4"), **settings)))
    fail_at(monkeypatch, *range(2, 20))
    with pytest.raises(WontFitError, match="tiny ran out of memory on cpu") as raised:
        list(run(request_for(**settings)))
    assert raised.value.exit_code == 4
    assert "--frames" in raised.value.hint
    assert raised.value.kept == (Path("clip.latents.safetensors"),)
    monkeypatch.undo()
    fail_at(monkeypatch)


def test_what_was_kept_is_finished_by_the_same_command(request_for, away, tiny_card, monkeypatch):
    settings = {"num_inference_steps": 3, "guidance_scale": 1.0}
    list(run(request_for(output=Path("plain.mp4"), **settings)))
    with monkeypatch.context() as patch:
        fail_at(patch, *range(2, 20))
        with pytest.raises(WontFitError):
            list(run(request_for(**settings)))
    events = list(run(request_for(**settings)))
    assert [step.step for step in of(events, StepDone)] == [2, 3]
    assert Path("clip.mp4").read_bytes() == Path("plain.mp4").read_bytes()


def test_the_old_model_is_gone_when_the_next_plan_is_made(request_for, monkeypatch):
    """On a graphics card what it holds would not be free, and every plan refused."""
    models = []
    genuine_forward = FlashI2VTransformer3DModel.forward

    def forward(self, *args, **kwargs):
        models.append(weakref.ref(self))
        if len(models) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return genuine_forward(self, *args, **kwargs)

    genuine_plan = stages.in_less_memory
    there = []

    def planned(*args):
        there.append(models[0]() is not None)
        return genuine_plan(*args)

    monkeypatch.setattr(FlashI2VTransformer3DModel, "forward", forward)
    monkeypatch.setattr(stages, "in_less_memory", planned)
    list(run(request_for()))
    assert there == [False]


def test_a_way_that_the_user_chose_is_kept_to(request_for, monkeypatch):
    fail_at(monkeypatch, 1)
    with pytest.raises(WontFitError, match="ran out of memory") as raised:
        list(run(request_for(offload="none")))
    assert raised.value.hint.startswith("--offload model would fit; else ")


def test_a_sheet_of_seeds_goes_on_too(request_for, monkeypatch):
    fail_at(monkeypatch, 1)
    requests = [
        request_for(seed=seed, preview="contact", output=Path(f"{seed}.mp4")) for seed in (1, 2)
    ]
    told = [notice.message for notice in of(run_contact(requests), Notice)]
    assert any("going on with --offload model" in text for text in told)


# --- Decoding --------------------------------------------------------------------------------


def decode_failing(monkeypatch, times):
    genuine, calls = stages.decode_frames, []

    def failing(vae, latents):
        calls.append(1)
        if len(calls) <= times:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return genuine(vae, latents)

    monkeypatch.setattr(stages, "decode_frames", failing)


def test_everything_else_leaves_before_the_decode_changes(request_for, monkeypatch):
    list(run(request_for(output=Path("plain.mp4"))))
    decode_failing(monkeypatch, 1)
    events = list(run(request_for()))
    assert "while decoding, going on with --offload model" in of(events, Notice)[-1].message
    assert Path("clip.mp4").read_bytes() == Path("plain.mp4").read_bytes()
    assert [event.name for event in of(events, StageFinished)].count("decode") == 1


def test_what_a_decode_was_computing_with_is_gone_before_the_next(request_for, monkeypatch):
    genuine, held = stages.decode_frames, []

    def failing(vae, latents):
        if not held:
            computed = torch.zeros(1000)
            held.append(weakref.ref(computed))
            raise torch.OutOfMemoryError("CUDA out of memory")
        assert held[0]() is None
        return genuine(vae, latents)

    monkeypatch.setattr(stages, "decode_frames", failing)
    list(run(request_for()))
    assert held


def test_then_it_is_done_in_tiles_and_the_recipe_says_so(request_for, monkeypatch):
    decode_failing(monkeypatch, 2)
    events = list(run(request_for()))
    assert of(events, Notice)[-1].message.endswith("--offload model --vae-tiling")
    assert read_recipe("clip.mp4")["vae_tiling"] is True


def test_and_then_no_more(request_for, monkeypatch):
    decode_failing(monkeypatch, 9)
    with pytest.raises(WontFitError, match="ran out of memory while decoding") as raised:
        list(run(request_for()))
    assert raised.value.kept == (Path("clip.latents.safetensors"),)


def test_tiles_that_were_refused_are_not_used(request_for, monkeypatch):
    decode_failing(monkeypatch, 2)
    with pytest.raises(WontFitError, match="while decoding"):
        list(run(request_for(vae_tiling=False)))


def test_the_real_machine_is_looked_at_again():
    there = devices.this_machine(torch.device("cpu"))
    assert there.speed is None
    assert 0 < there.device_bytes == pytest.approx(there.ram_bytes, rel=0.2)
    assert devices.this_machine(torch.device("cpu"), measure=True).speed > 1e8
