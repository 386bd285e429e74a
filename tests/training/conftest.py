"""One tokenizer for each seed: fitting it takes half a second and always gives the same."""

from __future__ import annotations

from functools import cache

import pytest

from osp_cli.training import mini_vlm


@pytest.fixture(scope="session", autouse=True)
def _tokenizers_are_fitted_once():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mini_vlm, "build_tokenizer", cache(mini_vlm.build_tokenizer))
        yield
