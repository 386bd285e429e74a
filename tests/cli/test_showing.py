"""Settings and plans for people: what is shown can be read back."""

from __future__ import annotations

import json
import math
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from osp_cli.cli import console
from osp_cli.cli.showing import dial_text, show_plan, show_settings
from osp_cli.config import Layer, read_config
from osp_cli.dials import RANDOM_SEED, Ramp, Seeds, Size, StepCacheChoice
from osp_cli.plan import Plan
from osp_cli.requests import GenerateRequest
from osp_cli.settings import Setting, flag_names, settle_dials

words = st.text(st.characters(exclude_categories=["Cs"])).filter(lambda text: text[:1] != "@")
numbers = st.floats(allow_nan=False)
layers = st.fixed_dictionaries(
    {},
    optional={
        "prompt": words,
        "negative_prompt": words,
        "style": st.sampled_from(["ink", "none", "ghibli:0.5", "ink+oil", "ghibli:0.3+ink:0.5"]),
        "output": words.filter(bool),
        "size": st.builds(Size, st.integers(0, 9999), st.integers(0, 9999)),
        "num_frames": st.integers(-9, 10**6),
        "fps": st.integers(-9, 10**6),
        "num_inference_steps": st.integers(-9, 10**6),
        "guidance_scale": numbers,
        "shift": numbers,
        "sampler": words,
        "cutoff": st.builds(Ramp, numbers, numbers),
        "seed": st.just(RANDOM_SEED)
        | st.lists(st.integers(0, 2**63), min_size=1, max_size=5, unique=True).map(Seeds),
        "count": st.integers(1, 4),
        "cache": st.builds(StepCacheChoice, st.just("fbcache"), st.none() | st.floats(0, 9)),
        "cache_start": st.integers(0, 99),
        "preview": words,
        "metadata": st.booleans(),
        "model": st.sampled_from(["osp-mini", "flashi2v-1.3b"]),
        "device": words,
        "dtype": st.sampled_from(["auto", "float32"]),
    },
)


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(layers)
def test_shown_settings_give_the_same_again(tmp_path, capsys, values):
    if isinstance(seeds := values.get("seed"), Seeds) and len(seeds) > 1:
        values.pop("count", None)
    first, _ = settle_dials([Layer("flag", values)])
    show_settings(flag_names(first), as_json=False)
    saved = tmp_path / "saved.toml"
    saved.write_text(capsys.readouterr().out, encoding="utf-8", newline="")
    stored = Layer("saved.toml", read_config(saved, "generate"))
    # What was chosen is whole: nothing that lies below gets through.
    given = {"num_frames": "seconds", "shift": "shift", "metadata": "metadata", "count": "count"}
    values_below = {"seconds": 1.0, "shift": 9.9, "metadata": False, "count": 7}
    below = {name: values_below[name] for field, name in given.items() if field in stored.values}
    again, notices = settle_dials([stored, Layer("./osp.toml", below)])
    if values.get("seed", RANDOM_SEED) == RANDOM_SEED:
        # Drawn anew each time.
        first["seed"] = again["seed"]
    assert {field: setting.value for field, setting in again.items()} == {
        field: setting.value for field, setting in first.items()
    }
    assert notices == ()


def test_print_config_gives_the_same_run(osp, picture, requests):
    args = ("generate", "cat.png", 'it "snows",\ntwice \x7f', "-s", "ink", "--seed", "5", "-t", "2",
            "--cutoff", "0.1:0.30000000000000004", "--cache", "fbcache:0.123456789", "-g", "1.7",
            "--no-metadata", "-o", "{name}-{seed}.gif")  # fmt: skip
    shown = osp(*args, "--print-config")
    assert (shown.code, shown.err, requests) == (0, "", [])
    Path("saved.toml").write_text(shown.out)
    assert osp(*args).code == 0
    assert osp("generate", "cat.png", "--config", "saved.toml", "-y").code == 0
    assert requests[0] == replace(requests[1], overwrite=False)


def test_print_config_tells_origins(osp, monkeypatch):
    Path("osp.toml").write_text("fps = 8\n")
    monkeypatch.setenv("OSP_SHIFT", "2")
    out = osp("generate", "--print-config", "--steps", "5", "-s", "ink").out
    rows = dict(line.rsplit("  # ", 1) for line in out.splitlines())
    rows = {shown.strip(): origin for shown, origin in rows.items()}
    assert rows["steps = 5"] == "flag"
    assert rows["shift = 2.0"] == "OSP_SHIFT"
    assert rows["fps = 8"] == "./osp.toml"
    assert rows["# cutoff = 0.1"] == "card osp-mini"
    assert rows['# device = "auto"'] == "default"
    assert rows['style = "ink"'] == "flag"
    assert rows['# seed = "random"'] == "random"
    assert rows["# size is not set"] == "default"


def test_print_config_tells_what_is_the_paper_s(osp):
    out = osp("generate", "--print-config", "-m", "flashi2v-1.3b").out
    assert 'sampler = "euler"' in out
    lines = out.splitlines()
    assert {line.rpartition("# ")[2] for line in lines if line.startswith("# sh")} == {"paper"}


def test_print_config_as_json(osp):
    shown = json.loads(osp("generate", "--print-config", "--json", "--seed", "1-3").out)
    assert shown["seed"] == {"value": "1,2,3", "origin": "flag"}
    assert shown["count"] == {"value": 3, "origin": "flag"}
    assert shown["size"] == {"value": None, "origin": "default"}
    assert shown["metadata"] == {"value": True, "origin": "default"}


FULL_PROMPTS = [
    ([], ["x"], [None]),
    (["-s", "ink"], ["ink painting style, x"], [None]),
    (["-s", "ink:0.3"], ["ink painting style, x", "x"], ["0.3", "0.7"]),
    (["-s", "none..ink"], ["ink painting style, x", "x"], ["0-1", "1-0"]),
]


@pytest.mark.parametrize("picture_first", [True, False])
@pytest.mark.parametrize(("args", "texts", "weights"), FULL_PROMPTS)
def test_print_config_shows_what_the_model_reads(osp, picture, picture_first, args, texts, weights):
    # From a flag, or from a file.
    inputs = ["cat.png", "x"] if picture_first else []
    Path("osp.toml").write_text('prompt = "x"\n')
    out = osp("generate", *inputs, *args, "--print-config").out
    rows = [line for line in out.splitlines() if line.startswith("# full-prompt = ")]
    assert [json.loads(row.split(" = ")[1].split("  # ")[0]) for row in rows] == texts
    told = [row.rpartition(", weight ")[2] if ", weight " in row else None for row in rows]
    assert told == weights
    assert "full-prompt" not in tomllib.loads(out)
    shown = json.loads(osp("generate", *inputs, *args, "--print-config", "--json").out)
    value = shown["full-prompt"]["value"]
    told = [value] if isinstance(value, str) else [part["prompt"] for part in value]
    assert told == texts


def test_print_config_of_a_sheet_of_styles_has_no_one_prompt(osp, picture):
    out = osp("stylize", "cat.png", "x", "-s", "ink,oil", "--print-config").out
    assert "full-prompt" not in out
    out = osp("stylize", "cat.png", "x", "-s", "ink", "--seed", "1-3", "--print-config").out
    assert out.count('# full-prompt = "ink painting style, x"  # style ink') == 1


def test_print_config_with_a_picture_shows_what_could_run(osp, picture):
    outcome = osp("generate", "cat.png", "--print-config", "--steps", "0")
    assert (outcome.code, outcome.out) == (2, "")
    assert osp("generate", "--print-config", "--pick", "4").out.count("seed = 4 ") == 1


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_numbers_that_json_does_not_know_are_toml(capsys, value):
    show_settings({"cfg": Setting(value, "flag")}, as_json=False)
    assert repr(tomllib.loads(capsys.readouterr().out)["cfg"]) == repr(value)


def test_settings_as_they_would_be_typed():
    assert dial_text("cutoff", Setting((0.1, 0.5), "flag")) == "0.1:0.5"
    assert dial_text("cutoff", Setting((0.1, 0.1), "flag")) == "0.1"
    assert dial_text("seed", Setting(Seeds([1, 5]), "flag")) == "1,5"
    assert dial_text("style", Setting(None, "default")) == "none"
    assert dial_text("metadata", Setting(True, "default")) == "true"
    assert dial_text("cache", Setting(StepCacheChoice("fbcache", 0.2), "flag")) == "fbcache:0.2"


PLAN = Plan(
    model="osp-mini",
    device="cpu",
    dtype="float32",
    width=448,
    height=256,
    num_frames=49,
    num_latent_frames=13,
    num_tokens=1456,
    seed=7,
    steps=8,
    sampler="unipc",
    cache="fbcache:0.2",
    guidance=1.0,
    weights_bytes=15_350_000,
    expected_peak_bytes=1_234_000_000,
    disk_bytes=400_000,
    operations=5e12,
    expected_seconds=89.6,
)


def shown_plan(capsys, **changes) -> dict[str, str]:
    show_plan(replace(PLAN, **changes), GenerateRequest(image=Path("cat.png"), seed=7, fps=8))
    lines = capsys.readouterr().out.splitlines()
    return {line[:9].strip(): line[10:] for line in lines}


def test_a_plan_in_lines(capsys):
    assert shown_plan(capsys) == {
        "model": "osp-mini, cpu float32",
        "video": "448x256, 49 frames at 8 fps",
        "output": "cat-7.mp4",
        "sampling": "8 steps, unipc, no guidance, fbcache:0.2, seed 7",
        "tokens": "1456",
        "weights": "15.3 MB, all in place",
        "memory": "about 1.2 GB",
        "disk": "at most 0.4 MB",
        "time": "about 90 s of sampling",
    }


def test_a_plan_on_a_narrow_terminal_breaks_between_words(capsys, monkeypatch):
    monkeypatch.setattr(console, "is_terminal", lambda stream: True)
    monkeypatch.setenv("COLUMNS", "40")
    output = Path("a-folder-of-mine/that-has-a-name/of-many-letters/cat-7.mp4")
    plan = replace(PLAN, quant="fp8", compile=True)
    show_plan(plan, GenerateRequest(image=Path("cat.png"), seed=7, output=output))
    lines = capsys.readouterr().out.splitlines()
    assert f"output    {output}" in lines
    assert all(len(line) <= 40 for line in lines if str(output) not in line)
    start = lines.index("weights   15.3 MB, all in place, stored")
    assert lines[start + 1 : start + 2] == ["          as fp8, blocks compiled"]


@pytest.mark.parametrize(
    ("style", "guidance", "passes", "text"),
    [
        ("ghibli:0.5", 1.0, 2, "0.5 ghibli + 0.5 unstyled, 2 passes a step, not 1"),
        ("ink+oil", 1.0, 2, "0.5 ink + 0.5 oil, 2 passes a step, not 1"),
        ("ghibli:0.3+ink:0.5", 5.0, 4,
         "0.3 ghibli + 0.5 ink + 0.2 unstyled, 4 passes a step, not 2"),
        ("ink", 5.0, 2, None),
        (None, 1.0, 1, None),
    ],
)  # fmt: skip
def test_a_plan_says_what_a_mixture_of_styles_costs(capsys, style, guidance, passes, text):
    plan = replace(PLAN, guidance=guidance, passes_per_step=passes)
    show_plan(plan, GenerateRequest(image=Path("cat.png"), seed=7, style=style))
    rows = {line[:9].strip(): line[10:] for line in capsys.readouterr().out.splitlines()}
    assert rows.get("style") == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(3.2, "3 s"), (90.0, "2 min"), (1800.0, "30 min"), (5400.0, "1.5 h"), (90_000.0, "25.0 h")],
)
def test_times(capsys, seconds, text):
    assert shown_plan(capsys, expected_seconds=seconds)["time"] == f"about {text} of sampling"


def test_a_plan_of_an_unknown_machine_tells_no_time(capsys):
    plan = shown_plan(capsys, expected_seconds=None, guidance=5.0, cache="none")
    assert "time" not in plan
    assert plan["sampling"] == "8 steps, unipc, guidance 5, seed 7"


def test_dry_run_shows_the_plan_and_runs_nothing(osp, picture, requests, away):
    outcome = osp("generate", "cat.png", "x", "--dry-run", "--seed", "4", "-f", "48")
    assert outcome.code == 0
    assert outcome.out.splitlines()[0] == "model     osp-mini, cpu bfloat16"
    assert "time      about 5 min of sampling" in outcome.out
    assert outcome.err == "note: 48 frames rounded up to 49\nnote: the plan has a notice\n"
    assert requests == []
    assert [path.name for path in away.iterdir()] == ["cat.png"]


def test_dry_run_as_json_is_a_line_a_plan(osp, picture, requests):
    outcome = osp("generate", "cat.png", "x", "--dry-run", "--seed", "4-6", "--json")
    plans = [json.loads(line) for line in outcome.out.splitlines()]
    assert [(plan["type"], plan["seed"]) for plan in plans] == [
        ("plan", 4),
        ("plan", 5),
        ("plan", 6),
    ]
    assert requests == []


def test_dry_run_of_a_batch_tells_what_cannot_be_made(osp, picture, requests):
    Path("jobs.txt").write_text("a\nb --steps 0\nc\n")
    outcome = osp("generate", "cat.png", "-F", "jobs.txt", "--dry-run")
    assert outcome.code == 6
    assert outcome.out.count("model ") == 2
    assert "error: jobs.txt, line 2: --steps must be" in outcome.err
    assert outcome.err.endswith("error: 1 of 3 videos cannot be made\n")


def test_dry_run_refuses_what_a_run_would(osp, picture, requests):
    outcome = osp("generate", "cat.png", "x", "--dry-run", "--steps", "0")
    assert (outcome.code, outcome.out) == (2, "")
    Path("a.mp4").touch()
    assert osp("generate", "cat.png", "x", "--dry-run", "-o", "a.mp4").code == 2
