"""What becomes of sources, and that interruptions leave no trace in it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from osp_cli.errors import InterruptedRunError, InvalidRequestError
from osp_cli.media.source_video import probe_source, read_frames
from osp_cli.media.video import probe_video, read_video
from osp_cli.training.building import stages
from osp_cli.training.building.manifest import MANIFEST, Manifest
from osp_cli.training.building.settings import keep_settings, settle_folder
from osp_cli.training.building.sources import find_sources
from osp_cli.training.building.stages import check_files, forget


def test_every_source_is_there_in_every_style_or_with_its_reason(bench, clips, styles):
    build = bench()
    build.run(styles=styles)
    rows = build.rows()
    assert len(rows) == 5 * 2
    for name in ("fox", "sea", "tree"):
        for style in ("ink", "oil"):
            row = rows[name, style]
            assert (row["stage"], row["accepted"], row["reason"]) == ("done", True, None)
            assert row["caption"] == f"a {name}, the camera pans left"
            assert (row["width"], row["height"], row["num_frames"], row["fps"]) == (96, 64, 5, 16)
            for kind in ("source", "keyframe", "video"):
                data = (build.folder / row[kind]).read_bytes()
                assert hashlib.sha256(data).hexdigest() == row[f"{kind}_sha256"]
                assert len(data) == row[f"{kind}_bytes"]
            info = probe_video(build.folder / row["video"])
            assert (info.width, info.height, info.num_frames, info.fps) == (96, 64, 5, 16.0)
    assert rows["short", "ink"]["problems"] == ["too-short"]
    assert "0.25 s, at least 0.5 s" in rows["short", "ink"]["reason"]
    assert rows["held", "oil"]["problems"] == ["frozen", "still"]
    assert rows["held", "oil"]["stage"] == "gated" and "video" not in rows["held", "oil"]
    assert rows["fox", "ink"]["gates"]["num_frames"] == 16


def test_the_keyframe_is_the_middle_picture(bench, clips):
    build = bench("out", "fox.mp4")
    build.run()
    kept = np.asarray(Image.open(build.folder / build.rows()["fox", "ink"]["source"]), float)
    video = probe_source(clips / "fox.mp4")
    frames = [frame.astype(float) for frame in read_frames(video, (96, 64), video.fps)]
    distances = [np.abs(kept - frame).mean() for frame in frames]
    assert int(np.argmin(distances)) == len(frames) // 2


def test_styles_share_the_picture_before_they_are_painted(bench, styles):
    build = bench("out", "fox.mp4")
    build.run(styles=styles)
    rows = build.rows()
    assert rows["fox", "ink"]["source"] == rows["fox", "oil"]["source"]
    assert rows["fox", "ink"]["seed"] != rows["fox", "oil"]["seed"]


def test_engines_are_told_what_they_need(bench, styles):
    build = bench("out", "fox.mp4", settings=replace(bench().settings, prompt="it runs"))
    painter, mover = bench.painter(), bench.mover()
    build.run(painter, mover, styles)
    rows = build.rows()
    assert [call[:2] for call in painter.calls] == [("ink", "paint it in ink"), ("oil", "in oil")]
    assert [call[:2] for call in mover.calls] == [("ink", "it runs"), ("oil", "it runs")]
    assert [call[2] for call in painter.calls] == [row["seed"] for row in rows.values()]
    # What is asked of the animator is not what the clip is said to show.
    assert rows["fox", "ink"]["caption"] == "a fox, the camera pans left"
    assert rows["fox", "ink"]["animator"]["name"] == "mover"


def test_captions_name_the_style(bench, styles):
    settings = replace(bench().settings, caption="{caption}, {style} style")
    build = bench("out", "fox.mp4", settings=settings)
    build.run(styles=styles)
    assert [row["caption"] for row in build.rows().values()] == [
        "a fox, the camera pans left, Ink Painting style",
        "a fox, the camera pans left, Oil Painting style",
    ]


@pytest.mark.parametrize("spoilt", [1, 3])
def test_a_failed_picture_is_painted_again_with_the_next_seed(bench, spoilt):
    build = bench("out", "fox.mp4")
    painter = bench.painter(spoilt)
    build.run(painter)
    row = build.rows()["fox", "ink"]
    assert row["accepted"] and row["style_tries"] == spoilt + 1
    seeds = [seed for style, _, seed in painter.calls if style == "ink"]
    assert seeds == [row["seed"] + k for k in range(spoilt + 1)]


def test_after_three_more_tries_a_picture_is_given_up(bench):
    build = bench("out", "fox.mp4")
    painter, mover = bench.painter(4), bench.mover()
    build.run(painter, mover)
    row = build.rows()["fox", "ink"]
    assert (row["stage"], row["accepted"], row["problems"]) == ("stylised", False, ["unchanged"])
    assert len(painter.calls) == 4 and mover.calls == []
    assert "keyframe" not in row and not list((build.folder / "keyframes").iterdir())


@pytest.mark.parametrize("spoilt", [1, 3])
def test_a_failed_clip_is_made_again_with_the_next_seed(bench, spoilt):
    build = bench("out", "fox.mp4")
    mover = bench.mover(spoilt)
    build.run(animator=mover)
    row = build.rows()["fox", "ink"]
    assert row["accepted"] and row["clip_tries"] == spoilt + 1
    assert [call[2] for call in mover.calls[: spoilt + 1]] == [
        row["seed"] + k for k in range(spoilt + 1)
    ]
    assert row["clip_scores"]["motion"] > 1


def test_after_three_more_tries_a_clip_is_given_up_and_its_file_removed(bench):
    build = bench("out", "fox.mp4")
    build.run(animator=bench.mover(4))
    row = build.rows()["fox", "ink"]
    assert (row["stage"], row["accepted"], row["clip_tries"]) == ("done", False, 4)
    assert row["problems"] == ["still", "frozen"]
    assert "video" not in row and not list((build.folder / "videos").iterdir())


def test_engines_without_seeds_are_asked_once(bench):
    build = bench("out", "fox.mp4")
    painter, mover = bench.painter(1), bench.mover(1)
    painter.is_seeded = mover.is_seeded = False
    build.run(painter, mover)
    assert len(painter.calls) == 1 and mover.calls == []
    assert build.rows()["fox", "ink"]["style_tries"] == 1


def test_without_gates_everything_is_taken(bench):
    settings = replace(bench().settings, gates=None, quality=None)
    build = bench("out", "held.mp4", "fox.mp4", settings=settings)
    build.run(bench.painter(9), bench.mover(9))
    rows = build.rows()
    assert len(rows) == 2 and all(row["accepted"] for row in rows.values())
    assert rows["held", "ink"]["gates"] is None
    # Measured all the same, for whoever wants to sort them out later.
    assert rows["fox", "ink"]["clip_scores"]["motion"] < 0.3


def test_a_size_of_its_own_shape_is_chosen_for_each_source(bench, clips, tmp_path):
    tall = tmp_path / "tall.png"
    Image.open(clips / "tree.png").transpose(Image.Transpose.ROTATE_90).save(tall)
    build = bench("out", "fox.mp4", settings=replace(bench().settings, sizes=((96, 64), (64, 96))))
    tall.with_suffix(".txt").write_text("a tall tree")
    build.sources += find_sources([str(tall)], count=None, seed=0)[0]
    build.run()
    rows = build.rows()
    assert (rows["fox", "ink"]["width"], rows["fox", "ink"]["height"]) == (96, 64)
    assert (rows["tall", "ink"]["width"], rows["tall", "ink"]["height"]) == (64, 96)
    assert rows["tall", "ink"]["reason"] is None
    assert read_video(build.folder / rows["tall", "ink"]["video"]).shape[1:3] == (96, 64)


# --- Going on ---------------------------------------------------------------------------------


class Crash(Exception):
    pass


@pytest.mark.parametrize(
    ("place", "call"),
    [
        ("measure_clip", 1),
        ("_keyframe", 2),
        ("picture_scores", 2),
        ("write_video", 3),
        ("clip_scores", 2),
        ("_file_of", 5),
    ],
)
def test_a_crash_anywhere_leaves_no_trace(bench, whole, monkeypatch, place, call):
    build = bench("out", "few")
    painter, mover = bench.painter(1), bench.mover(1)
    genuine, calls = getattr(stages, place), []

    def crashing(*args, **named):
        calls.append(place)
        if len(calls) == call:
            raise Crash
        return genuine(*args, **named)

    monkeypatch.setattr(stages, place, crashing)
    with pytest.raises(Crash):
        build.run(painter, mover)
    monkeypatch.setattr(stages, place, genuine)
    assert build.files().get(MANIFEST) != whole[MANIFEST]
    build.run(painter, mover)
    assert build.files() == whole


def test_going_on_does_nothing_twice(bench, whole):
    build = bench("out", "few")
    painter, mover = bench.painter(1), bench.mover(1)
    build.run(painter, mover)
    counts = len(painter.calls), len(mover.calls)
    assert build.run(painter, mover) == []
    assert (len(painter.calls), len(mover.calls)) == counts
    assert build.files() == whole


def test_a_signal_ends_after_the_item_and_the_rest_comes_later(bench, whole):
    build = bench("out", "few")
    painter, mover = bench.painter(1), bench.mover(1)
    genuine = mover.animate

    def interrupted(shot):
        build.stop.note(2)
        yield from genuine(shot)

    mover.animate = interrupted
    with pytest.raises(InterruptedRunError):
        build.run(painter, mover)
    done = [row for row in build.rows().values() if row["stage"] == "done"]
    assert len(done) == 1 and (build.folder / done[0]["video"]).is_file()
    mover.animate = genuine
    build.stop = type(build.stop)()
    build.run(painter, mover)
    assert build.files() == whole


def test_a_style_may_come_later(bench, styles):
    build = bench("out", "fox.mp4", "short.mp4")
    build.run()
    first = build.files()
    build.run(styles=styles)
    rows = build.rows()
    assert len(rows) == 4 and rows["fox", "oil"]["stage"] == "done"
    later = build.files()
    assert all(later[name] == data for name, data in first.items() if name != MANIFEST)


@pytest.mark.parametrize("kind", ["source", "keyframe", "video"])
@pytest.mark.parametrize("damage", ["gone", "cut"])
def test_files_that_are_gone_are_made_again(bench, whole, kind, damage):
    build = bench("out", "few")
    painter, mover = bench.painter(1), bench.mover(1)
    build.run(painter, mover)
    path = build.folder / build.rows()["tree", "ink"][kind]
    path.write_bytes(path.read_bytes()[:-1]) if damage == "cut" else path.unlink()
    build.run(painter, mover)
    assert build.lost > 0
    assert build.files() == whole


def test_a_clip_of_another_try_is_not_taken_for_the_one_that_is_noted(bench):
    build = bench("out", "fox.mp4")
    build.run()
    row = build.rows()["fox", "ink"]
    path = build.folder / row["video"]
    manifest = Manifest(build.folder / MANIFEST)
    manifest.put({**row, "stage": "animated"})
    manifest.save()
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert check_files(build.folder, Manifest(build.folder / MANIFEST)) == 1


# --- Folders ----------------------------------------------------------------------------------


def test_other_settings_are_refused_by_name(bench):
    build = bench("out", "fox.mp4")
    build.run()
    other = replace(build.settings, num_frames=9, seed=8)
    with pytest.raises(InvalidRequestError, match="num_frames 5, not 9, seed 7, not 8"):
        settle_folder(build.folder, other, overwrite=False)
    assert settle_folder(build.folder, other, overwrite=True) is True
    keep_settings(build.folder, other)
    assert settle_folder(build.folder, other, overwrite=False) is False


def test_forgetting_removes_what_the_manifest_lists_and_nothing_else(bench, tmp_path):
    build = bench("out", "fox.mp4")
    build.run()
    mine = build.folder / "videos" / "mine.mp4"
    mine.write_bytes(b"mine")
    outside = tmp_path / "outside.mp4"
    outside.write_bytes(b"outside")
    manifest = Manifest(build.folder / MANIFEST)
    manifest.put({"id": "evil", "video": "../outside.mp4", "source": "build.json"})
    forget(build.folder, manifest)
    assert sorted(build.files()) == ["build.json", MANIFEST, "videos/mine.mp4"]
    assert outside.exists() and build.files()[MANIFEST] == b""


def test_a_folder_of_others_is_refused(bench):
    build = bench("out", "fox.mp4")
    build.folder.mkdir()
    (build.folder / "holiday.jpg").write_bytes(b"mine")
    with pytest.raises(InvalidRequestError, match="is not empty"):
        build.run()
    assert [path.name for path in build.folder.iterdir()] == ["holiday.jpg"]


def test_settings_that_are_damaged_are_refused(bench):
    build = bench("out", "fox.mp4")
    build.folder.mkdir()
    (build.folder / "build.json").write_text("[")
    with pytest.raises(InvalidRequestError, match="is damaged"):
        build.run()


def test_settings_survive_json(bench):
    values = bench().settings.as_json()
    assert json.loads(json.dumps(values)) == values
