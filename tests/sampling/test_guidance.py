"""Classifier-free guidance."""

from __future__ import annotations

import pytest
import torch

from osp_cli.sampling.guidance import classifier_free_guidance, uses_guidance


@pytest.mark.parametrize(("scale", "expected"), [(0.0, 2.0), (1.0, 3.0), (5.0, 7.0)])
def test_the_scale_runs_from_unconditional_through_conditional(scale, expected):
    cond, uncond = torch.tensor([3.0]), torch.tensor([2.0])
    assert classifier_free_guidance(cond, uncond, scale).item() == expected


@pytest.mark.parametrize(("scale", "expected"), [(0.0, False), (1.0, False), (1.01, True)])
def test_the_second_pass_is_only_run_above_one(scale, expected):
    assert uses_guidance(scale) is expected
