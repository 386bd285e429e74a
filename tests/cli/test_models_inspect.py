"""`osp models inspect`: what is in a file, on a terminal, in a pipe and as JSON."""

from __future__ import annotations

import json
import re
import runpy
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from osp_cli.cli import console
from osp_cli.loras import loras_home
from osp_cli.registry import find_model

FILES = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "lora_files.py")))
GOLDEN = Path(__file__).parents[1] / "golden" / "data"


@pytest.fixture
def mini_lora(away):
    """A LoRA of rank 2 and alpha 4 for two layers of osp-mini, one unknown key, and metadata."""
    [file] = (find_model("osp-mini").weights_dir() / "transformer").glob("*.safetensors")
    torch.manual_seed(1)
    pairs = {}
    with safe_open(file, framework="pt") as weights:
        for name in ("blocks.0.attn1.to_q", "blocks.2.ffn.net.0.proj"):
            out, inside = weights.get_slice(f"{name}.weight").get_shape()
            pairs[name] = (torch.randn(2, inside), torch.randn(out, 2))
    return FILES.write(
        away / "style.safetensors",
        "musubi",
        pairs,
        alpha=4.0,
        metadata={
            "modelspec.trigger_phrase": "in tin style",
            "modelspec.title": "Tin\x1b[31m",
            "ss_tag_frequency": json.dumps({"1_a": {"robot": 3, "tin": 7}, "1_b": {"robot": 9}}),
        },
        **{"lora_unet_strange.lora_down.weight": torch.ones(1)},
    )


def rows(text):
    found = {}
    for line in text.splitlines():
        file, name, value = line.split("\t")
        found.setdefault(file, {})[name] = value
    return found


def test_a_pipe_gets_file_name_and_value(osp, mini_lora):
    outcome = osp("models", "inspect", "style.safetensors")
    assert (outcome.code, outcome.err) == (0, "")
    [told] = rows(outcome.out).values()
    assert told["kind"] == "LoRA, layout musubi"
    assert (told["rank"], told["alpha"], told["keys"]) == ("2", "4", "7")
    assert told["made for"].startswith("a transformer of width 544, feed-forward 960, 3 blocks, as")
    assert "osp-mini" in told["made for"]
    assert told["layers"] == "1 attn1.to_q, 1 ffn.net.0.proj"
    assert told["left out"] == (
        "1 no layer of a Wan-style transformer: lora_unet_strange.lora_down.weight"
    )
    assert told["trigger"] == "in tin style"
    assert told["tags"] == "robot, tin"
    # Orders to a terminal are shown and not obeyed.
    assert told["title"] == r"Tin\x1b[31m"


def test_json_holds_all_of_it(osp, mini_lora):
    [line] = osp("models", "inspect", "style.safetensors", "-m", "osp-mini", "--json").out.split(
        "\n"
    )[:-1]
    told = json.loads(line)
    assert told["kind"] == "lora"
    assert told["size"] == {"width": 544, "ffn": 960, "layers": 3}
    assert told["ranks"] == [2]
    assert told["alphas"] == [4.0]
    assert told["problem"] is None
    assert set(told["fits"]) >= {"osp-mini"}
    strength = told["strength"]
    assert strength["model"] == "osp-mini"
    # The other layer starts from nothing, and has nothing to be a share of.
    assert set(strength["layers"]) == {"blocks.2.ffn.net.0.proj.weight"}
    assert told["notes"] == ["1 of the layers are zeros in osp-mini, and have no share"]
    assert strength["layers"][strength["largest_layer"]] == strength["largest"]
    assert strength["largest"] >= strength["median"] > 0


def test_strength_beside_a_model_is_a_share_of_its_weights(osp, mini_lora):
    plain, beside = (
        json.loads(osp("models", "inspect", "style.safetensors", "--json", *more).out)["strength"]
        for more in ((), ("--model", "osp-mini"))
    )
    assert plain["model"] is None
    folder = find_model("osp-mini").weights_dir() / "transformer"
    [file] = folder.glob("*.safetensors")
    with safe_open(file, framework="pt") as weights:
        for name, share in beside["layers"].items():
            norm = weights.get_tensor(name).float().norm().item()
            assert share == pytest.approx(plain["layers"][name] / norm, rel=1e-4)


def test_a_terminal_gets_aligned_lines(osp, mini_lora, monkeypatch):
    monkeypatch.setattr(console, "is_terminal", lambda stream: True)
    monkeypatch.setattr(console, "columns", lambda: 60)
    lines = osp("models", "inspect", "style.safetensors", str(mini_lora)).out.splitlines()
    assert lines[0] == "style.safetensors"
    assert lines.count("") == 1
    assert max(map(len, lines)) <= 60 or any(len(word) > 45 for word in " ".join(lines).split())
    starts = {re.match(r"  \S(?:.*?\S)?  +(?=\S)", line)[0] for line in lines if line[:3].strip()
              and line.startswith("  ")}  # fmt: skip
    assert len({len(start) for start in starts}) == 1


def test_an_installed_lora_goes_by_its_name(osp, mini_lora):
    loras_home().mkdir(parents=True)
    mini_lora.rename(loras_home() / "tin.safetensors")
    [file] = rows(osp("models", "inspect", "tin").out)
    assert file == str(loras_home() / "tin.safetensors")


def test_a_model_of_another_size_is_a_problem(osp, mini_lora):
    outcome = osp("models", "inspect", "style.safetensors", "--model", "uniworld-osp2-14b")
    assert outcome.code == 1
    assert outcome.err.startswith("error: style.safetensors: it is for a ")
    [told] = rows(outcome.out).values()
    assert told["problem"].startswith("it is for a transformer of width 544")
    assert "uniworld-osp2-14b has width 5120" in told["problem"]
    assert "strength" not in told


@pytest.mark.parametrize(
    ("key", "problem"),
    [
        ("transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight", "those of Flux"),
        ("diffusion_model.blocks.0.self_attn.q.lokr_w1", "is a LoKr file"),
    ],
)
def test_what_is_no_lora_of_ours_says_so(osp, away, key, problem):
    save_file({key: torch.ones(2, 2)}, away / "other.safetensors")
    outcome = osp("models", "inspect", "other.safetensors")
    assert outcome.code == 1
    [told] = rows(outcome.out).values()
    assert problem in told["problem"]


def test_numbers_that_are_not_finite_are_a_problem(osp, mini_lora):
    with safe_open(mini_lora, framework="pt") as file:
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    state["lora_unet_blocks_0_self_attn_q.lora_up.weight"][0, 0] = torch.nan
    save_file(state, mini_lora)
    outcome = osp("models", "inspect", "style.safetensors")
    assert outcome.code == 1
    [told] = rows(outcome.out).values()
    assert "not finite" in told["problem"]
    assert outcome.err == f"error: {told['problem']}\n"


def test_a_file_without_tensors_says_so(osp, mini_lora, away):
    save_file({}, away / "empty.safetensors")
    outcome = osp("models", "inspect", "empty.safetensors")
    assert (outcome.code, outcome.err) == (
        1,
        "error: empty.safetensors: it holds no tensors\n",
    )
    [told] = rows(outcome.out).values()
    assert told["problem"] == "it holds no tensors"
    assert "note" not in told
    # All are shown; how many are of no use is said at the end.
    outcome = osp("models", "inspect", "empty.safetensors", str(mini_lora), "empty.safetensors")
    assert (outcome.code, outcome.err) == (1, "error: 2 files have a problem\n")
    assert str(mini_lora) in rows(outcome.out)
    assert osp("models", "inspect", "empty.safetensors", "gone").code == 2


@pytest.mark.parametrize("model", [(), ("-m", "osp-mini")])
def test_a_stray_layer_is_left_out_and_the_rest_is_known(osp, mini_lora, model):
    state = dict(load_file(mini_lora))
    stray = "lora_unet_blocks_99_self_attn_q"
    state |= {f"{stray}.lora_down.weight": torch.ones(2, 8)}
    state |= {f"{stray}.lora_up.weight": torch.ones(8, 2)}
    save_file(state, mini_lora)
    outcome = osp("models", "inspect", "style.safetensors", *model)
    assert (outcome.code, outcome.err) == (0, "")
    [told] = rows(outcome.out).values()
    assert told["made for"].startswith("a transformer of width 544, feed-forward 960, 3 blocks, as")
    assert "problem" not in told
    assert f"{stray}.lora_down.weight" in told["left out"]
    assert "blocks.99" not in told["strength"]


@pytest.mark.parametrize(
    ("file", "kind"),
    [
        ("transformer.weights", "FlashI2V transformer of 16 channels"),
        ("teacache.weights", "Wan transformer of 4 channels"),
        ("vae.weights", "Wan autoencoder"),
        ("t5.weights", "umT5 text encoder"),
        ("vlm.weights", "Qwen2.5-VL"),
        ("adapter.weights", "adapter"),
        ("fourier", "unknown"),
    ],
)
def test_other_checkpoints_are_named(osp, file, kind):
    [told] = rows(osp("models", "inspect", str(GOLDEN / f"{file}.safetensors")).out).values()
    assert told["kind"] == kind


def test_the_built_in_weights_are_known(osp):
    [file] = (find_model("osp-mini").weights_dir() / "transformer").glob("*.safetensors")
    [told] = rows(osp("models", "inspect", str(file)).out).values()
    assert told["kind"] == "FlashI2V transformer of 64 channels"
    assert "osp-mini" in told["made for"]


def test_files_that_cannot_be_read_do_not_hide_the_others(osp, mini_lora, away):
    (away / "bad.safetensors").write_bytes(b"no")
    outcome = osp("models", "inspect", "bad.safetensors", "style.safetensors", "gone")
    assert outcome.code == 2
    assert list(rows(outcome.out)) == ["style.safetensors"]
    assert "bad.safetensors is not a safetensors file" in outcome.err
    assert "there is no LoRA 'gone'" in outcome.err
    assert "2 of 3 files cannot be read" in outcome.err
    assert osp("models", "inspect", "gone").code == 2
    assert "unknown model" in osp("models", "inspect", "style.safetensors", "-m", "x").err


def test_the_list_stays_what_it_was(osp):
    assert osp("models").out.startswith("osp-mini\tbuilt in\t")
    assert json.loads(osp("models", "--json").out.splitlines()[0])["name"] == "osp-mini"
    assert "inspect" in osp("models", "--help").out


# --- Other weights ---------------------------------------------------------------------------


def rows_of(said):
    rows = {}
    for line in said.out.splitlines():
        path, name, text = line.split("\t")
        rows.setdefault(path, {})[name] = text
    return rows


def test_parts_of_models_are_told_by_their_keys(osp, away):
    (away / "dit").mkdir()
    shutil.copy(GOLDEN / "transformer.config.json", away / "dit" / "config.json")
    for name, file in (("transformer", "dit/ema.pt"), ("t5", "what.pth")):
        torch.save(dict(load_file(GOLDEN / f"{name}.weights.safetensors")), away / file)
    found = rows_of(osp("models", "inspect", "dit/ema.pt", "what.pth"))
    assert found["dit/ema.pt"]["kind"].startswith("transformer: FlashI2V's transformer")
    assert found["dit/ema.pt"]["kind"].endswith("layout original")
    assert found["what.pth"]["kind"] == "text_encoder: the umT5 encoder, layout original"
    assert int(found["what.pth"]["keys"]) > 10


def test_a_folder_is_told_part_by_part(osp):
    folder = find_model("osp-mini").weights_dir()
    rows = rows_of(osp("models", "inspect", str(folder)))
    kinds = {row["kind"].partition(":")[0] for row in rows.values()}
    assert kinds == {"transformer", "vae", "text_encoder", "adapter"}


def test_the_card_that_a_part_is_for_is_named(osp, away):
    torch.save(dict(load_file(GOLDEN / "vae.weights.safetensors")), away / "vae.pth")
    [line] = osp("models", "inspect", "vae.pth", "--json").out.splitlines()
    told = json.loads(line)
    assert told["kind"].startswith("vae: ")
    assert told["layout"] == "original"


def test_what_is_no_table_of_weights_is_refused(osp, away):
    (away / "x.pt").write_bytes(b"no weights")
    outcome = osp("models", "inspect", "x.pt")
    assert outcome.code != 0
    assert outcome.err.startswith("error: ")
    (away / "empty").mkdir()
    assert osp("models", "inspect", "empty").code != 0
