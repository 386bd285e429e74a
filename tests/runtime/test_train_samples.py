"""Samples of a run, between one part of it and the next."""

from __future__ import annotations

from pathlib import Path

from osp_cli.registry import find_model
from osp_cli.runtime.train_samples import TrainingSamples
from osp_cli.train_request import TrainRequest


def test_earlier_samples_are_taken_up_and_later_ones_go(tmp_path):
    request = TrainRequest(
        dataset=Path("clips"), name="glass", output=tmp_path, sample_prompts=("snow", "rain"),
        width=64, height=64,
    )  # fmt: skip
    samples = TrainingSamples(find_model("osp-mini"), request, [])
    samples.folder.mkdir()
    ours = [f"step-{step:06d}-{number}" for step in (0, 5, 10) for number in (1, 2)]
    # Beyond the prompts, and what people keep beside the samples.
    others = ["step-000005-3", "step-one-1", "step-000009-x", "step-5-1", "best"]
    for name in (*ours, *others):
        for suffix in (".mp4", ".jpg"):
            (samples.folder / f"{name}{suffix}").write_bytes(b"x")
    samples.found(5)
    assert [(record.step, record.prompt) for record in samples.records] == [
        (0, "snow"), (0, "rain"), (5, "snow"), (5, "rain"),
    ]  # fmt: skip
    left = {path.stem for path in samples.folder.iterdir()}
    assert left == {*ours[:4], *others}
