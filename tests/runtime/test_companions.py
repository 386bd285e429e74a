"""What was trained beside a LoRA: found, judged early, blended in, remembered, told of."""

from __future__ import annotations

import hashlib
import json
import runpy
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from osp_cli.cli.app import main
from osp_cli.dials import LoraChoice
from osp_cli.errors import CheckpointError, InvalidRequestError
from osp_cli.events import Loaded, Notice
from osp_cli.hub.hashes import part_hash, weights_hash
from osp_cli.loras import find_lora, installed_loras
from osp_cli.media.recipes import read_recipe
from osp_cli.models.companion import blend
from osp_cli.models.state_dict import load_transformer
from osp_cli.runtime.adapters import check_loras, lora_bytes
from osp_cli.runtime.batch import run_batch
from osp_cli.runtime.companions import companion_of
from osp_cli.runtime.inspection import inspect_file
from osp_cli.runtime.loading import load_parts
from osp_cli.runtime.runner import run
from osp_cli.runtime.settling import preview_plan
from osp_cli.training.adapters import (
    adapter_state,
    add_adapter,
    trained_parameters,
    unfreeze_conditioner,
)
from osp_cli.training.export import ExportInfo, write_adapter

FILES = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "lora_files.py")))
QUICK = ("-m", "tiny", "--frames", "5", "--steps", "2", "--device", "cpu", "--seed", "1")


@pytest.fixture(scope="module")
def transformer(tiny_home):
    return load_transformer(tiny_home / "models" / "tiny" / "transformer", dtype=torch.float32)


@pytest.fixture(scope="module")
def base_weights(tiny_home):
    """What companions may change, as the model has it."""
    folder = tiny_home / "models" / "tiny"
    found = {}
    for part in ("adapter", "image_adapter"):
        [path] = (folder / part).glob("*.safetensors")
        found |= {f"{part}.{name}": value for name, value in load_file(path).items()}
    [path] = (folder / "transformer").glob("*.safetensors")
    branches = ("learnable_proj", "fourier_embedding")
    state = load_file(path)
    return found | {name: state[name] for name in state if name.startswith(branches)}


@pytest.fixture
def trained(transformer, base_weights, away):
    """Writes a LoRA with a companion; gives the LoRA's path."""

    def write(name="glass.safetensors", seed=1, roots=("adapter", "learnable_proj"), **changes):
        generator = torch.Generator().manual_seed(seed)
        state = {}
        for layer, (down, up) in FILES.factors(transformer, seed=seed).items():
            state |= {f"{layer}.lora_A.weight": down, f"{layer}.lora_B.weight": up}
        whole = {
            key: value + 0.1 * torch.randn(value.shape, generator=generator)
            for key, value in base_weights.items()
            if key.startswith(tuple(f"{root}." for root in roots))
        }
        settings = {
            "name": Path(name).stem,
            "mode": "flash",
            "rank": 3,
            "alpha": 3.0,
            "targets": "all",
            "base_id": "tiny",
            "base_sha256": "",
            "dataset_sha256": "c" * 64,
            "seed": seed,
            "steps": 250,
            "version": "0.1",
        }
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_adapter(path, state, ExportInfo(**{**settings, **changes}), companion=whole)
        return path

    return write


@pytest.fixture
def own_home(tiny_card, tiny_home, tmp_path, monkeypatch):
    home = tmp_path / "home"
    home.mkdir()
    (home / "models").symlink_to(tiny_home / "models", target_is_directory=True)
    monkeypatch.setenv("OSP_HOME", str(home))
    return home


def choices(*texts):
    pairs = [text.rpartition(":") for text in texts]
    return tuple(LoraChoice(name, float(weight)) for name, _, weight in pairs)


def changeable(request, tiny_home, tiny_spec, **plan):
    """What a model that was loaded for a request has where companions may change it."""
    plan = preview_plan(request)[0].plan
    folder = tiny_home / "models" / "tiny"
    parts = {
        loaded.component: part
        for loaded, part in load_parts(tiny_spec, plan, folder, ["transformer", "conditioner"])
    }
    conditioner = parts["conditioner"]
    found = {
        f"{root}.{name}": value.detach()
        for root in ("adapter", "image_adapter")
        for name, value in getattr(conditioner, root).named_parameters()
    }
    return found | {
        name: value.detach()
        for name, value in parts["transformer"].named_parameters()
        if name.startswith(("learnable_proj", "fourier_embedding"))
    }


def made(request):
    list(run(request))
    return request.output.read_bytes()


# --- Blended in -------------------------------------------------------------------------------


def test_at_full_strength_the_trained_weights_are_there_exactly(
    request_for, trained, base_weights, tiny_home, tiny_spec
):
    path = trained(roots=("adapter", "image_adapter", "learnable_proj", "fourier_embedding"))
    whole = load_file("glass.adapter.safetensors")
    assert whole.keys() == base_weights.keys()
    got = changeable(request_for(loras=choices(f"{path}:1")), tiny_home, tiny_spec)
    assert all(torch.equal(got[name], whole[name]) for name in whole)


@pytest.mark.parametrize("way", [{}, {"offload": "group"}, {"offload": "sequential"}])
def test_what_it_does_not_hold_stays(request_for, trained, base_weights, tiny_home, tiny_spec, way):
    path = trained(roots=("adapter", "learnable_proj"))
    request = request_for(loras=choices(f"{path}:1"), **way)
    got = changeable(request, tiny_home, tiny_spec)
    # Where weights wait in a file, some are not here to be looked at.
    here = {name for name in got if got[name].device.type != "meta"}
    assert "adapter.fc1.weight" in here
    changed = {name for name in here if not torch.equal(got[name].cpu(), base_weights[name])}
    assert changed == {name for name in here if name.startswith(("adapter", "learnable_proj"))}


def test_between_it_is_linear_and_several_add_up(
    request_for, trained, base_weights, tiny_home, tiny_spec
):
    one, two = trained("a.safetensors", seed=1), trained("b.safetensors", seed=2)
    first, second = (load_file(f"{name}.adapter.safetensors") for name in "ab")
    loras = choices(f"{one}:0.25", f"{two}:-1.5")
    got = changeable(request_for(loras=loras), tiny_home, tiny_spec)
    for name in first:
        base = base_weights[name]
        expected = base + 0.25 * (first[name] - base) - 1.5 * (second[name] - base)
        torch.testing.assert_close(got[name], expected)


def test_a_blend_rounds_once_and_leaves_the_old_tensor_alone(tmp_path):
    module = torch.nn.Linear(3, 2).to(torch.bfloat16)
    old = module.weight.data
    before = old.clone()
    value = torch.full((2, 3), 1.00390625)
    save_file({"m.weight": value, "other.weight": torch.ones(9)}, tmp_path / "a.safetensors")
    files = [(tmp_path / "a.safetensors", 0.3), (tmp_path / "a.safetensors", 0.3)]
    blend({"m": module}, files)
    expected = before.float() + 0.3 * (value - before.float()) + 0.3 * (value - before.float())
    assert module.weight.dtype == torch.bfloat16
    assert torch.equal(module.weight.data, expected.to(torch.bfloat16))
    assert torch.equal(old, before)
    with pytest.raises(CheckpointError, match=r"no other.weight of shape \(9,\)"):
        blend({"other": module}, files)
    module.weight = torch.nn.Parameter(torch.ones(2, 3, dtype=torch.int8), requires_grad=False)
    with pytest.raises(CheckpointError, match=r"m\.weight is quantised"):
        blend({"m": module}, files)


def test_a_training_comes_back_as_it_was(request_for, tiny_home, tiny_spec, own_home):
    """Trained in memory, exported, loaded by `--lora`: the same velocities and conditions."""
    folder = tiny_home / "models" / "tiny"
    plain = preview_plan(request_for())[0].plan

    def load(plan):
        return {loaded.component: part for loaded, part in
                load_parts(tiny_spec, plan, folder, ["transformer", "conditioner"])}  # fmt: skip

    def seen(parts):
        generator = torch.Generator().manual_seed(1)
        latents = torch.randn(1, 48, 2, 4, 4, generator=generator)
        with torch.inference_mode():
            text = parts["conditioner"].encode(["a cat"])
            model = parts["transformer"]
            shift = model.learnable_proj(latents[:, :, :1])
            return model(latents, torch.tensor([300.0]), text, fourier_features=latents).sample, (
                text, shift)  # fmt: skip

    parts = load(plain)
    untrained = seen(parts)
    add_adapter(parts["transformer"], "qkv-ffn", 4, 2.0, seed=1)
    parts["transformer"].learnable_proj.requires_grad_(True)
    beside = unfreeze_conditioner(parts["conditioner"])
    generator = torch.Generator().manual_seed(2)
    for parameter in (*trained_parameters(parts["transformer"]).values(), *beside.values()):
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data = parameter.data + 0.1 * noise
    expected = seen(parts)
    state = adapter_state(parts["transformer"])
    lora = {name: value for name, value in state.items() if ".lora_" in name}
    whole = {name: value for name, value in state.items() if name not in lora}
    whole |= {name: value.detach() for name, value in beside.items()}
    assert len(whole) == 12
    info = ExportInfo(
        name="a", mode="flash", rank=4, alpha=2.0, targets="qkv-ffn", base_id="tiny",
        base_sha256="", dataset_sha256="", seed=1, steps=1, version="0",
    )  # fmt: skip
    path, _ = write_adapter(Path("a.safetensors"), lora, info, companion=whole)
    got = seen(load(preview_plan(request_for(loras=choices(f"{path}:1")))[0].plan))
    torch.testing.assert_close(got[0], expected[0], atol=1e-4, rtol=1e-4)
    assert all(torch.equal(one, two) for one, two in zip(got[1], expected[1], strict=True))
    assert all(not torch.allclose(a, b, atol=1e-3) for a, b in
               zip((got[0], *got[1]), (untrained[0], *untrained[1]), strict=True))  # fmt: skip


def test_a_clip_shows_it_and_a_batch_loads_what_it_touches(request_for, trained, transformer):
    path = trained(roots=("adapter",))
    bare = Path("bare.safetensors")
    FILES.write(bare, "comfy", FILES.factors(transformer, seed=1))
    wanted = [(), choices(f"{bare}:1"), choices(f"{path}:1"), ()]
    requests = [
        request_for(output=Path(f"{number}.mp4"), loras=loras)
        for number, loras in enumerate(wanted)
    ]
    loaded = [e.component for e in run_batch(requests) if isinstance(e, Loaded)]
    assert loaded == [
        *("transformer", "vae", "conditioner"),
        "transformer",
        *("transformer", "conditioner"),
        *("transformer", "conditioner"),
    ]
    bytes_of = [request.output.read_bytes() for request in requests]
    # What a LoRA left behind would show in the last.
    assert bytes_of[0] == bytes_of[3]
    assert len({*bytes_of}) == 3


# --- Judged early -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (Path.unlink, "was trained together with glass.adapter.safetensors, which is missing"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1] + b"x"), "other contents"),
    ],
)
def test_a_missing_or_changed_companion_is_refused(request_for, trained, change, told):
    path = trained()
    change(Path("glass.adapter.safetensors"))
    request = request_for(loras=choices(f"{path}:1"))
    for refuse in (check_loras, preview_plan, lambda r: list(run(r))):
        with pytest.raises(InvalidRequestError, match=told) as caught:
            refuse(request)
        assert caught.value.hint
    assert told in inspect_file(str(path)).problem


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("adapter.fc1.bias", torch.ones(3), r"changes adapter.fc1.bias \[3\], which tiny does not"),
        ("learnable_proj.x", torch.ones(3), r"changes learnable_proj.x"),
        ("text_encoder.x", torch.ones(3), "holds what this version does not know: text_encoder.x"),
        ("adapter.fc2.bias", torch.full((24,), torch.nan), "are not finite"),
    ],
)
def test_a_companion_that_does_not_fit_is_refused(request_for, trained, key, value, told):
    path = trained()
    state = load_file(path)
    beside = Path("glass.adapter.safetensors")
    save_file({**load_file(beside), key: value}, beside)
    digest = hashlib.sha256(beside.read_bytes()).hexdigest()
    save_file(state, path, {"osp.companion": beside.name, "osp.companion_sha256": digest})
    with pytest.raises(InvalidRequestError, match=told):
        check_loras(request_for(loras=choices(f"{path}:1")))


def test_names_in_metadata_are_no_paths(trained, away):
    path = trained()
    outside = away.parent / "x.adapter.safetensors"
    outside.write_bytes(Path("glass.adapter.safetensors").read_bytes())
    digest = hashlib.sha256(outside.read_bytes()).hexdigest()
    Path("glass.adapter.safetensors").unlink()
    for name in ("../x.adapter.safetensors", "..\\x.adapter.safetensors", str(outside)):
        told = {"osp.companion": name, "osp.companion_sha256": digest}
        with pytest.raises(InvalidRequestError, match=r"x\.adapter\.safetensors, which is missing"):
            companion_of(path, told)


def test_under_a_new_name_both_are_found_together(trained, own_home):
    path = trained()
    shutil.copy(path, "other.safetensors")
    shutil.move("glass.adapter.safetensors", "other.adapter.safetensors")
    path = Path("other.safetensors")
    from osp_cli.models.safetensors_header import read_header

    found = companion_of(path, read_header(path).metadata)
    assert found.path == Path("other.adapter.safetensors")
    assert lora_bytes(choices("other.safetensors:1")) == sum(
        Path(name).stat().st_size for name in ("other.safetensors", "other.adapter.safetensors")
    )


def test_it_is_no_lora_of_its_own(trained, own_home):
    trained(str(own_home / "loras" / "glass.safetensors"))
    trained(str(own_home / "loras" / "folder" / "ink.safetensors"))
    home = own_home / "loras"
    assert installed_loras() == {
        "glass": home / "glass.safetensors",
        "folder": home / "folder" / "ink.safetensors",
    }
    assert find_lora(str(home / "folder")) == home / "folder" / "ink.safetensors"
    told = inspect_file(str(home / "glass.adapter.safetensors"))
    assert told.kind == "companion of a LoRA"


# --- Another base -----------------------------------------------------------------------------


def test_a_lora_of_another_base_is_told_of(request_for, trained, tiny_home):
    here = part_hash(weights_hash(tiny_home / "models" / "tiny"), "transformer")
    [file] = (tiny_home / "models" / "tiny" / "transformer").glob("*.safetensors")
    assert here == hashlib.sha256(file.read_bytes()).hexdigest()

    def notices(name):
        request = request_for(loras=choices(f"{name}:1"), overwrite=True)
        return [event.message for event in run(request) if isinstance(event, Notice)]

    trained("same.safetensors", base_sha256=here)
    trained("other.safetensors", base_sha256="d" * 64, base_id="other-1b")
    trained("silent.safetensors")
    assert not [told for told in notices("same.safetensors") if "trained on" in told]
    assert not [told for told in notices("silent.safetensors") if "trained on" in told]
    [told] = [told for told in notices("other.safetensors") if "trained on" in told]
    assert told.startswith("other.safetensors was trained on a transformer of other-1b with other")


def test_the_hash_of_a_part_is_of_its_files_alone():
    one, two = "1" * 64, "2" * 64
    files = {"transformer/a.safetensors": one, "vae/a.safetensors": two}
    assert part_hash(files, "transformer") == one
    assert part_hash(files, "text_encoder") == ""
    shards = {"transformer/b.safetensors": two, "transformer/a.safetensors": one}
    whole = part_hash(shards, "transformer")
    assert whole == part_hash(dict(reversed(shards.items())), "transformer")
    swapped = {"transformer/b.safetensors": one, "transformer/a.safetensors": two}
    assert len({whole, part_hash(swapped, "transformer"), one, two}) == 4


# --- Remembered and told of -------------------------------------------------------------------


def test_the_recipe_holds_its_hash_and_the_clip_is_made_again(own_home, trained, picture, capsys):
    trained()
    digest = hashlib.sha256(Path("glass.adapter.safetensors").read_bytes()).hexdigest()
    args = ["cat.png", "pan", "--lora", "glass.safetensors", "-o", "a.mp4", *QUICK]
    assert main(["generate", *args]) == 0
    recipe = read_recipe(Path("a.mp4"))
    assert recipe["companions_sha256"] == [digest]
    assert main(["generate", "--from", "a.mp4", "-o", "b.mp4"]) == 0
    assert Path("b.mp4").read_bytes() == Path("a.mp4").read_bytes()
    schema = json.loads(
        (Path(__file__).parents[2] / "osp_cli/assets/schemas/recipe.json").read_text()
    )
    assert recipe.keys() <= schema["properties"].keys()
    capsys.readouterr()


def test_without_one_the_recipe_says_nothing_of_it(request_for, transformer):
    FILES.write(Path("bare.safetensors"), "comfy", FILES.factors(transformer))
    made(request_for(loras=choices("bare.safetensors:1")))
    assert "companions_sha256" not in read_recipe(Path("clip.mp4"))


def test_a_trained_style_is_a_style(own_home, trained, picture, capsys):
    trained(str(own_home / "loras" / "glass.safetensors"), trigger="stained glass",
            style="glass", title="Leaded glass")  # fmt: skip
    assert main(["generate", "cat.png", "pan", "--style", "glass", "-o", "a.mp4", *QUICK]) == 0
    recipe = read_recipe(Path("a.mp4"))
    assert recipe["full_prompt"].startswith("stained glass, pan")
    assert recipe["companions_sha256"]
    capsys.readouterr()
    assert main(["styles", "glass"]) == 0
    shown = capsys.readouterr().out
    assert "Leaded glass" in shown
    assert "on tiny, 250 steps, with glass.adapter.safetensors" in shown
    assert main(["styles", "glass", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["trained"]
    assert told == {"base": "tiny", "steps": "250", "companion": "glass.adapter.safetensors"}
    assert main(["models", "inspect", "glass"]) == 0
    shown = capsys.readouterr().out
    for text in ("stained glass", "tiny", "250", "glass.adapter.safetensors"):
        assert text in shown
    (own_home / "loras" / "glass.adapter.safetensors").unlink()
    assert main(["generate", "cat.png", "pan", "--style", "glass", "-o", "b.mp4", *QUICK]) == 2
    assert "put it beside the LoRA" in capsys.readouterr().err
