"""Anchors pull by as much as they are told, and noise on a context has the range it should."""

from __future__ import annotations

import pytest
import torch

from osp_cli.sampling.anchors import CONTEXT_SIGMAS, LatentAnchor, noisy_context

SHAPE = (1, 4, 3, 6, 8)


def latents(seed: int, scale: float = 1.0, offset: float = 0.0) -> torch.Tensor:
    drawn = torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))
    return drawn * scale + offset


def statistics(tensor: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    flat = tensor.double().transpose(0, 1).flatten(1)
    return flat.mean(1), (flat - flat.mean(1, keepdim=True)).square().mean(1).sqrt()


def test_no_weight_changes_nothing_at_all():
    later = latents(1, 3.0, 2.0)
    assert LatentAnchor.of(latents(0)).pull(later, 0.0) is later


def test_all_weight_gives_the_statistics_of_the_anchor():
    start, later = latents(0), latents(1, 3.0, 2.0)
    pulled = LatentAnchor.of(start).pull(later, 1.0)
    for found, wanted in zip(statistics(pulled), statistics(start), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    # Only these: what the latents show is the same picture.
    correlation = torch.corrcoef(torch.stack([pulled[0, 2].flatten(), later[0, 2].flatten()]))
    assert correlation[0, 1] > 0.9999


@pytest.mark.parametrize("weight", [0.1, 0.5, 0.9])
def test_statistics_lie_in_between_by_the_weight(weight):
    start, later = latents(0), latents(1, 3.0, 2.0)
    pulled = statistics(LatentAnchor.of(start).pull(later, weight))
    for found, begin, end in zip(pulled, statistics(later), statistics(start), strict=True):
        torch.testing.assert_close(found, begin + weight * (end - begin), rtol=1e-4, atol=1e-5)


def test_what_drifts_is_held():
    """A model that multiplies by 1.1 again and again ends where the pull outweighs it."""
    anchor, free, held = LatentAnchor.of(latents(0)), latents(0), latents(0)
    for _ in range(60):
        free, held = free * 1.1, anchor.pull(held * 1.1, 0.3)
    assert free.std() > 100
    assert held.std() < 1.5


def test_the_anchor_s_own_latents_stay_and_channels_without_variation_are_moved_alone():
    start = latents(0)
    torch.testing.assert_close(LatentAnchor.of(start).pull(start, 1.0), start)
    flat = torch.full(SHAPE, 7.0)
    pulled = LatentAnchor.of(start).pull(flat, 1.0)
    assert torch.isfinite(pulled).all()
    assert statistics(pulled)[1].max() < 1e-6
    torch.testing.assert_close(statistics(pulled)[0], statistics(start)[0], rtol=1e-4, atol=1e-5)


def test_precision_and_shape_are_kept():
    pulled = LatentAnchor.of(latents(0)).pull(latents(1).bfloat16(), 0.5)
    assert (pulled.dtype, pulled.shape) == (torch.bfloat16, SHAPE)


def test_a_state_pulls_bit_for_bit_the_same():
    anchor, later = LatentAnchor.of(latents(0)), latents(1, 2.0)
    again = LatentAnchor.from_tensors({name: t.clone() for name, t in anchor.tensors().items()})
    assert torch.equal(anchor.pull(later, 0.4), again.pull(later, 0.4))


@pytest.mark.parametrize("tensors", [{}, {"mean": torch.zeros(4)},
                                     {"mean": torch.zeros(4), "std": torch.zeros(3)}])  # fmt: skip
def test_a_damaged_state_is_refused(tensors):
    with pytest.raises(ValueError, match="of each channel"):
        LatentAnchor.from_tensors(tensors)


@pytest.mark.parametrize("weight", [-0.1, 1.1, float("nan")])
def test_weights_beyond_the_range_are_refused(weight):
    with pytest.raises(ValueError, match="0 to 1"):
        LatentAnchor.of(latents(0)).pull(latents(1), weight)


def test_other_channels_are_refused():
    with pytest.raises(ValueError, match="4 channels"):
        LatentAnchor.of(latents(0)).pull(torch.zeros(1, 5, 3, 6, 8), 0.5)


def test_noise_on_a_context_is_in_the_range_of_helios_and_frame_by_frame():
    generator = torch.Generator().manual_seed(0)
    clean = torch.zeros(1, 16, 40, 32, 32)
    sigmas = noisy_context(clean, generator).std(dim=(0, 1, 3, 4))
    low, high = CONTEXT_SIGMAS
    assert sigmas.min() > low - 0.003
    assert sigmas.max() < high + 0.003
    assert sigmas.max() - sigmas.min() > (high - low) / 2
    ones = noisy_context(torch.ones_like(clean), generator).mean(dim=(0, 1, 3, 4))
    torch.testing.assert_close(
        ones, torch.full_like(ones, 1 - (low + high) / 2), atol=0.016, rtol=0
    )


def test_noise_comes_from_the_generator_alone():
    first, second = (
        noisy_context(latents(1).bfloat16(), torch.Generator().manual_seed(seed)) for seed in (3, 3)
    )
    assert first.dtype == torch.bfloat16
    assert torch.equal(first, second)
    other = noisy_context(latents(1).bfloat16(), torch.Generator().manual_seed(4))
    assert not torch.equal(first, other)
