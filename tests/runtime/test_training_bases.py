"""Every kind of base is trained by the same command, and what comes out changes its clips."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from osp_cli.cli.app import main
from osp_cli.media.image import to_tensor_values
from osp_cli.models.latents import encode_latents
from osp_cli.training.conditions import condition_source

from ..media import clips  # noqa: TID252

QUICK = (
    *("--frames", "5", "--max-steps", "3", "--windows", "1", "--device", "cpu", "--lr", "0.05"),
    *("--allow-upscale", "--save-every", "0"),
)


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "clips"
    folder.mkdir()
    for name, rate in (("one", 16), ("two", 24)):
        clips.run(
            *("-f", "lavfi", "-i", f"testsrc2=s=96x64:r={rate}:d=1.1", "-pix_fmt", "yuv420p"),
            folder / f"{name}.mp4",
        )
        (folder / f"{name}.txt").write_text(f"a {name} picture")
    return folder


def train(capsys, data, out, *arguments):
    code = main(["train-lora", str(data), "--out", str(out), *QUICK, *arguments, "--json"])
    said = capsys.readouterr()
    assert code == 0, said.err
    return [json.loads(line) for line in said.out.splitlines()]


BASES = [
    ("tiny_card", "tiny", "96x64", "flash"),
    ("tiny_card", "tiny", "96x64", "t2v"),
    ("tiny_wan_cards", "tiny-t2v", "64x48", "t2v"),
    ("tiny_wan_cards", "tiny-i2v", "64x48", "inpaint"),
]


@pytest.mark.parametrize(("cards", "model", "size", "mode"), BASES)
def test_a_base_is_trained_and_its_clips_change(
    cards, model, size, mode, request, data, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    request.getfixturevalue(cards)
    name = f"{model}-{mode}"
    lines = train(
        capsys, data, tmp_path / name, "-m", model, "--size", size, "--mode", mode,
        "--targets", "qkv-ffn", "--sample-every", "3", "--sample-prompt", "a test",
        "--trigger", "odd", "-y",
    )  # fmt: skip
    by_type = {}
    for line in lines:
        by_type.setdefault(line["type"], []).append(line)
    assert by_type["training"][0]["mode"] == mode
    assert len(by_type["encoded"]) == 2
    assert [line["step"] for line in by_type["train"]] == [1, 2, 3]
    assert all(line["loss"] is not None and line["loss"] > 0 for line in by_type["train"])
    assert [line["step"] for line in by_type["sample"]] == [0, 3]
    before, after = ((tmp_path / line["path"]).read_bytes() for line in by_type["sample"])
    assert before != after
    adapter = tmp_path / name / f"{name}.safetensors"
    assert by_type["saved"][0]["path"] == str(adapter)
    ups = [v for k, v in load_file(adapter).items() if k.endswith("lora_B.weight")]
    assert ups and all(up.any() for up in ups)
    # What is installed under the name is used by clips.
    picture = ["cat.png"] if mode != "t2v" else ["--text", "a cat"]
    Image.effect_noise((96, 64), 80).convert("RGB").save("cat.png")
    made = []
    for number, style in enumerate((["--style", name], [])):
        out = f"{number}.mp4"
        code = main(
            ["generate", *picture, "-m", model, "--size", size, "--frames", "5", "--steps", "2",
             "--seed", "1", "--device", "cpu", "-o", out, "-q", *style]
        )  # fmt: skip
        assert code == 0, capsys.readouterr().err
        made.append((tmp_path / out).read_bytes())
        capsys.readouterr()
    assert made[0] != made[1]


def test_a_second_run_takes_its_clips_from_the_cache(tiny_card, data, tmp_path, capsys):
    wanted = ("-m", "tiny", "--size", "96x64", "--sample-every", "0", "-y")
    first = train(capsys, data, tmp_path / "one", *wanted)
    second = train(capsys, data, tmp_path / "two", *wanted)
    third = train(capsys, data, tmp_path / "three", *wanted, "--trigger", "other")
    told = [[line["cached"] for line in run if line["type"] == "encoded"] for run in
            (first, second, third)]  # fmt: skip
    assert told[1] == [True, True] and told[2] == [False, False]


def test_a_source_beside_a_clip_is_what_it_follows_from(tiny_card, tiny_home, data, tmp_path):
    from osp_cli.runtime.train_check import look_at
    from osp_cli.runtime.train_encoding import ClipStore, Encoders, encode_window
    from osp_cli.train_request import TrainRequest
    from osp_cli.training.dataset.cache import ClipCache
    from osp_cli.training.dataset.entries import condition_of

    Image.new("RGB", (96, 64), (200, 40, 40)).save(data / "one.source.png")
    request = TrainRequest(
        dataset=data, name="x", output=tmp_path / "x", model="tiny", width=96, height=64,
        num_frames=5, windows=1, allow_upscale=True,
    )  # fmt: skip
    report = look_at(request)
    by_name = {window.entry.path.stem: window for window in report.windows}
    assert condition_of(by_name["one"], request) == "source"
    assert condition_of(by_name["two"], request) == "first"
    vae, conditioner = parts_of(tiny_card, tiny_home)
    store = ClipStore(ClipCache(tmp_path / "cache"), report.windows, request, "v", "c")
    encoders = Encoders(vae, condition_source(conditioner, vae))
    styled, plain = (encode_window(by_name[name], store, encoders) for name in ("one", "two"))
    assert torch.equal(plain.first, plain.latents[:, :1])
    red = torch.from_numpy(to_tensor_values(Image.new("RGB", (96, 64), (200, 40, 40))))
    torch.testing.assert_close(
        styled.first.float(), encode_latents(vae, red[None, :, None])[0], rtol=1e-2, atol=1e-2
    )


def parts_of(card, home):
    from types import SimpleNamespace

    from osp_cli.runtime import loading

    plan = SimpleNamespace(
        dtype="float32", device="cpu", offload="none", quant="none", loras=(), model="tiny",
        streamed=(), attention="sdpa", pinned=False, gpus=1, compile=False, cache="none",
    )  # fmt: skip
    folder = home / "models" / "tiny"
    vae = loading._load_vae(card, folder)
    return vae, loading._load_conditioner(card, folder, plan, torch.device("cpu"))


def test_both_halves_of_conditions_make_what_clips_are_made_with(tiny_card, tiny_home):
    vae, conditioner = parts_of(tiny_card, tiny_home)
    surround = tiny_card.image_token_surround
    source = condition_source(conditioner, vae, surround)
    picture = Image.effect_noise((96, 64), 80).convert("RGB")
    pixels = torch.from_numpy(to_tensor_values(picture))[None, :, None]
    first = encode_latents(vae, pixels)
    rows = [source.prepare(prompt, picture) for prompt in ("a cat runs", "")]
    firsts = torch.cat([first, first])
    joined = source.join(rows, firsts, torch.device("cpu"))["encoder_hidden_states"]
    from osp_cli.models.latents import with_surroundings

    expected = conditioner.encode(
        ["a cat runs", ""],
        images=[picture, picture],
        image_latents=with_surroundings(vae, firsts, surround),
    )
    torch.testing.assert_close(joined, expected, rtol=1e-4, atol=1e-4)
    source.unload()
    with pytest.raises(AttributeError):
        source.prepare("a cat", picture)


@pytest.mark.parametrize(
    "way",
    [
        ("--dtype", "bfloat16"),
        ("--dtype", "bfloat16", "--quant", "fp8"),
        ("--dtype", "bfloat16", "--quant", "fp8", "--swap-blocks", "1"),
        ("--dtype", "bfloat16", "--swap-blocks", "2", "--offload-activations"),
    ],
    ids=lambda way: "".join(way[2:]) or way[1],
)
@pytest.mark.parametrize(("cards", "model", "size", "mode"), [BASES[0], BASES[2], BASES[3]])
def test_bases_in_few_bits_are_trained(
    cards, model, size, mode, way, request, data, tmp_path, capsys
):
    request.getfixturevalue(cards)
    lines = train(
        capsys, data, tmp_path / "x", "-m", model, "--size", size, "--targets", "qkv-ffn",
        "--sample-every", "0", "--grad-checkpoint", "-y", *way,
    )  # fmt: skip
    losses = [line["loss"] for line in lines if line["type"] == "train"]
    assert len(losses) == 3 and None not in losses
    trained = load_file(tmp_path / "x" / "x.safetensors")
    assert {value.dtype for value in trained.values()} == {torch.float32}
    assert all(value.any() for key, value in trained.items() if "lora_B" in key)
