"""All layouts of datasets are told apart and read, and rows that make no sense are named."""

from __future__ import annotations

import contextlib
import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from osp_cli.errors import InvalidRequestError
from osp_cli.training.dataset.layouts import read_dataset
from osp_cli.training.dataset.listing import BadRowError, inside
from osp_cli.training.dataset.rows import read_rows


@pytest.fixture
def folder(tmp_path):
    """Three files that are called like clips; nothing but the check opens them."""
    for name in ("a.mp4", "b.mp4", "c.mp4"):
        (tmp_path / name).write_bytes(b"")
    return tmp_path


def told(listing):
    """File, caption and repeats of each entry."""
    return [
        (entry.path.relative_to(listing.root).as_posix(), entry.caption, entry.repeats)
        for entry in listing.entries
    ]


def codes(listing):
    return [(finding.place, finding.code) for finding in listing.findings]


def write_lines(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_the_manifest_counts_what_is_finished_and_accepted(folder):
    record = {"caption": "ink", "style": "ink", "accepted": True, "stage": "done"}
    write_lines(
        folder / "osp.jsonl",
        {**record, "video": "a.mp4", "source": "a.source.png"},
        {**record, "video": "b.mp4", "accepted": False},
        {**record, "video": "c.mp4", "stage": "animate"},
    )
    # Whatever else is in the folder: the first layout holds.
    write_lines(folder / "metadata.jsonl", {"video": "b.mp4", "caption": "x"})
    listing = read_dataset(folder)
    (entry,) = listing.entries
    assert (entry.path.name, entry.caption, entry.style) == ("a.mp4", "ink", "ink")
    assert entry.source == folder / "a.source.png"
    assert entry.place == "osp.jsonl:1"
    assert "1 of 3" in listing.layout
    assert read_dataset(folder / "osp.jsonl") == listing


@pytest.mark.parametrize(
    "path_name",
    ["file_name", "file_path", "path", "video_path", "image_path", "video"],
)
@pytest.mark.parametrize("caption_name", ["text", "caption", "cap", "prompt"])
def test_all_names_of_columns(folder, path_name, caption_name):
    write_lines(folder / "metadata.jsonl", {path_name: "a.mp4", caption_name: " a\n cat "})
    assert told(read_dataset(folder)) == [("a.mp4", "a cat", 1)]


def test_json_and_tables_say_the_same(folder):
    rows = [
        {"file_name": "a.mp4", "text": "one, two", "num_repeats": 3},
        {"file_name": "b.mp4", "text": "three", "source": "c.png"},
    ]
    expected = [("a.mp4", "one, two", 3), ("b.mp4", "three", 1)]
    for name, text in {
        "metadata.json": json.dumps(rows),
        "metadata.csv": "file_name,text,num_repeats,source\n"
        'a.mp4, "one, two",3,\nb.mp4,three,,c.png',
        "metadata.jsonl": "\n".join(map(json.dumps, rows)),
    }.items():
        path = folder / name
        path.write_text("\ufeff" + text, encoding="utf-8")
        listing = read_dataset(folder)
        assert name in listing.layout
        assert told(listing) == expected
        assert listing.entries[1].source == folder / "c.png"
        assert told(read_dataset(path)) == expected
        path.unlink()


def test_json_objects_by_the_names_of_files(folder):
    text = '{"a.mp4": {"caption": "one"},\n\n "b.mp4": "two"}'
    (folder / "metadata.json").write_text(text)
    listing = read_dataset(folder)
    assert told(listing) == [("a.mp4", "one", 1), ("b.mp4", "two", 1)]
    assert [entry.place for entry in listing.entries] == ["metadata.json:1", "metadata.json:3"]


def test_bad_rows_tell_their_lines(folder):
    good = json.dumps({"video": "a.mp4", "caption": "x"})
    lines = [
        good,
        "{broken",
        "[1, 2]",
        json.dumps({"caption": "no path"}),
        "",
        json.dumps({"video": "a.mp4"}),
        json.dumps({"video": "https://example.org/a.mp4", "caption": "x"}),
        json.dumps({"video": "a.mp4", "caption": "x", "cut": [3, 1]}),
        json.dumps({"video": "a.mp4", "caption": "x", "cut": "soon"}),
        json.dumps({"video": "a.mp4", "caption": "x", "num_repeats": -1}),
        json.dumps({"video": 7, "caption": "x"}),
        json.dumps({"video": "a\0.mp4", "caption": "x"}),
        json.dumps({"video": "b/..", "caption": "x"}),
        good,
    ]
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    listing = read_dataset(folder)
    bad = [2, 3, 4, 6, 7, 8, 9, 10, 11, 12, 13]
    assert codes(listing) == [(f"metadata.jsonl:{line}", "bad-row") for line in bad]
    assert [entry.place for entry in listing.entries] == ["metadata.jsonl:1", "metadata.jsonl:14"]
    assert listing.num_entries == 13
    assert [place for place, _ in codes(read_dataset(folder, allow_empty=True))] == [
        f"metadata.jsonl:{line}" for line in bad if line != 6
    ]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('[{"video": "a.mp4", "caption": "x"},\n{"video": ', 2),
        ('[{"video": "a.mp4", "caption": "x"},\n', 2),
        ('[{"video": "a.mp4", "caption": "x"},\n\n 5]', 3),
        ("nothing", 1),
    ],
)
def test_broken_json_tells_its_line(folder, text, line):
    (folder / "metadata.json").write_text(text)
    assert codes(read_dataset(folder)) == [(f"metadata.json:{line}", "bad-row")]


def test_rows_of_tables_count_lines_of_the_file(folder):
    (folder / "metadata.csv").write_text('video,caption\na.mp4,"two\nlines"\nb.mp4\nc.mp4,x\n')
    listing = read_dataset(folder)
    assert [entry.place for entry in listing.entries] == ["metadata.csv:2", "metadata.csv:5"]
    assert codes(listing) == [("metadata.csv:4", "bad-row")]


@given(
    rows=st.lists(
        st.dictionaries(st.sampled_from("abc"), st.text() | st.integers() | st.none()), max_size=5
    ),
    indent=st.sampled_from([None, 1]),
)
def test_an_array_is_read_as_json_reads_it(tmp_path_factory, rows, indent):
    path = tmp_path_factory.mktemp("array") / "metadata.json"
    path.write_text(json.dumps(rows, indent=indent), encoding="utf-8")
    assert [row for _, row in read_rows(path)] == rows


def test_captions_that_are_no_text(folder):
    rows = b'{"video": "a.mp4", "caption": "caf\xe9"}\n{"video": "b.mp4", "caption": ["", "two"]}\n'
    rows += b'{"video": "c.mp4", "caption": {"a": 1}}\n'
    (folder / "metadata.jsonl").write_bytes(rows)
    listing = read_dataset(folder)
    assert codes(listing) == [
        ("metadata.jsonl:1", "caption-encoding"),
        ("metadata.jsonl:3", "caption-encoding"),
    ]
    assert told(listing) == [("a.mp4", None, 1), ("b.mp4", "two", 1), ("c.mp4", None, 1)]
    assert {finding.level for finding in listing.findings} == {"error"}
    allowed = read_dataset(folder, allow_empty=True)
    assert {finding.level for finding in allowed.findings} == {"warning"}


def test_flash_lists_of_lists(tmp_path):
    clips = tmp_path / "far" / "clips"
    clips.mkdir(parents=True)
    (clips / "a.mp4").write_bytes(b"")
    home = tmp_path / "lists"
    home.mkdir()
    row = {
        "path": "a.mp4",
        "cap": ["first", "second"],
        "resolution": {"height": 720, "width": 1280},
        "fps": 24,
        "num_frames": 96,
        "cut": [24, 72],
    }
    (home / "one.json").write_text(json.dumps([row, {**row, "fps": None}, {**row, "path": "../b"}]))
    (home / "data.txt").write_text(f"{clips},one.json\n../far/clips,gone.json\nbroken\n")
    for path in (home, home / "data.txt"):
        listing = read_dataset(path)
        (entry,) = listing.entries
        assert (entry.path, entry.caption, entry.cut) == (clips / "a.mp4", "first", (1.0, 3.0))
        assert codes(listing) == [
            ("one.json:1, item 2", "bad-row"),
            ("one.json:1, item 3", "outside-root"),
            ("data.txt:2", "missing-file"),
            ("data.txt:3", "bad-row"),
        ]


@pytest.mark.parametrize("prompts", ["prompts.txt", "captions.txt"])
def test_lines_that_belong_together(folder, prompts):
    (folder / "videos.txt").write_text("a.mp4\n\nb.mp4\nc.mp4\n")
    (folder / prompts).write_text("one\n\ntwo\n\n")
    listing = read_dataset(folder)
    assert told(listing) == [("a.mp4", "one", 1), ("b.mp4", "two", 1)]
    assert codes(listing) == [("videos.txt:4", "bad-row")]
    (folder / prompts).write_text("one\n\ntwo\nthree\nfour\n")
    assert codes(read_dataset(folder / "videos.txt")) == [(f"{prompts}:5", "bad-row")]


def test_a_folder_of_clips(tmp_path):
    for name in ("b.mp4", "a10.mp4", "a2.mp4", "3_dogs/d.webm", "3_dogs/2_old/e.mkv", ".x/f.mp4"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
        (tmp_path / name).with_suffix(".txt").write_text(f"shows {name}")
    (tmp_path / "a2.source.PNG").write_bytes(b"")
    (tmp_path / "lost.source.webp").write_bytes(b"")
    (tmp_path / "frames").mkdir()
    for number in (10, 9, 1):
        Image.new("RGB", (8, 8)).save(tmp_path / "frames" / f"{number}.png")
    (tmp_path / "frames.txt").write_text("numbered")
    (tmp_path / "readme.md").write_text("no clip")
    listing = read_dataset(tmp_path)
    assert told(listing) == [
        ("a2.mp4", "shows a2.mp4", 1),
        ("a10.mp4", "shows a10.mp4", 1),
        ("b.mp4", "shows b.mp4", 1),
        ("3_dogs/d.webm", "shows 3_dogs/d.webm", 3),
        ("3_dogs/2_old/e.mkv", "shows 3_dogs/2_old/e.mkv", 6),
        ("frames", "numbered", 1),
    ]
    assert [entry.kind for entry in listing.entries] == ["video"] * 5 + ["frames"]
    assert listing.entries[0].source == tmp_path / "a2.source.PNG"
    assert codes(listing) == [("lost.source.webp", "no-clip")]


def test_pictures_with_captions_are_clips_each(tmp_path):
    inner = tmp_path / "photos"
    inner.mkdir()
    for name in ("a.png", "b.png"):
        Image.new("RGB", (8, 8)).save(inner / name)
    assert [entry.kind for entry in read_dataset(tmp_path).entries] == ["frames"]
    (inner / "a.txt").write_text("one")
    listing = read_dataset(tmp_path)
    assert told(listing) == [("photos/a.png", "one", 1), ("photos/b.png", None, 1)]
    assert [entry.kind for entry in listing.entries] == ["image", "image"]


def test_two_files_of_one_stem(folder):
    (folder / "a.mov").write_bytes(b"")
    listing = read_dataset(folder)
    assert codes(listing) == [("a.mov", "ambiguous-pair"), ("a.mp4", "ambiguous-pair")]
    assert [entry.path.name for entry in listing.entries] == ["b.mp4", "c.mp4"]
    assert listing.num_entries == 4


def test_folders_that_lead_into_themselves_end(folder):
    (folder / "again").symlink_to(folder, target_is_directory=True)
    assert len(read_dataset(folder).entries) == 3


def test_musubi_tables(tmp_path):
    for name in ("v/a.mp4", "i/b.png", "list/c.mp4"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "v" / "a.cap").write_text("one")
    write_lines(tmp_path / "list" / "x.jsonl", {"video_path": "c.mp4", "caption": "two"})
    config = tmp_path / "dataset.toml"
    config.write_text(
        f"""
        [general]
        resolution = [960, 544]
        caption_extension = ".cap"
        batch_size = 2
        [[datasets]]
        video_directory = '{tmp_path / "v"}'
        num_repeats = 4
        target_frames = [1, 25]
        [[datasets]]
        video_jsonl_file = "list/x.jsonl"
        [[datasets]]
        image_directory = "nowhere"
        """
    )
    listing = read_dataset(config)
    assert told(listing) == [("v/a.mp4", "one", 4), ("list/c.mp4", "two", 1)]
    assert codes(listing) == [
        ("dataset.toml [general]", "ignored-key"),
        ("dataset.toml [general]", "ignored-key"),
        ("dataset.toml [[datasets]] 1", "ignored-key"),
        ("dataset.toml [[datasets]] 3", "missing-file"),
    ]
    assert "--size 960x544" in listing.findings[0].message
    assert "batch_size" in listing.findings[1].message
    assert "target_frames" in listing.findings[2].message


def test_a_table_in_a_folder_without_clips(tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "data").mkdir()
    (tmp_path / "far" / "a.mp4").write_bytes(b"")
    table = '[[datasets]]\nvideo_directory = "../far"\n'
    (tmp_path / "data" / "d.toml").write_text(table)
    listing = read_dataset(tmp_path / "data")
    assert [entry.path.name for entry in listing.entries] == ["a.mp4"]
    assert "d.toml" in listing.layout


@pytest.mark.parametrize(
    "name", ["../x.mp4", "/etc/passwd", "a/../../x.mp4", "sub/../../../x", ".."]
)
def test_lists_name_no_files_outside(folder, name):
    write_lines(folder / "metadata.jsonl", {"video": name, "caption": "x"})
    write_lines(folder / "other.jsonl", {"video": "a.mp4", "caption": "x", "source": name})
    for path in (folder, folder / "other.jsonl"):
        listing = read_dataset(path)
        assert not listing.entries
        assert [finding.code for finding in listing.findings] == ["outside-root"]


def test_what_is_inside_may_be_named_in_any_way(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    relative = folder.relative_to(folder.parent)
    for root in (folder, relative):
        assert inside(root, "sub/../a.mp4") == root / "a.mp4"
        assert inside(root, str(folder / "a.mp4")) == root / "a.mp4"
    # A folder that only begins with the same name is another one.
    with pytest.raises(BadRowError, match="outside"):
        inside(folder, f"{folder}-other/a.mp4")


def test_links_inside_are_followed(folder, tmp_path_factory):
    far = tmp_path_factory.mktemp("far") / "x.mp4"
    far.write_bytes(b"")
    (folder / "x.mp4").symlink_to(far)
    write_lines(folder / "metadata.jsonl", {"video": "x.mp4", "caption": "x"})
    assert read_dataset(folder).entries[0].path == folder / "x.mp4"


@pytest.mark.parametrize(
    ("name", "text"),
    [("gone", None), ("notes.txt", "hello"), ("x.toml", "a = ["), ("y.toml", "a = 1")],
)
def test_what_is_no_dataset_is_refused(tmp_path, name, text):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(InvalidRequestError):
        read_dataset(tmp_path / name)


def test_an_empty_folder_lists_nothing(tmp_path):
    listing = read_dataset(tmp_path)
    assert (listing.entries, listing.findings, listing.num_entries) == ((), (), 0)


def test_the_folder_may_be_reached_through_a_link(folder, tmp_path_factory):
    link = tmp_path_factory.mktemp("other") / "link"
    link.symlink_to(folder, target_is_directory=True)
    for name in ("a.mp4", str(folder / "a.mp4"), str(link / "a.mp4")):
        assert inside(link, name) == link / "a.mp4"


def test_pipes_are_not_waited_for(folder):
    for name in ("a.txt", "data.txt", "metadata.jsonl", "d.mp4"):
        os.mkfifo(folder / name)
    listing = read_dataset(folder)
    assert [entry.caption for entry in listing.entries] == [None] * 4
    with pytest.raises(InvalidRequestError):
        read_dataset(folder / "metadata.jsonl")


ROW_VALUES = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=4,
)
KNOWN_COLUMNS = ("video", "caption", "cap", "cut", "fps", "source", "num_repeats", "style")


@given(row=st.dictionaries(st.sampled_from(KNOWN_COLUMNS), ROW_VALUES), known=st.booleans())
def test_no_row_is_too_strange(tmp_path_factory, row, known):
    folder = tmp_path_factory.mktemp("strange")
    row = {"video": "a.mp4", "caption": "x", **row} if known else row
    path = write_lines(folder / "metadata.jsonl", row)
    listing = read_dataset(path)
    assert listing.places == ("metadata.jsonl:1",)
    for entry in listing.entries:
        assert entry.path.is_relative_to(folder)
        assert entry.repeats >= 1
        assert entry.cut is None or 0 <= entry.cut[0] < entry.cut[1]


@given(
    data=st.binary(max_size=60) | st.text('[]{}:,"abvideo \n\\', max_size=60).map(str.encode),
    name=st.sampled_from(
        ["osp.jsonl", "metadata.jsonl", "metadata.json", "metadata.csv", "x.toml", "data.txt"]
    ),
)
def test_no_file_is_too_strange(tmp_path_factory, data, name):
    path = tmp_path_factory.mktemp("strange") / name
    path.write_bytes(data)
    for root in (path, path.parent):
        with contextlib.suppress(InvalidRequestError):
            listing = read_dataset(root)
            assert len(listing.places) >= len(listing.entries)


@pytest.mark.parametrize(
    "table",
    [
        "video_directory = 3",
        'video_directory = "~nobody-at-all/x"',
        'video_directory = "a\\u0000b"',
        'video_directory = "."\nnum_repeats = "many"',
        'video_directory = "."\nnum_repeats = 0',
        'video_directory = "."\ncaption_extension = "../x"',
        'video_jsonl_file = "x.txt"',
    ],
)
def test_tables_that_make_no_sense(tmp_path, table):
    (tmp_path / "x.txt").write_text("hello")
    path = tmp_path / "d.toml"
    path.write_text(f"[[datasets]]\n{table}\n")
    if "x.txt" in table:
        with pytest.raises(InvalidRequestError, match="no list of clips"):
            read_dataset(path)
    else:
        listing = read_dataset(path)
        assert [finding.level for finding in listing.findings] == ["error"]
        assert not listing.entries
