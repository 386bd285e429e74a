"""`osp stylize` as a whole, on a tiny model of random weights: pictures, sheets and videos."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from osp_cli.cli.app import main
from osp_cli.media.recipes import read_recipe
from osp_cli.media.video import probe_video, read_video, write_video

TINY = ["--model", "tiny", "--frames", "5", "--steps", "2", "--seed", "4"]


@pytest.fixture(autouse=True)
def workplace(tiny_card, tmp_path, monkeypatch):
    """A folder with a picture `cat.png` and a video `film.mp4` of ten frames."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("osp_cli.config.user_config", lambda: tmp_path / "none.toml")
    picture = Image.effect_noise((96, 64), 80).convert("RGB")
    picture.save("cat.png")
    canvas = np.asarray(picture.resize((160, 80)))
    frames = [canvas[8:72, 2 * index : 2 * index + 96] for index in range(10)]
    write_video(np.stack(frames), "film.mp4", fps=16)
    return tmp_path


@pytest.fixture
def osp(capfd):
    """Runs a command line that must succeed; gives the lines of stdout."""

    def run(*args: str) -> list[str]:
        code = main(["stylize", *args])
        out, err = capfd.readouterr()
        assert code == 0, err
        return out.splitlines()

    return run


def test_a_page_of_styles_and_cutoffs_with_a_video_of_each(osp):
    *clips, page = osp("cat.png", "it snows", "-s", "ink,oil", "--cutoff", "0.1,0.9", *TINY)
    assert len(clips) == 4
    assert probe_video(page).num_frames == 5
    for clip in clips:
        recipe = read_recipe(clip)
        assert (recipe["command"], recipe["seed"], recipe["prompt"]) == ("stylize", 4, "it snows")
        assert recipe["style"] in clip
        assert f"cutoff-{recipe['cutoff'][0]:g}" in clip
    # Whatever makes a cell alone gives the bytes of the cell.
    [alone] = osp("cat.png", "it snows", "-s", "oil", "--cutoff", "0.9", *TINY, "-o", "alone.mp4")
    assert (
        Path(alone).read_bytes() == Path("cat-ink-vs-oil-4-cutoffs/oil-cutoff-0.9.mp4").read_bytes()
    )


def test_a_page_goes_on_where_it_was_left(osp, capfd):
    osp("cat.png", "-s", "ink,oil", *TINY)
    kept = Path("cat-ink-vs-oil-4/ink.mp4").stat().st_mtime_ns
    Path("cat-ink-vs-oil-4/oil.mp4").unlink()
    Path("cat-ink-vs-oil-4/oil.mp4.json").unlink()
    for made in ("cat-ink-vs-oil-4.mp4", "cat-ink-vs-oil-4.mp4.json"):
        Path(made).unlink()
    assert osp("cat.png", "-s", "ink,oil", *TINY) == [
        "cat-ink-vs-oil-4/oil.mp4",
        "cat-ink-vs-oil-4.mp4",
    ]
    assert Path("cat-ink-vs-oil-4/ink.mp4").stat().st_mtime_ns == kept
    # And where only the page is missing, only the page is made.
    Path("cat-ink-vs-oil-4.mp4").unlink()
    Path("cat-ink-vs-oil-4.mp4.json").unlink()
    assert osp("cat.png", "-s", "ink,oil", *TINY) == ["cat-ink-vs-oil-4.mp4"]


def test_a_video_is_painted_and_made_again_by_its_recipe(osp):
    common = ["-s", "ink", "--model", "tiny", "--seed", "4", "--size", "96x64"]
    [painted] = osp("film.mp4", *common, "--strength", "0.5", "-t", "0.5")
    assert painted == "film-ink-4.mp4"
    frames = read_video(painted)
    assert frames.shape == (8, 64, 96, 3)
    recipe = read_recipe(painted)
    assert (recipe["video"], recipe["strength"], recipe["total_frames"]) == ("film.mp4", 0.5, 8)
    assert recipe["image"] is None
    [again] = osp("--from", painted, "-o", "again.mp4")
    assert Path(again).read_bytes() == Path(painted).read_bytes()
    [other] = osp("--from", painted, "--strength", "1", "-o", "other.mp4")
    assert np.abs(read_video(other).astype(int) - frames).mean() > 1
    # Nothing is left of what was kept for the case of a failure.
    assert not [*Path().rglob("*.latents*")]


def test_pictures_and_videos_of_a_folder_in_one_go(osp, workplace):
    Path("all").mkdir()
    Path("cat.png").rename("all/cat.png")
    Path("film.mp4").rename("all/film.mp4")
    made = osp("all", "-s", "oil", *TINY, "-o", "painted/")
    assert made == ["painted/cat-oil-4.mp4", "painted/film-oil-4.mp4"]
    assert [probe_video(path).num_frames for path in made] == [5, 5]


def test_what_is_picked_of_a_contact_sheet_is_finished_bit_exactly(osp):
    common = ["cat.png", "-s", "ink", *TINY, "--steps", "6", "--cache", "none"]
    [sheet] = osp(*common, "--seed", "4-6", "--preview", "contact")
    assert Image.open(sheet).width > 100
    [picked] = osp(*common, "--seed", "4-6", "--pick", "5")
    [plain] = osp(*common, "--seed", "5", "-o", "plain.mp4")
    assert Path(picked).read_bytes() == Path(plain).read_bytes()
    assert read_recipe(picked)["sampler"] == "unipc"
