"""The example picture and the renderer that draws it."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from osp_cli.procedural import example_photo
from osp_cli.procedural.example_photo import Detail, render
from osp_cli.procedural.lakeside.fields import fbm, perlin, power_noise, sample, smoothstep
from osp_cli.procedural.lakeside.film import blurred
from osp_cli.procedural.lakeside.mesh import rasterise
from osp_cli.procedural.lakeside.props import build_props
from osp_cli.procedural.lakeside.shading import ShadowMap, averaged
from osp_cli.procedural.lakeside.terrain import EXTENT, Land, height_field, shore_distance
from osp_cli.procedural.lakeside.view import View

PICTURE = Path(__file__).parents[2] / "presets" / "examples" / "lake.jpg"
SKETCH = Detail(
    coarse_cells=48, fine_cells=192, erosion_steps=12, trees=3000, supersampling=1, depth_steps=200
)


@pytest.fixture(scope="module")
def sketch() -> np.ndarray:
    return render(View(168, 96), SKETCH)


def test_picture_is_ready_for_use():
    with Image.open(PICTURE) as picture:
        assert picture.format == "JPEG"
        assert picture.mode == "RGB"
        assert picture.size == (1344, 768)
        pixels = np.asarray(picture).astype(float)
    assert PICTURE.stat().st_size < 600_000
    assert 60 < pixels.mean() < 190
    assert pixels.std() > 40


@pytest.mark.slow
def test_picture_is_what_the_renderer_draws(tmp_path):
    example_photo.main([str(tmp_path / "lake.jpg")])
    with Image.open(tmp_path / "lake.jpg") as drawn, Image.open(PICTURE) as kept:
        error = np.asarray(drawn).astype(float) - np.asarray(kept).astype(float)
    # The same bytes on one machine; another numpy may round differently here and there.
    assert 10 * np.log10(255**2 / max(float((error**2).mean()), 1e-9)) > 30


def test_equal_runs_give_equal_pixels(sketch):
    np.testing.assert_array_equal(render(View(168, 96), SKETCH), sketch)


def test_scene_is_composed_as_planned(sketch):
    pixels = sketch.astype(float)
    assert sketch.shape == (96, 168, 3)
    red, green, blue = np.moveaxis(pixels, -1, 0)
    # Blue sky above, and the red boat left of the middle in the lower third.
    assert (blue[:8] > red[:8]).mean() > 0.7
    rows, columns = np.nonzero((red > 1.8 * green) & (red > 1.8 * blue) & (red > 60))
    assert len(rows) > 50
    assert 76 < rows.mean() < 90
    assert 40 < columns.mean() < 84


def test_sketch_resembles_the_picture(sketch):
    # Less detail moves the ridges, not the parts of the scene.
    with Image.open(PICTURE) as picture:
        full = np.asarray(picture.resize((168, 96), Image.Resampling.BOX)).astype(float)
    assert np.corrcoef(full.ravel(), sketch.ravel().astype(float))[0, 1] > 0.7


def test_command_writes_the_jpeg(tmp_path, sketch, monkeypatch):
    monkeypatch.setattr(example_photo, "render", lambda: sketch)
    example_photo.main([str(tmp_path / "out.jpg")])
    with Image.open(io.BytesIO((tmp_path / "out.jpg").read_bytes())) as picture:
        assert picture.size == (168, 96)


def test_lake_stays_level_and_mountains_rise_behind_it():
    height = height_field(48, 96, 12)
    middle = (np.arange(96) + 0.5) * (EXTENT / 96)
    x, z = np.meshgrid(middle - EXTENT / 2, middle)
    seen = np.abs(x) < 0.5 * z
    lake = (shore_distance(x, z) < 0) & seen
    assert lake.any()
    assert (height[lake] < 0).all()
    assert height[z > 5000].max() > 300
    assert Land(height).sunlight.min() < 0.3 < Land(height).sunlight.max()


def test_smoothstep():
    np.testing.assert_allclose(smoothstep(0, 2, np.array([-1, 0, 1, 2, 3.0])), [0, 0, 0.5, 1, 1])
    np.testing.assert_allclose(smoothstep(2, 0, np.array([0, 1, 2.0])), [1, 0.5, 0])


def test_gradient_noise():
    lattice = np.arange(-5, 6, dtype=np.float32)
    x, y = np.meshgrid(lattice, lattice)
    np.testing.assert_allclose(perlin(x, y, 3), 0, atol=1e-6)
    x, y = (np.random.default_rng(0).uniform(-50, 50, (2, 2000))).astype(np.float32)
    step = np.float32(1e-2)
    assert np.abs(perlin(x + step, y) - perlin(x, y)).max() < 0.1
    np.testing.assert_allclose(perlin(x + 256, y), perlin(x, y), atol=2e-3)
    assert np.abs(perlin(x, y, 1) - perlin(x, y, 2)).max() > 0.1
    np.testing.assert_allclose(fbm(x, y, 1, seed=4), perlin(x, y, 4), atol=1e-6)


def test_power_noise_is_normal_and_periodic():
    noise = power_noise(1, 64, 1.5)
    assert abs(noise.mean()) < 1e-5
    assert noise.std() == pytest.approx(1, abs=1e-4)
    x, y = np.array([3.25, 63.5]), np.array([5.0, 63.5])
    np.testing.assert_allclose(sample(noise, x + 64, y - 64), sample(noise, x, y), atol=1e-5)
    assert sample(noise, x, y)[1] == pytest.approx(
        (noise[63, 63] + noise[63, 0] + noise[0, 63] + noise[0, 0]) / 4, abs=1e-5
    )


def square(left: float, nearness: float) -> tuple[np.ndarray, ...]:
    x = np.array([left, left + 4, left + 4, left], np.float32)
    y = np.array([1, 1, 5, 5], np.float32)
    return x, y, np.full(4, nearness, np.float32)


def test_nearest_triangle_wins_in_any_order():
    near, far = square(1, 2.0), square(3, 1.0)
    faces = np.array([[0, 1, 2], [0, 2, 3], [4, 5, 6], [4, 6, 7]])
    for parts, first in (((near, far), 0), ((far, near), 2)):
        x, y, nearness = (np.concatenate(pair) for pair in zip(*parts, strict=True))
        drawn = rasterise(x, y, nearness, faces, 10, 7)
        assert (drawn.face >= 0).sum() == 6 * 4
        assert (drawn.nearness == 2.0).sum() == 16
        assert set(np.unique(drawn.face[1:5, 1:5])) == {first, first + 1}


def test_triangles_are_cut_at_the_level():
    x, y, nearness = square(0, 1.0)
    level = np.array([1, 1, -1, -1], np.float32)
    faces = np.array([[0, 1, 2], [0, 2, 3]])
    drawn = rasterise(x, y, nearness, faces, 6, 6, level=level)
    assert (drawn.face[1:3, :4] >= 0).all()
    assert (drawn.face[3:] < 0).all()


def test_shadows_fall_away_from_the_sun():
    props = build_props()
    shadows = ShadowMap(props)
    # High above everything there is nothing in the way; under the jetty there is.
    assert shadows.sunlight(np.array([[0, 50, 10]], np.float32))[0] == 1
    assert shadows.sunlight(np.array([[2.3, 0.05, 9]], np.float32))[0] == 0


def test_blur_keeps_the_light_and_averaging_too():
    picture = np.random.default_rng(0).uniform(0, 1, (24, 32, 3)).astype(np.float32)
    np.testing.assert_allclose(blurred(picture, 2.0).mean(), picture.mean(), rtol=1e-3)
    assert blurred(picture, 2.0).std() < picture.std() / 3
    assert averaged(picture, 4).shape == (6, 8, 3)
    np.testing.assert_allclose(averaged(picture, 4).mean(), picture.mean(), rtol=1e-5)
