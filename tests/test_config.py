"""Configuration files and variables: who wins, and what is said of mistakes."""

from __future__ import annotations

import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from osp_cli import config
from osp_cli.config import config_files, environment_layer, read_config, stored_layers
from osp_cli.dials import DIALS, Ramp, Seeds, Size
from osp_cli.errors import InvalidRequestError


@pytest.fixture(autouse=True)
def away(tmp_path, monkeypatch):
    """A folder without settings, and a user without any."""
    for variable in config.VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(config, "user_config", lambda: tmp_path / "user.toml")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def written(away):
    """Write a file and give its path."""

    def write(text, name="a.toml"):
        path = away / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def refusal(path, command="generate"):
    with pytest.raises(InvalidRequestError) as caught:
        read_config(path, command, "a.toml")
    return caught.value


def test_keys_are_the_long_flags(written):
    path = written(
        'model = "osp-mini"\nnegative_prompt = "blur"\nnum-inference-steps = 9\n'
        '[generate]\nsize = "448x256"\nseed = [1, 2]\ncutoff = "0.1:0.5"\nmetadata = false\n'
    )
    assert read_config(path, "generate") == {
        "model": "osp-mini",
        "negative_prompt": "blur",
        "num_inference_steps": 9,
        "size": Size(448, 256),
        "seed": Seeds((1, 2)),
        "cutoff": Ramp(0.1, 0.5),
        "metadata": False,
    }


def test_the_table_of_the_command_wins_wherever_it_stands(written):
    path = written("steps = 3\nfps = 8\n[generate]\nsteps = 5\n")
    assert read_config(path, "generate") == {"num_inference_steps": 5, "fps": 8}
    path = written("generate.steps = 5\nsteps = 3\n")
    assert read_config(path, "generate") == {"num_inference_steps": 5}
    path = written("generate = {steps = 5}\nsteps = 3\n")
    assert read_config(path, "generate") == {"num_inference_steps": 5}


@pytest.mark.parametrize(
    ("top", "own", "kept"),
    [
        ("frames = 9", "seconds = 2", {"seconds": 2.0}),
        ("seconds = 2", "frames = 9", {"num_frames": 9}),
        ("seconds = 2", "steps = 3", {"seconds": 2.0, "num_inference_steps": 3}),
    ],
)
def test_the_table_of_the_command_has_one_length(written, top, own, kept):
    assert read_config(written(f"{top}\n[generate]\n{own}\n"), "generate") == kept


def test_byte_order_marks_and_windows_lines_are_nothing(written):
    path = written(b"\xef\xbb\xbfsteps = 3\r\n# remark\r\n[generate]\r\nfps = 8\r\n")
    assert read_config(path, "generate") == {"num_inference_steps": 3, "fps": 8}
    assert read_config(written(""), "generate") == {}


@pytest.mark.parametrize(
    ("text", "place", "key", "guess"),
    [
        ("\nstepz = 3\n", "a.toml, line 2", "stepz", "steps"),
        ("steps = 3\n[generate]\nstepz = 3\n", "a.toml, line 3", "stepz", "steps"),
        ("# [generate]\n[ generate ] # mine\n\n'Seed' = 3", "a.toml, line 4", "Seed", "seed"),
        ("negativ-prompt = 'x'", "a.toml, line 1", "negativ-prompt", "negative-prompt"),
        ("[stylise]\nsteps = 3", "a.toml, line 1", "stylise", "style"),
    ],
)
def test_unknown_keys_are_told_with_line_and_guess(written, text, place, key, guess):
    error = refusal(written(text))
    assert error.message == f"{place}: unknown key {key!r}"
    assert guess in error.hint.removeprefix("did you mean ").rstrip("?").split(" or ")


def test_keys_like_nothing_get_the_list(written):
    assert refusal(written("zzz = 1")).hint.startswith("the keys are: prompt, ")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("steps = 'many'", "a.toml, line 1: --steps takes a whole number, got 'many'"),
        ("steps = 8.5", "a.toml, line 1: --steps takes a whole number, got '8.5'"),
        ("steps = true", "a.toml, line 1: --steps takes a whole number, got 'true'"),
        ("fps = 8\nsteps = [8]", "a.toml, line 2: steps takes one value, got [8]"),
        ("steps.first = 8", "a.toml, line 1: steps takes one value, got {'first': 8}"),
        ("[size]\nwidth = 3", "a.toml, line 1: size takes one value, got {'width': 3}"),
        ("[[steps]]\na = 3", "a.toml, line 1: steps takes one value, got [{'a': 3}]"),
        ("[generate.steps]\na = 3", "a.toml: steps takes one value, got {'a': 3}"),
        ("seed = 1979-05-27", "a.toml, line 1: seed takes one value, got datetime.date"),
        ("size = 448", "a.toml, line 1: --size takes WIDTHxHEIGHT in pixels, got '448'"),
        ("prompt = '@none.txt'", "a.toml, line 1: the prompt file 'none.txt' cannot be read"),
        ("steps = 0x" + "f" * 6000, "a.toml, line 1: steps takes at most 30 digits"),
    ],
)
def test_values_that_make_no_sense_are_told_with_their_line(written, text, sentence):
    assert refusal(written(text)).message.startswith(sentence)


def test_lines_are_those_of_an_editor(written):
    error = refusal(written("# one\u2028still one\nstepz = 3"))
    assert error.message.startswith("a.toml, line 2: ")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("steps = \n", "a.toml is not valid TOML: Invalid value (at line 1"),
        ("steps = 3\nsteps = 4\n", "a.toml is not valid TOML: Cannot overwrite a value"),
        ("steps = " + "9" * 6000, "a.toml is not valid TOML: "),
        ("steps = " + "[" * 20000, "a.toml is not valid TOML: "),
        (b"prompt = '\xff'", "a.toml is not UTF-8 text"),
    ],
)
def test_files_that_are_no_toml(written, text, sentence):
    assert refusal(written(text)).message.startswith(sentence)


def test_a_folder_is_no_file(away):
    assert refusal(away).message.startswith("a.toml cannot be read: ")


@given(st.text() | st.from_regex(r"([a-z\-]{1,8} = [\[\]0-9\"'a-z.,{}=]{0,9}\n){1,3}"))
def test_any_text_is_read_or_refused(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("any") / "a.toml"
    path.write_text(text, encoding="utf-8", errors="replace", newline="")
    try:
        values = read_config(path, "generate")
    except InvalidRequestError as error:
        assert str(path) in error.message
    else:
        assert values.keys() <= {dial.field for dial in DIALS.values()}
        tomllib.loads(path.read_text(encoding="utf-8-sig"))


def test_files_by_strength(written, away):
    assert config_files() == []
    written("", "osp.toml"), written("", "user.toml"), written("", "mine.toml")
    found = [called for called, _ in config_files(away / "mine.toml")]
    assert found == [str(away / "mine.toml"), "./osp.toml", str(away / "user.toml")]
    with pytest.raises(InvalidRequestError, match=r"none.toml is no file"):
        config_files(away / "none.toml")


def test_layers_by_strength(written, away, monkeypatch):
    for name, steps in (("mine.toml", 2), ("osp.toml", 3), ("user.toml", 4)):
        written(f"steps = {steps}\n", name)
    monkeypatch.setenv("OSP_STEPS", "1")
    layers = stored_layers("generate", away / "mine.toml")
    assert [
        (layer.values["num_inference_steps"], layer.origin_of("num_inference_steps"))
        for layer in layers
    ] == [
        (1, "OSP_STEPS"),
        (2, str(away / "mine.toml")),
        (3, "./osp.toml"),
        (4, str(away / "user.toml")),
    ]


def test_the_local_file_may_also_be_named(written):
    written("steps = 3\n", "osp.toml")
    assert len(stored_layers("generate", config.LOCAL_CONFIG)) == 3


def test_a_mistake_in_any_file_shows(written):
    written("stepz = 3\n", "user.toml")
    with pytest.raises(InvalidRequestError, match=r"user.toml, line 1: unknown key 'stepz'"):
        stored_layers("generate")


@pytest.mark.parametrize("name", DIALS)
def test_every_dial_has_a_variable(name):
    texts = {
        "size": "448x256",
        "cutoff": "0.1:0.2",
        "seed": "1-3",
        "cache": "teacache",
        "metadata": "off",
    }
    text, dial = texts.get(name, "1"), DIALS[name]
    layer = environment_layer({dial.variable: text, "OSP_OTHER": "x", "PATH": "y"})
    assert layer.values == {dial.field: dial.read(text)}
    assert layer.origin_of(dial.field) == dial.variable


def test_an_empty_variable_is_not_set():
    assert environment_layer(dict.fromkeys(config.VARIABLES, "")).values == {}


def test_a_variable_that_makes_no_sense_is_named():
    with pytest.raises(InvalidRequestError, match=r"^OSP_STEPS: --steps takes a whole number"):
        environment_layer({"OSP_STEPS": "many"})


def test_the_user_has_a_file_of_their_own(monkeypatch):
    monkeypatch.undo()
    assert config.user_config().name == "config.toml"
    assert config.user_config().parent.name == "osp"
