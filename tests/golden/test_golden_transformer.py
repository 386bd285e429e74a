"""Fixture 3: the FlashI2V transformer against the released implementation."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from osp_cli.sampling.fourier import fourier_features
from osp_cli.sampling.latent_shift import project_first_frame, shift_latents

DATA = Path(os.environ.get("OSP_GOLDEN_DIR") or Path(__file__).parent / "data")
FACTS = json.loads((DATA / "transformer.json").read_text())
IO = load_file(DATA / "transformer.io.safetensors")
TOLERANCE = FACTS["tolerance"]["fp32_max_abs"]
OUTPUTS = sorted(n for n in IO if re.fullmatch(r"out\.t\d+\.ctx_\w+", n))
PLAIN_OUTPUTS = sorted(n for n in IO if n.startswith("out.nofourier."))


def assert_close(got, name, tolerance=TOLERANCE):
    assert got.shape == IO[name].shape
    assert (got - IO[name]).abs().max().item() <= tolerance


def run(transformer, timestep, context, features, watch=None):
    """The output, or what `watch` (a submodule) returned on the way to it."""
    seen = []
    handle = watch.register_forward_hook(lambda *call: seen.append(call[-1])) if watch else None
    output = transformer(IO["x_shifted"], IO[timestep], IO[context], fourier_features=features)
    if handle is None:
        return output.sample
    handle.remove()
    return seen[0]


def intermediates(prefix):
    return sorted(name for name in IO if name.startswith(prefix))


def test_the_folder_has_cases():
    assert OUTPUTS
    assert PLAIN_OUTPUTS


def test_weights_have_the_listed_keys():
    weights = load_file(DATA / "transformer.weights.safetensors")
    assert {name: list(tensor.shape) for name, tensor in weights.items()} == FACTS["keys"]


@pytest.mark.parametrize("name", OUTPUTS)
def test_output(transformer, name):
    _, timestep, context = name.split(".")
    assert_close(run(transformer, timestep, context, IO["fourier_features"]), name)


@pytest.mark.parametrize("name", PLAIN_OUTPUTS)
def test_output_without_features_is_plain_wan(transformer, name):
    _, _, timestep, context = name.split(".")
    assert_close(run(transformer, timestep, context, None), name)


def test_shifted_input(transformer):
    projected = project_first_frame(transformer, IO["start_frame_latents"])
    assert_close(projected, "phi")
    assert_close(shift_latents(IO["x"], projected), "x_shifted")


def test_features(inference_cutoff):
    got = fourier_features(IO["start_frame_latents"], inference_cutoff, IO["x"].shape[2])
    assert_close(got, "fourier_features")


@pytest.mark.parametrize("name", intermediates("mid.sinusoid."))
def test_time_sinusoid(transformer, name):
    assert_close(transformer.condition_embedder.timesteps_proj(IO[name.split(".")[2]]), name)


@pytest.mark.parametrize("name", intermediates("mid.e."))
def test_time_embedding(transformer, name):
    timestep = name.split(".")[2]
    context = OUTPUTS[0].split(".")[2]
    watch = transformer.condition_embedder
    assert_close(run(transformer, timestep, context, None, watch)[0], name)


@pytest.mark.parametrize("name", intermediates("mid.e0."))
def test_time_projection(transformer, name):
    timestep = name.split(".")[2]
    context = OUTPUTS[0].split(".")[2]
    projected = run(transformer, timestep, context, None, transformer.condition_embedder)[1]
    assert_close(projected.unflatten(1, (6, -1)), name)


@pytest.mark.parametrize("name", intermediates("mid.text."))
def test_text_embedding(transformer, name):
    context = name.split(".")[2]
    timestep = OUTPUTS[0].split(".")[1]
    watch = transformer.condition_embedder
    assert_close(run(transformer, timestep, context, None, watch)[2], name)


@pytest.mark.parametrize("name", intermediates("mid.patch_plus_fourier"))
def test_both_embeddings_are_summed(transformer, name):
    timestep, context = OUTPUTS[0].split(".")[1:]
    watch = transformer.patch_embedding
    assert_close(run(transformer, timestep, context, IO["fourier_features"], watch), name)


@pytest.mark.parametrize("name", intermediates("mid.block"))
def test_block_output(transformer, name):
    index, timestep, context = re.fullmatch(r"mid\.block(\d+)_out\.(t\d+)\.(\w+)", name).groups()
    watch = transformer.blocks[int(index)]
    assert_close(run(transformer, timestep, context, IO["fourier_features"], watch), name)


@pytest.mark.parametrize(("name", "table"), [("real", "freqs_cos"), ("imag", "freqs_sin")])
def test_rotary_table(transformer, name, table):
    recorded = IO[f"rope.freqs_{name}"]
    # Ours repeats each frequency for the two halves of its pair.
    ours = getattr(transformer.rope, table)[: len(recorded), ::2]
    torch.testing.assert_close(ours, recorded, atol=TOLERANCE, rtol=0)
