"""Files of many jobs: every kind says the same, and a bad line costs only itself."""

from __future__ import annotations

import csv
import io
import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from osp_cli import batch
from osp_cli.batch import KINDS, Job, kind_of, read_file, read_jobs
from osp_cli.dials import Seeds, Size, StepCacheChoice
from osp_cli.errors import InvalidRequestError


def jobs(text, kind=".txt"):
    return read_jobs(text, kind, "jobs")


def values(text, kind=".txt"):
    return [job.values for job in jobs(text, kind)]


def errors(text, kind=".txt"):
    return [job.error and job.error.message for job in jobs(text, kind)]


def test_text_is_a_prompt_a_line():
    text = '  a cat \n\n# a remark\ndon\'t "stop" -- here #2\r\n\t\r\nlast'
    assert jobs(text) == [
        Job("jobs, line 1", {"prompt": "a cat"}),
        Job("jobs, line 4", {"prompt": 'don\'t "stop" -- here #2'}),
        Job("jobs, line 6", {"prompt": "last"}),
    ]


def test_flags_behind_a_prompt():
    line = (
        "a cat --style ink --seed=1-3 --size 448x256 --negative-prompt 'no blur, no dog' "
        '--image "my cat.png" --num-inference-steps 4 --metadata no --cache teacache:0.1'
    )
    assert jobs(line) == [
        Job(
            "jobs, line 1",
            {
                "prompt": "a cat",
                "style": "ink",
                "seed": Seeds((1, 2, 3)),
                "size": Size(448, 256),
                "negative_prompt": "no blur, no dog",
                "num_inference_steps": 4,
                "metadata": False,
                "cache": StepCacheChoice("teacache", 0.1),
            },
            image="my cat.png",
        )
    ]


def test_flags_alone():
    assert jobs("--text 'a lake' --seed 4") == [
        Job("jobs, line 1", {"seed": Seeds((4,))}, text="a lake")
    ]


def test_backslashes_are_letters():
    [job] = jobs(r"a cat --image pics\cat.png --output 'my videos\{n}.mp4'")
    assert job.image == r"pics\cat.png"
    assert job.values["output"] == r"my videos\{n}.mp4"


def test_words_that_look_like_flags_only_from_afar_are_the_prompt():
    prompt = "- from left--to right -- slowly - --- now --2 -5 x-s ink -large u-f-o -é"
    assert values(prompt) == [{"prompt": prompt}]


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("--vae-tiling --max-ram 0.2", {"vae_tiling": True, "max_ram": 200_000_000}),
        ("--vae-tiling", {"vae_tiling": True}),
        ("--vae-tiling true --compile no", {"vae_tiling": True, "compile": False}),
        ("--vae-tiling -s ink", {"vae_tiling": True, "style": "ink"}),
        ("--no-vae-tiling --no-metadata", {"vae_tiling": False, "metadata": False}),
        ("--compile --no-compile", {"compile": False}),
        ("--no-compile --compile", {"compile": True}),
        ("--compile=off", {"compile": False}),
    ],
)
def test_switches_stand_alone(flags, expected):
    assert values(f"zoom in {flags}") == [{"prompt": "zoom in", **expected}]


def test_short_flags_are_those_of_the_command_line():
    line = "zoom in -s ink -n 'no blur' -o a.mp4 -f 9 -g 2 -c 3 -m osp-mini -l peft:0.5 -l other"
    [found] = values(line)
    assert {name: str(value) for name, value in found.items()} == {
        "prompt": "zoom in",
        "style": "ink",
        "negative_prompt": "no blur",
        "output": "a.mp4",
        "num_frames": "9",
        "guidance_scale": "2.0",
        "count": "3",
        "model": "osp-mini",
        "loras": "peft:0.5,other",
    }
    assert values("-t 2 --style ink -s oil --prompt x") == [
        {"seconds": 2.0, "style": "oil", "prompt": "x"}
    ]


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("a cat --stile ink", "jobs, line 1: unknown name 'stile'"),
        ("a cat --seed", "jobs, line 1: --seed has no value"),
        ("a cat --seed 4 ink", "jobs, line 1: 'ink' stands behind a value"),
        ("a cat --style don't", "jobs, line 1: a quotation mark is not closed"),
        ("a cat --steps many", "jobs, line 1: --steps takes a whole number, got 'many'"),
        ("a cat --overwrite yes", "jobs, line 1: unknown name 'overwrite'"),
        ("a cat --seed 1 -- 2", "jobs, line 1: unknown name ''"),
        ("a cat -y", "jobs, line 1: unknown name '-y'"),
        ("a cat -l", "jobs, line 1: -l has no value"),
        ("a cat --vae-tiling maybe", "jobs, line 1: --vae-tiling takes true or false, got 'maybe'"),
        ("a cat --no-vae-tiling 1", "jobs, line 1: '1' stands behind a value"),
        ("a cat --no-compile=1", "jobs, line 1: --no-compile takes no value"),
        ("a cat --no-seed 1", "jobs, line 1: unknown name 'no-seed'"),
    ],
)
def test_bad_lines_of_text(line, sentence):
    assert errors(f"{line}\nanother") == [sentence, None]


def test_unknown_names_get_a_guess():
    assert jobs("a --stile ink")[0].error.hint.startswith("did you mean style ")
    assert jobs("a --zzz ink")[0].error.hint.startswith("the names are: prompt, ")


def test_json_lines():
    text = (
        '{"prompt": "a", "steps": 4, "cfg": 2, "size": [448, 256], "seed": [1, 5]}\r\n\n'
        '{"Prompt": "b", "negative_prompt": "c", "style": null, "image": null}\n'
        '{"image": "x.png", "metadata": true}\n{}'
    )
    assert jobs(text, ".jsonl") == [
        Job(
            "jobs, line 1",
            {
                "prompt": "a",
                "num_inference_steps": 4,
                "guidance_scale": 2.0,
                "size": Size(448, 256),
                "seed": Seeds((1, 5)),
            },
        ),
        Job("jobs, line 3", {"prompt": "b", "negative_prompt": "c"}),
        Job("jobs, line 4", {"metadata": True}, image="x.png"),
        Job("jobs, line 5", {}),
    ]


@pytest.mark.parametrize("letter", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c"])
def test_only_true_line_ends_end_a_job(letter):
    prompt = f"a{letter}b"
    raw = json.dumps({"prompt": prompt}, ensure_ascii=False)
    assert values(raw, ".jsonl") == [{"prompt": prompt}]
    assert values(prompt) == [{"prompt": prompt}]
    assert values(f"prompt,seed\n{prompt},1", ".csv")[0]["prompt"] == prompt


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("nonsense", "jobs, line 1 is not JSON: "),
        ('{"prompt": "a"', "jobs, line 1 is not JSON: "),
        ("[" * 100_000, "jobs, line 1 is not JSON: "),
        ('{"seed": ' + "9" * 6000 + "}", "jobs, line 1 is not JSON: "),
        ('["a"]', "jobs, line 1 is no JSON object"),
        ('"a cat"', "jobs, line 1 is no JSON object"),
        ("null", "jobs, line 1 is no JSON object"),
        ('{"steps": true}', "jobs, line 1: --steps takes a whole number, got 'true'"),
        ('{"steps": {}}', "jobs, line 1: steps takes one value, got {}"),
        ('{"image": 5}', "jobs, line 1: image is a text, got 5"),
        ('{"text": ["a"]}', "jobs, line 1: text is a text, got ['a']"),
        ('{"promt": "a"}', "jobs, line 1: unknown name 'promt'"),
        ('{"seed": ' + "9" * 40 + "}", "jobs, line 1: seed takes at most 30 digits"),
    ],
)
def test_bad_lines_of_json(line, sentence):
    found = errors(f'{line}\n{{"prompt": "b"}}', ".jsonl")
    assert found[0].startswith(sentence)
    assert found[1:] == [None]


def test_tables():
    text = (
        "Image,prompt,negative_prompt,seed\r\n"
        'a.png,"slowly, to the ""left""",,1-2\r\n'
        "\r\n , ,\t,\n"
        '"b.png","two\nlines",blur\n'
        ",c,,\n"
    )
    assert jobs(text, ".csv") == [
        Job(
            "jobs, line 2",
            {"prompt": 'slowly, to the "left"', "seed": Seeds((1, 2))},
            image="a.png",
        ),
        # The line on which the row ends.
        Job("jobs, line 6", {"prompt": "two\nlines", "negative_prompt": "blur"}, image="b.png"),
        Job("jobs, line 7", {"prompt": "c"}),
    ]


def test_spaces_around_the_cells_of_a_table():
    assert values('prompt , style\n"a, b" , "ink"\nc,  oil ', ".csv") == [
        {"prompt": "a, b", "style": "ink"},
        {"prompt": "c", "style": "oil"},
    ]


def test_a_row_with_too_many_fields_costs_only_itself():
    text = "prompt,seed\nslowly, to the left, 4\nb,4"
    assert errors(text, ".csv") == [
        "jobs, line 2 has 3 fields, the first row names 2",
        None,
    ]


@pytest.mark.parametrize("names", ["prompt,what", "prompt,,seed", "a cat,seed"])
def test_a_table_without_good_names_is_refused_whole(names):
    with pytest.raises(InvalidRequestError, match="jobs, line 1: unknown name"):
        jobs(f"{names}\nb,4", ".csv")


def test_a_field_without_an_end_is_refused_whole():
    with pytest.raises(InvalidRequestError, match=r"jobs, line \d+: field larger than"):
        jobs("prompt,seed\n" + "a" * 200_000 + ",1", ".csv")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", ["", "\n\n", " \r\n"])
def test_no_jobs(kind, text):
    with pytest.raises(InvalidRequestError, match="jobs holds no jobs"):
        jobs(text, kind)


def test_too_many_jobs(monkeypatch):
    monkeypatch.setattr(batch, "MAX_JOBS", 3)
    assert len(jobs("a\nb\nc")) == 3
    with pytest.raises(InvalidRequestError, match="jobs holds more than 3 jobs"):
        jobs("a\nb\nc\nd")


@pytest.mark.parametrize("name", ["jobs.yaml", "jobs", "jobs.txt.gz"])
def test_other_kinds(name, tmp_path):
    (tmp_path / name).write_text("a")
    text, kind = read_file(tmp_path / name)
    with pytest.raises(InvalidRequestError, match=r"--from-file reads .txt, .jsonl, .csv, got"):
        read_jobs(text, kind, name)


def test_files(tmp_path, monkeypatch):
    path = tmp_path / "Jobs.TXT"
    path.write_bytes(b"\xef\xbb\xbfsn\xc3\xb6w\r\nrain\rsun")
    text, kind = read_file(path)
    assert values(text, kind) == [{"prompt": "snöw"}, {"prompt": "rain"}, {"prompt": "sun"}]
    path.write_bytes(b"\xff\xfea\x00")
    with pytest.raises(InvalidRequestError, match="is not UTF-8 text"):
        read_file(path)
    with pytest.raises(InvalidRequestError, match=r"none.txt cannot be read: No such file"):
        read_file(tmp_path / "none.txt")
    with pytest.raises(InvalidRequestError, match="cannot be read"):
        read_file(tmp_path)
    monkeypatch.setattr(batch, "MAX_BYTES", 1)
    with pytest.raises(InvalidRequestError, match="is larger than"):
        read_file(path)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ('{"prompt": "a"}\n', ".jsonl"),
        ('\n  {"prompt"', ".jsonl"),
        ("prompt,seed\n", ".csv"),
        ("Image, Prompt\r\na,b", ".csv"),
        ("prompt", ".txt"),
        ("a cat, slowly\n", ".txt"),
        ("", ".txt"),
    ],
)
def test_kinds_of_piped_text(text, kind):
    assert kind_of(text) == kind


word = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=8)
prompts = (
    st.lists(word, min_size=1, max_size=4)
    .map(" ".join)
    .filter(lambda text: text[0] not in "#@" and not re.search(r" -(-|\w( |$))", f" {text}"))
)
rows = st.lists(
    st.fixed_dictionaries(
        {"prompt": prompts, "steps": st.integers(1, 99)},
        optional={"style": st.sampled_from(["ink", "oil"]), "cfg": st.floats(0, 9)},
    ),
    min_size=1,
    max_size=4,
)


@given(rows)
def test_every_kind_says_the_same(written):
    lines = [
        row["prompt"] + "".join(f" --{name} {row[name]}" for name in row if name != "prompt")
        for row in written
    ]
    table = io.StringIO()
    writer = csv.DictWriter(table, ["prompt", "steps", "style", "cfg"])
    writer.writeheader()
    writer.writerows(written)
    as_json = "\n".join(json.dumps(row) for row in written)
    assert values("\n".join(lines)) == values(as_json, ".jsonl") == values(table.getvalue(), ".csv")


@settings(max_examples=200)
@given(
    text=st.text() | st.from_regex(r"([a-z\"', ]{0,6}(-?-[a-z]{1,4}[= ]?)?\n?){0,4}"),
    kind=st.sampled_from(KINDS),
)
def test_any_text_is_read_or_refused(text, kind):
    try:
        found = jobs(text, kind)
    except InvalidRequestError:
        return
    assert all(isinstance(job, Job) for job in found)
