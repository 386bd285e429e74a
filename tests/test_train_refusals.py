"""What `osp train-lora` refuses before anything is looked at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from osp_cli.errors import InvalidRequestError
from osp_cli.registry import model_specs
from osp_cli.train_request import TrainRequest
from osp_cli.train_settings import settle_training


def request(name: str = "glass", **fields: Any) -> TrainRequest:
    return TrainRequest(dataset=Path("clips"), name=name, output=Path(name), **fields)


@pytest.mark.parametrize("name", ["ghibli", "Ghibli", "pixel_art", "none", "all"])
def test_a_name_that_style_knows_already_is_refused(name):
    with pytest.raises(InvalidRequestError, match="means something already") as refused:
        request(name)
    # What the hint says is taken.
    request(str(refused.value.hint).removeprefix("--out "))


def test_a_name_that_style_could_not_take_is_refused():
    with pytest.raises(InvalidRequestError, match="no dots") as refused:
        request("glass-v1.5")
    assert refused.value.hint == "--out glass-v1-5"
    request("glass-v1-5")


def test_whole_weights_are_no_style_and_called_as_you_like():
    request("mini-v1.5", full=True, num_frames=49)


def test_limits_are_plain_numbers():
    with pytest.raises(InvalidRequestError, match="--max-steps must be 1 to 100000000, got 0"):
        request(max_steps=0)


def test_what_cannot_be_trained_names_what_can():
    with pytest.raises(InvalidRequestError, match="helios") as refused:
        request(model="helios-14b-distilled", mode="t2v")
    hint = str(refused.value.hint)
    assert "osp-mini" in hint
    assert "helios" not in hint
    able = [name.strip() for name in hint.partition(":")[2].split(",")]
    assert set(able) <= model_specs().keys()


def test_cards_of_the_same_weights_are_trained_by_the_same_recipe():
    mini, live = (
        settle_training(Path("clips"), Path("glass"), model=model).request
        for model in ("osp-mini", "osp-mini-live")
    )
    for field in ("targets", "rank", "learning_rate", "width", "height", "condition", "max_steps"):
        assert getattr(live, field) == getattr(mini, field)
    assert live.model == "osp-mini-live"
