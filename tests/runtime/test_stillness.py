"""A clip that a step cache made still is told of; one that moves, or was still before, is not."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from osp_cli.dials import StepCacheChoice, step_cache
from osp_cli.errors import InterruptedRunError
from osp_cli.evaluation.photos import held_out_photos
from osp_cli.events import Notice, StepDone
from osp_cli.models.autoencoder_linear import AutoencoderLinear
from osp_cli.models.transformer_flash_i2v import FlashI2VTransformer3DModel
from osp_cli.pipelines import flash_i2v
from osp_cli.registry import find_model
from osp_cli.requests import GenerateRequest
from osp_cli.runtime.runner import run
from osp_cli.runtime.stillness import CacheWatch
from osp_cli.stopping import StopSignal

STEPS, FRAMES = 6, 17
FBCACHE = StepCacheChoice("fbcache", 0.2)


# --- a model that is still where it is not asked -----------------------------------------------


class Player:
    """A transformer that says what a test wants: one clip where it computes, one where not.

    The genuine one runs, and with it the hooks of the cache; only its answer is replaced.
    """

    def __init__(self, monkeypatch):
        self.computed = self.skipped = None
        genuine, player = FlashI2VTransformer3DModel.forward, self

        def forward(model, hidden_states, timestep, *arguments, **kwargs):
            ran = []
            handle = model.blocks[-1].attn1.register_forward_hook(lambda *_: ran.append(1))
            genuine(model, hidden_states, timestep, *arguments, **kwargs)
            handle.remove()
            clip = player.computed if ran else player.skipped
            return ((hidden_states - clip) / (timestep / 1000).view(-1, 1, 1, 1, 1),)

        monkeypatch.setattr(FlashI2VTransformer3DModel, "forward", forward)


@pytest.fixture
def player(monkeypatch):
    # Pictures of latents as plain as can be: the same grey level in all of a frame.
    def decoded(_vae, latents, **_):
        grey = latents[:, :1].mean((3, 4), keepdim=True).clamp(-1, 1)
        frames = torch.cat([grey[:, :, :1], grey[:, :, 1:].repeat_interleave(4, 2)], 2)
        size = latents.shape[3] * 16, latents.shape[4] * 16
        sample = frames.expand(-1, 3, -1, *size).contiguous()
        return SimpleNamespace(sample=sample)

    monkeypatch.setattr(AutoencoderLinear, "decode", decoded)
    return Player(monkeypatch)


def clip(moves):
    """Normalised latents of 17 frames: grey that becomes lighter by `moves` in all."""
    ramp = torch.linspace(0, moves, 5).view(1, 1, 5, 1, 1)
    return ramp.expand(1, 48, 5, 4, 6)


@pytest.fixture
def cached(request_for):
    def build(**changes):
        settings = {"num_frames": FRAMES, "num_inference_steps": STEPS, "cache": FBCACHE}
        return request_for(**{**settings, "guidance_scale": 1.0, **changes})

    return build


@pytest.fixture(autouse=True)
def no_shift(monkeypatch):
    """Without phi(s), what the model is shown is the clip's own latents."""
    monkeypatch.setattr(flash_i2v, "project_first_frame", lambda _, first: torch.zeros_like(first))


def notices(request, stop=None):
    return [e.message for e in run(request, stop=stop) if isinstance(e, Notice)]


HINT = "--cache none tells whether it is the cache"
BLAMED = f"the video hardly moves, which it did before fbcache:0.2 skipped 5 of 6 steps: {HINT}"


def test_a_clip_that_went_still_is_told(player, cached):
    player.computed, player.skipped = clip(1.0), clip(0.0)
    assert BLAMED in notices(cached())


@pytest.mark.parametrize(
    ("computed", "skipped"),
    [
        (1.0, 1.0),
        # Slower than before, but it moves.
        (1.0, 0.4),
        # As still as it was: asked to be, or of a plain wall.
        (0.0, 0.0),
        (0.005, 0.0),
        # A cache that brings motion is not accused of taking it.
        (0.0, 1.0),
    ],
)
def test_other_clips_are_not(player, cached, computed, skipped):
    player.computed, player.skipped = clip(computed), clip(skipped)
    assert not any("hardly moves" in told for told in notices(cached()))


def test_unsureness_is_not_taken_for_motion(player, cached):
    noise = torch.randn(1, 48, 5, 4, 6, generator=torch.Generator().manual_seed(0))
    player.computed, player.skipped = clip(0.0) + 0.01 * noise, clip(0.0)
    assert not any("hardly moves" in told for told in notices(cached()))


def test_without_a_cache_and_in_short_clips_nothing_is_said(player, cached):
    player.computed, player.skipped = clip(1.0), clip(0.0)
    assert notices(cached(cache=StepCacheChoice("none"))) == []
    player.computed, player.skipped = clip(1.0)[:, :, :2], clip(0.0)[:, :, :2]
    short = cached(num_frames=5, output=Path("short.mp4"))
    assert not any("hardly moves" in told for told in notices(short))


def interrupted(request, after):
    """A run that is stopped after a step."""
    stop = StopSignal()
    with pytest.raises(InterruptedRunError):
        for event in run(request, stop=stop):
            if isinstance(event, StepDone) and event.step == after:
                stop._signum = 2


@pytest.mark.parametrize("after", [1, 2, STEPS])
def test_a_resumed_clip_is_judged_as_a_whole(player, cached, after):
    player.computed, player.skipped = clip(1.0), clip(0.0)
    request = cached()
    interrupted(request, after)
    assert BLAMED in notices(request)


def test_of_latents_that_say_nothing_of_before_only_the_doubt_is_told(player, cached):
    player.computed, player.skipped = clip(1.0), clip(0.0)
    request = cached()
    interrupted(request, 3)
    # As an earlier version left them.
    path = Path("clip.latents.safetensors")
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    tensors.pop("before_skips")
    save_file(tensors, path, metadata)
    told = notices(request)
    assert f"the video hardly moves, and fbcache:0.2 skipped 5 of 6 steps: {HINT}" in told


# --- thresholds that leave nothing ---------------------------------------------------------------


ALL = "fbcache:0.2 skipped every step after the first: a lower threshold leaves the model"


@pytest.mark.parametrize("moves", [0.0, 1.0])
def test_a_threshold_that_skips_everything_is_told(player, cached, moves):
    player.computed = player.skipped = clip(moves)
    assert any(told.startswith(ALL) for told in notices(cached(cache_start=1)))


@pytest.mark.parametrize(
    ("skipped", "cache", "start", "steps", "told"),
    [
        ({2, 3, 4}, "fbcache:3", 1, 4, True),
        ({2, 3, 4}, "fbcache:3", 0, 4, True),
        ({6, 7, 8, 9, 10}, "teacache:3", 5, 10, True),
        # One of them was computed.
        ({2, 4}, "fbcache:3", 1, 4, False),
        # Not the user's threshold.
        ({2, 3, 4}, "fbcache", 1, 4, False),
        # Hardly anything was left to skip.
        ({6, 7}, "teacache:3", 5, 7, False),
        (set(), "teacache:3", 5, 5, False),
    ],
)
def test_what_is_everything(skipped, cache, start, steps, told):
    watch = CacheWatch(skipped)
    assert (watch.notice(step_cache(cache), start, steps) is not None) == told


def test_a_step_that_is_done_once_more_counts_as_it_was_done_last():
    watch, sampling = CacheWatch(), SimpleNamespace(estimate=lambda: torch.zeros(1))
    for step, cached in ((1, False), (2, True), (2, False), (3, True)):
        watch.saw(StepDone(step, 4, 0.1, cached), sampling)
    assert watch.skipped == {3}


# --- the built-in model ----------------------------------------------------------------------


def test_an_ordinary_clip_of_the_built_in_model_gives_no_notice(picture):
    photo = Image.open(held_out_photos()[2].path).convert("RGB").resize((448, 256))
    photo.save(picture)
    spec = find_model("osp-mini")
    request = GenerateRequest(
        image=picture,
        prompt="the camera pans left",
        output=Path("clip.mp4"),
        num_frames=9,
        num_inference_steps=int(spec.defaults["num_inference_steps"]),
        guidance_scale=1.0,
        shift=3.0,
        cache=StepCacheChoice("magcache"),
        cache_start=1,
        seed=1,
        device="cpu",
    )
    events = list(run(request))
    assert sum(event.cached for event in events if isinstance(event, StepDone)) > 0
    assert not any("hardly moves" in e.message for e in events if isinstance(e, Notice))
