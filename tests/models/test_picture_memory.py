"""An endless video's memory of its picture, with the model inside the package."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from osp_cli.models.autoencoder_linear import AutoencoderLinear
from osp_cli.models.latents import decode_latents, encode_latents, with_surroundings
from osp_cli.models.mini_stream import heard_motion
from osp_cli.models.picture_memory import (
    OVERLAP,
    MemoryState,
    PictureMemory,
    chunk_motion,
    seen_from,
)
from osp_cli.models.state_dict import load_adapter, load_transformer
from osp_cli.procedural.courses import Course, follow
from osp_cli.procedural.motions import Motion, render_clip
from osp_cli.procedural.scenes import sharp_canvases
from osp_cli.registry import find_model
from osp_cli.training.mini_motion import token_motion
from osp_cli.training.mini_vlm import load_vlm, new_conditioner

SIZE = (128, 192)
SURROUND = 5
FRAMES = 4  # latent frames that a chunk hands over


@pytest.fixture(scope="module")
def parts():
    """Transformer, autoencoder and conditioner as the package holds them."""
    folder = find_model("osp-mini").weights_dir()
    transformer = load_transformer(folder / "transformer", dtype=torch.float32).eval()
    conditioner = new_conditioner(1, transformer.config.text_dim, transformer.config.in_channels)
    conditioner.model = load_vlm(folder / "text_encoder")
    conditioner.adapter = load_adapter(folder / "adapter", dtype=torch.float32)
    conditioner.image_adapter = load_adapter(folder / "image_adapter", dtype=torch.float32)
    vae = AutoencoderLinear.from_pretrained(folder / "vae", torch_dtype=torch.float32).eval()
    return transformer, vae, conditioner


@pytest.fixture(scope="module")
def picture():
    """A scene, uint8 `(height, width, 3)`."""
    scene = sharp_canvases(torch.Generator().manual_seed(5), 1, *SIZE)[0].clamp(0, 1)
    return (scene.permute(1, 2, 0) * 255).round().to(torch.uint8)


@pytest.fixture
def memory(parts, picture):
    return PictureMemory(*parts[:2], picture, SIZE, SURROUND, FRAMES)


def as_video(picture):
    return picture.permute(2, 0, 1)[None, :, None].float() / 127.5 - 1


@torch.no_grad()
def make(parts, memory, picture, prompt, state, noise=0):
    """One step of one chunk, as the engine makes it."""
    transformer, _, conditioner = parts
    sight = memory.look(state)
    image = Image.fromarray(picture.numpy())
    states, mask = conditioner.hidden_states([prompt], [image])
    rows = conditioner.project(states, mask, sight.shown)
    motion = heard_motion(transformer, rows)
    generator = torch.Generator().manual_seed(noise)
    shape = (1, sight.context.shape[1], memory.made_frames, *sight.context.shape[3:])
    hidden = torch.cat([sight.context, torch.randn(shape, generator=generator)], 2)
    tokens = shape[3] * shape[4] // 4
    timestep = torch.full((1, hidden.shape[2] * tokens), 1000.0)
    timestep[:, :tokens] = 0
    with memory.telling(state, motion):
        velocity = transformer(hidden, timestep, rows, torch.zeros_like(hidden), return_dict=False)[
            0
        ]
    return memory.join(state, motion, (hidden - velocity)[:, :, 1:])


def test_at_first_the_camera_sees_the_picture_as_the_model_knows_it(parts, memory, picture):
    vae = parts[1]
    sight = memory.look(MemoryState())
    latents = encode_latents(vae, as_video(picture))
    torch.testing.assert_close(sight.context, latents, atol=1e-3, rtol=1e-3)
    # Mirrored before the codec, which drops detail, or after it.
    wanted = with_surroundings(vae, latents, SURROUND)
    assert (sight.shown - wanted).norm() < 0.1 * wanted.norm()


@pytest.mark.parametrize("camera", ["pan-right", "zoom-out", "roll-left"])
def test_a_camera_that_moved_sees_what_a_clip_shows_then(picture, camera):
    motion = Motion(camera, speed="fast")
    video = as_video(picture)[:, :, 0]
    now = follow(Course(), motion, SIZE, 30)[-1]
    wanted = render_clip(video[0], motion, SIZE, torch.tensor([30]))
    # It takes finer samples, or another kernel, but from the same places.
    assert (seen_from(video, now, SIZE, SIZE) - wanted).abs().mean() < 0.02


def test_beyond_its_border_the_picture_goes_on_mirrored_for_ever(picture):
    video = as_video(picture)[:, :, 0]
    view = torch.eye(3, dtype=torch.float64)
    view[0, 2] = 5.0 * SIZE[1]
    seen = seen_from(video, Course(view=view), SIZE, SIZE)
    torch.testing.assert_close(seen, video.flip(3), atol=1e-3, rtol=0)


def test_a_larger_picture_gives_detail_to_what_comes_nearer(picture):
    video = as_video(picture)[:, :, 0]
    small = torch.nn.functional.avg_pool2d(video, 2)
    size = SIZE[0] // 2, SIZE[1] // 2
    near = Course(view=torch.diag(torch.tensor([0.5, 0.5, 1.0], dtype=torch.float64)))
    here = [side // 4 for side in SIZE]
    middle = video[:, :, here[0] : 3 * here[0], here[1] : 3 * here[1]]
    errors = [(seen_from(x, near, size, size) - middle).abs().mean() for x in (video, small)]
    assert errors[0] < 1e-3 < errors[1]


@pytest.mark.parametrize("motion", [Motion("zoom-in"), Motion("pan-left", "sway"), Motion()])
def test_tokens_of_the_first_chunk_are_told_what_training_told_them(motion):
    moments = follow(Course(), motion, SIZE, 16)
    told = chunk_motion(moments, SIZE, 16, 2, begins=True)
    wanted = token_motion(motion, torch.arange(5), (SIZE[0] // 32, SIZE[1] // 32), 2)
    torch.testing.assert_close(told[..., :8], wanted[..., :8], atol=5e-3, rtol=1e-3)
    torch.testing.assert_close(told[..., 8], wanted[..., 8], atol=0.05, rtol=0)


def test_what_moves_has_left_its_place_in_later_chunks_from_their_start():
    moments = follow(follow(Course(), Motion(None, "ripples"), SIZE, 36)[-1],
                     Motion(None, "ripples"), SIZE, 16)  # fmt: skip
    left = chunk_motion(moments, SIZE, 16, 2, begins=False)[..., -1]
    assert (left[:, 0] == 0).all()  # no water up there
    assert (left[:, -1] > 0.9).all()


def test_the_prompt_is_heard_as_a_motion(parts, memory, picture):
    transformer, _, conditioner = parts
    image = Image.fromarray(picture.numpy())
    heard = []
    for prompt in ("the camera rolls right quickly", "gentle waves", "a picture, soft light"):
        states, mask = conditioner.hidden_states([prompt], [image])
        rows = conditioner.project(states, mask, memory.look(MemoryState()).shown)
        heard.append(heard_motion(transformer, rows))
    assert heard == [
        Motion("roll-right", speed="fast"),
        Motion(scene="ripples"),
        Motion(),
    ]


def test_the_tenth_chunk_is_as_sharp_as_the_first(parts, memory, picture):
    state, detail, colour = MemoryState(), [], []
    for _ in range(10):
        latents, state = make(parts, memory, picture, "roll right slowly", state)
        detail.append(latents[:, 8:].std().item())
        colour.append(decode_latents(parts[1], latents[:, :, -1:]).mean().item())
    assert detail[-1] == pytest.approx(detail[1], rel=0.2)
    assert colour[-1] == pytest.approx(colour[0], abs=0.1)


def test_a_chunk_takes_the_place_of_the_last_ones_tail_gradually(parts, memory, picture):
    first, state = make(parts, memory, picture, "pan left", MemoryState())
    assert state.tail.shape[2] == OVERLAP
    alone, _ = make(parts, memory, picture, "pan left", MemoryState(state.course))
    joined, _ = make(parts, memory, picture, "pan left", state)
    shared = OVERLAP
    share = ((torch.arange(shared) + 1.0) / (OVERLAP + 1)).reshape(1, 1, -1, 1, 1)
    wanted = share * alone[:, :, :shared] + (1 - share) * state.tail[:, :, :shared]
    torch.testing.assert_close(joined[:, :, :shared], wanted)
    assert first.shape == joined.shape


def test_chunks_may_be_shorter_than_the_overlap_and_longer_than_a_clip(parts, picture):
    short = PictureMemory(*parts[:2], picture, SIZE, SURROUND, latent_frames=1)
    _, state = make(parts, short, picture, "pan left", MemoryState())
    latents, _ = make(parts, short, picture, "pan left", state)
    assert latents.shape[2] == 1
    # What a longer chunk's camera comes to is among what is shown.
    long = PictureMemory(*parts[:2], picture, SIZE, SURROUND, latent_frames=21)
    shown = long.look(MemoryState()).shown
    assert shown.shape[4] - 12 == 2 * 10
    latents, _ = make(parts, long, picture, "pan left quickly", MemoryState())
    assert latents.shape[2] == 21 and latents.isfinite().all()


def test_a_stream_goes_on_from_its_tensors_bit_for_bit(parts, memory, picture):
    _, state = make(parts, memory, picture, "zoom in", MemoryState())
    _, state = make(parts, memory, picture, "gentle waves", state)
    again = MemoryState.from_tensors({k: v.clone() for k, v in state.tensors().items()})
    whole, after = make(parts, memory, picture, "gentle waves", state)
    resumed, resumed_after = make(parts, memory, picture, "gentle waves", again)
    assert torch.equal(whole, resumed)
    assert after.tensors().keys() == resumed_after.tensors().keys()
    assert all(torch.equal(v, resumed_after.tensors()[k]) for k, v in after.tensors().items())
    fresh = MemoryState.from_tensors(MemoryState().tensors())
    assert fresh.course.pace is None and fresh.tail is None


def test_a_wrong_number_of_latent_frames_is_refused(memory):
    with pytest.raises(ValueError, match="makes 7 latent frames"):
        memory.join(MemoryState(), Motion(), torch.zeros(1, 64, 2, 8, 12))


def test_nothing_is_told_after_a_chunk(parts, memory):
    transformer = parts[0]
    with memory.telling(MemoryState(), Motion("pan-left")):
        assert transformer._forward_pre_hooks
        assert transformer.blocks[0].ffn._forward_hooks
    assert not transformer._forward_pre_hooks
    assert not transformer.blocks[0].ffn._forward_hooks
