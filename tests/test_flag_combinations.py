"""Any combination of flags runs, or is refused in a sentence before torch is imported."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import osp_cli
from osp_cli.cli.app import main
from osp_cli.config import VARIABLES
from osp_cli.media.recipes import read_recipe

WORKER = Path(__file__).parent / "flag_worker.py"

# Values that may stand alone, and values that may not.
GOOD = {
    "--style": [
        *("ink", "none", "oil", "ghibli:0.5", "Ink + watercolor", "oil:0.3+lego:0.5"),
        *("ink..oil", "none..ink:0.5..lego", "all", "ink, oil"),
    ],
    "--output": ["a.mp4", "a.gif", "{seed}.webp", "f-{seed}/%04d.png", "videos/", "videos", "-"],
    "--seed": ["0", "7", "random", "1-3", "3,7"],
    "--count": ["1", "3"],
    "--negative-prompt": ["blur", "", "@prompt.txt"],
    "--size": ["448x256", "320X384"],
    "--frames": ["1", "9", "10", "49"],
    "--seconds": ["0.5", "1e-3", "3"],
    "--fps": ["8", "24"],
    "--steps": ["1", "30", "1000"],
    "--cfg": ["0", "1", "5.5"],
    "--shift": ["0.5", "7"],
    "--cutoff": ["0", "0.1:0.5", "1", "0.1,0.5"],
    "--sampler": ["euler", "unipc"],
    "--cache": ["none", "fbcache", "fbcache:0.3"],
    "--cache-start": ["0", "5"],
    "--lora": ["none", "good.safetensors", "./good.safetensors:-0.5", "gone.safetensors:0"],
    "--preview": ["none", "latent", "contact"],
    "--pick": ["7", "2"],
    "--from": ["good.json", "old.latents.safetensors"],
    "--from-file": ["good.txt", "mixed.txt", "good.csv", "good.jsonl"],
    "--model": ["osp-mini", "flashi2v-1.3b", "uniworld-osp2-14b"],
    "--device": ["auto", "cpu", "cuda:1"],
    "--dtype": ["auto", "fp16", "float32"],
    "--offload": ["auto", "none", "group"],
    "--quant": ["auto", "none"],
    "--attention": ["auto", "sdpa"],
    "--max-vram": ["12", "900MB"],
    "--max-ram": ["16GB"],
    "--config": ["good.toml"],
    "--text": ["a lake"],
}
SWITCHES = [
    *("--metadata", "--no-metadata", "--overwrite", "--print-config", "--dry-run"),
    *("--vae-tiling", "--no-vae-tiling", "--no-compile", "--offline"),
    *("--json", "--quiet", "--verbose", "--debug"),
]
BAD = {
    "--style": ["inkk", "", "\x1b[31m", "ink:0", "ink:0.9+oil:0.9", "ink+ink", "ink..", ",ink"],
    "--output": ["a.mov", "a", "", "exists.mp4", "no/a.mp4", "{x}.mp4", "a.png", "é" * 200, "{"],
    "--seed": ["-1", "x", "4-1", "1,1", "", "9" * 40, "0-99999999999", "1-", "٣"],
    "--count": ["0", "-1", "x", "99999999", "9" * 5000],
    "--negative-prompt": ["@none.txt", "@cat.png", "\udcff", "@"],
    "--size": ["13x17", "0x0", "99999x99999", "large", "448x"],
    "--frames": ["0", "-4", "99", "1e3", "9" * 400],
    "--seconds": ["0", "-1", "nan", "inf", "1e308", "x"],
    "--fps": ["0", "121", "9" * 29, "x"],
    "--steps": ["0", "1001", "-1", "x"],
    "--cfg": ["-1", "101", "nan", "inf", "x"],
    "--shift": ["0", "-3", "nan", "1e300"],
    "--cutoff": ["1.1", "-0.1", "nan", "0:2", "0.1,2", "0,", ":"],
    "--sampler": ["magic"],
    "--cache": ["turbo", "none:1", "fbcache:", "fbcache:nan", "fbcache:-1", "teacache"],
    "--cache-start": ["-1", "1001", "x"],
    "--lora": [
        *("nothing", "bad.safetensors", "cat.png", "videos", "", "a" * 300, "x:y", "\udcff"),
        *("good.safetensors:11", "good.safetensors:nan", "other.safetensors", "x.pt"),
    ],
    "--preview": ["film"],
    "--pick": ["-1", "x", "9" * 25],
    "--from": ["none.mp4", "cat.png", "bad.json", "bad.latents.safetensors", "videos", "a" * 300],
    "--from-file": ["none.txt", "cat.png", "bad.txt", "empty.txt", "bad.jsonl", "videos", "-", ""],
    "--model": ["mini", ""],
    "--device": ["tpu", "cuda:x", "cpu:1"],
    "--dtype": ["int4"],
    "--offload": ["all", ""],
    "--quant": ["fp9", "fp8"],
    "--attention": ["fast"],
    "--max-vram": ["0", "much", "-1"],
    "--max-ram": ["nan", "12 apples"],
    "--config": ["bad.toml", "none.toml", "cat.png", "videos", ""],
    "--text": ["", " ", "-", "@none.txt", "\udcff"],
    "--width": ["448", "-1", "0"],
    "--height": ["256", "x"],
    "--num-frames": ["9", "x"],
    "--stile": ["ink"],
}  # fmt: skip
IMAGES = ["cat.png", "dog.jpg", "-", "bad.png", "none.png", "videos", "", "a" * 300, "\udcff.png"]
PROMPTS = ["the camera pans", "", "@prompt.txt", "-", "@none.txt", "\udcff", "--", "-x", "x y"]
WITHOUT_RUN = {"--print-config", "--dry-run", "--help", "-h"}


class Worker:
    """The process that runs the command lines."""

    def __init__(self) -> None:
        environ = {name: value for name, value in os.environ.items() if name not in VARIABLES}
        root = str(Path(osp_cli.__file__).parent.parent)
        path = os.pathsep.join(filter(None, [root, environ.get("PYTHONPATH")]))
        self._process = subprocess.Popen(
            [sys.executable, str(WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environ | {"PYTHONPATH": path},
        )

    def answer(self, **case) -> dict:
        """What became of one command line."""
        self._process.stdin.write(json.dumps(case) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, f"the process ended at {case}"
        return json.loads(line)

    def close(self) -> None:
        """End the process."""
        self._process.stdin.close()
        self._process.stdout.close()
        assert self._process.wait(60) == 0


@pytest.fixture(scope="module")
def worker():
    """One process for all tests: torch must not come even after hundreds of command lines."""
    worker = Worker()
    yield worker
    worker.close()


def check(outcome: dict, argv: list[str], **case) -> bool:
    """Hold one outcome to the contract; tells whether it was accepted."""
    told = f"{argv} {case}\n{outcome['code']}\n{outcome['out']}\n{outcome['err']}"
    code, out, err = outcome["code"], outcome["out"], outcome["err"]
    assert outcome["heavy"] == [], told
    assert code in (0, 2, 3, 6), told
    assert "error: unexpected " not in err, told
    assert "\x1b" not in out + err, told
    if "--debug" not in argv:
        assert "Traceback" not in err, told
    # What was there before is only replaced on demand.
    assert not outcome["overwritten"] or {"--overwrite", "-y"} & {*argv}, told
    if code in (2, 3):
        assert outcome["runs"] == 0, told
        assert outcome["left"] == [], told
        errors = [line for line in err.splitlines() if line.startswith("error: ")]
        assert errors, told
        if "--json" in argv:
            assert [json.loads(line)["exit_code"] for line in out.splitlines()] == [code], told
        else:
            assert out == "", told
        return False
    if WITHOUT_RUN & {*argv}:
        assert outcome["runs"] == 0, told
        assert outcome["left"] == [], told
        assert out, told
        return True
    assert outcome["runs"] > 0, told
    lines = out.splitlines()
    if "--json" in argv:
        assert all(json.loads(line)["type"] for line in lines), told
    elif "cat.contact.png" not in lines:
        # A line a video, or none where the video itself goes to stdout.
        assert len(lines) == (outcome["runs"] if lines else 0), told
    return True


def tokens(values: dict[str, list[str]]) -> list[list[str]]:
    return [[flag, value] for flag in values for value in values[flag]]


def flag_groups() -> st.SearchStrategy[list[str]]:
    """One flag with its value; more often a good one, or most lines would fail for one reason."""
    good = st.sampled_from(tokens(GOOD))
    switch = st.sampled_from(SWITCHES).map(lambda flag: [flag])
    bad = st.sampled_from(tokens(BAD))
    # What a shell can pass: any bytes but zero, those that are no text among them.
    letters = st.characters(min_codepoint=1, exclude_categories=["Cs"]) | st.just("\udcff")
    numbers = st.from_regex(r"[-+]?[0-9.:,xe-]{1,12}", fullmatch=True)
    any_value = st.tuples(st.sampled_from(sorted(GOOD)), st.text(letters, max_size=9) | numbers)
    return st.one_of(good, good, good, switch, good, switch, bad, any_value.map(list))


positionals = st.one_of(
    st.just(["cat.png"]),
    st.just(["cat.png", "it snows"]),
    st.just([]),
    st.tuples(st.sampled_from(IMAGES)).map(list),
    st.tuples(st.sampled_from(IMAGES), st.sampled_from(PROMPTS)).map(list),
)
environments = st.dictionaries(
    st.sampled_from(sorted(VARIABLES)), st.sampled_from(["", "1", "x", "ink", "0.2", "a.mp4"]),
    max_size=2,
)  # fmt: skip
configs = st.none() | st.sampled_from(
    [
        'style = "ink"\nseed = [1, 2]\n',
        "seconds = 1.0\n[generate]\nframes = 9\n",
        'size = [448, 256]\noutput = "x-{seed}.gif"\npreview = "latent"\n',
        "steps = 0\n",
        "steps = []\n",
        'prompt = "a\\u0000b"\noutput = "a\\u0000b.mp4"\n',
        "count = 2\nmetadata = false\n",
        "cfg = inf\n",
        "nonsense",
    ]
)


@settings(max_examples=300, deadline=None)
@given(
    command=st.sampled_from(["generate", "stylize"]),
    positional=positionals,
    flags=st.lists(flag_groups(), max_size=6),
    env=environments | st.just({}),
    config=configs,
    stdin=st.sampled_from(["", "snow", "prompt,seed\na,1\n", '{"prompt": "a"}']),
)
def test_any_combination_runs_or_is_refused(worker, command, positional, flags, env, config, stdin):
    given_flags = itertools.chain(*flags)
    # Behind "--" there are no flags.
    parts = [given_flags, positional] if "--" in positional else [positional, given_flags]
    argv = [command, *itertools.chain(*parts)]
    case = {"env": env, "config": config, "stdin": stdin}
    check(worker.answer(argv=argv, **case), argv, **case)


def test_every_flag_alone(worker):
    refused = []
    for flag, value in tokens(GOOD):
        image = [] if flag in ("--text", "--from") else ["cat.png"]
        extra = ["--model", "flashi2v-1.3b"] if flag == "--text" else []
        argv = ["generate", *image, flag, value, *extra]
        if not check(worker.answer(argv=argv), argv):
            refused.append(argv[2:] if image else argv[1:])
    # Its weights are not installed.
    assert refused == [["--model", "uniworld-osp2-14b"]]
    for switch in SWITCHES:
        argv = ["generate", "cat.png", switch]
        assert check(worker.answer(argv=argv), argv), argv


def test_every_flag_of_stylize_alone(worker):
    for flag, value in tokens({name: values for name, values in GOOD.items() if name != "--text"}):
        image = [] if flag == "--from" else ["cat.png"]
        argv = ["stylize", *image, "--style", "ink", flag, value]
        accepted = check(worker.answer(argv=argv), argv)
        # Its weights are not installed; and latents are beyond styles.
        assert accepted == (value not in ("uniworld-osp2-14b", "old.latents.safetensors")), argv


def test_every_bad_value_alone(worker):
    fine_after_all = {("--num-frames", "9"), ("--seed", "٣")}
    for flag, value in tokens(BAD):
        argv = ["generate", "cat.png", flag, value]
        accepted = check(worker.answer(argv=argv, stdin="# nothing"), argv)
        assert accepted == ((flag, value) in fine_after_all), argv


def test_every_pair_of_good_flags(worker):
    groups = [[flag, values[0]] for flag, values in GOOD.items()] + [[flag] for flag in SWITCHES]
    accepted = 0
    pairs = list(itertools.combinations(groups, 2))
    for one, other in pairs:
        argv = ["generate", "cat.png", *one, *other]
        accepted += check(worker.answer(argv=argv), argv)
    # Neither all nor none, or the values above would test nothing.
    assert len(pairs) * 0.7 < accepted < len(pairs)


def test_repeated_flags_take_the_last(worker):
    argv = ["generate", "cat.png", "-s", "inkk", "--style", "ink", "--seed", "1", "--seed", "2"]
    outcome = worker.answer(argv=argv)
    assert check(outcome, argv)
    assert outcome["out"] == "cat-ink-2.mp4\n"


def test_the_worker_would_notice_torch(worker):
    """The guard of this file is itself no stub."""
    script = (
        "import sys, flag_worker\n"
        "sys.meta_path.insert(0, flag_worker.Guard())\n"
        "try:\n    import numpy\nexcept flag_worker.HeavyImport:\n    print('noticed')\n"
    )
    environ = os.environ | {"PYTHONPATH": str(WORKER.parent)}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=True)
    assert done.stdout == "noticed\n"


QUICK = ["--model", "tiny", "--size", "64x64", "--frames", "5", "--steps", "3", "--seed", "4"]


@pytest.mark.parametrize(
    ("flags", "results"),
    [
        (["-g", "2", "--sampler", "unipc", "--cutoff", "0.1:0.9"], ["cat-4.mp4"]),
        (["--cache", "fbcache:9", "--cache-start", "1", "-o", "a.gif"], ["a.gif"]),
        (["-s", "oil", "--preview", "latent", "--no-metadata"], ["cat-oil-4.mp4"]),
        (["-s", "INK+ghibli:.3", "--cache", "magcache"], ["cat-ghibli-0.3+ink-0.7-4.mp4"]),
        (["-c", "2", "--fps", "8", "-o", "{seed}/%02d.png"], ["4", "5"]),
        (["--seed", "4,9", "--dtype", "float32", "-o", "{seed}.webp"], ["4.webp", "9.webp"]),
        (["-n", "blur", "--shift", "5", "-o", "videos/"], ["videos/cat-4.mp4"]),
    ],
)
def test_accepted_combinations_run(tiny_card, tmp_path, monkeypatch, capfd, flags, results):
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("osp_cli.config.user_config", lambda: tmp_path / "none.toml")
    Image.effect_noise((64, 64), 80).convert("RGB").save("cat.png")
    Path("videos").mkdir()
    code = main(["generate", "cat.png", "it snows", *QUICK, *flags])
    out, err = capfd.readouterr()
    assert code == 0, err
    assert out.splitlines() == [str(Path(result)) for result in results]
    for result in results:
        recipe = read_recipe(result)
        if "--no-metadata" in flags:
            assert recipe is None
        else:
            assert recipe is not None
            assert (recipe["model"], recipe["num_inference_steps"]) == ("tiny", 3)
            assert str(recipe["seed"]) in result or len(results) == 1
    # Nothing is left of what was kept for the case of a failure.
    assert not [*tmp_path.rglob("*.safetensors"), *tmp_path.rglob("*.preview.png")]
