"""Completion: the scripts of the folder are the program's, and real shells complete with them."""

from __future__ import annotations

import json
import os
import re
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer
from PIL import Image

from osp_cli.cli import shells
from osp_cli.cli.app import app
from osp_cli.cli.completion import SCRIPTS
from osp_cli.cli.description import Argument, Command, Option, Values, describe, known_values
from osp_cli.errors import InvalidRequestError
from osp_cli.media import image as media_image
from osp_cli.registry import model_specs, style_presets

CHECKOUT = Path(__file__).resolve().parents[2]
FOLDER = CHECKOUT / "completions"
GROUP = typer.main.get_command(app)


def kinds_taken() -> set[str]:
    takers = [
        taker for command in describe(GROUP) for taker in (*command.options, *command.arguments)
    ]
    return {taker.kind for taker in takers if taker.kind}


# --- The scripts and the program --------------------------------------------------------------


@pytest.mark.parametrize("shell", SCRIPTS)
def test_the_folder_holds_what_the_program_prints(osp, shell):
    outcome = osp("completion", shell)
    assert (outcome.code, outcome.err) == (0, "")
    kept = (FOLDER / SCRIPTS[shell]).read_text("utf-8")
    assert kept == outcome.out, (
        "the command line has changed: write the scripts anew with "
        "`python -m osp_cli.cli.completion`"
    )


def test_the_folder_holds_nothing_else():
    assert {path.name for path in FOLDER.iterdir()} == set(SCRIPTS.values())


def test_a_fresh_interpreter_writes_the_same(tmp_path):
    # Sets of names come in another order in each process.
    probe = "from osp_cli.cli.completion import *; write_scripts(Path('out'))"
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(CHECKOUT)}
        subprocess.run([sys.executable, "-c", probe], cwd=tmp_path, env=environment, check=True)
        for name in SCRIPTS.values():
            assert (tmp_path / "out" / name).read_bytes() == (FOLDER / name).read_bytes()


def test_an_unknown_shell_is_refused(osp):
    outcome = osp("completion", "tcsh")
    assert (outcome.code, outcome.out) == (2, "")
    assert "unknown shell 'tcsh'" in outcome.err
    assert "bash, zsh, fish, powershell" in outcome.err


def test_help_tells_how_to_install(osp):
    text = osp("completion", "--help").out
    for shell in SCRIPTS:
        assert f"osp completion {shell} >" in text


def test_every_option_and_command_is_there_and_nothing_hidden():
    commands = {command.name: command for command in describe(GROUP)}
    assert {"", "generate", "styles", "models", "doctor", "completion", "schema"} <= commands.keys()
    flags = {flag for option in commands["generate"].options for flag in option.flags}
    assert {"--style", "-s", "--help", "-h", "--no-metadata", "--metadata"} <= flags
    assert not flags & {"--width", "--height", "--num-frames", "--guidance-scale"}
    for name in SCRIPTS.values():
        text = (FOLDER / name).read_text("utf-8")
        assert "--width" not in text
        for flag in flags:
            in_fish = f"-[ls] '{flag.lstrip('-')}'"
            assert re.search(rf"(?:{flag}|{in_fish})(?![\w-])", text), f"{flag} in {name}"


@pytest.mark.parametrize("name", ["_osp", "osp.fish", "osp.ps1"])
def test_every_option_has_its_help(name):
    def bare(text):
        return re.sub(r"[\\']", "", text)

    written = bare((FOLDER / name).read_text("utf-8"))
    for command in describe(GROUP):
        assert command.help
        for option in command.options:
            assert option.help, option.flags
            assert bare(option.help) in written, option.flags


def test_all_values_are_accounted_for():
    taken = kinds_taken()
    unknown = taken - known_values().keys()
    assert not unknown, f"say in known_values() what these take: {sorted(unknown)}"
    stale = known_values().keys() - taken
    assert not stale, f"no option or argument takes these any more: {sorted(stale)}"


@pytest.mark.parametrize(
    ("flag", "extra"),
    [
        ("style", {"none", "all"}),
        ("model", set()),
        ("sampler", set()),
        ("cache", set()),
        ("preview", set()),
        ("device", set()),
        ("dtype", set()),
        ("offload", set()),
        ("quant", set()),
        ("attention", set()),
    ],
)
def test_the_words_are_those_that_the_program_names_when_it_refuses(osp, picture, flag, extra):
    """`extra` are words that mean nothing of the kind, and so are not among those named."""
    outcome = osp("generate", "cat.png", f"--{flag}", "nonsense")
    assert outcome.code == 2
    [named] = re.findall(r"the \w+ are: (.*)", outcome.err)
    words = {word for word, _ in known_values()[flag].words}
    assert words == set(named.split(", ")) | extra


def test_every_option_with_words_is_compared_with_the_program():
    compared = {"style", "model", "sampler", "cache", "preview", "device", "dtype"}
    compared |= {"offload", "quant", "attention"}
    with_words = {kind for kind, values in known_values().items() if values.words}
    compared |= {"stylizer", "animator", *TRAINING}
    assert with_words == compared | {
        "targets",
        "going-on",
        "shell",
        "document",
        "subject",
        "models",
        "name",
        "sink",
    }


TRAINING = {
    "mode": "mode", "condition": "condition", "timesteps": "timesteps", "optimizer": "optimizer",
    "lr-schedule": "lr-schedule", "save-format": "save-format", "log": "log",
    "frozen-quant": "quant",
}  # fmt: skip


@pytest.mark.parametrize(("kind", "flag"), TRAINING.items())
def test_the_words_of_training_are_those_that_it_names(osp, kind, flag):
    outcome = osp("train-lora", "clips", "--out", "glass", f"--{flag}", "nonsense")
    assert outcome.code == 2
    if kind == "mode":  # told by name only where no model could be trained so
        named = ["flash, t2v, inpaint"]
    else:
        named = re.findall(r"there are: (.*)", outcome.err)
    assert {word for word, _ in known_values()[kind].words} == set(named[0].split(", "))


def test_the_words_of_datasets_are_those_that_are_known():
    from osp_cli.runtime.editors import EDITORS
    from osp_cli.training.building.request import settle_build

    words = {kind: {word for word, _ in known_values()[kind].words} for kind in known_values()}
    assert words["stylizer"] == {"procedural", *EDITORS}
    unsaid = dict.fromkeys(
        ("num_frames", "fps", "size", "caption", "prompt", "min_seconds", "max_seconds", "min_side")
    )
    for name in ("procedural", *model_specs()):
        can = True
        try:
            settle_build(
                stylizer="procedural", animator=name, seed=1, gates=True, allow_cuts=False, **unsaid
            )
        except InvalidRequestError:
            can = False
        assert (name in words["animator"]) == can, name


def test_styles_and_models_come_with_what_they_are():
    known = known_values()
    assert dict(known["style"].words).items() >= {
        (preset.name, preset.description) for preset in style_presets().values()
    }
    assert dict(known["model"].words) == {
        spec.name: spec.description for spec in model_specs().values()
    }


def test_the_suffixes_of_pictures_are_those_that_are_read():
    Image.init()
    formats = {Image.EXTENSION[f".{suffix}"] for suffix in known_values()["image"].suffixes}
    assert formats == set(media_image._FORMATS)


# --- bash, asked as it asks -------------------------------------------------------------------


@pytest.fixture
def files(away):
    for name in ("photo.png", "my cat.JPG", "notes.txt", "a:b.png", "jobs.csv", "set.toml"):
        (away / name).touch()
    (away / "style.safetensors").touch()
    (away / "folder").mkdir()
    return away


def needs(shell):
    found = shutil.which(shell)
    return pytest.param(shell, marks=pytest.mark.skipif(not found, reason=f"no {shell} here"))


BASH_BREAKS = re.compile(r"([=:]+)|\s+")


def bash_completes(line: str, path: Path = FOLDER / "osp.bash") -> set[str]:
    """What bash is offered at the end of `line`, which holds no quotes."""
    words = [word for word in BASH_BREAKS.split(line) if word]
    if line.endswith(" "):
        words.append("")
    probe = (
        f"source {path}; COMP_WORDS=({' '.join(repr(word) for word in words)}); "
        f"COMP_CWORD={len(words) - 1}; _osp; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    )
    done = subprocess.run(
        ["bash", "--norc", "-c", probe],
        env={"PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    return set(done.stdout.splitlines()) - {""}


STYLES = {word for word, _ in known_values()["style"].words}
PICTURES = {"photo.png", "my cat.JPG", "a:b.png", "folder"}


@pytest.mark.skipif(not shutil.which("bash"), reason="no bash here")
@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("osp ", {command.name.partition(" ")[0] for command in describe(GROUP)} - {""}),
        ("osp gen", {"generate"}),
        ("osp --v", {"--version"}),
        ("osp generate --style ", STYLES),
        ("osp generate -s ", STYLES),
        ("osp generate --style gh", {"ghibli"}),
        ("osp generate --style=", STYLES),
        ("osp generate --style=gh", {"ghibli"}),
        ("osp generate --model ", set(model_specs())),
        ("osp generate --no-m", {"--no-metadata"}),
        ("osp generate ", PICTURES),
        ("osp generate ph", {"photo.png"}),
        ("osp generate a:", {"b.png"}),
        ("osp generate --seed 3 --cutoff 0.1:0.5 ", PICTURES),
        ("osp generate --style=ink ", PICTURES),
        ("osp generate photo.png ", set()),
        ("osp generate --steps ", set()),
        ("osp generate --cache teacache:", set()),
        ("osp generate --text ", set()),
        ("osp generate --config ", {"set.toml", "folder"}),
        ("osp generate -F ", {"notes.txt", "jobs.csv", "folder"}),
        ("osp generate -o n", {"notes.txt"}),
        ("osp generate -- --st", set()),
        ("osp generate -- ph", {"photo.png"}),
        ("osp generate --quiet --st", {"--style", "--steps"}),
        ("osp download ", set(model_specs())),
        ("osp download --limit-rate ", set()),
        ("osp styles ", set(style_presets())),
        ("osp models ", {"inspect"}),
        ("osp train-lora --condition ", {"auto", "first", "source", "plain"}),
        ("osp train-lora --quant ", {"none", "fp8"}),
        ("osp train-lora --resume ", {"auto", "never"}),
        ("osp train-lora --save-format k", {"kohya"}),
        ("osp train-lora --lr ", set()),
        ("osp train-lora ", {"notes.txt", "jobs.csv", "set.toml", "folder"}),
        ("osp dataset ", {"check", "build"}),
        ("osp dataset build --stylizer flux2", {"flux2", "flux2-klein"}),
        ("osp dataset build --animator osp-mini-", {"osp-mini-live"}),
        ("osp models inspect ", {"style.safetensors", "folder"}),
        ("osp models --json inspect --m", {"--model"}),
        ("osp models inspect --model flash", {"flashi2v-1.3b"}),
        ("osp models nonsense --m", set()),
        ("osp styles inspect --m", set()),
        ("osp generate -l st", {"style.safetensors"}),
        ("osp styles --st", set()),
        ("osp completion ", set(SCRIPTS)),
        ("osp nonsense --", set()),
    ],
)
def test_bash_offers(files, line, offered):
    assert bash_completes(line) == offered


def test_bash_offers_all_options(files):
    [command] = [command for command in describe(GROUP) if command.name == "generate"]
    flags = {flag for option in command.options for flag in option.flags}
    assert bash_completes("osp generate -") == flags


# --- Real shells, typed at --------------------------------------------------------------------

# What each shell reads first: a prompt to wait for, the script, and an `osp` that writes down
# its arguments, so that nothing of the program is there to be asked.
START = {
    "bash": """\
PS1='REA''DY> '
source {script}
osp() {{ printf '<%s>' "$@" >> ~/calls; echo >> ~/calls; }}
""",
    "zsh": """\
PS1='REA''DY> '
fpath=({folder} $fpath)
autoload -Uz compinit
compinit -u -d ~/dump
unsetopt beep
osp() {{ printf '<%s>' "$@" >> ~/calls; echo >> ~/calls; }}
""",
    "fish": """\
function fish_prompt; echo -n REA; echo -n 'DY> '; end
function fish_greeting; end
set -g fish_autosuggestion_enabled 0
source {script}
function osp; printf '<%s>' $argv >> ~/calls; echo >> ~/calls; end
""",
}
START_FILE = {"bash": ".bashrc", "zsh": ".zshrc", "fish": ".config/fish/config.fish"}
START_WITH = {"bash": ["bash", "-i"], "zsh": ["zsh", "-d", "-i"], "fish": ["fish", "-i"]}
NEW_TERMINAL = "import pty, sys; sys.exit(pty.spawn(sys.argv[1:]))"


def typed(shell: str, lines: list[str], home: Path, folder: Path = FOLDER) -> list[str]:
    """Type `lines`, TABs in them, into an interactive shell; gives the calls that came of it.

    A call is written as its arguments in angle brackets.
    """
    path = home / START_FILE[shell]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(START[shell].format(folder=folder, script=folder / SCRIPTS[shell]))
    calls = home / "calls"
    calls.write_text("")
    environment = {"HOME": str(home), "PATH": "/usr/bin:/bin", "TERM": "xterm", "LANG": "C.UTF-8"}
    process = subprocess.Popen(
        [sys.executable, "-c", NEW_TERMINAL, *START_WITH[shell]],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    seen = b""
    deadline = time.monotonic() + 60

    def listen(until) -> None:
        nonlocal seen
        while not until():
            assert time.monotonic() < deadline, f"{shell} hangs: {seen[-1500:]!r}"
            if select.select([process.stdout], [], [], 0.1)[0]:
                seen += os.read(process.stdout.fileno(), 65536)

    try:
        listen(lambda: b"READY> " in seen)
        for number, line in enumerate(lines, 1):
            process.stdin.write(line.encode() + b"\r")
            process.stdin.flush()
            listen(lambda number=number: calls.read_text().count("\n") >= number)
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()
    return calls.read_text().splitlines()


TYPED = {
    "osp gen\t": "<generate>",
    "osp --vers\t": "<--version>",
    "osp generate --style gh\t": "<generate><--style><ghibli>",
    "osp generate --style=gh\t": "<generate><--style=ghibli>",
    "osp generate -s gh\t": "<generate><-s><ghibli>",
    "osp generate --no-m\t": "<generate><--no-metadata>",
    "osp generate ph\t": "<generate><photo.png>",
    "osp models in\t": "<models><inspect>",
    "osp models inspect -m flash\t": "<models><inspect><-m><flashi2v-1.3b>",
    "osp models inspect st\t": "<models><inspect><style.safetensors>",
    "osp generate my\t": "<generate><my cat.JPG>",
    "osp generate 'my\t": "<generate><my cat.JPG>",
    "osp generate my\\ c\t": "<generate><my cat.JPG>",
    "osp generate a:b\t": "<generate><a:b.png>",
    "osp generate --seed 3 --cutoff 0.1:0.5 ph\t":
        "<generate><--seed><3><--cutoff><0.1:0.5><photo.png>",
    "osp generate photo.png ph\t": "<generate><photo.png><ph>",
    "osp generate --steps ph\t": "<generate><--steps><ph>",
    "osp generate --config se\t": "<generate><--config><set.toml>",
    "osp generate -F jo\t": "<generate><-F><jobs.csv>",
    "osp generate --output=no\t": "<generate><--output=notes.txt>",
    "osp generate -- ph\t": "<generate><--><photo.png>",
    "osp generate -- --st\t": "<generate><--><--st>",
    "osp completion po\t": "<completion><powershell>",
}  # fmt: skip


@pytest.mark.parametrize("shell", [needs("bash"), needs("zsh"), needs("fish")])
def test_a_shell_completes_what_is_typed(files, tmp_path, shell):
    home = tmp_path / "shell"
    home.mkdir()
    assert typed(shell, list(TYPED), home) == list(TYPED.values())


@pytest.mark.parametrize("shell", [needs("fish")])
def test_fish_shows_what_styles_and_options_mean(files, shell):
    done = subprocess.run(
        [shell, "--no-config", "-c",
         f"source {FOLDER / 'osp.fish'}; complete -C 'osp generate --style gh'; "
         "complete -C 'osp generate --dry'; complete -C 'osp doc'"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    about = {command.name: command for command in describe(GROUP)}
    [dry_run] = [o for o in about["generate"].options if "--dry-run" in o.flags]
    assert done.stdout.splitlines() == [
        f"ghibli\t{style_presets()['ghibli'].description}",
        f"--dry-run\t{dry_run.help}",
        f"doctor\t{about['doctor'].help}",
    ]


# --- Texts that a shell could mistake for code ------------------------------------------------

ODD = (
    r"""it's "so" [odd]: `touch BAD` $HOME $(touch BAD) \n %s {a,b} * ~ #x; touch BAD & | < > """
    "\u2018curly\u2019 @HEADER@"
)


def odd_commands() -> tuple[tuple[Command, ...], dict[str, Values]]:
    words = (("a:b", ODD), ("plain", ODD), ("it's", ODD))
    value = Option(("--value", "-v"), ODD, ODD, "odd")
    count = Option(("--count",), ODD, "N[:M]", "number", True)
    switch = Option(("--flag",), ODD)
    commands = (
        Command("", ODD, (switch,), ()),
        Command("go", ODD, (value, count, switch), (Argument(ODD, "odd"),)),
    )
    return commands, {"odd": Values(words=words), "number": Values()}


@pytest.mark.parametrize("shell", [needs("bash"), needs("zsh"), needs("fish")])
def test_odd_texts_are_only_texts(away, tmp_path, shell):
    scripts, home = tmp_path / "scripts", tmp_path / "shell"
    scripts.mkdir()
    home.mkdir()
    text = getattr(shells, shell)(*odd_commands())
    (scripts / SCRIPTS[shell]).write_text(text, encoding="utf-8")
    lines = {
        "osp \t\t": "<go>",
        "osp go --value pl\t": "<go><--value><plain>",
        "osp go --value a\t": "<go><--value><a:b>",
        "osp go it\t": "<go><it's>",
        # Shows all words and all options with their help.
        "osp go -\t\t\x15osp go --count 4 --count 5 pl\t": "<go><--count><4><--count><5><plain>",
        "osp go --value \t\t\x15osp go --fl\t": "<go><--flag>",
    }
    assert typed(shell, list(lines), home, scripts) == list(lines.values())
    assert list(away.iterdir()) == []


@pytest.mark.parametrize("shell", [needs("fish")])
def test_odd_texts_arrive_whole_in_fish(away, tmp_path, shell):
    (tmp_path / "odd.fish").write_text(shells.fish(*odd_commands()), encoding="utf-8")
    probe = f"source {tmp_path / 'odd.fish'}; complete -C 'osp go --va'; complete -C 'osp go pl'"
    done = subprocess.run(
        [shell, "--no-config", "-c", probe], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == [f"--value\t{ODD}", f"plain\t{ODD}"]


PS_QUOTE = "['\u2018\u2019\u201a\u201b]"
PS_WORD = re.compile(rf"{PS_QUOTE}((?:(?!{PS_QUOTE}).|({PS_QUOTE})\2)*){PS_QUOTE}")


def test_odd_texts_arrive_whole_in_powershell():
    """Read as PowerShell's grammar says: in single quotes only a doubled quote means anything."""
    rows = [
        line.strip()
        for line in shells.powershell(*odd_commands()).splitlines()
        if line.strip().startswith("row '")
    ]
    texts = []
    for row in rows:
        words = list(PS_WORD.finditer(row))
        assert len(words) == 4
        assert re.sub(r"\s", "", PS_WORD.sub("", row)) == "row"
        texts.append(re.sub(f"({PS_QUOTE})\\1", r"\1", words[3][1]))
    # Four flags, one switch of osp itself, a command, its argument and three words.
    assert texts.count(ODD) == 10


@pytest.mark.parametrize("shell", [needs("pwsh")])
def test_powershell_completes(files, shell):
    for line, offered in {
        "osp generate --style gh": ["ghibli"],
        "osp generate --style=gh": ["--style=ghibli"],
        "osp gen": ["generate"],
        "osp generate --no-m": ["--no-metadata"],
    }.items():
        probe = (
            f". {FOLDER / 'osp.ps1'}; (TabExpansion2 '{line}' {len(line)}).CompletionMatches"
            ".CompletionText | ConvertTo-Json -AsArray -Compress"
        )
        done = subprocess.run(
            [shell, "-NoProfile", "-Command", probe], capture_output=True, text=True, check=True
        )
        assert json.loads(done.stdout) == offered


def test_an_unknown_kind_of_value_offers_nothing():
    """A new option works at once, and completes nothing until somebody says what it takes."""
    commands = (
        Command("", "", (), ()),
        Command("go", "", (Option(("--new",), "", "X", "new"),), ()),
    )
    texts = {shell: getattr(shells, shell)(commands, {}) for shell in SCRIPTS}
    assert "_osp_words \"$2\" '--new'" in texts["bash"]
    assert "--new=[]:X: '" in texts["zsh"]
    assert "-l 'new' -r -f -d" in texts["fish"]
    assert "row 'go' '--new' 'new'" in texts["powershell"]
