"""The two-layer adapter."""

from __future__ import annotations

import math

import torch

from osp_cli.models.adapter import FeatureAdapter


@torch.no_grad()
def test_against_a_plain_version():
    torch.manual_seed(0)
    adapter, features = FeatureAdapter(3, 5, 2), torch.randn(4, 3)
    hidden = features @ adapter.fc1.weight.T + adapter.fc1.bias
    exact = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
    expected = exact @ adapter.fc2.weight.T + adapter.fc2.bias
    torch.testing.assert_close(adapter(features), expected)


@torch.no_grad()
def test_saving_and_loading(tmp_path):
    adapter, features = FeatureAdapter(3, 5, 2), torch.randn(4, 3)
    adapter.save_pretrained(tmp_path)
    loaded = FeatureAdapter.from_pretrained(tmp_path)
    assert loaded.config.out_features == 2
    assert torch.equal(loaded(features), adapter(features))


@torch.no_grad()
def test_features_follow_the_dtype_of_the_weights():
    adapter = FeatureAdapter(3, 5, 2).to(torch.bfloat16)
    assert adapter(torch.randn(4, 3)).dtype == torch.bfloat16
