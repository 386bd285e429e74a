"""The loss of a step: Eq. 22 on recorded numbers; what is drawn follows from numbers alone."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from osp_cli.models.state_dict import load_transformer
from osp_cli.models.transformer_flash_i2v import FlashI2VTransformer3DModel
from osp_cli.sampling.fourier import fourier_features
from osp_cli.sampling.latent_shift import project_first_frame
from osp_cli.training.objective import (
    KNOWN,
    ClipObjective,
    Draws,
    ObjectiveSettings,
    clip_loss,
    draw,
    dynamic_shift,
    shift_sigmas,
)
from osp_cli.training.samples import EncodedClip, SampleNumber

GOLDEN = Path(os.environ.get("OSP_GOLDEN_DIR") or Path(__file__).parents[1] / "golden" / "data")
CONFIG = {
    "num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 4, "out_channels": 4,
    "text_dim": 8, "freq_dim": 16, "ffn_dim": 32, "num_layers": 2, "projection_channels": 4,
}  # fmt: skip


class Rows:
    """Conditions that are kept as the transformer takes them."""

    def join(self, rows, first, device):
        return {"encoder_hidden_states": torch.stack([row["states"] for row in rows]).to(device)}


class Seeing(Rows):
    """The same with CLIP's view of a picture."""

    def join(self, rows, first, device):
        embeds = torch.stack([row["image_embeds"] for row in rows])
        return {**super().join(rows, first, device), "encoder_hidden_states_image": embeds}


def clip_of(index: int, frames: int = 3) -> EncodedClip:
    generator = torch.Generator().manual_seed(index)
    latents = torch.randn(4, frames, 4, 6, generator=generator)
    states = torch.randn(5, 8, generator=generator)
    return EncodedClip(latents, latents[:, :1], {"states": states}, {"states": torch.zeros(5, 8)})


def plain_draws(latents, noise, sigmas, **others) -> Draws:
    count = len(latents)
    values = {
        "drop": torch.zeros(count, dtype=torch.bool),
        "cutoff": torch.full((count,), 0.1),
        "frames": None,
        "masks": torch.full((count, 3), 0.5),
    }
    return Draws(noise=noise, sigmas=sigmas, **{**values, **others})


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    found = FlashI2VTransformer3DModel(**CONFIG)
    for parameter in found.parameters():
        # Branches that start at zero would hide what enters them.
        torch.nn.init.normal_(parameter, std=0.2)
    return found.requires_grad_(False)


# --- Recorded numbers -------------------------------------------------------------------------

golden = pytest.mark.skipif(
    not (GOLDEN / "training.json").exists(), reason="this set has no fixture 5"
)


@golden
@pytest.mark.parametrize("case", ["plain", "shift3", "dynamic"])
def test_the_recorded_step_has_the_recorded_loss(case):
    tensors = load_file(GOLDEN / "training.safetensors")
    facts = json.loads((GOLDEN / "training.json").read_text())
    transformer = load_transformer(
        GOLDEN / "transformer.weights.safetensors", config=GOLDEN / "transformer.config.json"
    )
    latents, noise = tensors["latents"], tensors["noise"]
    first = tensors["start_frame_latents"]
    shift = {"plain": 1.0, "shift3": 3.0, "dynamic": dynamic_shift(*latents.shape[3:])}[case]
    sigmas = shift_sigmas(tensors["sigmas_in"], shift)
    torch.testing.assert_close(
        sigmas, tensors[f"{case}.sigmas"], atol=facts["tolerance"]["sigmas_max_abs"], rtol=0
    )
    clips = [
        EncodedClip(x, s, {"states": c}, {"states": torch.zeros_like(c)})
        for x, s, c in zip(latents, first, tensors["ctx"], strict=True)
    ]
    loss = clip_loss(
        transformer, Rows(), clips, plain_draws(latents, noise, sigmas), ObjectiveSettings()
    )
    expected = float(tensors[f"{case}.loss"])
    assert float(loss) == pytest.approx(expected, rel=facts["tolerance"]["loss_rel"])


@golden
def test_the_shift_of_a_size_is_the_recorded_one():
    facts = json.loads((GOLDEN / "training.json").read_text())["dynamic_shift"]
    for name, expected in facts.items():
        if name[0].isdecimal():
            height, width = (int(side) // 8 for side in name.split("x"))
            assert dynamic_shift(height, width) == pytest.approx(expected, rel=1e-6)


@golden
@pytest.mark.parametrize(("kind", "shifted"), [("logitnorm", False), ("logitnorm_dynamic", True)])
def test_levels_come_from_draws_as_recorded(kind, shifted):
    tensors = load_file(GOLDEN / "training.safetensors")
    shift = dynamic_shift(*tensors["latents"].shape[3:]) if shifted else 1.0
    sigmas = shift_sigmas(torch.sigmoid(tensors[f"sigma_sampling.{kind}.draw"]), shift)
    torch.testing.assert_close(sigmas, tensors[f"sigma_sampling.{kind}.sigmas"], atol=1e-6, rtol=0)


# --- The equation -----------------------------------------------------------------------------


def test_a_clip_loss_is_equation_22_written_out(model):
    clips = [clip_of(1), clip_of(2)]
    x = torch.stack([clip.latents for clip in clips])
    eps = torch.randn(x.shape, generator=torch.Generator().manual_seed(9))
    sigmas, cutoff = torch.tensor([0.3, 0.8]), torch.tensor([0.2, 0.7])
    settings = ObjectiveSettings()
    found = clip_loss(model, Rows(), clips, plain_draws(x, eps, sigmas, cutoff=cutoff), settings)
    total = 0.0
    for i, clip in enumerate(clips):
        s = clip.first[None]
        z = (1 - sigmas[i]) * x[i : i + 1] + sigmas[i] * eps[i : i + 1]
        shown = z - project_first_frame(model, s)
        features = fourier_features(s, float(cutoff[i]), 3)
        context = clip.conditions["states"][None]
        v = model(shown, sigmas[i : i + 1] * 1000, context, features, return_dict=False)[0]
        total += float((v - (eps[i] - x[i])).square().mean()) / 2
    assert float(found) == pytest.approx(total, rel=1e-5)


def test_a_dropped_caption_leaves_the_picture(model):
    clip = clip_of(1)
    x = clip.latents[None]
    eps = torch.randn(x.shape, generator=torch.Generator().manual_seed(3))
    sigmas = torch.tensor([0.5])
    settings = ObjectiveSettings()
    kept = clip_loss(model, Rows(), [clip], plain_draws(x, eps, sigmas), settings)
    drops = torch.tensor([True])
    dropped = clip_loss(model, Rows(), [clip], plain_draws(x, eps, sigmas, drop=drops), settings)
    silent = EncodedClip(clip.latents, clip.first, clip.empty, clip.empty)
    assert dropped != kept
    assert dropped == clip_loss(model, Rows(), [silent], plain_draws(x, eps, sigmas), settings)


def test_text_to_video_sees_neither_shift_nor_picture(model):
    clip = clip_of(1)
    other = EncodedClip(clip.latents, clip.first * 5, clip.conditions, clip.empty)
    x = clip.latents[None]
    eps = torch.randn(x.shape, generator=torch.Generator().manual_seed(3))
    draws = plain_draws(x, eps, torch.tensor([0.5]))
    for mode, equal in (("t2v", True), ("flash", False)):
        settings = ObjectiveSettings(mode=mode)
        losses = [clip_loss(model, Rows(), [c], draws, settings) for c in (clip, other)]
        assert (losses[0] == losses[1]) == equal


def test_chosen_frames_keep_their_places(model):
    clip = clip_of(1, frames=5)
    frames = torch.tensor([0, 3])
    part = clip.latents[None][:, :, frames]
    eps = torch.randn(part.shape, generator=torch.Generator().manual_seed(3))
    seen = {}

    class Spy:
        dtype = torch.float32
        learnable_proj = model.learnable_proj

        def __call__(self, hidden_states, timestep, **arguments):
            seen.update(arguments, hidden_states=hidden_states)
            return (torch.zeros_like(hidden_states),)

    draws = plain_draws(part, eps, torch.tensor([1.0]), frames=frames)
    clip_loss(Spy(), Rows(), [clip], draws, ObjectiveSettings())
    assert seen["frame_indices"].tolist() == [0, 3]
    assert seen["hidden_states"].shape[2] == seen["fourier_features"].shape[2] == 2


def test_what_is_known_stands_behind_the_noise():
    seen = {}

    class Spy:
        dtype = torch.float32

        def __call__(self, hidden_states, timestep, **arguments):
            seen.update(arguments, hidden_states=hidden_states)
            return (torch.zeros_like(hidden_states[:, :4]),)

    known = torch.stack([torch.full((8, 3, 4, 6), 7.0), torch.zeros(8, 3, 4, 6)])
    known[1, 4:] = 2.0  # nothing known, but latents of a grey clip
    clip = clip_of(1)
    rows = {"states": clip.conditions["states"], "image_embeds": torch.ones(3, 8)}
    clip = EncodedClip(clip.latents, clip.first, {**rows, KNOWN: known}, rows)
    x = clip.latents[None]
    eps = torch.randn(x.shape, generator=torch.Generator().manual_seed(3))
    settings = ObjectiveSettings(mode="inpaint")

    def told(*masks):
        draws = plain_draws(x, eps, torch.tensor([0.5]), masks=torch.tensor([masks]))
        clip_loss(Spy(), Seeing(), [clip], draws, settings)
        return seen["hidden_states"][:, 4:], seen["encoder_hidden_states_image"]

    assert (told(0.1, 0.5, 0.5)[0] == 7.0).all()
    assert (told(0.9, 0.95, 0.5)[0][:, 4:] == 2.0).all()
    assert not told(0.9, 0.5, 0.5)[0].any(), "latents of nothing are left out nine times in ten"
    assert told(0.1, 0.5, 0.5)[1].all() and not told(0.1, 0.5, 0.05)[1].any()


# --- Randomness -------------------------------------------------------------------------------


@given(numbers=st.lists(st.integers(0, 10**6), min_size=1, max_size=4, unique=True))
@settings(max_examples=20, deadline=None)
def test_what_is_drawn_for_a_sample_depends_on_its_number_alone(numbers):
    shape = (len(numbers), 2, 3, 2, 2)
    together = draw(ObjectiveSettings(), numbers, shape)
    for place, number in enumerate(numbers):
        alone = draw(ObjectiveSettings(), [number], (1, *shape[1:]))
        assert torch.equal(together.noise[place], alone.noise[0])
        assert together.sigmas[place] == alone.sigmas[0]
        assert together.cutoff[place] == alone.cutoff[0]
        assert together.drop[place] == alone.drop[0]


def test_draws_are_those_that_were_asked_for():
    numbers = list(range(2000))
    found = draw(ObjectiveSettings(), numbers, (2000, 1, 1, 1, 1))
    assert 0.05 <= float(found.cutoff.min()) < 0.06 and 0.94 < float(found.cutoff.max()) <= 0.95
    assert 0.08 < float(found.drop.float().mean()) < 0.12
    assert 0.48 < float(found.sigmas.mean()) < 0.52
    assert 0.23 < float(found.sigmas.quantile(0.25)) < 0.27
    middle = draw(ObjectiveSettings(timesteps="logit-normal"), numbers, (2000, 1, 1, 1, 1)).sigmas
    assert 0.31 < float(middle.quantile(0.25)) < 0.365  # sigmoid of -0.674
    shifted = draw(ObjectiveSettings(sigma_shift=5.0), numbers, (2000, 1, 1, 1, 1)).sigmas
    torch.testing.assert_close(shifted, shift_sigmas(found.sigmas, 5.0))
    assert not draw(ObjectiveSettings(caption_drop=0.0), numbers, (2000, 1, 1, 1, 1)).drop.any()


def test_a_step_is_the_same_however_it_is_shared_out(model):
    batch = [SampleNumber(40 + k, k, 0) for k in range(5)]
    settings = ObjectiveSettings(latent_frames=2)
    trained = {n: p for n, p in model.named_parameters() if n.startswith("blocks.1.ffn")}

    def gradients(world, batch_size):
        total = {name: torch.zeros_like(p) for name, p in trained.items()}
        loss = 0.0
        for rank in range(world):
            objective = ClipObjective(
                model, Rows(), lambda k: clip_of(k, 5), lambda _step: batch, settings,
                rank=rank, world=world, batch_size=batch_size,
            )  # fmt: skip
            passes = list(objective(0))
            share = math.ceil(5 / world)
            assert len(passes) == math.ceil(share / batch_size)
            for one in passes:
                found = torch.autograd.grad(one, list(trained.values()))
                for name, gradient in zip(trained, found, strict=True):
                    total[name] += gradient / world
                loss += one.item() / world
        return loss, total

    for parameter in trained.values():
        parameter.requires_grad_(True)
    try:
        loss, expected = gradients(1, 5)
        for world, batch_size in ((1, 1), (1, 2), (2, 1), (2, 3), (3, 2), (7, 1)):
            again, found = gradients(world, batch_size)
            assert again == pytest.approx(loss, rel=1e-5)
            for name, gradient in found.items():
                torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-7)
    finally:
        for parameter in trained.values():
            parameter.requires_grad_(False)
