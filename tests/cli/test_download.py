"""`osp download`: its flags, streams and exit codes, with a hub on loopback."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest
from hub_kit import REPOS, SHARED_VAE
from rich.cells import cell_len

from osp_cli import events, registry
from osp_cli.cli import checks, console, download_list, fetching
from osp_cli.cli.download_list import Memory, fits
from osp_cli.cli.schema import schema_path
from osp_cli.hub import haul

TOTAL = "560.0 kB"


@pytest.fixture
def place(wee):
    """Where the model is installed."""
    return wee.weights_places()[-1]


def lines(outcome):
    return [json.loads(line) for line in outcome.out.splitlines()]


# --- Fetching ---------------------------------------------------------------------------------


def test_stdout_names_the_place_and_stderr_tells_the_story(osp, place):
    outcome = osp("download", "wee")
    assert (outcome.code, outcome.out) == (0, f"{place}\n")
    said = outcome.err.splitlines()
    assert said[0] == f"wee: 6 files, {TOTAL} to fetch"
    assert said[1].startswith("into ")
    assert said[2].startswith("installed in ")
    assert all(word in said[1] for word in ("free)", "hf"))
    assert said[-1].startswith("done in ")
    assert (place / "vae" / "model.safetensors").read_bytes() == SHARED_VAE


def test_a_second_time_it_says_that_all_is_here(osp, place):
    osp("download", "wee")
    outcome = osp("download", "wee")
    assert outcome.code == 0
    assert outcome.err.startswith(f"wee: 6 files, {TOTAL}, all of it here already")


def test_quiet_says_nothing(osp, place):
    outcome = osp("download", "wee", "-q")
    assert (outcome.code, outcome.out, outcome.err) == (0, f"{place}\n", "")


def test_two_models_and_a_card_that_was_not_checked(osp, place):
    outcome = osp("download", "wee", "wee-too", "wee")
    assert outcome.code == 0
    assert outcome.out.splitlines() == [str(place), str(place.with_name("wee-too"))]
    assert "note: the card of wee-too was written without a look at the hub" in outcome.err


def test_every_line_of_json_is_valid(osp, place):
    checked = jsonschema.Draft202012Validator(json.loads(schema_path("events").read_text("utf-8")))
    found = lines(osp("download", "wee", "--json"))
    assert {"file", "download", "progress", "fetched", "saved", "done"} <= {
        line["type"] for line in found
    }
    found += lines(osp("download", "wee", "--verify", "--json"))
    found += lines(osp("download", "wee", "--dry-run", "--json"))
    assert {"verified", "as_published"} <= {line["type"] for line in found}
    for line in found:
        checked.validate(line)


def test_a_refusal_is_a_line_of_json_too(osp, wee, fake_hub):
    fake_hub.faults.list_status = [(403, {"X-Error-Code": "GatedRepo"})]
    outcome = osp("download", "wee", "--json")
    assert outcome.code == 3
    [line] = lines(outcome)
    assert (line["type"], line["exit_code"]) == ("error", 3)
    assert "huggingface.co/own/wee" in line["hint"]


def test_a_checksum_that_stays_wrong_is_exit_5(osp, place, fake_hub):
    fake_hub.faults.corrupt = 250_000
    outcome = osp("download", "wee")
    assert (outcome.code, outcome.out) == (5, "")
    assert "model-00001-of-00002.safetensors of own/wee should have the hash" in outcome.err
    assert not place.exists()


def test_too_small_a_disk_is_exit_4(osp, place, monkeypatch):
    monkeypatch.setattr(haul, "_free_bytes", lambda _: 1000)
    for flags in ([], ["--dry-run"]):
        outcome = osp("download", "wee", *flags)
        assert outcome.code == 4
        assert "1.0 kB are free" in outcome.err


def test_a_mirror_is_asked_first_and_the_rate_and_jobs_are_taken(osp, place, fake_hub):
    other = type(fake_hub)({repo: dict(files) for repo, files in REPOS.items()})
    try:
        outcome = osp(
            *("download", "wee", "--mirror", other.url, "--jobs", "1", "--limit-rate", "50M")
        )
    finally:
        other.close()
    assert outcome.code == 0
    assert other.asked("resolve")
    assert not fake_hub.asked("resolve")


# --- What is not fetched ----------------------------------------------------------------------


def test_a_built_in_model_needs_nothing(osp):
    outcome = osp("download", "osp-mini")
    assert (outcome.code, outcome.out) == (0, "")
    assert "comes with the package" in outcome.err


def test_a_model_that_is_published_nowhere_says_how_to_install_it(osp, wee, monkeypatch):
    spec = replace(wee, downloads=())
    monkeypatch.setattr(registry, "model_specs", lambda: {"wee": spec})
    outcome = osp("download", "wee")
    assert outcome.code == 3
    assert "osp download wee --local PATH" in outcome.err


def test_a_model_that_is_published_in_part_is_not_begun(osp, wee, fake_hub, monkeypatch):
    spec = replace(wee, parts=("transformer", "vae", "adapter"))
    monkeypatch.setattr(registry, "model_specs", lambda: {"wee": spec})
    outcome = osp("download", "wee")
    assert outcome.code == 3
    assert "adapter of wee is not published" in outcome.err
    assert fake_hub.log == []
    # What there is can be fetched for later, and looked at.
    assert osp("download", "wee", "--include", "vae/*").code == 0
    assert osp("download", "wee", "--dry-run").code == 0


def test_a_model_from_elsewhere_is_left_alone_unless_asked(osp, place, fake_hub):
    for part in ("transformer", "vae"):
        (place / part).mkdir(parents=True)
    outcome = osp("download", "wee")
    assert outcome.code == 0
    assert "is installed from elsewhere" in outcome.err
    assert not fake_hub.asked("resolve")
    assert osp("download", "wee", "-y").out == f"{place}\n"


def test_files_shared_with_a_neighbour_do_not_make_a_model_the_hubs(osp, place, fake_hub):
    assert osp("download", "wee").code == 0
    neighbour = place.with_name("wee-too")
    for part in ("transformer", "vae"):
        (neighbour / part).mkdir(parents=True)
    assert "is installed from elsewhere" in osp("download", "wee-too").err
    assert not any(neighbour.rglob("*.safetensors"))


def test_offline_is_exit_3_with_a_way_out(osp, wee, fake_hub, monkeypatch):
    assert osp("download", "wee", "--offline").code == 3
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    outcome = osp("download", "wee")
    assert outcome.code == 3
    assert "nothing is fetched offline" in outcome.err
    assert fake_hub.log == []


def test_generate_says_how_to_get_weights(osp, wee, picture):
    outcome = osp("generate", "cat.png", "zoom in", "--model", "wee")
    assert outcome.code == 3
    assert "osp download wee" in outcome.err


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        ([], "which model?"),
        (["nonesuch"], "unknown model 'nonesuch'"),
        (["wee", "--jobs", "0"], "--jobs must be from 1 to 32"),
        (["wee", "--limit-rate", "fast"], "--limit-rate takes bytes a second"),
        (["wee", "--limit-rate", "1"], "--limit-rate takes bytes a second"),
        (["wee", "--mirror", "mirror"], "--mirror must be an address"),
        (["wee", "--list", "--verify"], "--list and --verify exclude each other"),
        (["wee", "--local", "nowhere"], "--local nowhere is not there"),
        (["wee", "wee-too", "--local", "."], "one model at a time"),
        (["wee", "--include", "*.gguf"], "leave no file"),
        (["wee", "--revision", "nonesuch"], "no revision 'nonesuch'"),
    ],
)
def test_what_makes_no_sense_is_exit_2(osp, wee, args, sentence):
    outcome = osp("download", *args)
    assert (outcome.code, outcome.out) == (2, "")
    assert sentence in outcome.err


@pytest.mark.parametrize(
    ("text", "rate"), [("5M", 5_000_000), ("500k", 500_000), ("1.5GB/s", 1_500_000_000)]
)
def test_rates_are_read(text, rate):
    from osp_cli.cli.download import _byte_rate

    assert _byte_rate(text) == rate


# --- The plan and the list --------------------------------------------------------------------


def test_a_dry_run_writes_the_plan_to_stdout(osp, place, fake_hub):
    outcome = osp("download", "wee", "--dry-run")
    assert (outcome.code, outcome.err) == (0, "")
    said = outcome.out.splitlines()
    assert len([line for line in said if "own/wee: " in line]) == 6
    assert f"wee: 6 files, {TOTAL} to fetch" in said
    assert not fake_hub.asked("resolve")


def test_verify_is_exit_5_with_the_files_name(osp, place):
    osp("download", "wee")
    assert osp("download", "wee", "--verify").err.splitlines() == [
        f"6 files, {TOTAL}: all as published"
    ]
    (place / "vae" / "model.safetensors").resolve().write_bytes(b"x")
    outcome = osp("download", "wee", "--verify")
    assert outcome.code == 5
    assert "vae/model.safetensors has 1 bytes instead of 60000" in outcome.err
    assert "osp download wee fetches just these" in outcome.err


def test_verify_without_a_model_is_exit_3(osp, wee, fake_hub):
    outcome = osp("download", "wee", "--verify")
    assert (outcome.code, outcome.out) == (3, "")
    assert outcome.err.splitlines() == [
        "error: nothing of wee is here to check",
        "hint: osp download wee",
    ]
    assert "offline" not in outcome.err
    assert fake_hub.log == []


def test_verify_of_a_built_in_model_says_that_there_is_nothing_to_check(osp):
    outcome = osp("download", "osp-mini", "--verify")
    assert outcome.code == 0
    assert outcome.err.startswith("note: osp-mini comes with the package, in ")
    assert outcome.err.endswith("; there is nothing to check\n")


def test_what_is_left_out_of_an_installed_model_leaves_it_installed(osp, place):
    outcome = osp("download", "wee", "--include", "vae/*")
    assert "wee is in the cache but not installed: 4 of its files were left out" in outcome.err
    osp("download", "wee", "-q")
    outcome = osp("download", "wee", "--include", "vae/*")
    assert "not installed" not in outcome.err
    assert "wee stays installed as it is: 4 of its files were left out" in outcome.err


@pytest.fixture
def incomplete(osp, place):
    """`wee`, with a shard that its index names moved away; gives the file's name."""
    osp("download", "wee", "-q")
    names = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    index = place / "transformer" / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": dict(zip("ab", names, strict=True))}))
    (place / "transformer" / names[1]).unlink()
    return f"transformer/{names[1]}"


def test_an_incomplete_model_is_called_so_everywhere(osp, incomplete, picture, place):
    [row] = lines(osp("download", "--list", "wee", "--json"))
    assert row["state"] == "incomplete"
    assert row["bytes"] == 560_016
    [row] = [row for row in lines(osp("models", "--json")) if row["name"] == "wee"]
    assert (row["state"], row["installed"]) == ("incomplete", False)
    for flags in ([], ["--dry-run"]):
        outcome = osp("generate", "cat.png", "zoom in", "--model", "wee", *flags)
        assert (outcome.code, outcome.out) == (3, "")
        assert outcome.err.splitlines() == [
            f"error: wee in {place} is incomplete: {incomplete} is missing",
            "hint: osp download wee fetches what is damaged",
        ]
    assert osp("download", "wee", "-q").code == 0
    [row] = lines(osp("download", "--list", "wee", "--json"))
    assert row["state"] == "installed"


def test_the_doctor_sees_what_an_incomplete_model_lacks(incomplete):
    [found] = [item for item in checks._check_models() if item.values["model"] == "wee"]
    assert (found.state, found.hint) == ("note", "osp download wee fetches what is damaged")
    assert found.message == f"wee is damaged: {incomplete} is missing"


@pytest.mark.parametrize("width", [60, 100, 104, 120])
def test_no_line_of_the_list_ends_between_a_figure_and_its_unit(osp, wee, monkeypatch, width):
    monkeypatch.setattr(console, "is_terminal", lambda _: True)
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setattr(download_list, "free_memory", lambda: Memory(None, 64 * GB))
    said = osp("download", "--list").out.splitlines()
    table = [line for line in said if "free now" not in line]
    assert max(map(cell_len, table)) <= width
    assert "MB)" in "".join(table)
    assert not [line for line in table if line.split() and line.split()[0] in ("MB)", "GB)")]


def test_the_list_says_what_is_here_and_what_could_be(osp, wee, fake_hub):
    rows = [
        line.split("\t") for line in osp("download", "--list", "wee", "wee-too").out.splitlines()
    ]
    assert [row[:4] for row in rows] == [
        ["wee", TOTAL, "Apache-2.0", "can be fetched"],
        ["wee-too", f"about {TOTAL}", "Apache-2.0", "can be fetched"],
    ]
    osp("download", "wee", "-q")
    [row] = lines(osp("download", "--list", "wee", "--json"))
    assert (row["state"], row["bytes"]) == ("installed", 560_016)
    assert row["repositories"] == ["own/wee"]


def test_the_list_holds_every_model(osp):
    names = [line.split("\t")[0] for line in osp("download", "--list").out.splitlines()]
    assert names == list(registry.model_specs())


GB = 10**9


@pytest.mark.parametrize(
    ("memory", "sentence"),
    [
        (Memory(80 * GB, 64 * GB), "whole on the graphics card (24."),
        (Memory(24 * GB, 64 * GB), "in turns on the graphics card (1"),
        (Memory(8 * GB, 32 * GB), "in turns on the graphics card (5"),
        (Memory(None, 64 * GB), "on the processor, for "),
        (Memory(1 * GB, 2 * GB), "not: "),
        (Memory(None, None), "unknown: "),
    ],
)
def test_what_fits_is_told_by_the_planner(memory, sentence):
    assert fits(registry.find_model("flashi2v-1.3b"), memory).startswith(sentence)


def test_a_model_of_streams_is_planned_by_the_chunk():
    spec = registry.find_model("helios-14b-distilled")
    assert fits(spec, Memory(200 * GB, 500 * GB)).startswith("whole on the graphics card (")
    assert fits(spec, Memory(None, 64 * GB)).startswith("on the processor, for ")


def test_a_model_of_text_alone_is_planned_without_a_picture():
    spec = registry.find_model("wan2.1-t2v-14b")
    assert fits(spec, Memory(200 * GB, 500 * GB)).startswith("whole on the graphics card (")


def test_a_model_that_is_published_in_part_is_listed_with_all_its_bytes(osp):
    [row] = lines(osp("download", "--list", "uniworld-osp2-14b", "--json"))
    assert row["state"] == "published in part"
    assert row["bytes"] > 40 * GB


def test_a_part_makes_no_video(wee):
    spec = replace(wee, pipeline="none")
    assert fits(spec, Memory(None, GB)) == "a part that other models use"


def test_the_graphics_card_is_asked_through_its_driver(tmp_path, monkeypatch):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 1000\necho 24000\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert download_list.free_memory().graphics == 24000 * 2**20
    tool.write_text("#!/bin/sh\nexit 9\n")
    assert download_list.free_memory().graphics is None
    tool.unlink()
    assert download_list.free_memory().graphics is None


# --- The screen -------------------------------------------------------------------------------


class Clock:
    def __init__(self):
        self.seconds = 0.0

    def __call__(self):
        return self.seconds


def test_without_a_terminal_there_is_a_line_every_ten_seconds(capsys):
    tally, clock = fetching.Tally(), Clock()
    display = fetching.FetchDisplay(tally, now=clock)
    run = [events.FilePlanned("o/r", "a", 100 * 10**6, 20 * 10**6)]
    run.append(
        events.DownloadPlanned(
            models=("wee",), num_files=1, total_bytes=10**8, cached_bytes=0,
            partial_bytes=2 * 10**7, fetch_bytes=8 * 10**7, cache=Path("/c"),
            cache_free_bytes=None, home=Path("/h"), home_free_bytes=10**9, convert_bytes=10**8,
        )
    )  # fmt: skip
    run += [events.FileProgress("o/r", "a", "fetch", n * 10**6, 10**8) for n in range(21, 61)]
    for event in run:
        tally.see(event)
        display.show(event)
        clock.seconds += 0.5
    said = capsys.readouterr().err.splitlines()
    assert said == [
        "wee: 1 file, 100.0 MB; 20.0 MB are here, 80.0 MB to fetch",
        "into /c",
        "installed in /h (1.0 GB free), where a converted copy takes up to 100.0 MB",
        "39.0 MB of 100.0 MB, 1.9 MB/s, 32.1 s left",
        "59.0 MB of 100.0 MB, 2.0 MB/s, 20.5 s left",
    ]
    assert tally.told().startswith("60.0 MB of 100.0 MB are kept")


def test_on_a_terminal_there_are_bars(monkeypatch):
    import io

    from rich.console import Console

    monkeypatch.setenv("COLUMNS", "100")
    tally = fetching.Tally()
    display = fetching.FetchBars(tally)
    screen = io.StringIO()
    display._console = Console(file=screen, force_terminal=True, width=100)
    name = "transformer/diffusion_pytorch_model-00001-of-00003.safetensors"
    with display:
        for event in (
            events.FilePlanned("o/r", name, 10**9, 10**8),
            events.FileProgress("o/r", name, "check", 10**8, 10**9),
            events.FileProgress("o/r", name, "fetch", 2 * 10**8, 10**9),
            events.Notice("something is worth knowing"),
        ):
            tally.see(event)
            display.show(event)
        display._bars.refresh()
    text = screen.getvalue()
    for part in ("_model-00001-of-00003", "total", "0.2/1.0 GB", "note: something"):
        assert part in text


def test_names_are_cut_at_the_front():
    assert fetching._short("diffusion-00001-of-00003.safetensors", 20) == "...00003.safetensors"
    assert fetching._short("a.json", 20) == "a.json"


def test_help_needs_no_hub(osp):
    text = osp("download", "--help").out
    assert "osp download --list" in text
    for flag in ("--mirror", "--limit-rate", "--verify", "--local", "--revision", "--jobs"):
        assert flag in text
