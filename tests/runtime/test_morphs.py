"""A morph through the built-in model, in pixels: from one style to the other without a jump."""

from __future__ import annotations

import numpy as np
import pytest

from osp_cli.registry import presets_dir
from osp_cli.runtime.studio import Studio

FRAMES, SIZE, GROUP = 49, (128, 64), 4


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """Makes clips of one load."""
    studio = Studio("osp-mini", folder=tmp_path_factory.mktemp("studio"), device="cpu")
    photo = presets_dir() / "examples" / "lake.jpg"
    made = {}

    def make(style):
        if style not in made:
            made[style] = studio.clip(photo, SIZE, FRAMES, prompt="zoom in", style=style)
        return made[style].astype(np.float32)

    return make


def steps(frames):
    """How far each group of frames is from the one before: what one latent frame changes."""
    means = [frames[:1], *np.split(frames[1:], len(frames) // GROUP)]
    means = np.stack([group.mean(0) for group in means])
    return np.abs(np.diff(means, axis=0)).mean((1, 2, 3))


def test_no_step_of_a_morph_is_a_jump(clip):
    made, pure = steps(clip("none..ink")), steps(clip("none"))
    # The whole way is several times any of its steps, and none stands out of the others more
    # than in a clip of one style, whose first step, away from a lone frame, is the largest.
    assert made.max() / np.median(made) < 1.15 * pure.max() / np.median(pure)
    away = np.abs(clip("none")[-GROUP:] - clip("ink")[-GROUP:]).mean()
    assert away > 2 * made[1:].max()


def test_a_morph_begins_as_one_style_and_ends_as_the_other(clip):
    made = clip("none..ink")
    # Frames are not made quite alone: a step cache and attention look at all of them.
    for at, near, far in ((0, "none", "ink"), (-1, "ink", "none")):
        apart = np.abs(clip("none")[at] - clip("ink")[at]).mean()
        assert np.abs(made[at] - clip(near)[at]).mean() < 0.15 * apart
        assert np.abs(made[at] - clip(far)[at]).mean() > 0.85 * apart
    # In between it is ever nearer to the end.
    towards = np.abs(made - clip("ink")).mean((1, 2, 3))[::GROUP]
    assert (np.diff(towards) < 0).all()
