"""What `--cache` becomes: the user's word first, then the card's, then the cache's own."""

from __future__ import annotations

from dataclasses import replace

import pytest

from osp_cli.errors import InvalidRequestError
from osp_cli.registry import STEP_CACHES, CacheFigures, find_model
from osp_cli.runtime.caching import step_cache_config
from osp_cli.sampling.step_cache import NoCacheConfig, TeaCacheConfig

BARE = replace(find_model("flashi2v-1.3b"), name="bare", teacache=None, magcache=None)
FIGURED = replace(
    BARE,
    teacache=CacheFigures(values=(2.0, -1.0), source="measured", threshold=0.3),
    magcache=CacheFigures(values=(1.0, 0.9), source="measured", threshold=0.02),
)
SILENT = replace(
    BARE,
    teacache=CacheFigures(values=(2.0, -1.0), source="measured"),
    magcache=CacheFigures(values=(1.0, 0.9), source="measured"),
)


@pytest.mark.parametrize(
    ("spec", "kind", "threshold", "expected"),
    [
        (FIGURED, "teacache", 0.25, 0.25),
        (FIGURED, "teacache", None, 0.3),
        (SILENT, "teacache", None, 0.10),
        (FIGURED, "magcache", 0.5, 0.5),
        (FIGURED, "magcache", None, 0.02),
        (SILENT, "magcache", None, 0.06),
        (BARE, "fbcache", 0.2, 0.2),
        (BARE, "fbcache", None, 0.05),
    ],
)
def test_whose_threshold_counts(spec, kind, threshold, expected):
    assert step_cache_config(spec, kind, threshold, 5, 20).threshold == expected


def test_teacache_gets_the_card_s_polynomial():
    config = step_cache_config(FIGURED, "teacache", None, 3, 20)
    assert config == TeaCacheConfig(
        coefficients=(2.0, -1.0),
        source="measured",
        num_inference_steps=20,
        threshold=0.3,
        num_start_steps=3,
    )


def test_no_cache_is_no_cache():
    assert step_cache_config(BARE, "none", None, 5, 20) == NoCacheConfig()


@pytest.mark.parametrize("num_steps", [*range(1, 30), 50, 97, 1000])
def test_magcache_computes_just_as_many_steps_at_the_start(num_steps):
    for num_start in (0, 1, 2, 3, 5, 7, 20, num_steps, num_steps + 3):
        config = step_cache_config(FIGURED, "magcache", None, num_start, num_steps)
        assert config.num_inference_steps == num_steps
        # The rounding of diffusers.
        assert int(config.retention_ratio * num_steps + 0.5) == min(num_start, num_steps)


@pytest.mark.parametrize("kind", ["teacache", "magcache"])
def test_a_card_without_figures_is_refused(kind):
    with pytest.raises(InvalidRequestError, match="the card of bare has none") as refused:
        step_cache_config(BARE, kind, None, 5, 20)
    assert "--cache none" in str(refused.value.hint)


def test_an_unknown_cache_is_refused():
    with pytest.raises(InvalidRequestError, match="unknown cache 'deep'"):
        step_cache_config(FIGURED, "deep", None, 5, 20)


def test_every_cache_on_offer_can_be_made():
    made = {type(step_cache_config(FIGURED, kind, None, 5, 20)) for kind in STEP_CACHES}
    assert len(made) == len(STEP_CACHES)
