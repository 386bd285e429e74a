"""When TeaCache computes, and what it gives when it does not."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from osp_cli.sampling.step_cache import enable_step_cache
from osp_cli.sampling.teacache import TeaCacheConfig, TeaCacheGate


def settings(**changed):
    return TeaCacheConfig(
        **{
            "coefficients": (1.0, 0.0),
            "source": "the distance itself",
            "num_inference_steps": 12,
            "threshold": 0.6,
            "num_start_steps": 3,
            **changed,
        }
    )


@given(
    st.lists(st.floats(0.5, 2), min_size=1, max_size=12),
    st.integers(0, 14),
    st.floats(0.01, 2),
    st.tuples(st.floats(-3, 3), st.floats(-1, 1)),
)
def test_the_sum_stays_below_the_threshold(signals, num_start_steps, threshold, coefficients):
    config = settings(
        num_start_steps=num_start_steps, threshold=threshold, coefficients=coefficients
    )
    gate = TeaCacheGate(config)
    computed = [gate.lead(torch.full((1, 6), signal)) for signal in signals]
    assert [decision.computed for decision in gate.decisions] == computed
    # The very first step has nothing to be compared with.
    assert all(computed[: max(num_start_steps, 1)])
    total = 0.0
    for before, now, decision in zip(signals, signals[1:], gate.decisions[1:], strict=False):
        if decision.distance is None:
            assert decision.computed
            continue
        assert decision.distance == pytest.approx(abs(now - before) / before, rel=1e-5, abs=1e-6)
        assert decision.rescaled == pytest.approx(
            coefficients[0] * decision.distance + coefficients[1]
        )
        total += decision.rescaled
        assert decision.computed == (total >= threshold)
        total = 0.0 if decision.computed else total
        assert decision.accumulated == total


def test_a_new_clip_begins_after_the_last_step():
    gate = TeaCacheGate(settings(num_inference_steps=6, threshold=0.3))
    signals = [torch.tensor([1.0 + 0.1 * step]) for step in range(6)]
    first = [gate.lead(signal) for signal in signals]
    assert not all(first)
    assert [gate.lead(signal) for signal in signals] == first
    assert gate.decisions[6:] == gate.decisions[:6]


def test_a_reset_begins_a_new_clip_too():
    gate = TeaCacheGate(settings())
    for step in range(5):
        gate.lead(torch.tensor([1.0 + step]))
    gate.reset()
    assert not gate.decisions
    assert [gate.lead(torch.ones(2)) for _ in range(4)] == [True, True, True, False]


def test_the_other_pass_follows_except_after_the_last_step():
    gate = TeaCacheGate(settings(num_inference_steps=5))
    followed = []
    for _ in range(5):
        gate.lead(torch.ones(1))
        followed.append(gate.follow())
    assert [decision.computed for decision in gate.decisions] == [True] * 3 + [False] * 2
    assert followed == [True] * 3 + [False, True]


def test_an_unconditional_pass_cannot_be_first():
    with pytest.raises(ValueError, match="conditional pass"):
        TeaCacheGate(settings()).follow()


def test_a_distance_that_is_no_number_is_computed():
    gate = TeaCacheGate(settings(num_start_steps=0))
    assert [gate.lead(torch.zeros(3)) for _ in range(4)] == [True] * 4
    assert math.isnan(gate.decisions[-1].distance)
    assert gate.decisions[-1].accumulated == 0


def test_distances_of_half_precision_are_taken_in_full():
    gate = TeaCacheGate(settings(num_start_steps=0))
    generator = torch.Generator().manual_seed(0)
    signals = [(40 + torch.randn(1, 600, generator=generator)).bfloat16() for _ in range(2)]
    for signal in signals:
        gate.lead(signal)
    before, now = (signal.double() for signal in signals)
    exact = ((now - before).abs().mean() / before.abs().mean()).item()
    assert gate.decisions[1].distance == pytest.approx(exact, rel=1e-5)


def test_another_shape_within_a_clip_is_refused():
    gate = TeaCacheGate(settings())
    gate.lead(torch.ones(1, 6))
    with pytest.raises(ValueError, match="reset it between clips"):
        gate.lead(torch.ones(2, 6))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"coefficients": ()}, "coefficients"),
        ({"coefficients": (1.0, math.nan)}, "coefficients"),
        ({"source": ""}, "source"),
        ({"num_inference_steps": 0}, "at least 1"),
        ({"threshold": 0.0}, "positive"),
        ({"threshold": math.inf}, "positive"),
        ({"num_start_steps": -1}, "negative"),
    ],
)
def test_impossible_settings_are_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        settings(**changed)


def test_both_branches_run_or_rest_together(transformer, denoise):
    with enable_step_cache(transformer, settings()) as cache:
        _, ran = denoise(transformer)
    decided = [decision.computed for decision in cache.decisions]
    assert ran[:, 0].tolist() == decided
    assert True in decided[3:]
    assert False in decided
    # All but the last unconditional pass, which VideoX-Fun always computes.
    assert ran[:-1, 1].tolist() == decided[:-1]
    assert ran[-1, 1]


def test_a_skipped_pass_adds_the_last_residual(transformer, denoise):
    seen = {}

    def note(name):
        return lambda _module, inputs, output: seen.setdefault(name, []).append((inputs[0], output))

    first, last = transformer.blocks[0], transformer.blocks[-1]
    handles = [first.register_forward_hook(note("first")), last.register_forward_hook(note("last"))]
    with enable_step_cache(transformer, settings()):
        _, ran = denoise(transformer, guided=False)
    for handle in handles:
        handle.remove()
    residual = None
    for (entered, _), (_, left), computed in zip(
        seen["first"], seen["last"], ran[:, 0], strict=True
    ):
        if computed:
            residual = left - entered
        assert torch.allclose(left, entered + residual, atol=1e-6)
    assert not ran.all()


@torch.no_grad()
def test_the_branches_keep_their_own_residuals(transformer):
    latents, timestep = torch.randn(1, 4, 2, 4, 6), torch.tensor([500.0])
    contexts = {"cond": torch.randn(1, 5, 8), "uncond": 9 * torch.randn(1, 5, 8)}

    def step():
        made = {}
        for name, context in contexts.items():
            with transformer.cache_context(name):
                made[name] = transformer(latents, timestep, context).sample
        return made

    expected = step()
    assert not torch.allclose(expected["cond"], expected["uncond"], atol=1e-3)
    with enable_step_cache(transformer, settings(num_start_steps=1)) as cache:
        for _ in range(4):
            for name, got in step().items():
                torch.testing.assert_close(got, expected[name], atol=1e-5, rtol=1e-5)
    assert (cache.computed_steps, cache.skipped_steps) == (1, 3)


@torch.no_grad()
def test_guidance_that_begins_late_is_computed_first(transformer):
    latents, timestep = torch.randn(1, 4, 2, 4, 6), torch.tensor([9.0])
    config = settings(num_start_steps=1, num_inference_steps=5)
    with enable_step_cache(transformer, config) as cache:
        # In the second clip too, though the first has left a residual of that branch.
        for clip in (1, 2):
            for step in range(config.num_inference_steps):
                for name in ["cond"] if step < 2 else ["cond", "uncond"]:
                    with transformer.cache_context(name):
                        transformer(latents, timestep, torch.zeros(1, 3, 8))
            assert cache.entered == {"cond": 5 * clip, "uncond": 3 * clip}
            # And the last one, as always.
            assert cache.finished == {"cond": 1 * clip, "uncond": 2 * clip}


@torch.no_grad()
def test_a_wider_picture_without_a_reset_is_refused(transformer):
    with enable_step_cache(transformer, settings(num_start_steps=1)) as cache:

        def call(width):
            with transformer.cache_context("cond"):
                transformer(
                    torch.zeros(1, 4, 2, 4, width), torch.tensor([500.0]), torch.zeros(1, 3, 8)
                )

        call(6)
        with pytest.raises(ValueError, match="reset it between clips"):
            call(8)
        cache.reset()
        call(8)


@torch.no_grad()
def test_one_block_is_first_and_last(make_transformer, denoise):
    transformer = make_transformer(num_layers=1)
    with enable_step_cache(transformer, settings()) as cache:
        outputs, ran = denoise(transformer, guided=False)
    assert torch.isfinite(outputs).all()
    assert int((~ran).sum()) == cache.skipped_steps > 0
