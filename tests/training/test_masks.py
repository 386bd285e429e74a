"""What is known of a clip in inpainting-style training."""

from __future__ import annotations

from types import SimpleNamespace

import torch
import torch.nn.functional as F

from osp_cli.training.masks import first_frame_known, masked_latents, random_mask


class Squeezing:
    """A VAE whose latents are means of what they cover, the first frame alone."""

    config = SimpleNamespace(scale_factor_temporal=4, latents_mean=[0.0] * 3, latents_std=[1.0] * 3)
    device, dtype = torch.device("cpu"), torch.float32

    def encode(self, video):
        first = F.avg_pool3d(video[:, :, :1], (1, 8, 8))
        rest = F.avg_pool3d(video[:, :, 1:], (4, 8, 8))
        latents = torch.cat([first, rest], dim=2)
        return SimpleNamespace(latent_dist=SimpleNamespace(mode=lambda: latents))


def kind_of(known: torch.Tensor) -> str:
    whole = known[0].flatten(1).mean(1)
    if not whole.any():
        return "nothing"
    if not ((whole > 0) & (whole < 1)).any():
        frames = whole.nonzero().flatten().tolist()
        if frames == list(range(len(frames))) and len(frames) <= 4:
            return "beginning"
        return "ends" if frames == [0, len(whole) - 1] else "frames"
    return "places"


def test_kinds_come_as_often_as_told():
    counts = {}
    for seed in range(600):
        known = random_mask(torch.Generator().manual_seed(seed), 17, 32, 48)
        assert known.shape == (1, 17, 32, 48) and set(known.unique().tolist()) <= {0.0, 1.0}
        counts[kind_of(known)] = counts.get(kind_of(known), 0) + 1
    shares = {kind: count / 600 for kind, count in counts.items()}
    assert abs(shares["nothing"] - 0.2) < 0.06
    assert abs(shares["beginning"] - 0.2) < 0.06
    assert abs(shares["ends"] - 0.2) < 0.06
    assert abs(shares["frames"] - 0.1) < 0.05
    assert abs(shares["places"] - 0.3) < 0.07


def test_one_frame_has_masks_too():
    for seed in range(40):
        assert random_mask(torch.Generator().manual_seed(seed), 1, 32, 32).shape == (1, 1, 32, 32)


def test_the_mask_has_a_channel_for_each_frame_of_a_latent_frame():
    video = torch.rand(1, 3, 9, 16, 24) * 2 - 1
    known = first_frame_known(9, 16, 24)
    found = masked_latents(Squeezing(), video, known)
    assert found.shape == (4 + 3, 3, 2, 3)
    assert (found[:4, 0] == 1).all() and not found[:4, 1:].any()
    torch.testing.assert_close(found[4:, 0], F.avg_pool2d(video[0, :, 0], 8))
    assert not found[4:, 1:].any(), "unknown pixels are grey"


def test_the_last_frame_is_the_last_channel_of_the_last_latent_frame():
    known = torch.zeros(1, 9, 16, 24)
    known[:, -1] = 1
    found = masked_latents(Squeezing(), torch.ones(1, 3, 9, 16, 24), known)
    assert (found[3, 2] == 1).all()
    assert found[:4].sum() == found[3, 2].numel()
    torch.testing.assert_close(found[4:, 2], torch.full((3, 2, 3), 0.25))
