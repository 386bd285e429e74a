"""Fixture 4: the sigma grid, and whole sampling runs over fixture 3's transformer."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from osp_cli.pipelines.flash_i2v import Conditions, FlashI2VPipeline, SamplingInputs
from osp_cli.sampling.fourier import fourier_features
from osp_cli.sampling.guidance import classifier_free_guidance, uses_guidance
from osp_cli.sampling.latent_shift import project_first_frame, shift_latents
from osp_cli.sampling.schedulers import euler_schedule

DATA = Path(os.environ.get("OSP_GOLDEN_DIR") or Path(__file__).parent / "data")
FACTS = json.loads((DATA / "sampler.json").read_text())
TENSORS = load_file(DATA / "sampler.safetensors")
SIGMA_TOLERANCE = FACTS["tolerance"]["sigmas_max_abs"]
TOLERANCE = FACTS["tolerance"]["trajectory_fp32_max_abs"]
GRIDS = sorted(n.removeprefix("sigmas.") for n in TENSORS if n.startswith("sigmas."))
RUNS = sorted(name for name, fact in FACTS.items() if isinstance(fact, dict) and "steps" in fact)


def test_the_folder_has_cases():
    assert set(GRIDS) == set(FACTS["sigmas"])
    assert GRIDS
    assert RUNS


@pytest.mark.parametrize("grid", GRIDS)
def test_sigmas(grid):
    shift, steps = grid.removeprefix("shift").split(".n")
    scheduler = euler_schedule(int(steps), float(shift))
    recorded = TENSORS[f"sigmas.{grid}"]
    torch.testing.assert_close(scheduler.sigmas, recorded, atol=SIGMA_TOLERANCE, rtol=0)
    torch.testing.assert_close(
        recorded, torch.tensor(FACTS["sigmas"][grid]), atol=SIGMA_TOLERANCE, rtol=0
    )
    torch.testing.assert_close(
        scheduler.timesteps, 1000 * recorded[:-1], atol=1000 * SIGMA_TOLERANCE, rtol=0
    )


@pytest.mark.parametrize("name", RUNS)
def test_run(transformer, inference_cutoff, name):
    facts = FACTS[name]
    first, latents = TENSORS["in.start_frame_latents"], TENSORS["in.noise"]
    projected = project_first_frame(transformer, first)
    assert (projected - TENSORS["phi"]).abs().max().item() <= TOLERANCE
    features = fourier_features(first, inference_cutoff, latents.shape[2])
    calls = []

    def predict(latents, timestep, context):
        calls.append(timestep.item())
        return transformer(
            shift_latents(latents, projected),
            timestep.expand(len(latents)),
            TENSORS[context],
            fourier_features=features,
        ).sample

    scheduler = euler_schedule(facts["steps"], facts["shift"])
    for step, timestep in enumerate(scheduler.timesteps):
        velocity = predict(latents, timestep, "in.prompt_embeds")
        if uses_guidance(facts["guidance_scale"]):
            unguided = predict(latents, timestep, "in.negative_prompt_embeds")
            velocity = classifier_free_guidance(velocity, unguided, facts["guidance_scale"])
        latents = scheduler.step(velocity, timestep, latents, return_dict=False)[0]
        for got, kind in ((velocity, "velocity"), (latents, "trajectory")):
            difference = (got - TENSORS[f"{name}.{kind}"][step]).abs().max().item()
            assert difference <= TOLERANCE, f"{kind} of step {step}"

    assert (latents - TENSORS[f"{name}.final"]).abs().max().item() <= TOLERANCE
    assert latents.abs().mean().item() == pytest.approx(facts["final_abs_mean"], abs=TOLERANCE)
    assert len(calls) == facts["model_calls"]
    assert calls == pytest.approx(facts["timesteps_per_call"], abs=1000 * SIGMA_TOLERANCE)


@pytest.mark.parametrize("name", RUNS)
def test_the_pipeline_makes_the_same_run(transformer, inference_cutoff, name):
    facts, first = FACTS[name], TENSORS["in.start_frame_latents"]
    guided = uses_guidance(facts["guidance_scale"])
    conditions = Conditions(
        cond=TENSORS["in.prompt_embeds"],
        uncond=TENSORS["in.negative_prompt_embeds"] if guided else None,
        first=first,
        projected=project_first_frame(transformer, first),
    )
    inputs = SamplingInputs(
        image=None,
        prompt="",
        negative_prompt="",
        width=0,
        height=0,
        num_frames=0,
        num_inference_steps=facts["steps"],
        guidance_scale=facts["guidance_scale"],
        shift=facts["shift"],
        cutoff=(inference_cutoff, inference_cutoff),
        seed=0,
    )
    pipeline = FlashI2VPipeline(transformer, vae=None, conditioner=None)
    trajectory = [x for _, x in pipeline.sample(inputs, conditions, TENSORS["in.noise"])]
    difference = (torch.stack(trajectory) - TENSORS[f"{name}.trajectory"]).abs().max().item()
    assert difference <= TOLERANCE
