"""What a Helios goes on from: clips as it was trained on, and a picture that stands still."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from osp_cli.models.latents import encode_latents
from osp_cli.models.state_dict import load_autoencoder
from osp_cli.realtime_card import RealtimeFigures
from osp_cli.runtime import stream_source
from osp_cli.runtime.stream_source import beginning_of, whole_clips


@pytest.mark.parametrize(
    ("count", "sizes"), [(70, [33, 33]), (66, [33, 33]), (34, [33]), (20, [17]), (1, [1])]
)
def test_clips_end_with_the_last_picture(count, sizes):
    clips = whole_clips(list(range(count)), 33, 4)
    assert [len(clip) for clip in clips] == sizes
    flat = [picture for clip in clips for picture in clip]
    assert flat == list(range(count - sum(sizes), count))


@pytest.fixture(scope="module")
def vae(tiny_helios_home):
    return load_autoencoder(tiny_helios_home / "models" / "tiny-helios" / "vae")


def stream_of(*, picture=None, source=None, source_frames=0, latent_frames=2):
    figures = RealtimeFigures(layout="helios", vae_chunks="independent")
    request = SimpleNamespace(figures=figures, latent_frames=latent_frames)
    return SimpleNamespace(
        request=request, picture=picture, source=source, source_frames=source_frames,
        chunk_frames=1 + 4 * (latent_frames - 1),
    )  # fmt: skip


def test_a_picture_stands_still_for_a_chunk(vae):
    picture = Image.effect_noise((32, 16), 90).convert("RGB")
    beginning = beginning_of(stream_of(picture=picture), vae)
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None, :, None] / 127.5 - 1
    still = encode_latents(vae, pixels.repeat(1, 1, 5, 1, 1))
    torch.testing.assert_close(beginning.first, encode_latents(vae, pixels))
    torch.testing.assert_close(beginning.context, still[:, :, 1:])
    assert not torch.allclose(beginning.context, beginning.first)


def test_a_video_is_encoded_clip_by_clip(vae, monkeypatch):
    rng = np.random.default_rng(3)
    film = [rng.integers(0, 256, (16, 32, 3), dtype=np.uint8) for _ in range(12)]

    def read(stream, start):
        yield from film[start:]

    monkeypatch.setattr(stream_source, "_read", read)
    beginning = beginning_of(stream_of(source=object(), source_frames=12), vae)

    def alone(pictures):
        pixels = torch.from_numpy(np.stack(pictures)).permute(3, 0, 1, 2)[None] / 127.5 - 1
        return encode_latents(vae, pixels)

    # Twelve pictures are two clips of five, the last of which ends with the last picture.
    wanted = torch.cat([alone(film[2:7]), alone(film[7:])], 2)
    torch.testing.assert_close(beginning.context, wanted)
    torch.testing.assert_close(beginning.first, alone(film[:1]))
