"""The objective of the embedded transformer: what each kind of step sees, and only that."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch

from osp_cli.models.transformer_flash_i2v import FlashI2VTransformer3DModel
from osp_cli.sampling.fourier import fourier_features
from osp_cli.sampling.latent_shift import project_first_frame
from osp_cli.training import mini_dit
from osp_cli.training.mini_data import save_shard
from osp_cli.training.mini_dit import (
    GEOMETRY,
    DitObjective,
    Mixture,
    Pool,
    continued,
    continues,
    is_block_matrix,
    new_transformer,
    pool_samples,
    shard_sample,
    training_shortcuts,
)
from osp_cli.training.mini_start import protect
from osp_cli.training.mini_vlm import MAX_SEQUENCE_LENGTH, new_conditioner


def generator(seed=3):
    return torch.Generator().manual_seed(seed)


# --- the model -------------------------------------------------------------------------------


@pytest.fixture
def new_model(geometry):
    def new(seed):
        conditioner = new_conditioner(1, geometry["text_dim"], geometry["in_channels"])
        return new_transformer(seed, conditioner, dict(geometry))

    return new


def test_a_model_follows_from_its_seed(new_model):
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


def test_muon_gets_the_matrices_of_the_blocks_and_nothing_else(new_model):
    named = {f"transformer.{name}": p for name, p in new_model(1).named_parameters()}
    chosen = {name for name, p in named.items() if is_block_matrix(name, p)}
    for name, parameter in named.items():
        expected = ".blocks." in name and name.endswith("weight") and parameter.ndim == 2
        assert (name in chosen) == expected, name
    assert len(chosen) == 3 * 10  # query, key, value, output of two attentions, two of the MLP


# --- the objective ---------------------------------------------------------------------------


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


@pytest.fixture
def drawn(objective, monkeypatch):
    """The batches that steps draw, in order."""
    batches = []
    genuine = objective._draw

    def draw(*args):
        batches.append(genuine(*args))
        return batches[-1]

    monkeypatch.setattr(objective, "_draw", draw)
    return batches


def mix(objective, **shares):
    """The same objective with other shares."""
    objective.mixture = replace(objective.mixture, **shares)
    return objective


def refuse(monkeypatch, name, why):
    def refused(*_):
        raise AssertionError(why)

    monkeypatch.setattr(mini_dit, name, refused)


def test_a_step_follows_from_its_number(objective):
    torch.manual_seed(1)
    losses = [objective(step).item() for step in range(4)]
    torch.manual_seed(2)
    assert [objective(step).item() for step in (3, 1)] == [losses[3], losses[1]]
    assert len(set(losses)) == 4


def test_kinds_of_steps_come_in_their_shares(objective, monkeypatch):
    kinds = Counter()
    for kind in ("_image_to_video", "_continuation"):
        monkeypatch.setattr(objective, kind, lambda *_, kind=kind: kinds.update([kind]))
    mix(objective, continuation=0.3)
    for step in range(1000):
        objective(step)
    assert kinds["_continuation"] / 1000 == pytest.approx(0.3, abs=0.05)
    assert kinds.total() == 1000


def test_an_image_step_is_shifted_and_guided(objective, watched, drawn):
    seen = set()
    for step in range(6):
        objective(step)
        hidden, timestep, context, features, indices = watched[-1]
        batch = drawn[-1]
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
        noise = (hidden + phi.detach() - (1 - sigma) * batch.latents.float()) / sigma
        assert abs(float(noise.mean())) < 0.2
        assert float(noise.std()) == pytest.approx(1.0, abs=0.1)
        # Places in time: those of the frames that the pool kept.
        assert torch.equal(indices, batch.indices)
        seen.add(tuple(indices.tolist()))
        rows, columns = hidden.shape[-2:]
        assert context.shape[1:] == (MAX_SEQUENCE_LENGTH + rows * columns, 192)
    assert seen == {tuple(shard.indices.tolist()) for shard in objective.pool.shards}


def test_a_batch_holds_clips_of_one_choice_of_frames(objective, drawn):
    pictures = {
        tuple(shard.indices.tolist()): shard.first.float() for shard in objective.pool.shards
    }
    for step in range(6):
        objective(step)
        batch = drawn[-1]
        own = pictures[tuple(batch.indices.tolist())]
        for first in batch.first:
            assert any(torch.equal(first, picture) for picture in own)


def test_a_continuation_step_has_a_clean_context_at_time_zero(
    objective, watched, drawn, monkeypatch
):
    refuse(monkeypatch, "project_first_frame", "continuation has no first frame")
    refuse(monkeypatch, "fourier_features", "continuation has no first frame")
    refuse(monkeypatch, "blur_latents", "the context is known to be sharp")
    mix(objective, continuation=1.0)
    shown = []
    objective.surround = lambda first: shown.append(first) or torch.cat([first, first], -1)
    for step in range(6):
        objective(step)
        hidden, timestep, context, features, indices = watched[-1]
        batch = drawn[-1]
        later = batch.latents[:, :, 1:].float()
        assert hidden.shape == later.shape
        # The clip's second kept frame is the context: clean, at time zero, and the picture.
        assert torch.equal(hidden[:, :, 0], later[:, :, 0])
        assert torch.equal(shown[-1], later[:, :, :1])
        by_frame = timestep.reshape(len(hidden), 3, -1)
        assert by_frame[:, 0].abs().max() == 0
        assert (by_frame[:, 1:] > 0).all()
        # The noisy frames of a sample share its one noise level.
        assert torch.equal(by_frame[:, 1:], by_frame[:, 1:2, :1].expand_as(by_frame[:, 1:]))
        sigma = (by_frame[:, 1, 0] / 1000).reshape(-1, 1, 1, 1, 1)
        noise = (hidden[:, :, 1:] - (1 - sigma) * later[:, :, 1:]) / sigma
        assert float(noise.std()) == pytest.approx(1.0, abs=0.15)
        assert features.abs().max() == 0
        # Places are counted from the context.
        assert torch.equal(indices, batch.indices[1:] - batch.indices[1])
        expected = objective.conditioner.project(
            batch.states, batch.mask, torch.cat([shown[-1]] * 2, -1)
        )
        torch.testing.assert_close(context, expected)
        # Nothing falls in them: the others of this pool are brighter by a hundred.
        assert batch.latents.float().mean() < 10


def test_a_clip_is_continued_where_one_frame_tells_the_rest():
    caption = {"prompt": "", "style": "ink", "camera": "pan-left", "scene": None, "speed": "slow"}
    assert continues(caption)
    assert not continues({**caption, "scene": "snow"})
    assert not continues({**caption, "camera": None})


def test_a_continued_clip_begins_at_its_second_kept_frame():
    latents = torch.randn(2, 3, 4, 2, 2).bfloat16()
    later, indices = continued(latents, torch.tensor([0, 3, 7, 10]))
    assert torch.equal(later, latents[:, :, 1:].float())
    assert later.dtype == torch.float32
    assert indices.tolist() == [0, 4, 7]


def test_image_tokens_are_dropped_blurred_or_sharp(objective, watched):
    image = slice(MAX_SEQUENCE_LENGTH, None)
    contexts = []
    for drop, blur in ((0.0, 0.0), (0.0, 1.0), (1.0, 0.0)):
        mix(objective, image_token_drop=drop, image_token_blur=blur)(3)
        contexts.append(watched[-1][2][:, image].detach())
    sharp, blurred, dropped = contexts
    assert dropped.abs().max() == 0
    assert sharp.abs().mean() > 0.01
    assert not torch.allclose(sharp, blurred, atol=1e-3)
    # All of this picture's tokens lie within two blurs: they differ by their places mostly.
    assert (blurred - blurred.mean(1, keepdim=True)).norm() < (
        sharp - sharp.mean(1, keepdim=True)
    ).norm()


def test_image_tokens_show_the_surroundings(objective, watched, drawn):
    seen = []

    def surround(first):
        seen.append(first)
        return torch.nn.functional.pad(first, (2, 2, 2, 2), value=0.5)

    objective.surround = surround
    mix(objective, image_token_drop=0.0, image_token_blur=0.0)(3)
    context, batch = watched[-1][2], drawn[-1]
    rows, columns = batch.first.shape[-2:]
    assert torch.equal(seen[0], batch.first)
    assert context.shape[1] == MAX_SEQUENCE_LENGTH + (rows + 4) * (columns + 4)
    # Features are of the picture alone.
    assert watched[-1][3].shape[-2:] == (rows, columns)


def test_captions_are_dropped(objective, watched):
    text = slice(0, MAX_SEQUENCE_LENGTH)
    rows = []
    for share in (0.0, 1.0):
        mix(objective, caption_drop=share)(3)
        rows.append((watched[-1][2][:, text].abs().sum(2) > 0).sum(1))
    told, untold = rows
    assert (untold < told).all()


def test_a_step_teaches_all_that_the_start_left_free(objective):
    protect(objective.model, objective.conditioner)
    mix(objective, image_token_drop=0.0)
    trained = {n: p for n, p in objective.model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.SGD(trained.values(), lr=0.1)
    for _ in range(2):
        # Behind a zero start gradients arrive at the second step.
        optimizer.zero_grad()
        objective(3).backward()
        optimizer.step()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in trained.values())
    assert {name.split(".")[0] for name in trained} == {"blocks", "learnable_proj"}
    assert all(p.grad is None for p in objective.conditioner.model.parameters())


def test_shortcuts_change_no_number(objective):
    protect(objective.model, objective.conditioner)

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


def test_processes_draw_different_samples(objective, pool):
    others = [
        DitObjective(
            objective.model, pool.conditioner, pool, Mixture(batch_size=4), seed=5, rank=rank
        )
        for rank in (0, 1)
    ]
    assert others[0](3).item() == objective(3).item() != others[1](3).item()


def test_channels_count_by_their_weights(objective, pool):
    weights = torch.zeros(4)
    silent = DitObjective(
        objective.model, pool.conditioner, pool, Mixture(batch_size=4), 5, weights
    )
    assert silent(3).item() == 0
    mix(silent, continuation=1.0)
    assert silent(3).item() == 0
    assert objective(3).item() > 0


# --- samples and the pool --------------------------------------------------------------------


def test_a_sample_of_a_shard_is_what_a_step_would_see(objective, watched):
    cutoffs = torch.tensor([0.2, 0.6])
    sample = shard_sample(objective, 1, [2, 0], cutoffs, generator())
    shard = objective.pool.shards[1]
    assert torch.equal(sample.latents, shard.latents[[2, 0]].float())
    with torch.no_grad():
        sample.velocity(sample.noisy)
    hidden, timestep, context, features, indices = watched[-1]
    sigma = (timestep / 1000).reshape(-1, 1, 1, 1, 1)
    noise = (hidden - (1 - sigma) * sample.latents) / sigma
    assert float(noise.std()) == pytest.approx(1.0, abs=0.1)
    first = shard.first[[2, 0]].float()
    torch.testing.assert_close(features, fourier_features(first, cutoffs, 4))
    assert torch.equal(indices, shard.indices)
    state, mask = objective.pool.states[1]["both"]
    expected = objective.conditioner.project(state[[2, 0]].float(), mask[[2, 0]], first)
    torch.testing.assert_close(context, expected)


def test_a_sample_without_cutoffs_continues_its_clip(objective, watched):
    sample = shard_sample(objective, 1, [0, 2], None, generator())
    shard = objective.pool.shards[1]
    later = shard.latents[[0, 2]].float()[:, :, 1:]
    assert torch.equal(sample.latents, later)
    with torch.no_grad():
        sample.velocity(sample.noisy)
    _, _, context, features, indices = watched[-1]
    assert features.abs().max() == 0
    assert indices.tolist() == [0, 4, 7]
    state, mask = objective.pool.states[1]["both"]
    expected = objective.conditioner.project(state[[0, 2]].float(), mask[[0, 2]], later[:, :, :1])
    torch.testing.assert_close(context, expected)


def test_samples_of_the_pool_are_accepted_counted_and_repeated(objective):
    def latents(clips, accept):
        return [sample.latents for sample in pool_samples(objective, clips, accept)]

    steady = torch.cat(latents(100, continues))
    assert len(steady) == 4  # of eight clips, half
    assert steady.mean() < 10
    assert len(torch.cat(latents(3, continues))) == 3
    assert len(torch.cat(latents(100, lambda _caption: True))) == 8
    one, again = (list(pool_samples(objective, 5, continues)) for _ in range(2))
    assert len(one) == len(again) > 0
    for first, second in zip(one, again, strict=True):
        assert torch.equal(first.noisy, second.noisy)


def test_the_pool_knows_two_ways_to_be_told(pool):
    [first, _] = pool.states
    assert set(first) == {"both", "picture"}
    lengths = {name: mask.sum(1) for name, (_, mask) in first.items()}
    assert (lengths["both"] > lengths["picture"]).all()


def test_one_shard_of_the_pool_can_be_chosen(pool, tmp_path):
    for number, shard in enumerate(pool.shards):
        save_shard(shard, tmp_path / f"shard-{number:05d}.safetensors")
    alone = Pool(pool.conditioner)
    assert alone.load(tmp_path, chosen=1) == 4
    assert torch.equal(alone.shards[0].indices, pool.shards[1].indices)
