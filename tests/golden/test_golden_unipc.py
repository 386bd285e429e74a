"""Fixture 10: VideoX-Fun's flow UniPC, its grid and whole runs over a linear field."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from osp_cli.sampling.schedulers import unipc_schedule

DATA = Path(os.environ.get("OSP_GOLDEN_DIR") or Path(__file__).parent / "data")
FACTS = json.loads((DATA / "unipc.json").read_text())
TENSORS = load_file(DATA / "unipc.safetensors")
SIGMA_TOLERANCE = FACTS["tolerance"]["sigmas_max_abs"]
TOLERANCE = FACTS["tolerance"]["trajectory_fp32_max_abs"]
RUNS = sorted(name.removesuffix(".sigmas") for name in TENSORS if name.endswith(".sigmas"))


def schedule(run):
    shift, steps = re.fullmatch(r"shift([\d.]+)\.n(\d+)", run).groups()
    return unipc_schedule(int(steps), float(shift))


def field(latents, timestep):
    """`v(x, t) = A x over channels + b (0.5 + t / 1000)`, as the fixture says."""
    mixed = torch.einsum("oc,bcfhw->bofhw", TENSORS["field.A"], latents)
    return mixed + TENSORS["field.b"] * (0.5 + timestep / 1000)


def test_the_folder_has_cases():
    assert RUNS
    assert {name for name, fact in FACTS.items() if "sigmas" in fact} == set(RUNS)
    assert FACTS["scheduler"]["solver_order"] == unipc_schedule(1).config.solver_order
    assert FACTS["scheduler"]["solver_type"] == unipc_schedule(1).config.solver_type


@pytest.mark.parametrize("run", RUNS)
def test_sigmas(run):
    recorded = TENSORS[f"{run}.sigmas"]
    torch.testing.assert_close(schedule(run).sigmas, recorded, atol=SIGMA_TOLERANCE, rtol=0)
    listed = torch.tensor(FACTS[run]["sigmas"])
    torch.testing.assert_close(recorded, listed, atol=SIGMA_TOLERANCE, rtol=0)


@pytest.mark.parametrize("run", RUNS)
def test_timesteps(run):
    timesteps = schedule(run).timesteps
    assert torch.equal(timesteps, TENSORS[f"{run}.timesteps"])
    assert timesteps.tolist() == FACTS[run]["timesteps"]


@pytest.mark.parametrize("run", RUNS)
def test_trajectory(run):
    latents, scheduler = TENSORS["in.noise"], schedule(run)
    recorded = TENSORS[f"{run}.trajectory"]
    assert len(recorded) == len(scheduler.timesteps)
    for step, timestep in enumerate(scheduler.timesteps):
        velocity = field(latents, timestep)
        latents = scheduler.step(velocity, timestep, latents, return_dict=False)[0]
        assert (latents - recorded[step]).abs().max().item() <= TOLERANCE, f"step {step}"
