"""Dials: what is written is read back, wherever it stands, and nonsense is refused."""

from __future__ import annotations

import math

import pytest
import typer
from hypothesis import given, settings
from hypothesis import strategies as st

from osp_cli.cli.app import app
from osp_cli.dials import (
    ALIASES,
    CACHES,
    DIALS,
    MAX_SEEDS,
    RANDOM_SEED,
    LoraChoice,
    Loras,
    MemorySize,
    Ramp,
    Seeds,
    Size,
    StepCacheChoice,
    as_text,
    canonical_name,
    lora,
    number_text,
    prompt_text,
    read_value,
    seeds,
)
from osp_cli.errors import InvalidRequestError

whole = st.integers(-(10**20), 10**20)
finite = st.floats(allow_nan=False, allow_infinity=False)
positive = st.floats(0, 1e9)
line = st.text(st.characters(exclude_categories=["Cs"])).filter(lambda text: text[:1] != "@")

# Values of each dial, as a request would hold them.
VALUES = {
    "prompt": line,
    "negative-prompt": line,
    "style": line,
    "output": line,
    "size": st.builds(Size, st.integers(0, 10**8), st.integers(0, 10**8)),
    "frames": whole,
    "seconds": finite,
    "fps": whole,
    "steps": whole,
    "cfg": finite,
    "shift": finite,
    "sampler": line,
    "cutoff": st.builds(Ramp, finite, finite),
    "seed": st.lists(st.integers(0, 2**63), min_size=1, max_size=20, unique=True).map(Seeds),
    "count": whole,
    "cache": st.one_of(
        st.just(StepCacheChoice("none")),
        st.builds(StepCacheChoice, st.sampled_from(CACHES[1:]), st.none() | positive),
    ),
    "cache-start": whole,
    "lora": st.lists(
        st.builds(
            lambda *parts: LoraChoice(*parts),
            st.from_regex(r"[\w.:/\\ -]*\w", fullmatch=True),
            finite,
        ),
        max_size=3,
    )
    .filter(lambda choices: not any(choice.name == "none" for choice in choices))
    # What stands around a name is no part of it.
    .filter(lambda choices: all(choice.name == choice.name.strip() for choice in choices))
    .map(Loras),
    "strength": finite,
    "preview": line,
    "metadata": st.booleans(),
    "model": line,
    "device": line,
    "dtype": st.sampled_from(["auto", "bfloat16", "float16", "float32"]),
    "offload": line,
    "quant": line,
    "attention": line,
    "vae-tiling": st.booleans(),
    "compile": st.booleans(),
    "gpus": st.integers(0, 10**6),
    "max-vram": st.integers(0, 10**14).map(MemorySize),
    "max-ram": st.integers(0, 10**14).map(MemorySize),
}


@pytest.mark.parametrize("name", DIALS)
@settings(max_examples=30)
@given(data=st.data())
def test_what_is_written_is_read_again(name, data):
    value = data.draw(VALUES[name])
    assert DIALS[name].read(as_text(value)) == value


@pytest.mark.parametrize("name", DIALS)
@settings(max_examples=30)
@given(text=st.text() | st.from_regex(r"[-+0-9.,:xaeinf ]{1,40}", fullmatch=True))
def test_any_text_is_read_or_refused(name, text):
    try:
        value = read_value(name, text, "somewhere")
    except InvalidRequestError as error:
        assert error.message.startswith("somewhere: ")
    else:
        # What was read once is settled: written and read again it stays.
        if not text.startswith("@"):
            again = as_text(value)
            assert as_text(DIALS[name].read(again)) == again


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@pytest.mark.parametrize("name", DIALS)
@settings(max_examples=30)
@given(value=json_values | st.integers(0, 9).map(lambda digits: 10 ** (digits * 1000)))
def test_any_value_of_a_file_is_read_or_refused(name, value):
    try:
        read_value(name, value, "a.toml, line 2")
    except InvalidRequestError as error:
        assert error.message.startswith("a.toml, line 2: ")


@pytest.mark.parametrize(
    ("name", "value", "read"),
    [
        ("steps", 12, 12),
        ("steps", "12", 12),
        ("cfg", 2, 2.0),
        ("size", [448, 256], Size(448, 256)),
        ("size", "448X256", Size(448, 256)),
        ("cutoff", 0.1, Ramp(0.1, 0.1)),
        ("cutoff", [0.1, 0.5], Ramp(0.1, 0.5)),
        ("cutoff", "0.1:0.5", Ramp(0.1, 0.5)),
        ("seed", [3, 7], Seeds((3, 7))),
        ("seed", "random", RANDOM_SEED),
        ("seed", " RANDOM ", RANDOM_SEED),
        ("metadata", False, False),
        ("metadata", "off", False),
        ("metadata", 1, True),
        ("dtype", "bf16", "bfloat16"),
        ("cache", "TeaCache:0.25", StepCacheChoice("teacache", 0.25)),
        (
            "lora",
            "a:0.5, b.safetensors",
            Loras([LoraChoice("a", 0.5), LoraChoice("b.safetensors")]),
        ),
        ("lora", ["a,b:2"], Loras([LoraChoice("a,b", 2.0)])),
        ("lora", [], Loras()),
        ("lora", "none", Loras()),
    ],
)
def test_values_of_files(name, value, read):
    assert read_value(name, value, "here") == read


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("steps", True),
        ("steps", 8.5),
        ("steps", []),
        ("steps", [8]),
        ("steps", None),
        ("steps", {"first": 8}),
        ("size", [448]),
        ("size", [448, 256, 3]),
        ("size", ["448", "256"]),
        ("cutoff", [0.1, 0.2, 0.3]),
        ("seed", [3, "x"]),
        ("seed", [True]),
        ("seed", []),
        ("metadata", "maybe"),
        ("metadata", 2),
        ("cache", "teacache:"),
        ("cache", "none:0.1"),
        ("lora", ["a", 1]),
        ("lora", {"a": 1}),
        ("lora", "a,,b"),
        ("lora", "a,none"),
        ("lora", ["a", "none"]),
        ("lora", ""),
        ("cache", "turbo"),
    ],
)
def test_wrong_kinds_of_values(name, value):
    with pytest.raises(InvalidRequestError, match=r"^here: "):
        read_value(name, value, "here")


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("style", ("style", 1.0)),
        (" style : -0.5 ", ("style", -0.5)),
        ("a/b.safetensors", ("a/b.safetensors", 1.0)),
        ("a/b.safetensors:.5", ("a/b.safetensors", 0.5)),
        (r"C:\loras\x.safetensors", (r"C:\loras\x.safetensors", 1.0)),
        (r"C:\loras\x.safetensors:0.5", (r"C:\loras\x.safetensors", 0.5)),
        ("C:x.SafeTensors", ("C:x.SafeTensors", 1.0)),
        ("D:/loras/x:2", ("D:/loras/x", 2.0)),
        ("~/x.safetensors:1e-1", ("~/x.safetensors", 0.1)),
        ("a:b/c", ("a:b/c", 1.0)),
        ("a:1:2", ("a:1", 2.0)),
    ],
)
def test_loras(text, read):
    assert lora(text) == LoraChoice(*read)
    # As it is written again, whatever colons are in it.
    assert lora(str(lora(text))) == LoraChoice(*read)


@pytest.mark.parametrize("text", ["", " ", ":", ":0.5", "a:", "a:b", "a:0.5x", "a:0,5"])
def test_loras_that_make_no_sense(text):
    with pytest.raises(InvalidRequestError, match=r"^--lora takes a"):
        lora(text)


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("7", (7,)),
        ("1-4", (1, 2, 3, 4)),
        ("1 - 3", (1, 2, 3)),
        ("5-5", (5,)),
        ("1,5, 9-11", (1, 5, 9, 10, 11)),
        ("9,3", (9, 3)),
        ("-1", (-1,)),
        ("007", (7,)),
    ],
)
def test_seeds(text, read):
    assert seeds(text) == read


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("4-1", "counts backwards"),
        ("1,,2", "takes whole numbers"),
        ("1-", "takes whole numbers"),
        ("-1-3", "takes whole numbers"),
        ("", "takes whole numbers"),
        ("1,random", "takes whole numbers"),
        ("1.5", "takes whole numbers"),
        ("1,1", "names a seed twice"),
        ("1-3,2", "names a seed twice"),
        ("0-1000000000000", "asks for more than"),
        (f"0-{MAX_SEEDS}", "asks for more than"),
        (f"1-{MAX_SEEDS},0", "asks for more than"),
    ],
)
def test_seeds_that_make_no_sense(text, sentence):
    with pytest.raises(InvalidRequestError, match=sentence):
        seeds(text)


def test_as_many_seeds_as_allowed():
    assert len(seeds(f"1-{MAX_SEEDS}")) == MAX_SEEDS


@given(st.floats())
def test_numbers_are_written_exactly(value):
    read = float(number_text(value))
    assert read == value or (math.isnan(read) and math.isnan(value))


def test_numbers_are_written_as_people_write_them():
    written = [number_text(value) for value in (0.1, 5.0, 0.30000000000000004, 1e-9)]
    assert written == ["0.1", "5", "0.30000000000000004", "1e-09"]


def test_a_prompt_may_stand_in_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.txt").write_bytes(b"\xef\xbb\xbf  sn\xc3\xb6w,\r\nfalling \n")
    assert prompt_text("@p.txt") == "snöw,\nfalling"
    assert prompt_text("mail @home") == "mail @home"
    (tmp_path / "bad.txt").write_bytes(b"\xff\xfe")
    for name in ("bad.txt", "none.txt", ""):
        with pytest.raises(InvalidRequestError, match=f"the prompt file '{name}'"):
            prompt_text(f"@{name}")


def test_every_dial_has_one_name_field_and_variable():
    assert [dial.name for dial in DIALS.values()] == list(DIALS)
    assert len({dial.field for dial in DIALS.values()}) == len(DIALS)
    assert DIALS["negative-prompt"].variable == "OSP_NEGATIVE_PROMPT"
    assert set(ALIASES.values()) <= set(DIALS)
    assert canonical_name("guidance-scale") == "cfg"
    assert canonical_name("steps") == "steps"


def test_flags_without_values_and_short_ones_are_the_command_line_s():
    options = {
        option.opts[0]: option
        for option in typer.main.get_command(app).commands["stylize"].params
        if option.opts[0].startswith("--")
    }
    for dial in DIALS.values():
        if dial.name == "prompt":
            # The one that is an argument.
            continue
        option = options[f"--{dial.name}"]
        assert [f"-{dial.short}"] * bool(dial.short) == option.opts[1:]
        assert option.is_flag == dial.is_switch
        assert option.secondary_opts == [f"--no-{dial.name}"] * dial.is_switch
