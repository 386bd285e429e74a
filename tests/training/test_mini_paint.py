"""Painting layers by themselves: what they see is what they would see inside the model."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch

from osp_cli.models.mini_stream import stream_layout
from osp_cli.training import mini_paint
from osp_cli.training.mini_dit import shard_sample
from osp_cli.training.mini_lookups import Sample, tokens_of
from osp_cli.training.mini_paint import (
    Painter,
    Tokens,
    collect_tokens,
    load_tokens,
    painting_objective,
    save_tokens,
)
from osp_cli.training.mini_start import protect
from osp_cli.training.trainer import LoopSettings, Trainer

SEED = 1  # of noise, at levels that the exit divides by exactly
ROWS = [0, 2]  # clips of the first shard
CUTOFFS = torch.tensor([0.1, 0.5])


@pytest.fixture
def clips(quiet, monkeypatch):
    """Clips that are half their picture and one more or less: a layer can learn it."""
    [shard, *others] = quiet.pool.shards
    offset = torch.tensor([1.0, -1.0, 1.0, -1.0]).reshape(1, 4, 1, 1, 1)
    latents = shard.first.float() * 0.5 + offset
    latents = latents.expand_as(shard.latents).bfloat16()
    monkeypatch.setattr(quiet.pool, "shards", [replace(shard, latents=latents), *others])
    return quiet


def guess(objective, context=None):
    """The clip that the model sees in noise, its sample, and the true clip."""
    sample = shard_sample(objective, 0, ROWS, context, torch.Generator().manual_seed(SEED))
    sigmas = 0.05 + 0.95 * torch.rand(len(ROWS), generator=torch.Generator().manual_seed(SEED))
    with torch.no_grad():
        velocity = sample.velocity(sample.noisy)
    return sample.noisy - sigmas.reshape(-1, 1, 1, 1, 1) * velocity, sample


@torch.no_grad()
def paint_anything(model):
    """Weights that only training would give, where training may write; small beside constants."""
    torch.manual_seed(7)
    writable = stream_layout(model).writable
    for block in list(model.blocks)[1:]:
        last = block.ffn.net[2]
        torch.nn.init.normal_(last.weight, std=0.01)
        torch.nn.init.normal_(last.bias, std=0.05)
        last.weight *= writable[:, None]
        last.bias *= writable


def relative_error(got, wanted):
    return float((got - wanted).square().mean() / wanted.square().mean())


@pytest.mark.parametrize("cutoffs", [CUTOFFS, None], ids=["picture", "continued"])
def test_a_painter_adds_what_the_layers_add_inside_the_model(clips, cutoffs):
    plain, sample = guess(clips, cutoffs)
    with torch.no_grad():
        tokens = mini_paint._observe(clips, sample)
        paint_anything(clips.model)
        painted, _ = guess(clips, cutoffs)
        added = Painter(clips.model)(tokens)
    expected = tokens_of(clips.model, painted - plain)
    assert expected.square().mean() > 0.01
    # Up to what the exit of so narrow a model divides by wrongly.
    assert relative_error(added, expected) < 0.03
    # What is lacking is the clip without what the lookups bring.
    lacking = tokens_of(clips.model, sample.latents - plain)
    assert (tokens.lacking.float() - lacking).square().mean() < 0.01


def test_the_second_layer_reads_what_the_first_wrote_and_what_lookups_found(clips):
    _, sample = guess(clips, CUTOFFS)
    with torch.no_grad():
        tokens = mini_paint._observe(clips, sample)
        paint_anything(clips.model)
        painter = Painter(clips.model)
        whole = painter(tokens)
        deaf = painter(replace(tokens, found=torch.zeros_like(tokens.found)))
        clips.model.blocks[1].ffn.net[2].weight.zero_()
        alone = painter(tokens)
    assert relative_error(deaf, whole) > 1e-4
    assert relative_error(alone, whole) > 1e-2


def test_tokens_of_the_context_are_left_out(clips):
    _, sample = guess(clips, None)
    all_tokens, later = (mini_paint._observe(clips, sample, context=k) for k in (0, 1))
    batch, _, frames, rows, columns = sample.latents.shape
    assert len(all_tokens) == batch * frames * rows * columns // 4
    assert len(later) == batch * (frames - 1) * rows * columns // 4
    kept = all_tokens.stream.unflatten(0, (batch, frames, -1))[:, 1:].flatten(0, 2)
    assert torch.equal(later.stream, kept)
    lacking = all_tokens.lacking.unflatten(0, (batch, frames, -1))[:, 1:].flatten(0, 2)
    assert torch.equal(later.lacking, lacking)


def test_a_shard_is_collected_whole_and_its_steady_clips_once_more_continued(quiet, monkeypatch):
    asked = []
    genuine = mini_paint.shard_sample

    def sampled(objective, number, rows, cutoffs, generator) -> Sample:
        asked.append((number, rows, cutoffs))
        return genuine(objective, number, rows, cutoffs, generator)

    monkeypatch.setattr(mini_paint, "shard_sample", sampled)
    tokens = collect_tokens(quiet, 1)
    per_frame = 4 * 6 // 4
    # Four clips of four frames, two steady ones of two frames behind their context.
    assert len(tokens) == 4 * 4 * per_frame + 2 * 2 * per_frame
    assert {number for number, *_ in asked} == {1}
    assert sorted(row for _, rows, cutoffs in asked if cutoffs is not None for row in rows) == [
        0, 1, 2, 3,
    ]  # fmt: skip
    assert [sorted(rows) for _, rows, cutoffs in asked if cutoffs is None] == [[0, 2]]
    for field in fields(Tokens):
        value = getattr(tokens, field.name)
        assert value.dtype == torch.bfloat16
        assert value.isfinite().all()
    again = collect_tokens(quiet, 1)
    assert all(torch.equal(getattr(tokens, f.name), getattr(again, f.name)) for f in fields(Tokens))


def test_most_clips_are_seen_at_the_usual_cutoff(quiet, monkeypatch):
    seen = []

    def sampled(_objective, _number, rows, cutoffs, _generator):
        seen.append(cutoffs)
        raise StopIteration

    monkeypatch.setattr(mini_paint, "shard_sample", sampled)
    for seed in range(60):
        quiet.seed = seed
        with pytest.raises(StopIteration):
            collect_tokens(quiet, 0)
    cutoffs = torch.cat(seen)
    usual = (cutoffs == mini_paint.USUAL_CUTOFF).float().mean()
    assert 0.6 < usual < 0.8
    assert cutoffs.min() >= 0.05
    assert 0.8 < cutoffs.max() <= 0.95


def test_tokens_survive_their_files(quiet, tmp_path):
    both = [collect_tokens(quiet, number) for number in range(2)]
    paths = [tmp_path / f"shard-{number}.safetensors" for number in range(2)]
    for tokens, path in zip(both, paths, strict=True):
        save_tokens(tokens, path)
    joined = load_tokens(paths)
    assert len(joined) == len(both[0]) + len(both[1])
    for field in fields(Tokens):
        expected = torch.cat([getattr(tokens, field.name) for tokens in both])
        assert torch.equal(getattr(joined, field.name), expected)
    assert sorted(tmp_path.iterdir()) == paths
    some = joined[torch.tensor([5, 0])]
    assert torch.equal(some.found, joined.found[[5, 0]])


def settings(steps):
    return LoopSettings(steps=steps, learning_rate=3e-3, warmup=2, save_every=10, ema=0.9)


def painting(objective, folder, steps):
    """A trainer over the objective's model, and its loss."""
    protect(objective.model, objective.conditioner)
    painter = Painter(objective.model)
    tokens = collect_tokens(objective, 0)
    loss_of = painting_objective(painter, tokens, torch.ones(16), 1, 64, 0)
    return Trainer({"painter": painter}, settings(steps), folder), loss_of, painter, tokens


def test_painting_lowers_its_loss_and_the_models(clips, tmp_path):
    plain, sample = guess(clips, CUTOFFS)
    trainer, loss_of, painter, tokens = painting(clips, tmp_path, 60)
    weights = torch.ones(16)
    kept = {n: p.detach().clone() for n, p in clips.model.named_parameters()}
    with torch.no_grad():
        before = float(painter.loss(tokens, weights))
    for _ in trainer.run(loss_of):
        pass
    trainer.use_average()
    with torch.no_grad():
        after = float(painter.loss(tokens, weights))
    assert after < 0.4 * before
    # The layers are the model's own: it paints now, and with the average.
    layer = clips.model.blocks[1].ffn.net[2].weight
    assert torch.equal(layer, trainer.average["painter.layers.0.net.2.weight"])
    painted, _ = guess(clips, CUTOFFS)
    assert relative_error(painted, sample.latents) < 0.5 * relative_error(plain, sample.latents)
    # Nothing else has moved, nor anything that lookups go by.
    closed = stream_layout(clips.model).writable == 0
    for name, parameter in clips.model.named_parameters():
        if ".ffn.net.2." in name and not name.startswith("blocks.0."):
            assert torch.equal(parameter[closed], kept[name][closed]), name
        elif ".ffn." not in name or name.startswith("blocks.0."):
            assert torch.equal(parameter, kept[name]), name


def test_painting_goes_on_where_it_was(clips, tmp_path):
    start = {k: v.clone() for k, v in clips.model.state_dict().items()}

    def end(folder, stop):
        clips.model.load_state_dict(start)
        trainer, loss_of, *_ = painting(clips, folder, 20)
        for report in trainer.run(loss_of):
            if report.step == stop:
                return None
        return {k: v.clone() for k, v in clips.model.state_dict().items()}

    whole = end(tmp_path / "whole", None)
    assert end(tmp_path / "parts", 13) is None
    parts = end(tmp_path / "parts", None)
    assert all(torch.equal(whole[key], parts[key]) for key in whole)
    assert any(not torch.equal(whole[key], start[key]) for key in whole)


def test_channels_count_by_their_weights_and_processes_draw_different_tokens(clips):
    painter, tokens = Painter(clips.model), collect_tokens(clips, 0)
    silent = painting_objective(painter, tokens, torch.zeros(16), 1, 64, 0)
    assert silent(0).item() == 0
    one, same, other = (
        painting_objective(painter, tokens, torch.ones(16), 1, 64, rank) for rank in (0, 0, 1)
    )
    assert one(0).item() == same(0).item() != other(0).item()
    assert one(0).item() != one(1).item() > 0


def test_tokens_without_a_style_count_by_their_own_weight(clips):
    painter, tokens = Painter(clips.model), collect_tokens(clips, 0)
    stream = tokens.stream.clone()
    stream[:, painter.style_codes] = 0.0
    stream[::2, torch.arange(stream.shape[1])[painter.style_codes][0]] = 4.0
    half = replace(tokens, stream=stream)
    with torch.no_grad():
        one, five, none = (float(painter.loss(half, torch.ones(16), w)) for w in (1.0, 5.0, 0.0))
        styled = float(painter.loss(half[torch.arange(0, len(half), 2)], torch.ones(16), 7.0))
    assert five > one > none > 0
    assert five - one == pytest.approx(4 * (one - none), rel=1e-4)
    assert 2 * none == pytest.approx(styled, rel=1e-3)
