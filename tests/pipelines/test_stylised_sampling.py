"""The paper's way to sample stylised clips, UniPC and TeaCache, against a slow plain loop.

The loop below is written from the facts recorded of VideoX-Fun, without a scheduler and without a
hook, and is held against its recorded numbers itself.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from osp_cli.sampling.fourier import fourier_features
from osp_cli.sampling.latent_shift import project_first_frame
from osp_cli.sampling.step_cache import NoCacheConfig, TeaCacheConfig

DATA = Path(os.environ.get("OSP_GOLDEN_DIR") or Path(__file__).parents[1] / "golden" / "data")
UNIPC, TEACACHE = (
    json.loads((DATA / f"{name}.json").read_text()) for name in ("unipc", "teacache")
)
(TABLE,) = (table for name, table in TEACACHE.items() if name.startswith("coefficients_videox_fun"))
STEPS, SHIFT, SCALE = 16, 3.0, 5.0
THRESHOLD, START = TEACACHE["threshold"], TEACACHE["num_skip_start_steps"]


# --- the plain loop --------------------------------------------------------------------------


def unipc_grid(steps, shift):
    """Sigmas with the final 0, and truncated timesteps."""
    line = [0.999 * (1 - index / steps) for index in range(steps)]
    sigmas = [shift * x / (1 + (shift - 1) * x) for x in line]
    return [*sigmas, 0.0], [int(1000 * sigma) for sigma in sigmas]


def half_log_snr(sigma):
    return math.inf if sigma == 0 else math.log(1 - sigma) - math.log(sigma)


class PlainUniPC:
    """UniPC of order 2 with B(h) = exp(-h) - 1 on predictions of the clip, one formula a line."""

    def __init__(self, sigmas):
        self.sigmas = sigmas
        self.clips = []
        self.sample_before = None

    def walk(self, index, start, clip_now=None):
        """From sigma `index` to the next one; with `clip_now` it is the corrector's formula."""
        now, following = self.sigmas[index : index + 2]
        h = half_log_snr(following) - half_log_snr(now)
        b = math.expm1(-h)
        known = self.clips[index]
        end = following / now * start - (1 - following) * b * known
        # The order drops at the first step, and at the last one, which goes to sigma 0.
        second = 0 < index < len(self.sigmas) - 2
        slope = 0
        if second:
            ratio = (half_log_snr(self.sigmas[index - 1]) - half_log_snr(now)) / h
            slope = (self.clips[index - 1] - known) / ratio
        if clip_now is None:
            return end - (1 - following) * b * 0.5 * slope
        if not second:
            return end - (1 - following) * b * 0.5 * (clip_now - known)
        # rho_1 + rho_2 = f_2 / b and ratio rho_1 + rho_2 = 2 f_3 / b, where f_k are phi functions.
        f2 = b / -h - 1
        f3 = f2 / -h - 0.5
        rho_1 = (f2 - 2 * f3) / (b * (1 - ratio))
        rho_2 = f2 / b - rho_1
        return end - (1 - following) * b * (rho_1 * slope + rho_2 * (clip_now - known))

    def step(self, velocity, sample):
        index = len(self.clips)
        clip = sample - self.sigmas[index] * velocity
        if index:
            sample = self.walk(index - 1, self.sample_before, clip)
        self.clips.append(clip)
        self.sample_before = sample
        return self.walk(index, sample)


@dataclass
class PlainTeaCache:
    """Which steps are computed, from e0 of each step."""

    coefficients: list
    step: int = 0
    total: float = 0.0
    previous: torch.Tensor | None = None

    def computes(self, signal):
        self.step += 1
        previous, self.previous = self.previous, signal
        if self.step <= START:
            return True
        distance = float((signal - previous).abs().mean() / previous.abs().mean())
        powers = range(len(self.coefficients) - 1, -1, -1)
        self.total += sum(
            factor * distance**power
            for factor, power in zip(self.coefficients, powers, strict=True)
        )
        if self.total < THRESHOLD:
            return False
        self.total = 0.0
        return True


class AddResidual(nn.Module):
    """In the place of all blocks."""

    def __init__(self, residual):
        super().__init__()
        self.residual = residual

    def forward(self, hidden_states, *_):
        return hidden_states + self.residual


def forward(transformer, arguments, residual=None):
    """The output, and what all blocks together added; `residual` is added in their place."""
    blocks, seen = transformer.blocks, []
    if residual is not None:
        transformer.blocks = nn.ModuleList([AddResidual(residual)])
    first, last = transformer.blocks[0], transformer.blocks[-1]
    handles = [
        first.register_forward_pre_hook(lambda _, args: seen.append(args[0])),
        last.register_forward_hook(lambda _, args, output: seen.append(output)),
    ]
    try:
        output = transformer(*arguments).sample
    finally:
        transformer.blocks = blocks
        for handle in handles:
            handle.remove()
    return output, seen[1] - seen[0]


@torch.no_grad()
def plain_run(pipeline, inputs):
    """Latents after each step, and whether the step was computed."""
    transformer, conditions = pipeline.transformer, pipeline.condition(inputs)
    phi = project_first_frame(transformer, conditions.first)
    latents = pipeline.initial_noise(inputs)
    features = fourier_features(conditions.first, inputs.cutoff[0], latents.shape[2])
    sigmas, timesteps = unipc_grid(STEPS, SHIFT)
    solver, gate = PlainUniPC(sigmas), PlainTeaCache(inputs.step_cache.coefficients)
    contexts = {"cond": conditions.cond, "uncond": conditions.uncond}
    residuals, made, computed = {}, [], []
    for timestep in torch.tensor(timesteps):
        e0 = transformer.condition_embedder(timestep[None], conditions.cond, None)[1]
        computed.append(gate.computes(e0))
        outputs = {}
        for name, context in contexts.items():
            # Upstream forgets everything right after the last conditional pass.
            forgotten = name == "uncond" and len(computed) == STEPS
            kept = None if computed[-1] or forgotten else residuals[name]
            arguments = (latents - phi, timestep[None], context, features)
            outputs[name], residuals[name] = forward(transformer, arguments, kept)
        guided = outputs["uncond"] + SCALE * (outputs["cond"] - outputs["uncond"])
        latents = solver.step(guided, latents)
        made.append(latents)
    return made, computed


# --- the plain loop is VideoX-Fun's ----------------------------------------------------------


@pytest.mark.parametrize("run", [name for name, fact in UNIPC.items() if "sigmas" in fact])
def test_the_plain_solver_walks_the_recorded_way(run):
    tensors = load_file(DATA / "unipc.safetensors")
    shift, steps = run.removeprefix("shift").split(".n")
    sigmas, timesteps = unipc_grid(int(steps), float(shift))
    assert timesteps == UNIPC[run]["timesteps"]
    assert sigmas == pytest.approx(UNIPC[run]["sigmas"], abs=UNIPC["tolerance"]["sigmas_max_abs"])
    latents, solver = tensors["in.noise"], PlainUniPC(sigmas)
    for timestep, recorded in zip(timesteps, tensors[f"{run}.trajectory"], strict=True):
        mixed = torch.einsum("oc,bcfhw->bofhw", tensors["field.A"], latents)
        velocity = mixed + tensors["field.b"] * (0.5 + timestep / 1000)
        latents = solver.step(velocity, latents)
        off = float((latents - recorded).abs().max())
        assert off <= UNIPC["tolerance"]["trajectory_fp32_max_abs"], f"at {timestep}"


@pytest.mark.parametrize("run", TEACACHE["runs"])
def test_the_plain_gate_decides_as_recorded(run):
    sequence, model, _ = run.split("|")
    signals = load_file(DATA / "teacache.safetensors")[f"seq.{sequence}"]
    gate = PlainTeaCache(TABLE[model])
    decisions = [int(gate.computes(signal)) for signal in signals]
    assert decisions == TEACACHE["runs"][run]["should_calc"]


# --- and the pipeline does what it does ------------------------------------------------------


@pytest.fixture
def stylised(pipeline, inputs, monkeypatch):
    """The paper's settings on the tiny model, made to move as slowly in e0 as a trained one."""
    embedder = pipeline.transformer.condition_embedder
    monkeypatch.setattr(embedder.time_proj, "bias", nn.Parameter(embedder.time_proj.bias + 1.5))
    return replace(
        inputs,
        sampler="unipc",
        shift=SHIFT,
        guidance_scale=SCALE,
        negative_prompt="blurry",
        num_inference_steps=STEPS,
        step_cache=TeaCacheConfig(
            coefficients=tuple(TABLE["Wan2.1-T2V-14B"]),
            source="fixture 9",
            num_inference_steps=STEPS,
            threshold=THRESHOLD,
            num_start_steps=START,
        ),
    )


@torch.no_grad()
def test_the_pipeline_is_the_plain_loop(pipeline, stylised):
    expected, wanted = plain_run(pipeline, stylised)
    made, computed = [], []
    with pipeline.sampling(stylised, pipeline.condition(stylised)) as sampling:
        for step in sampling.steps():
            made.append(sampling.latents)
            computed.append(not step.cached)
    assert computed == wanted
    # Neither trivial: past the first steps some are skipped, and some are not.
    assert computed[:START] == [True] * START
    assert set(computed[START:]) == {True, False}
    for step, (ours, plain) in enumerate(zip(made, expected, strict=True)):
        assert (ours - plain).abs().max() <= 1e-5, f"step {step}"
    uncached = replace(stylised, step_cache=NoCacheConfig())
    with pipeline.sampling(uncached, pipeline.condition(uncached)) as sampling:
        list(sampling.steps())
    assert (sampling.latents - made[-1]).abs().max() > 1e-3
