"""Every fault of a dataset, made on purpose, is found, and all of them at once."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
import threading
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import osp_cli
from osp_cli.errors import InvalidRequestError, RuntimeFailureError
from osp_cli.media import ffmpeg
from osp_cli.training.dataset.clip_check import about_tokens
from osp_cli.training.dataset.entries import ERROR, WARNING, refuse

clips = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[2] / "media" / "clips.py")))


def found(report, place=None):
    return {
        (each.code, each.level) for each in report.findings if place is None or each.place == place
    }


def message(report, code):
    (finding,) = [each for each in report.findings if each.code == code]
    return finding.message


def test_a_good_folder_has_no_findings(tmp_path, clip, checked):
    for name in ("a.mp4", "b.webm", "c.avi"):
        arguments = ("-c:v", "libvpx", "-b:v", "1M") if name.endswith("webm") else ()
        clip(tmp_path / name, *arguments)
    seen = []
    report = checked(tmp_path, lambda done, total: seen.append((done, total)))
    # Three codings of one picture are three clips.
    assert report.findings == ()
    assert report.num_entries == len(report.windows) == 3
    assert report.buckets == {"64x64x17": 3}
    assert report.seconds == pytest.approx(4.5, abs=0.1)
    assert seen == [(1, 3), (2, 3), (3, 3)]
    refuse(report, skip_invalid=False)
    json.dumps(report.as_json())


def test_missing_file(tmp_path, checked):
    row = {"video": "gone.mp4", "caption": "x", "source": "gone.png"}
    (tmp_path / "metadata.jsonl").write_text(json.dumps(row))
    report = checked(tmp_path)
    assert [each.code for each in report.errors] == ["missing-file", "missing-file"]
    assert report.errors[0].place == "metadata.jsonl:1"


@pytest.mark.parametrize("damage", ["empty", "text", "noise", "cut", "locked"])
def test_unreadable(tmp_path, clip, checked, damage):
    path = clip(tmp_path / "a.mp4", "-movflags", "+faststart")
    data = path.read_bytes()
    if damage == "locked":
        path.unlink()
        path.symlink_to(path)
    else:
        contents = {
            "empty": b"",
            "text": b"hello " * 99,
            "noise": bytes(range(256)) * 40,
            "cut": data[: len(data) * 6 // 10],
        }
        path.write_bytes(contents[damage])
    report = checked(tmp_path)
    wanted = "missing-file" if damage == "locked" else "unreadable"
    assert found(report) == {(wanted, ERROR)}
    assert not report.windows
    with pytest.raises(InvalidRequestError, match="1 of 1 clips"):
        refuse(report, skip_invalid=False)


@pytest.mark.parametrize("name", ["a.mkv", "a.mp4"])
def test_pictures_that_cannot_be_decoded(tmp_path, clip, checked, name):
    path = clip(tmp_path / name, seconds=6, fps=16)
    data = bytearray(path.read_bytes())
    # All but the beginning, and the index at the end, where there is one: it promises all.
    start, end = len(data) // 4, data.rindex(b"moov") - 4 if name == "a.mp4" else len(data)
    data[start:end] = bytes(end - start)
    path.write_bytes(data)
    report = checked(tmp_path)
    assert ("unreadable", ERROR) in found(report)
    assert not report.windows


@pytest.mark.parametrize("zeroed", [None, (0.4, 0.6), (0.7, 1.0)])
def test_long_clips_are_read_in_their_middle_and_at_their_end(tmp_path, clip, checked, zeroed):
    path = clip(tmp_path / "a.mp4", "-g", "4", "-x264-params", "scenecut=0", seconds=40, fps=16)
    data = bytearray(path.read_bytes())
    if zeroed:
        length = data.rindex(b"moov") - 4
        start, end = (round(share * length) for share in zeroed)
        data[start:end] = bytes(end - start)
        path.write_bytes(data)
    report = checked(tmp_path, windows=1)
    wanted = {("unreadable", ERROR)} if zeroed else set()
    assert {each for each in found(report) if each[1] == ERROR} == wanted


def test_sound_that_goes_on_is_no_damage(tmp_path, clip, checked):
    silent = clip(tmp_path.parent / f"{tmp_path.name}.mp4")
    path = tmp_path / "a.mp4"
    clips.run("-i", silent, "-f", "lavfi", "-i", "sine=d=4", "-c:v", "copy", path)
    path.with_suffix(".txt").write_text("x")
    report = checked(tmp_path)
    assert found(report) == {("unreadable", WARNING)}
    assert len(report.windows) == 1


def test_sound_alone(tmp_path, checked):
    path = tmp_path / "a.mp4"
    clips.run("-f", "lavfi", "-i", "sine=d=1", "-c:a", "aac", path)
    path.with_suffix(".txt").write_text("x")
    assert found(checked(tmp_path)) == {("no-video-stream", ERROR)}


def test_bad_rows_and_paths_outside_stand_beside_good_ones(tmp_path, clip, checked):
    clip(tmp_path / "a.mp4")
    rows = [
        '{"video": "a.mp4", "caption": "x"}',
        '{"caption": "x"}',
        '{"video": "../a.mp4", "caption": "x"}',
    ]
    (tmp_path / "metadata.jsonl").write_text("\n".join(rows))
    report = checked(tmp_path)
    assert [(each.place, each.code) for each in report.findings] == [
        ("metadata.jsonl:2", "bad-row"),
        ("metadata.jsonl:3", "outside-root"),
    ]
    assert (report.num_entries, len(report.windows)) == (3, 1)
    with pytest.raises(InvalidRequestError, match="2 of 3 clips"):
        refuse(report, skip_invalid=False)
    refuse(report, skip_invalid=True)


def test_no_caption(tmp_path, clip, checked):
    clip(tmp_path / "a.mp4", caption=None)
    clip(tmp_path / "b.mp4", caption="  \n ", fps=30)
    report = checked(tmp_path)
    assert [(each.place, each.code) for each in report.errors] == [
        ("a.mp4", "no-caption"),
        ("b.mp4", "no-caption"),
    ]
    allowed = checked(tmp_path, allow_empty=True)
    assert (allowed.findings, len(allowed.windows)) == ((), 2)


def test_caption_encoding(tmp_path, clip, checked):
    path = clip(tmp_path / "a.mp4")
    path.with_suffix(".txt").write_bytes("ein\nKäse".encode("latin-1"))
    report = checked(tmp_path)
    assert found(report) == {("caption-encoding", ERROR)}
    assert "line 2" in message(report, "caption-encoding")
    assert not report.windows
    allowed = checked(tmp_path, allow_empty=True)
    assert found(allowed) == {("caption-encoding", WARNING)}
    assert len(allowed.windows) == 1


def test_caption_long(tmp_path, clip, checked):
    clip(tmp_path / "a.mp4", caption="a cat and a dog, " * 20)
    report = checked(tmp_path)
    assert found(report) == {("caption-long", WARNING)}
    assert len(report.windows) == 1


def test_tokens_of_other_scripts_are_counted():
    assert about_tokens("a cat, a dog") == 5
    assert about_tokens("一只猫") == 3
    assert about_tokens("extraordinarily") == 3


def test_too_short_states_both_durations(tmp_path, clip, checked):
    clip(tmp_path / "a.mp4", seconds=0.75)
    report = checked(tmp_path)
    assert found(report) == {("too-short", ERROR)}
    assert message(report, "too-short") == "lasts 0.75 s, 17 frames at 16 fps take 1.04 s"
    # 0.75 s hold 12 frames.
    assert report.errors[0].hint == "--frames 9"
    assert checked(tmp_path, num_frames=9).findings == ()


def test_the_cut_is_applied_first(tmp_path, clip, checked):
    clip(tmp_path / "a.mp4", seconds=3)
    cuts = ([0.5, 1.25], [0.5, 2.0], [9, 12], [2.5, 30])
    rows = [json.dumps({"video": "a.mp4", "caption": "x", "cut": cut}) for cut in cuts]
    (tmp_path / "metadata.jsonl").write_text("\n".join(rows))
    report = checked(tmp_path)
    assert [(each.place, each.message) for each in report.errors] == [
        ("metadata.jsonl:1", "its cut lasts 0.75 s, 17 frames at 16 fps take 1.04 s"),
        ("metadata.jsonl:3", "lasts 3.00 s, its cut begins at 9.00 s"),
        ("metadata.jsonl:4", "its cut lasts 0.50 s, 17 frames at 16 fps take 1.04 s"),
    ]
    (window,) = report.windows
    assert 0.5 <= window.start <= 2.0 - 17 / 16


def test_the_table_of_lengths(tmp_path, clip, checked):
    clip(tmp_path / "a.mp4", seconds=73 / 24)
    clip(tmp_path / "b.mp4", seconds=72 / 24)
    # 49 frames at 16 fps take 73 at 24 fps.
    report = checked(tmp_path, num_frames=49)
    assert report.buckets == {"64x64x49": 1, "64x64x33": 1}
    short = checked(tmp_path, num_frames=49, bucket=False)
    assert [(each.place, each.code) for each in short.findings] == [("b.mp4", "too-short")]
    assert "49 frames at 16 fps take 3.04 s" in message(short, "too-short")


def test_low_fps(tmp_path, clip, checked):
    clip(tmp_path / "a.mp4", fps=12, seconds=2)
    report = checked(tmp_path)
    assert found(report) == {("low-fps", ERROR)}
    assert "12.00 fps" in message(report, "low-fps")
    assert checked(tmp_path, stride=1).findings == ()
    assert checked(tmp_path, fps=12).findings == ()


def test_too_small(tmp_path, clip, checked):
    clip(tmp_path / "a.mp4", size="64x48")
    report = checked(tmp_path)
    assert [each.code for each in report.errors] == ["too-small"]
    assert message(report, "too-small") == "64x48, its bucket is 80x48"
    assert len(checked(tmp_path, allow_upscale=True).windows) == 1


def test_extreme_aspect(tmp_path, clip, checked):
    clip(tmp_path / "a.mp4", size="330x80")
    clip(tmp_path / "b.mp4", size="80x330")
    report = checked(tmp_path)
    assert [each.code for each in report.findings] == ["extreme-aspect"] * 2


def test_ambiguous_pair(tmp_path, clip, checked):
    clip(tmp_path / "a.mp4")
    clip(tmp_path / "a.mkv")
    report = checked(tmp_path)
    assert found(report) == {("ambiguous-pair", ERROR)}
    assert {each.place for each in report.errors} == {"a.mp4", "a.mkv"}
    assert report.num_entries == 2


def test_vfr(tmp_path, clip, checked):
    clip(
        tmp_path / "a.mkv",
        *("-vf", "select='not(eq(mod(n,5),3))'", "-fps_mode", "vfr"),
        fps=30,
        seconds=2,
    )
    report = checked(tmp_path)
    assert found(report) == {("vfr", WARNING)}
    assert len(report.windows) == 1
    assert "on average" in message(checked(tmp_path, stride=2), "vfr")


def test_rotated(tmp_path, clip, checked):
    plain = clip(tmp_path.parent / f"{tmp_path.name}.mp4", size="128x80")
    path = tmp_path / "a.mp4"
    clips.run("-display_rotation", "90", "-i", plain, "-c", "copy", path)
    path.with_suffix(".txt").write_text("x")
    report = checked(tmp_path)
    assert found(report) == {("rotated", WARNING)}
    # Its bucket is that of the upright picture.
    (window,) = report.windows
    assert window.size[0] < window.size[1]


def test_hdr(tmp_path, clip, checked):
    clip(tmp_path / "a.mp4", "-pix_fmt", "yuv420p10le")
    report = checked(tmp_path)
    assert found(report) == {("hdr", WARNING)}
    assert "10-bit" in message(report, "hdr")


@pytest.mark.parametrize(
    ("code", "arguments"),
    [
        ("frozen", ("-vf", "loop=loop=60:size=1:start=2,fps=24", "-t", "1.5")),
        ("black", ("-vf", "drawbox=color=black:t=fill:enable='lt(t,0.8)'")),
        ("has-cut", ("-vf", "negate=enable='gt(t,0.7)'")),
    ],
)
def test_what_stands_still_is_dark_or_is_two_clips(tmp_path, clip, checked, code, arguments):
    clip(tmp_path / "a.mp4", *arguments, size="256x256")
    report = checked(tmp_path)
    assert (code, WARNING) in found(report)
    assert not report.errors
    assert len(report.windows) == 1


def test_only_what_is_used_is_blamed(tmp_path, clip, checked):
    clip(tmp_path / "a.mp4", "-vf", "negate=enable='gt(t,2)'", size="256x256", seconds=4)
    row = {"video": "a.mp4", "caption": "x", "cut": [0, 1.8]}
    (tmp_path / "metadata.jsonl").write_text(json.dumps(row))
    assert checked(tmp_path).findings == ()
    (tmp_path / "metadata.jsonl").write_text(json.dumps({**row, "cut": [1.4, 2.6]}))
    assert found(checked(tmp_path)) == {("has-cut", WARNING)}


def test_duplicate(tmp_path, clip, checked):
    path = clip(tmp_path / "a.mp4", seconds=3)
    (tmp_path / "b.mp4").write_bytes(path.read_bytes())
    (tmp_path / "b.txt").write_text("another caption")
    report = checked(tmp_path)
    assert found(report) == {("duplicate", WARNING)}
    assert message(report, "duplicate") == "is the same as a.mp4"
    # Two parts of one film are two clips.
    cuts = ([0, 1.5], [1.5, 3])
    rows = [json.dumps({"video": "a.mp4", "caption": "x", "cut": cut}) for cut in cuts]
    (tmp_path / "metadata.jsonl").write_text("\n".join(rows))
    assert checked(tmp_path).findings == ()


def test_pictures_are_for_text_to_video(tmp_path, checked):
    Image.effect_noise((96, 96), 50).convert("RGB").save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("noise")
    for mode in ("flash", "inpaint"):
        assert found(checked(tmp_path, mode=mode)) == {("needs-video", ERROR)}
    report = checked(tmp_path, mode="t2v")
    assert report.findings == ()
    assert report.buckets == {"64x64x1": 1}


def test_numbered_pictures_are_a_clip(tmp_path, checked):
    folder = tmp_path / "walk"
    folder.mkdir()
    for number in range(20):
        Image.effect_noise((96, 96), 50).convert("RGB").save(folder / f"{number}.png")
    (tmp_path / "walk.txt").write_text("noise")
    report = checked(tmp_path)
    assert report.findings == ()
    assert report.buckets == {"64x64x17": 1}
    for number in range(8):
        (folder / f"{number}.png").write_bytes((folder / "0.png").read_bytes())
    assert found(checked(tmp_path)) == {("frozen", WARNING)}
    Image.effect_noise((80, 96), 50).convert("RGB").save(folder / "19.png")
    assert ("unreadable", ERROR) in found(checked(tmp_path))
    (folder / "19.png").write_bytes(b"")
    assert ("unreadable", ERROR) in found(checked(tmp_path))


def test_pictures_that_clips_follow_from(tmp_path, clip, checked):
    clip(tmp_path / "a.mp4")
    assert found(checked(tmp_path, condition="source")) == {("no-source", ERROR)}
    picture = tmp_path / "a.source.png"
    Image.new("RGB", (96, 96), "red").save(picture)
    for condition in ("source", "auto", "plain"):
        report = checked(tmp_path, condition=condition)
        assert report.findings == ()
        assert len(report.windows[0].source_content) == 64
    picture.write_bytes(b"nothing")
    assert found(checked(tmp_path)) == {("unreadable", ERROR)}
    # Nobody looks at it then.
    for options in ({"condition": "first"}, {"mode": "t2v"}):
        report = checked(tmp_path, **options)
        assert (report.findings, report.windows[0].source_content) == ((), "")


def test_windows_of_a_long_clip(tmp_path, clip, checked):
    clip(tmp_path / "a.mp4", seconds=6)
    report = checked(tmp_path)
    assert report.findings == ()
    starts = [window.start for window in report.windows]
    assert len(starts) == 4
    assert all(b - a >= 17 / 16 - 1e-9 for a, b in pairwise(starts))
    assert len(checked(tmp_path, windows=2).windows) == 2
    assert [w.start for w in checked(tmp_path).windows] == starts
    assert [w.start for w in checked(tmp_path, seed=7).windows] != starts


def test_the_digest_is_of_contents_and_not_of_names(tmp_path, clip, checked):
    for name, size in (("a", "96x96"), ("b", "128x96")):
        clip(tmp_path / "one" / f"{name}.mp4", size=size, caption=name)
    for name, size in (("z", "96x96"), ("k", "128x96")):
        caption = {"z": "a", "k": "b"}[name]
        clip(tmp_path / "two" / f"{name}.mp4", size=size, caption=caption)
    first, second = checked(tmp_path / "one"), checked(tmp_path / "two")
    assert first.sha256 == second.sha256
    (tmp_path / "two" / "k.txt").write_text("c")
    assert checked(tmp_path / "two").sha256 != first.sha256


def test_everything_is_told_at_once_and_in_order(tmp_path, clip, checked):
    clip(tmp_path / "a.mp4", "-vf", "negate=enable='gt(t,0.3)'", size="60x60", seconds=0.6, fps=12,
         caption=None)  # fmt: skip
    clip(tmp_path / "b.mp4", "-pix_fmt", "yuv420p10le")
    clip(tmp_path / "c.mp4", seconds=0.5)
    report = checked(tmp_path)
    assert [each.code for each in report.findings if each.place == "a.mp4"] == [
        "no-caption", "low-fps", "too-small", "too-short", "has-cut",
    ]  # fmt: skip
    assert [each.place for each in report.findings if each.place != "a.mp4"] == ["b.mp4", "c.mp4"]
    assert checked(tmp_path) == report
    assert len(report.windows) == 1


def test_what_is_left_of_nothing_is_refused(tmp_path, checked):
    with pytest.raises(InvalidRequestError, match="nothing to train on"):
        refuse(checked(tmp_path), skip_invalid=True)


def test_without_ffmpeg_no_clip_is_blamed(tmp_path, clip, checked, monkeypatch):
    clip(tmp_path / "a.mp4")
    monkeypatch.setattr(ffmpeg, "ffmpeg_exe", lambda: str(tmp_path / "none"))
    with pytest.raises(RuntimeFailureError):
        checked(tmp_path)
    assert threading.active_count() < 20


def test_neither_torch_nor_a_model_is_loaded(tmp_path, clip):
    clip(tmp_path / "a.mp4")
    program = (
        "import sys; from pathlib import Path\n"
        "from osp_cli.training.dataset.check import CheckSettings, check_dataset\n"
        "settings = CheckSettings(num_frames=17, width=64, height=64)\n"
        "assert len(check_dataset(Path(sys.argv[1]), settings).windows) == 1\n"
        "print({'torch', 'transformers', 'diffusers'} & set(sys.modules))"
    )
    root = str(Path(osp_cli.__file__).parent.parent)
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        capture_output=True, text=True, check=True, cwd=root,
    )  # fmt: skip
    assert done.stdout.strip() == "set()"


def test_names_that_are_orders_or_no_text(tmp_path, clip, checked):
    for name in ("-i evil.mp4", "concat:a|b.mp4", "%03d.mp4", "one\ntwo.mp4", "käse 猫.mp4"):
        clip(tmp_path / name)
    report = checked(tmp_path)
    assert {code for code, _ in found(report)} == {"duplicate"}
    assert len(report.windows) == 5
    assert np.all([window.num_frames == 17 for window in report.windows])
