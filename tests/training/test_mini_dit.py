"""The objective of the embedded transformer: what each kind of step sees, and only that."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch

from osp_cli.models.transformer_flash_i2v import FlashI2VTransformer3DModel
from osp_cli.sampling.latent_shift import project_first_frame
from osp_cli.training.mini_data import Shard, save_shard
from osp_cli.training.mini_dit import (
    GEOMETRY,
    DitObjective,
    Mixture,
    Pool,
    is_block_matrix,
    new_transformer,
    training_shortcuts,
)
from osp_cli.training.mini_start import protect
from osp_cli.training.mini_vlm import MAX_SEQUENCE_LENGTH, new_conditioner

CHANNELS = 4
TINY = {
    "num_attention_heads": 8,
    "attention_head_dim": 16,
    "in_channels": CHANNELS,
    "out_channels": CHANNELS,
    "text_dim": 128,
    "freq_dim": 64,
    "ffn_dim": 32,
    "num_layers": 2,
    "projection_channels": 8,
    "position_channels": 24,
    "rope_max_seq_len": 64,
}
FRAMES, ROWS, COLUMNS = 13, 2, 4
TOKENS = ROWS * COLUMNS // 4  # of one latent frame
IMAGE_TOKENS = ROWS * COLUMNS


# --- the model -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def conditioner():
    return new_conditioner(1, TINY["text_dim"], CHANNELS)


def new_model(seed=1):
    return new_transformer(seed, new_conditioner(1, TINY["text_dim"], CHANNELS), TINY)


def test_a_model_follows_from_its_seed():
    one, same, other = (new_model(seed) for seed in (1, 1, 2))
    for name, value in one.state_dict().items():
        assert torch.equal(value, same.state_dict()[name])
    assert not torch.equal(
        one.blocks[1].ffn.net[0].proj.weight, other.blocks[1].ffn.net[0].proj.weight
    )


def test_the_embedded_geometry_fits_its_budget():
    with torch.device("meta"):
        model = FlashI2VTransformer3DModel(**GEOMETRY)
    # All embedded weights together stay below 32 MB in bf16.
    assert 2 * sum(p.numel() for p in model.parameters()) < 28e6
    assert GEOMETRY["projection_channels"] >= 2 * GEOMETRY["in_channels"]


def test_muon_gets_the_matrices_of_the_blocks_and_nothing_else():
    model = new_model()
    named = {f"transformer.{name}": p for name, p in model.named_parameters()}
    chosen = {name for name, p in named.items() if is_block_matrix(name, p)}
    for name, parameter in named.items():
        expected = ".blocks." in name and name.endswith("weight") and parameter.ndim == 2
        assert (name in chosen) == expected, name
    assert len(chosen) == 2 * 10  # query, key, value, output of two attentions, two of the MLP


# --- the objective ---------------------------------------------------------------------------


def new_shard(seed, clips=4):
    """Unstyled and styled clips in turn; every latent of a clip tells which one it is."""
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn(clips, CHANNELS, FRAMES, ROWS, COLUMNS, generator=generator)
    styled = torch.arange(clips) % 2 == 1
    latents[styled] += 100.0
    return Shard(
        latents.bfloat16(),
        torch.randn(clips, CHANNELS, 1, ROWS, COLUMNS, generator=generator).bfloat16(),
        torch.randint(0, 256, (clips, 3, 56, 112), generator=generator).to(torch.uint8),
        [
            {"prompt": f"pan left {k}", "style": "ink" if flag else None, "camera": "pan-left",
             "scene": None, "speed": "normal"}
            for k, flag in enumerate(styled.tolist())
        ],
    )  # fmt: skip


@pytest.fixture(scope="module")
def pool(conditioner, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pool")
    pool = Pool(conditioner)
    for number in range(2):
        save_shard(new_shard(number), folder / f"shard-{number:05d}.safetensors")
    assert pool.load(folder, 1) == 4
    # Shards already loaded are not loaded again.
    assert pool.load(folder) == 8
    assert pool.load(folder) == 8
    assert len(pool.shards) == len(pool.states) == 2
    return pool


@pytest.fixture
def objective(conditioner, pool):
    mixture = Mixture(batch_size=4)
    # The start is written into the adapters too, so every test gets them as they begin.
    model = new_transformer(1, conditioner, TINY)
    return DitObjective(model, conditioner, pool, mixture, seed=5, steps=100)


@pytest.fixture
def watched(objective, monkeypatch):
    """What the model is given, call by call."""
    calls = []
    genuine = objective.model.forward

    def forward(hidden_states, timestep, context, features, *, frame_indices, return_dict):
        calls.append((hidden_states.detach(), timestep, context, features, frame_indices))
        return genuine(
            hidden_states,
            timestep,
            context,
            features,
            frame_indices=frame_indices,
            return_dict=return_dict,
        )

    monkeypatch.setattr(objective.model, "forward", forward)
    return calls


def only(objective, kind):
    """The same objective with nothing but one kind of step."""
    share = {"continuation": 0.0, "text_to_video": 0.0}
    if kind in share:
        share[kind] = 1.0
    objective.mixture = replace(objective.mixture, **share)
    return objective


def test_a_step_follows_from_its_number(objective):
    torch.manual_seed(1)
    losses = [objective(step).item() for step in range(4)]
    torch.manual_seed(2)
    assert [objective(step).item() for step in (3, 1)] == [losses[3], losses[1]]
    assert len(set(losses)) == 4


def test_kinds_of_steps_come_in_their_shares(objective, monkeypatch):
    kinds = Counter()
    for kind in ("_image_to_video", "_continuation", "_text_to_video"):
        monkeypatch.setattr(objective, kind, lambda *_, kind=kind: kinds.update([kind]))
    objective.mixture = replace(objective.mixture, continuation=0.3, text_to_video=0.2)
    for step in range(1000):
        objective(step)
    assert kinds["_continuation"] / 1000 == pytest.approx(0.3, abs=0.05)
    assert kinds["_text_to_video"] / 1000 == pytest.approx(0.2, abs=0.05)
    assert kinds["_image_to_video"] / 1000 == pytest.approx(0.5, abs=0.05)


def test_an_image_step_is_shifted_and_guided(objective, watched, pool, monkeypatch):
    seen = {}
    genuine = objective._draw

    def draw(*args):
        seen["batch"] = genuine(*args)
        return seen["batch"]

    monkeypatch.setattr(objective, "_draw", draw)
    only(objective, "image_to_video")
    for step in range(8):
        objective(step)
        hidden, timestep, context, features, indices = watched[-1]
        batch = seen["batch"]
        frames = hidden.shape[2]
        assert frames == 3
        assert features.shape == hidden.shape
        # One magnitude for all frames: of the first frame, and not of the clip.
        assert torch.equal(features, features[:, :, :1].expand_as(features))
        assert features.min() >= 0
        assert features.mean() > 0.01
        assert timestep.shape == (len(hidden),)
        assert 0 < timestep.min() < timestep.max() < 1000
        # What is left without the noise's share is the clip's share and the shift.
        sigma = (timestep / 1000).reshape(-1, 1, 1, 1, 1)
        phi = project_first_frame(objective.model, batch.first)
        clean = batch.latents[:, :, indices].float()
        noise = (hidden + phi.detach() - (1 - sigma) * clean) / sigma
        assert abs(float(noise.mean())) < 0.2
        assert float(noise.std()) == pytest.approx(1.0, abs=0.1)
        # Places in time: true ones, in order.
        assert (indices[1:] > indices[:-1]).all()
        assert 0 <= indices[0] <= indices[-1] < FRAMES
        assert context.shape[1:] == (MAX_SEQUENCE_LENGTH + IMAGE_TOKENS, TINY["text_dim"])


def test_late_steps_see_whole_clips(objective, watched):
    objective.mixture = replace(objective.mixture, whole_from=0.9)
    only(objective, "image_to_video")(99)
    assert watched[0][4].tolist() == list(range(FRAMES))
    objective.mixture = replace(objective.mixture, continuation=1.0)
    objective(99)
    assert watched[1][0].shape[2] >= 10


def test_a_text_step_has_no_shift_no_features_and_no_picture(objective, watched, monkeypatch):
    def refused(*_):
        raise AssertionError("text to video has no first frame")

    monkeypatch.setattr("osp_cli.training.mini_dit.project_first_frame", refused)
    monkeypatch.setattr("osp_cli.training.mini_dit.fourier_features", refused)
    only(objective, "text_to_video")
    for step in range(4):
        objective(step)
        _, _, context, features, _ = watched[-1]
        assert features.abs().max() == 0
        assert context[:, MAX_SEQUENCE_LENGTH:].abs().max() == 0
        assert context[:, :MAX_SEQUENCE_LENGTH].abs().max() > 0


def test_a_continuation_step_has_a_clean_context_at_time_zero(objective, watched, monkeypatch):
    def refused(*_):
        raise AssertionError("continuation has no first frame")

    monkeypatch.setattr("osp_cli.training.mini_dit.project_first_frame", refused)
    monkeypatch.setattr("osp_cli.training.mini_dit.fourier_features", refused)
    only(objective, "continuation")
    contexts = set()
    for step in range(12):
        objective(step)
        hidden, timestep, context, features, _ = watched[-1]
        frames = hidden.shape[2]
        assert timestep.shape == (len(hidden), frames * TOKENS)
        by_frame = timestep.reshape(len(hidden), frames, TOKENS)
        clean = (by_frame == 0).all(2)
        assert torch.equal(clean, clean[:1].expand_as(clean))
        known = int(clean[0].sum())
        assert clean[0, :known].all()
        assert frames - known == 3
        contexts.add(known)
        # The noisy frames of a sample share its one noise level.
        later = by_frame[:, known:]
        assert (later > 0).all()
        assert torch.equal(later, later[:, :1, :1].expand_as(later))
        # Clean means: frames of the pool itself, to the bit.
        pieces = [s.latents.float() for s in objective.pool.shards]
        places = [
            torch.equal(clip[:, start : start + known], hidden[0, :, :known])
            for clips in pieces
            for clip in clips
            for start in range(FRAMES - known + 1)
        ]
        assert any(places)
        assert features.abs().max() == 0
        assert context[:, MAX_SEQUENCE_LENGTH:].abs().max() == 0
    assert contexts == {1, 2, 3}


def test_early_steps_see_unstyled_clips_two_times_of_three(objective, monkeypatch):
    styled = []
    genuine = objective._draw

    def draw(*args):
        batch = genuine(*args)
        styled.append(bool((batch.latents.float().mean((1, 2, 3, 4)) > 50).any()))
        return batch

    monkeypatch.setattr(objective, "_draw", draw)
    objective.mixture = replace(objective.mixture, plain_until=0.3)
    only(objective, "image_to_video")
    for step in range(12):
        objective(step)
    assert not any(flag for step, flag in enumerate(styled) if step % 3 != 2)
    assert any(flag for step, flag in enumerate(styled) if step % 3 == 2)
    styled.clear()
    for step in range(40, 48):
        objective(step)
    assert sum(styled) >= 6


def drop_everything(objective, **shares):
    objective.mixture = replace(
        objective.mixture,
        **{"caption_drop": 0.0, "image_token_drop": 0.0, "image_token_blur": 0.0, **shares},
    )
    return only(objective, "image_to_video")


def test_image_tokens_are_dropped_blurred_or_sharp(objective, watched):
    image = slice(MAX_SEQUENCE_LENGTH, None)
    contexts = []
    for shares in ({}, {"image_token_blur": 1.0}, {"image_token_drop": 1.0}):
        drop_everything(objective, **shares)(3)
        contexts.append(watched[-1][2][:, image].detach())
    sharp, blurred, dropped = contexts
    assert dropped.abs().max() == 0
    assert sharp.abs().mean() > 0.01
    assert not torch.allclose(sharp, blurred, atol=1e-3)
    # All of this picture's tokens lie within one blur: they differ by their places alone.
    assert (blurred - blurred.mean(1, keepdim=True)).norm() < (
        sharp - sharp.mean(1, keepdim=True)
    ).norm()


def test_captions_are_dropped(objective, watched):
    text = slice(0, MAX_SEQUENCE_LENGTH)
    rows = []
    for share in (0.0, 1.0):
        drop_everything(objective, caption_drop=share)(3)
        rows.append((watched[-1][2][:, text].abs().sum(2) > 0).sum(1))
    told, untold = rows
    assert (untold < told).all()


def test_a_step_teaches_all_that_the_start_left_free(objective):
    protect(objective.model, objective.conditioner)
    only(objective, "image_to_video")
    objective.mixture = replace(objective.mixture, image_token_drop=0.0)
    trained = {n: p for n, p in objective.model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.SGD(trained.values(), lr=0.1)
    for _ in range(2):
        # Behind a zero start gradients arrive at the second step.
        optimizer.zero_grad()
        objective(3).backward()
        optimizer.step()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in trained.values())
    assert {name.split(".")[0] for name in trained} == {
        "blocks", "fourier_embedding", "learnable_proj"
    }  # fmt: skip
    assert all(p.grad is None for p in objective.conditioner.model.parameters())


def test_shortcuts_change_no_number(objective):
    protect(objective.model, objective.conditioner)
    only(objective, "image_to_video")

    def step():
        objective.model.zero_grad()
        loss = objective(3)
        loss.backward()
        grads = {n: p.grad for n, p in objective.model.named_parameters() if p.grad is not None}
        return loss.item(), grads

    plain_loss, plain = step()
    with training_shortcuts(objective.model):
        loss, grads = step()
    assert loss == pytest.approx(plain_loss, rel=1e-4)
    assert grads.keys() == plain.keys()
    for name, gradient in grads.items():
        # What is left out goes through layer norms that the constants rule.
        scale = plain[name].abs().max()
        torch.testing.assert_close(gradient, plain[name], atol=float(0.05 * scale), rtol=0.05)
    again, _ = step()
    assert again == pytest.approx(plain_loss, rel=1e-6)


def test_processes_draw_different_samples(objective, conditioner, pool):
    others = [
        DitObjective(objective.model, conditioner, pool, Mixture(batch_size=4), 5, 100, rank=rank)
        for rank in (0, 1)
    ]
    assert others[0](3).item() == objective(3).item() != others[1](3).item()


def test_channels_count_by_their_weights(objective, conditioner, pool):
    weights = torch.zeros(CHANNELS)
    silent = DitObjective(
        objective.model, conditioner, pool, Mixture(batch_size=4), 5, 100, weights
    )
    assert silent(3).item() == 0
    assert objective(3).item() > 0


def test_the_pool_knows_four_ways_to_be_told(pool, conditioner):
    [first, _] = pool.states
    assert set(first) == {"both", "picture", "prompt", "nothing"}
    lengths = {name: mask.sum(1) for name, (_, mask) in first.items()}
    assert (lengths["both"] > lengths["picture"]).all()
    assert (lengths["both"] > lengths["prompt"]).all()
    assert (lengths["prompt"] > lengths["nothing"]).all()
    assert (lengths["picture"] > lengths["nothing"]).all()
    states, mask = conditioner.hidden_states(["pan left 2"])
    torch.testing.assert_close(
        first["prompt"][0][2].float(), states[0].bfloat16().float(), atol=0.02, rtol=0.02
    )
    assert torch.equal(first["prompt"][1][2], mask[0])
