"""Fixture 9: VideoX-Fun's TeaCache, its decisions and the outputs that follow from them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from osp_cli.models.state_dict import load_transformer
from osp_cli.sampling.step_cache import TeaCacheConfig, enable_step_cache

DATA = Path(os.environ.get("OSP_GOLDEN_DIR") or Path(__file__).parent / "data")
FACTS = json.loads((DATA / "teacache.json").read_text())
TENSORS = load_file(DATA / "teacache.safetensors")
TOLERANCE = FACTS["tolerance"]["out_fp32_max_abs"]
DISTANCE_TOLERANCE = FACTS["tolerance"]["rel_l1"]
TABLES = [table for name, table in FACTS.items() if name.startswith("coefficients_videox_fun")]
RUNS = sorted(FACTS["runs"])
OUTPUTS = sorted(name for name in TENSORS if name.startswith("out."))
CONTEXTS = {"uncond": "in.ctx_uncond", "cond": "in.ctx_cond"}


@pytest.fixture(scope="module")
def transformer():
    return load_transformer(
        DATA / "teacache.weights.safetensors", config=FACTS["model"], allow_missing_branches=True
    )


def run_of_output(name):
    """`out.slow.t2v14b.cfg` belongs to the run `slow|Wan2.1-T2V-14B|cfg`."""

    def plain(text):
        return text.lower().replace("-", "").replace("wan2.1", "")

    _, sequence, model, guidance = name.split(".")
    (found,) = (
        run
        for run in RUNS
        if [plain(part) for part in run.split("|")] == [sequence, model, guidance]
    )
    return found


def context_of(branch):
    """As in Wan: text is padded with zeros to its full length, which are attended to."""
    context = TENSORS[CONTEXTS[branch]]
    padded = F.pad(context, (0, 0, 0, FACTS["model"]["text_len"] - len(context)))
    return padded.expand(len(TENSORS["in.x"]), -1, -1)


class Run:
    """One recorded run over again: outputs `(steps, 2, ...)` and block calls `(steps,)`."""

    def __init__(self, transformer, name):
        sequence, model, guidance = name.split("|")
        signals = TENSORS[f"seq.{sequence}"]
        branches = ["cond", "uncond"] if guidance == "cfg" else ["cond"]
        (table,) = TABLES
        config = TeaCacheConfig(
            coefficients=tuple(table[model]),
            source="fixture 9",
            num_inference_steps=len(signals),
            threshold=FACTS["threshold"],
            num_start_steps=FACTS["num_skip_start_steps"],
        )
        calls, outputs, self.block_calls = [], [], []
        embedder, block = transformer.condition_embedder, transformer.blocks[0]
        # The recorded runs emit a synthetic sequence in place of the time projection.
        handles = [
            embedder.time_proj.register_forward_hook(
                lambda *_: signals[self.step].flatten(1).expand(len(TENSORS["in.x"]), -1)
            ),
            block.attn1.register_forward_hook(lambda *_: calls.append(1)),
        ]
        try:
            with enable_step_cache(transformer, config) as self.cache:
                for self.step in range(len(signals)):
                    calls.clear()
                    made = {name: self.call(transformer, name) for name in branches}
                    outputs.append(torch.cat([made[name] for name in CONTEXTS if name in made]))
                    self.block_calls.append(len(calls))
        finally:
            for handle in handles:
                handle.remove()
        self.outputs = torch.stack(outputs)

    def call(self, transformer, branch):
        latents = TENSORS["in.x"] * (1 + 0.01 * self.step)
        timestep = torch.tensor([1000.0 - 10 * self.step])
        with transformer.cache_context(branch):
            return transformer(latents, timestep, context_of(branch)).sample


@pytest.fixture(scope="module")
def run(transformer):
    made = {}

    def get(name):
        if name not in made:
            made[name] = Run(transformer, name)
        return made[name]

    return get


def assert_close(got, recorded, tolerance):
    """Equal within `tolerance` wherever something is recorded."""
    assert len(got) == len(recorded)
    for step, (ours, theirs) in enumerate(zip(got, recorded, strict=True)):
        if theirs is not None:
            assert ours == pytest.approx(theirs, abs=tolerance), f"step {step}"


def test_the_folder_has_cases():
    assert RUNS
    assert OUTPUTS
    assert len(TABLES) == 1
    assert all(FACTS["num_steps"] == len(TENSORS[f"seq.{run.split('|')[0]}"]) for run in RUNS)


@pytest.mark.parametrize("name", RUNS)
def test_decisions(run, name):
    facts, cache = FACTS["runs"][name], run(name).cache
    assert [int(decision.computed) for decision in cache.decisions] == facts["should_calc"]
    assert cache.computed_steps == sum(facts["should_calc"])
    assert cache.skipped_steps == facts["should_calc"].count(0)


@pytest.mark.parametrize("name", RUNS)
def test_passes_that_ran(run, name):
    facts, made = FACTS["runs"][name], run(name)
    assert made.block_calls == facts["block0_calls"]
    # Without guidance there is no unconditional pass; else the last one runs whatever was decided.
    unconditional = facts["should_calc_uncond"] or []
    assert made.cache.computed_passes == sum(facts["should_calc"]) + sum(unconditional)
    assert made.cache.skipped_passes == (facts["should_calc"] + unconditional).count(0)


@pytest.mark.parametrize("name", RUNS)
def test_distances(run, name):
    distances = [decision.distance for decision in run(name).cache.decisions]
    recorded = FACTS["runs"][name]["rel_l1"]
    assert_close(distances, recorded, DISTANCE_TOLERANCE)
    assert [d is None for d in distances] == [r is None for r in recorded]


@pytest.mark.parametrize("name", RUNS)
def test_rescaled_distances(run, name):
    rescaled = [decision.rescaled for decision in run(name).cache.decisions]
    assert_close(rescaled, FACTS["runs"][name]["rescaled"], DISTANCE_TOLERANCE)


@pytest.mark.parametrize("name", RUNS)
def test_accumulated_sums(run, name):
    sums = [decision.accumulated for decision in run(name).cache.decisions]
    # None is recorded after the last step, where upstream has just forgotten the sum.
    assert_close(sums, FACTS["runs"][name]["accumulated_after"], DISTANCE_TOLERANCE)


@pytest.mark.parametrize("name", OUTPUTS)
def test_outputs(run, name):
    got, recorded = run(run_of_output(name)).outputs, TENSORS[name]
    assert got.shape == recorded.shape
    for step, (ours, theirs) in enumerate(zip(got, recorded, strict=True)):
        assert (ours - theirs).abs().max().item() <= TOLERANCE, f"step {step}"
