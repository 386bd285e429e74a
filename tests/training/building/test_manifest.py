"""The manifest on the disk: whole at any time, and no key of others lost."""

from __future__ import annotations

import json

import pytest

from osp_cli.errors import InvalidRequestError
from osp_cli.training.building.manifest import Manifest


@pytest.fixture
def path(tmp_path):
    return tmp_path / "osp.jsonl"


def test_rows_come_back_in_their_order(path):
    manifest = Manifest(path)
    for name in ("b", "a", "c"):
        manifest.put({"id": name, "stage": "gated", "accepted": name != "a"})
    manifest.put({"id": "b", "stage": "keyframed", "accepted": True})
    manifest.save()
    again = Manifest(path)
    assert [row["id"] for row in again] == ["b", "a", "c"] and len(again) == 3
    assert [row["id"] for row in again.at("gated")] == ["c"]
    assert [row["id"] for row in again.at("gated", "keyframed")] == ["b", "c"]
    assert again.get("b") == {"id": "b", "stage": "keyframed", "accepted": True}
    assert again.get("d") is None


def test_the_order_of_keys_does_not_tell_of_the_way_there(path, tmp_path):
    row = {"id": "a", "stage": "gated", "mine": 1, "seed": 2}
    backwards = dict(reversed(row.items()))
    files = []
    for number, values in enumerate((row, backwards)):
        manifest = Manifest(tmp_path / f"{number}.jsonl")
        manifest.put(values)
        manifest.save()
        files.append((tmp_path / f"{number}.jsonl").read_text("utf-8"))
    assert files[0] == files[1] == '{"id": "a", "stage": "gated", "seed": 2, "mine": 1}\n'


def test_keys_and_lines_of_others_stay(path):
    path.write_text('{"note": "by hand"}\n{"id": "a", "stage": "gated", "rating": 5}\n')
    manifest = Manifest(path)
    manifest.put({**manifest.get("a"), "stage": "done", "caption": "Füchse"})
    manifest.save()
    lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    assert lines == [
        {"note": "by hand"},
        {"id": "a", "caption": "Füchse", "stage": "done", "rating": 5},
    ]


@pytest.mark.parametrize("tail", [b'{"id": "b", "sta', b'{"id": "b\xc3', b"[1", b"\n"])
def test_a_last_line_that_was_cut_short_is_left_out(path, tail):
    path.write_bytes(b'{"id": "a"}\n' + tail)
    assert [row["id"] for row in Manifest(path)] == ["a"]


@pytest.mark.parametrize("bad", ["{", "[]", "\x00", "12"])
def test_any_other_line_that_is_no_row_is_named(path, bad):
    path.write_text(f'{{"id": "a"}}\n{bad}\n{{"id": "b"}}\n')
    with pytest.raises(InvalidRequestError, match=r"osp\.jsonl, line 2, is no row"):
        Manifest(path)


def test_a_file_that_cannot_be_written_leaves_the_old_one(path, monkeypatch):
    manifest = Manifest(path)
    manifest.put({"id": "a"})
    manifest.save()
    monkeypatch.setattr("osp_cli.media.files.os.fsync", lambda number: 1 / 0)
    manifest.clear()
    with pytest.raises(ZeroDivisionError):
        manifest.save()
    assert path.read_text() == '{"id": "a"}\n'
    assert [item.name for item in path.parent.iterdir()] == ["osp.jsonl"]


def test_saving_does_not_take_all_the_time(path, monkeypatch):
    # Each save is said to take a second; a thousand rows come in a second altogether.
    now, saves = [0.0], []
    monkeypatch.setattr("osp_cli.training.building.manifest.time.monotonic", lambda: now[0])
    manifest = Manifest(path)
    genuine = manifest.save

    def slow():
        monkeypatch.setattr(
            "osp_cli.training.building.manifest.atomic_output", clock(now, saves, path)
        )
        genuine()

    manifest.save = slow
    for number in range(1000):
        now[0] += 0.001
        manifest.put({"id": str(number)})
    assert len(saves) == 1
    manifest.save()
    assert len(Manifest(path)) == 1000


def clock(now, saves, path):
    """An `atomic_output` that takes a second."""
    import contextlib

    @contextlib.contextmanager
    def output(_path, *, overwrite):
        saves.append(now[0])
        now[0] += 1.0
        yield path

    return output


@pytest.mark.parametrize(
    "row",
    [
        {"id": "../x"},
        {"id": ".."},
        {"id": "a/b"},
        {"id": "a", "video": "../../else.mp4"},
        {"id": "a", "source": "/etc/passwd"},
        {"id": "a", "keyframe": "videos/../../x.png"},
    ],
)
def test_rows_that_lead_elsewhere_are_refused(tmp_path, row):
    path = tmp_path / "osp.jsonl"
    path.write_text(
        json.dumps({"id": "fine", "video": "videos/a.mp4"}) + "\n" + json.dumps(row) + "\n"
    )
    with pytest.raises(InvalidRequestError, match="line 2"):
        Manifest(path)
