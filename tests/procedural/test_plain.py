"""Pictures robbed of their style."""

from __future__ import annotations

import pytest
import torch

from osp_cli.procedural.plain import plain_picture


def pictures(count, image):
    for seed in range(count):
        yield plain_picture(image, torch.Generator().manual_seed(seed))


@pytest.fixture
def smooth():
    y, x = torch.meshgrid(torch.linspace(0, 1, 96), torch.linspace(0, 1, 128), indexing="ij")
    return torch.stack([x, y, 1 - x])[None] * 0.6 + 0.2


def test_they_are_pictures_of_the_same_size_and_follow_from_the_seed(smooth):
    for seed, plain in enumerate(pictures(20, smooth)):
        assert plain.shape == smooth.shape
        assert plain.isfinite().all() and plain.min() >= 0 and plain.max() <= 1
        assert torch.equal(plain, plain_picture(smooth, torch.Generator().manual_seed(seed)))


def test_no_two_are_alike(smooth):
    found = list(pictures(6, smooth))
    for index, one in enumerate(found):
        assert all((one - other).abs().mean() > 0.01 for other in found[index + 1 :])


def test_thin_lines_fade(smooth):
    lined = smooth.clone()
    lined[..., ::16, :] = 0.05
    lined[..., :, ::16] = 0.05

    def contrast(images):
        rows = images.mean(1)[0]
        return float((rows[8::16, 8::16].mean() - rows[::16, 8::16].mean()).abs())

    left = [contrast(plain) for plain in pictures(24, lined)]
    assert sum(left) / len(left) < 0.25 * contrast(lined)


def test_what_is_where_stays(smooth):
    """Averaged over large cells, the picture is still that picture, in another light."""
    wanted = torch.nn.functional.avg_pool2d(smooth, 16).flatten()
    for plain in pictures(12, smooth):
        found = torch.nn.functional.avg_pool2d(plain, 16).flatten()
        assert torch.corrcoef(torch.stack([wanted, found]))[0, 1] > 0.3
