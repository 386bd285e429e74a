"""`--lora` from the request to the video: found, judged early, applied, remembered and replayed."""

from __future__ import annotations

import copy
import json
import os
import runpy
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from osp_cli.cli.app import main
from osp_cli.dials import LoraChoice
from osp_cli.errors import CheckpointError, InvalidRequestError, RuntimeFailureError
from osp_cli.events import Loaded, Notice
from osp_cli.loras import find_lora, installed_loras, loras_home
from osp_cli.media.recipes import read_recipe
from osp_cli.models.gguf import gguf_file, load_gguf
from osp_cli.models.lora import parameter_shapes
from osp_cli.models.lora_fit import installed_shapes
from osp_cli.models.state_dict import load_transformer
from osp_cli.models.transformer_flash_i2v import FlashI2VTransformer3DModel
from osp_cli.runtime.adapters import apply_loras, check_loras
from osp_cli.runtime.batch import run_batch
from osp_cli.runtime.contact import run_contact
from osp_cli.runtime.loading import load_parts
from osp_cli.runtime.runner import run
from osp_cli.runtime.settling import preview_plan

FILES = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "lora_files.py")))


@pytest.fixture(scope="module")
def tiny_transformer(tiny_home):
    return load_transformer(tiny_home / "models" / "tiny" / "transformer", dtype=torch.float32)


@pytest.fixture
def lora(tiny_transformer, away):
    """Writes a LoRA of the tiny model; gives its path."""

    def write(name="style.safetensors", seed=1, layout="musubi", **extra):
        pairs = FILES.factors(tiny_transformer, seed=seed)
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        return FILES.write(Path(name), layout, pairs, **extra)

    return write


@pytest.fixture
def own_home(tiny_card, tiny_home, tmp_path, monkeypatch):
    """A home in which LoRAs may be installed."""
    home = tmp_path / "home"
    home.mkdir()
    (home / "models").symlink_to(tiny_home / "models", target_is_directory=True)
    monkeypatch.setenv("OSP_HOME", str(home))
    return home


def made(request):
    """The bytes of the video, without the recipe in it."""
    list(run(request))
    return request.output.read_bytes()


def choices(*texts):
    pairs = [text.rpartition(":") for text in texts]
    return tuple(LoraChoice(name, float(weight)) for name, _, weight in pairs)


# --- Found ------------------------------------------------------------------------------------


def test_a_lora_is_found_by_path_and_by_name(own_home, lora, away, monkeypatch):
    here = lora("style.safetensors")
    assert find_lora("style.safetensors") == here
    monkeypatch.setenv("HOME", str(away))
    monkeypatch.setenv("USERPROFILE", str(away))
    assert find_lora("~/style.safetensors") == away / "style.safetensors"
    with pytest.raises(InvalidRequestError, match="no LoRA 'style' is installed") as caught:
        find_lora("style")
    assert "--lora style.safetensors" in caught.value.hint

    home = loras_home()
    assert home == own_home / "loras"
    one = lora(str(home / "ink.safetensors"))
    two = lora(str(home / "folder" / "adapter_model.safetensors"))
    lora(str(home / "many" / "a.safetensors"))
    lora(str(home / "many" / "b.safetensors"))
    assert installed_loras() == {"folder": two, "ink": one}
    assert find_lora("ink") == find_lora("ink.safetensors") == one
    assert find_lora("folder") == two
    # A folder by its path, as PEFT writes it.
    assert find_lora(str(home / "folder")) == two
    with pytest.raises(InvalidRequestError, match="does not hold exactly one"):
        find_lora(str(home / "many"))
    # What lies here is nearer than what is installed.
    lora("ink.safetensors", seed=3)
    assert find_lora("ink.safetensors") == Path("ink.safetensors")
    with pytest.raises(InvalidRequestError, match="no LoRA 'inkk'") as caught:
        find_lora("inkk")
    assert caught.value.hint == "did you mean ink?"


@pytest.mark.parametrize("suffix", [".pt", ".ckpt", ".bin", ".pth"])
def test_pickled_loras_are_refused_with_a_way_out(away, lora, suffix):
    state = FILES.write(Path("a.safetensors"), "comfy", {})
    torch.save({"x.lora_A.weight": torch.ones(1)}, f"old{suffix}")
    state.unlink()
    with pytest.raises(InvalidRequestError, match="is a pickled file") as caught:
        find_lora(f"old{suffix}")
    if suffix != ".pt":
        return
    # The very command that it offers.
    assert os.system(caught.value.hint.replace("python", sys.executable, 1)) == 0
    assert find_lora(f"old{suffix}.safetensors").exists()


# --- Judged early -----------------------------------------------------------------------------


def test_the_shapes_of_headers_are_those_of_the_model(tiny_home, tiny_transformer):
    told = installed_shapes(tiny_home / "models" / "tiny")
    assert told == {name: parameter_shapes(tiny_transformer)[name] for name in told}
    assert len(told) > 50


def test_a_lora_named_twice_is_refused(request_for, lora):
    lora()
    twice = choices("style.safetensors:0.5", "./style.safetensors:0.25")
    with pytest.raises(InvalidRequestError, match=r"names style\.safetensors twice") as caught:
        check_loras(request_for(loras=twice))
    assert caught.value.hint == "give it one strength: --lora ./style.safetensors:0.75"


def test_what_does_not_fit_is_told_before_the_run(request_for, lora):
    lora(**{"lora_unet_blocks_0_cross_attn_k_img.lora_down.weight": torch.ones(2, 24)},
         **{"lora_unet_blocks_0_cross_attn_k_img.lora_up.weight": torch.ones(24, 2)})  # fmt: skip
    request = request_for(loras=choices("style.safetensors:1"))
    [told] = check_loras(request)
    assert "2 keys do not fit tiny" in told
    assert told in preview_plan(request)[1]
    assert told in [event.message for event in run(request) if isinstance(event, Notice)]


def test_the_plan_counts_the_files(request_for, lora):
    path = lora()
    without, _ = preview_plan(request_for())
    planned, _ = preview_plan(request_for(loras=choices("style.safetensors:1")))
    assert planned.plan.weights_bytes == without.plan.weights_bytes + path.stat().st_size
    assert planned.plan.as_json()["loras"] == ["style.safetensors"]


def test_weights_without_headers_are_judged_when_they_are_loaded(
    request_for, lora, own_weights, tiny_transformer
):
    lora()
    for file in (own_weights / "transformer").glob("*.safetensors"):
        file.rename(file.with_suffix(".gguf"))
    request = request_for(loras=choices("style.safetensors:1"))
    assert check_loras(request) == []


@pytest.mark.parametrize("gguf", [False, True])
def test_numbers_that_are_not_finite_are_refused_before_the_run(
    request_for, lora, own_weights, gguf
):
    path = lora()
    state = load_file(path)
    key = next(name for name in state if name.endswith("lora_up.weight"))
    state[key][0, 0] = torch.nan
    save_file(state, path)
    if gguf:
        for file in (own_weights / "transformer").glob("*.safetensors"):
            file.rename(file.with_suffix(".gguf"))
    request = request_for(loras=choices("style.safetensors:1"))
    told = rf"style\.safetensors is damaged: {key} holds numbers that are not finite"
    for refuse in (check_loras, *([] if gguf else [preview_plan])):
        with pytest.raises(InvalidRequestError, match=told) as caught:
            refuse(request)
        assert caught.value.exit_code == 2
        assert "leave it out" in caught.value.hint


# --- Applied ----------------------------------------------------------------------------------


def test_strength_shows_in_the_video_and_none_is_none(request_for, lora):
    lora()
    plain = made(request_for(output=Path("plain.mp4")))
    zero = made(request_for(output=Path("zero.mp4"), loras=choices("style.safetensors:0")))
    half = made(request_for(output=Path("half.mp4"), loras=choices("style.safetensors:0.5")))
    full = made(request_for(output=Path("full.mp4"), loras=choices("style.safetensors:1")))
    # Byte for byte, recipe included.
    assert zero == plain
    assert len({plain, half, full}) == 3


def test_each_clip_of_a_batch_has_its_own(request_for, lora):
    lora("a.safetensors", seed=1)
    lora("b.safetensors", seed=2)
    one, both = choices("a.safetensors:1"), choices("a.safetensors:1", "b.safetensors:-1")
    wanted = [one, both, both, one]
    alone = [
        made(request_for(output=Path(f"alone-{number}.mp4"), loras=loras))
        for number, loras in enumerate((one, both))
    ]
    requests = [
        request_for(output=Path(f"batch-{number}.mp4"), loras=loras)
        for number, loras in enumerate(wanted)
    ]
    events = list(run_batch(requests))
    assert [request.output.read_bytes() for request in requests] == [*alone, *alone[::-1]]
    assert alone[0] != alone[1]
    # The transformer anew where its LoRAs are others, the rest once.
    loaded = [event.component for event in events if isinstance(event, Loaded)]
    assert loaded == ["transformer", "vae", "conditioner", *["transformer"] * 2]


def test_a_contact_sheet_shows_the_lora_and_pick_goes_on_with_it(request_for, lora):
    lora()
    with_it = {"loras": choices("style.safetensors:1"), "num_inference_steps": 5}
    whole = made(request_for(output=Path("whole.mp4"), **with_it))
    list(run_contact([request_for(preview="contact", **with_it)]))
    assert Path("clip.mp4.latents.safetensors").exists() or list(Path().glob("*.latents*"))
    events = list(run(request_for(**with_it)))
    assert any("going on from" in e.message for e in events if isinstance(e, Notice))
    assert Path("clip.mp4").read_bytes() == whole


@pytest.mark.parametrize("may_fuse", [True, False])
def test_both_ways_of_applying_agree(tiny_home, lora, may_fuse, tiny_card):
    lora("a.safetensors", seed=1)
    lora("b.safetensors", seed=2, layout="diffusers")
    folder = tiny_home / "models" / "tiny" / "transformer"
    loras = choices("a.safetensors:0.5", "b.safetensors:2")
    expected = apply_loras(load_transformer(folder, dtype=torch.float32), loras, "tiny")
    got = apply_loras(
        load_transformer(folder, dtype=torch.float32), loras, "tiny", may_fuse=may_fuse
    )
    attached = any("lora_" in name for name, _ in got.named_parameters())
    assert attached is not may_fuse
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(1, 48, 2, 4, 4, generator=generator)
    text = torch.randn(1, 6, 24, generator=generator)
    with torch.inference_mode():
        one, two = (m(latents, torch.tensor([300.0]), text).sample for m in (expected, got))
    torch.testing.assert_close(one, two, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("way", "error"), [({"offload": "group"}, 1e-4), ({"offload": "sequential"}, 1e-4),
                       ({"quant": "fp8"}, 2e-2)]
)  # fmt: skip
def test_where_weights_wait_or_are_smaller_loras_stay_beside_them(
    request_for, lora, tiny_home, tiny_spec, way, error
):
    def velocity(loras, **way):
        plan = preview_plan(request_for(loras=loras, **way))[0].plan
        folder = tiny_home / "models" / "tiny"
        [(_, model)] = load_parts(tiny_spec, plan, folder, ["transformer"])
        generator = torch.Generator().manual_seed(1)
        latents = torch.randn(1, 48, 2, 4, 4, generator=generator)
        text = torch.randn(1, 6, 24, generator=generator)
        with torch.inference_mode():
            got = model(latents, torch.tensor([300.0]), text).sample.float()
        return got, any("lora_" in name for name, _ in model.named_parameters())

    lora()
    weak = choices("style.safetensors:0.5")
    expected, beside = velocity(weak)
    assert not beside
    got, beside = velocity(weak, **way)
    assert beside
    # Measured by what the LoRA does, and by what smaller weights cost without it.
    plain, _ = velocity(())
    without, _ = velocity((), **way)
    cost = (without - plain).norm() / plain.norm()
    assert (got - expected).norm() / expected.norm() <= max(error, 1.5 * cost)
    assert (expected - plain).norm() > 4 * (got - expected).norm()


def test_without_loras_nothing_happens():
    model = object()
    assert apply_loras(model, (), "tiny") is model


def test_a_file_that_breaks_after_it_was_judged(tiny_transformer, lora, monkeypatch):
    path = lora()
    monkeypatch.setattr(
        "osp_cli.models.lora.safe_open", lambda *_, **__: (_ for _ in ()).throw(OSError("gone"))
    )
    with pytest.raises(CheckpointError, match="a LoRA cannot be read: gone"):
        apply_loras(tiny_transformer, choices(f"{path}:1"), "tiny")


# --- Remembered and replayed ------------------------------------------------------------------


def test_the_recipe_names_file_weight_and_hash_and_no_folder(request_for, lora):
    import hashlib

    path = lora("deep/er/style.safetensors")
    made(request_for(loras=choices("deep/er/style.safetensors:0.5")))
    recipe = read_recipe(Path("clip.mp4"))
    assert recipe["loras"] == [{"file": "style.safetensors", "weight": 0.5}]
    assert recipe["loras_sha256"] == [hashlib.sha256(path.read_bytes()).hexdigest()]
    assert "deep" not in json.dumps(recipe)


QUICK = ("-m", "tiny", "--frames", "5", "--steps", "2", "--device", "cpu", "--seed", "1")


def osp(capsys, *args):
    code = main(["generate", *args])
    said = capsys.readouterr()
    return code, said.err


def test_a_clip_is_made_again_with_its_lora(own_home, lora, picture, capsys):
    lora("style.safetensors")
    code, _ = osp(capsys, "cat.png", "pan", "--lora", "./style.safetensors:0.5", "-o", "a.mp4",
                  *QUICK)  # fmt: skip
    assert code == 0
    first = Path("a.mp4").read_bytes()
    # Beside the clip, wherever one is.
    Path("elsewhere").mkdir()
    os.chdir("elsewhere")
    assert osp(capsys, "--from", "../a.mp4", "-o", "b.mp4")[0] == 0
    assert Path("b.mp4").read_bytes() == first
    # Installed.
    loras_home().mkdir()
    shutil.move("../style.safetensors", loras_home() / "style.safetensors")
    assert osp(capsys, "--from", "../a.mp4", "-o", "c.mp4")[0] == 0
    assert Path("c.mp4").read_bytes() == first
    # Another one of that name.
    lora("style.safetensors", seed=9)
    code, err = osp(capsys, "--from", "../a.mp4", "-o", "d.mp4")
    assert code == 0
    assert "the LoRA style.safetensors is not the one of ../a.mp4: it has other contents" in err
    assert Path("d.mp4").read_bytes() != first
    # A flag wins, and none of them is none.
    assert osp(capsys, "--from", "../a.mp4", "--lora", "none", "-o", "e.mp4")[0] == 0
    assert read_recipe(Path("e.mp4"))["loras"] == []
    # In no place.
    Path("style.safetensors").unlink()
    (loras_home() / "style.safetensors").unlink()
    code, err = osp(capsys, "--from", "../a.mp4", "-o", "f.mp4")
    assert code == 2
    assert "there is no LoRA 'style.safetensors'" in err


def test_a_clip_that_was_sampled_needs_no_lora_to_be_decoded(
    own_home, lora, picture, capsys, monkeypatch, request_for
):
    lora()

    def fails(*_):
        raise RuntimeError("no space for pixels")

    with monkeypatch.context() as patched:
        patched.setattr("osp_cli.runtime.stages.decode_frames", fails)
        with pytest.raises(RuntimeFailureError, match="could not be made a video"):
            list(run(request_for(loras=choices("style.safetensors:1"))))
    Path("style.safetensors").unlink()
    [kept] = Path().glob("*.latents.safetensors")
    assert osp(capsys, "--from", str(kept))[0] == 0
    assert read_recipe(Path("clip.mp4"))["loras_sha256"]


@pytest.mark.parametrize(
    "place", ["variable", "config", "config list", "text batch", "json batch", "table"]
)
def test_loras_are_set_wherever_dials_are(own_home, lora, picture, capsys, monkeypatch, place):
    lora("a.safetensors", seed=1)
    lora("b.safetensors", seed=2)
    args = ["cat.png", "pan"]
    if place == "variable":
        monkeypatch.setenv("OSP_LORA", "a.safetensors:0.5,b.safetensors")
    elif place == "config":
        Path("osp.toml").write_text('lora = "a.safetensors:0.5,b.safetensors"\n')
    elif place == "config list":
        Path("osp.toml").write_text('[generate]\nlora = ["a.safetensors:0.5", "b.safetensors"]\n')
    elif place == "text batch":
        Path("jobs.txt").write_text("pan --lora a.safetensors:0.5 --lora b.safetensors\n")
    elif place == "json batch":
        row = {"prompt": "pan", "lora": ["a.safetensors:0.5", "b.safetensors"]}
        Path("jobs.jsonl").write_text(json.dumps(row))
    else:
        Path("jobs.csv").write_text('prompt,lora\npan,"a.safetensors:0.5,b.safetensors"\n')
    if jobs := list(Path().glob("jobs.*")):
        args = ["cat.png", "--from-file", str(jobs[0])]
    assert osp(capsys, *args, *QUICK, "-o", "clip.mp4")[0] == 0
    assert read_recipe(Path("clip.mp4"))["loras"] == [
        {"file": "a.safetensors", "weight": 0.5},
        {"file": "b.safetensors", "weight": 1.0},
    ]


def test_print_config_shows_them_as_a_file_takes_them(own_home, capsys):
    assert main(["generate", "--lora", "a,b.safetensors:0.5", "-l", "c", "--print-config"]) == 0
    shown = capsys.readouterr().out
    [line] = [line for line in shown.splitlines() if line.startswith("lora =")]
    assert line.split("  #")[0].strip() == 'lora = ["a,b.safetensors:0.5", "c"]'
    Path("mine.toml").write_text(shown)
    assert main(["generate", "--config", "mine.toml", "--print-config", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["lora"]
    assert told == {"value": ["a,b.safetensors:0.5", "c"], "origin": "mine.toml"}


def test_a_transformer_in_gguf_carries_loras_beside_its_weights(lora, tmp_path):
    rooms = Path(__file__).parents[1]
    packed = SimpleNamespace(**runpy.run_path(str(rooms / "models" / "test_gguf.py")))
    torch.manual_seed(0)
    plain = FlashI2VTransformer3DModel(**packed.CONFIG).eval()
    for parameter in plain.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    pairs = FILES.factors(plain)
    FILES.write(Path("style.safetensors"), "musubi", pairs)
    loras = choices("style.safetensors:0.5")
    folder = packed.write(tmp_path / "transformer", plain)
    model = load_gguf(FlashI2VTransformer3DModel, gguf_file(folder), dtype=torch.float32)
    apply_loras(model, loras, "tiny")
    assert any("lora_" in name for name, _ in model.named_parameters())
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(1, 16, 2, 4, 4, generator=generator)
    text = torch.randn(1, 6, 64, generator=generator)
    with torch.inference_mode():
        before, got, expected = (
            m(latents, torch.tensor([300.0]), text).sample
            for m in (plain, model, apply_loras(copy.deepcopy(plain), loras, "tiny"))
        )
    assert (got - expected).norm() < 0.1 * (before - expected).norm()
