"""Prompts and pictures are encoded as clips are made with them later."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from osp_cli.errors import UnreadableMediaError
from osp_cli.own_styles import _preset
from osp_cli.registry import find_model
from osp_cli.runtime import train_encoding, train_parts
from osp_cli.runtime.train_encoding import ClipStore, Encoders, encode_window, prompt_with_trigger
from osp_cli.runtime.train_stages import MASKS
from osp_cli.train_request import TrainRequest
from osp_cli.training.dataset.cache import ClipCache
from osp_cli.training.dataset.entries import DatasetReport, Entry, Window
from osp_cli.training.distributed import DataGroup
from osp_cli.training.objective import KNOWN


@pytest.mark.parametrize("trigger", ["ink", "ink,", " stained glass ", "t0y"])
def test_a_trigger_is_written_as_the_style_writes_it(trigger):
    words = trigger.strip(" ,")
    style = _preset("mine", f"{words}, {{prompt}}", origin="LoRA")
    for caption in ("a pink house", "drinking", "glassy"):
        assert prompt_with_trigger(caption, trigger) == style.prompt_for(
            find_model("flashi2v-1.3b"), caption
        )
    assert prompt_with_trigger("", trigger) == words


@pytest.mark.parametrize("caption", ["Ink on paper", "a house in ink", "(ink) house", "ink"])
def test_a_trigger_that_is_there_is_not_written_twice(caption):
    assert prompt_with_trigger(caption, "ink") == caption


class Pixels:
    """An autoencoder whose latents are means of pixels, for four frames at a time."""

    device, dtype = torch.device("cpu"), torch.float32
    config = SimpleNamespace(scale_factor_temporal=4, latents_mean=[0.0] * 3, latents_std=[1.0] * 3)

    def encode(self, video):
        small = torch.nn.functional.avg_pool3d(video, (1, 8, 8))
        rest = small[:, :, 1:].unflatten(2, (-1, 4)).mean(3)
        latents = torch.cat([small[:, :, :1], rest], dim=2)
        return SimpleNamespace(latent_dist=SimpleNamespace(mode=lambda: latents))


class Seen:
    """Conditions that remember the picture."""

    def prepare(self, prompt, image):
        return {"image_embeds": torch.from_numpy(np.asarray(image).copy()).float()}


def window_of(**changes):
    entry = Entry(path=Path("a.mp4"), kind="video", caption="a", place="a.mp4", **changes)
    return Window(entry=entry, start=0.0, num_frames=5, size=(16, 16), content="")


def request_of(**changes):
    known = {"dataset": Path("clips"), "name": "glass", "output": Path("runs")}
    return TrainRequest(**{**known, "width": 64, "height": 64, "num_frames": 5, **changes})


@pytest.mark.parametrize("source", [None, Path("a.source.png")])
def test_clip_and_mask_show_one_picture(monkeypatch, tmp_path, source):
    frames = np.full((5, 16, 16, 3), 200, np.uint8)
    photo = Image.new("RGB", (16, 16), (20, 20, 20))
    monkeypatch.setattr(train_encoding, "read_window", lambda *_: frames)
    monkeypatch.setattr(train_encoding, "read_source", lambda *_: photo)
    window = window_of(source=source)
    request = request_of(model="wan2.1-i2v-14b-480p", mode="inpaint")
    store = ClipStore(ClipCache(tmp_path), (window,), request, "v", "c")
    clip = encode_window(window, store, Encoders(Pixels(), Seen()))
    known = clip.conditions[KNOWN].float()
    assert known.shape == (MASKS, 4 + 3, 2, 2, 2)
    picture = clip.conditions["image_embeds"].mean() / 127.5 - 1
    assert float(known[0, 4:, 0].mean()) == pytest.approx(float(picture), abs=0.01)
    assert (known[0, :4, 0] == 1).all() and not known[0, :, 1].any()
    # The clip itself is what it was.
    assert float(clip.latents.float().mean()) == pytest.approx(200 / 127.5 - 1, abs=0.01)


def test_models_that_read_prompts_in_other_ways_share_no_clips(monkeypatch, tmp_path):
    monkeypatch.setattr(
        "osp_cli.hub.hashes.weights_hash",
        lambda _: {"vae/a": "1" * 64, "text_encoder/a": "2" * 64},
    )
    window = window_of()
    report = DatasetReport(
        root=Path("clips"), layout="folder", windows=(window,), findings=(), num_entries=1,
        seconds=1.0, sha256="0" * 64,
    )  # fmt: skip

    def key(model, mode):
        request = request_of(model=model, mode=mode, sample_every=0, cache_dir=tmp_path)
        run = train_parts.new_run(request, report, SimpleNamespace(), tmp_path, DataGroup())
        return run.store.key(0)

    small, large = key("flashi2v-1.3b", "t2v"), key("uniworld-osp2-14b", "t2v")
    assert small != large
    assert key("wan2.1-t2v-1.3b", "t2v") == small


def test_a_file_that_was_replaced_is_not_kept_as_what_it_was(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"before")
    entry = Entry(path=path, kind="image", caption="a", place="a.png")
    content = hashlib.sha256(b"before").hexdigest()
    window = Window(entry=entry, start=0.0, num_frames=1, size=(8, 8), content=content)
    train_encoding._refuse_changed(window)
    path.write_bytes(b"after")
    with pytest.raises(UnreadableMediaError, match="has changed"):
        train_encoding._refuse_changed(window)
    whole = replace(window, content=hashlib.sha256(b"after").hexdigest())
    train_encoding._refuse_changed(whole)
    source = replace(entry, source=path)
    with pytest.raises(UnreadableMediaError, match="has changed"):
        train_encoding._refuse_changed(replace(whole, entry=source, source_content=content))
