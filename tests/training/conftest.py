"""What the tests of the training share: a tiny geometry, started models, a pool of a few clips.

One tokenizer for each seed: fitting it takes half a second and always gives the same.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from types import MappingProxyType

import pytest
import torch

from osp_cli.models.transformer_flash_i2v import FlashI2VTransformer3DModel
from osp_cli.training import mini_vlm
from osp_cli.training.mini_data import Shard, save_shard
from osp_cli.training.mini_dit import DitObjective, Mixture, Pool, new_transformer
from osp_cli.training.mini_start import write_start
from osp_cli.training.mini_vlm import new_conditioner

TESTS = Path(__file__).parents[1]
# For what is shared with programs.
sys.path.insert(0, str(TESTS))

CHANNELS = 4
ROWS, COLUMNS = 4, 6  # of the pool's clips
KEPT = ((0, 1, 2, 5), (0, 3, 7, 10))  # latent frames of its two shards


@pytest.fixture(scope="session", autouse=True)
def _tokenizers_are_fitted_once():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mini_vlm, "build_tokenizer", cache(mini_vlm.build_tokenizer))
        yield


@pytest.fixture(scope="session")
def geometry():
    """The narrowest stream that holds all there is, and all lookups that bring a cell."""
    return MappingProxyType(
        {
            "num_attention_heads": 12,
            "attention_head_dim": 16,
            "in_channels": CHANNELS,
            "out_channels": CHANNELS,
            "text_dim": 192,
            "freq_dim": 256,
            "ffn_dim": 256,
            "num_layers": 3,
            "projection_channels": 8,
            "position_channels": 24,
            "rope_max_seq_len": 64,
        }
    )


@pytest.fixture(scope="session")
def start_model(geometry):
    """A function from changes of the geometry to a started model and its conditioner."""

    def started(**changes):
        settings = {**geometry, **changes}
        conditioner = new_conditioner(1, settings["text_dim"], settings["in_channels"])
        torch.manual_seed(0)
        model = FlashI2VTransformer3DModel(**settings).eval()
        write_start(model, conditioner)
        with torch.no_grad():
            # Language is fitted, not written: until then it says nothing.
            conditioner.adapter.fc2.weight.zero_()
            conditioner.adapter.fc2.bias.zero_()
        return model, conditioner

    return started


def new_shard(number, clips=4):
    """Every other clip is one whose later frames do not follow from one of them: it is brighter."""
    generator = torch.Generator().manual_seed(number)
    first = torch.randn(clips, CHANNELS, 1, ROWS, COLUMNS, generator=generator)
    latents = torch.randn(clips, CHANNELS, 4, ROWS, COLUMNS, generator=generator)
    snowing = torch.arange(clips) % 2 == 1
    latents[snowing] += 100.0
    return Shard(
        latents.bfloat16(),
        torch.tensor(KEPT[number]),
        first.bfloat16(),
        torch.randint(0, 256, (clips, 3, 56, 112), generator=generator).to(torch.uint8),
        [
            {"prompt": f"pan left {k}", "style": "ink", "camera": "pan-left",
             "scene": "snow" if flag else None, "speed": "normal"}
            for k, flag in enumerate(snowing.tolist())
        ],
    )  # fmt: skip


@pytest.fixture(scope="session")
def pool(geometry, tmp_path_factory):
    """Two shards with other latent frames each."""
    folder = tmp_path_factory.mktemp("pool")
    pool = Pool(new_conditioner(1, geometry["text_dim"], CHANNELS))
    for number in range(2):
        save_shard(new_shard(number), folder / f"shard-{number:05d}.safetensors")
    assert pool.load(folder, 1) == 4
    # Shards already loaded are not loaded again.
    assert pool.load(folder) == 8
    assert pool.load(folder) == 8
    assert len(pool.shards) == len(pool.states) == 2
    return pool


@pytest.fixture
def objective(geometry, pool):
    """On a started model and the pool."""
    # The start is written into the adapters too, so every test gets them as they begin.
    model = new_transformer(1, pool.conditioner, dict(geometry))
    return DitObjective(model, pool.conditioner, pool, Mixture(batch_size=4), seed=5)


@pytest.fixture
def quiet(objective):
    """The same objective while language says nothing."""
    last = objective.conditioner.adapter.fc2
    kept = {name: value.clone() for name, value in last.state_dict().items()}
    with torch.no_grad():
        last.weight.zero_()
        last.bias.zero_()
    yield objective
    last.load_state_dict(kept)


class Crew:
    """Forks processes that train together, see `training_crew`."""

    def __init__(self, process):
        self.process = process

    def start(self, work, world, **arguments):
        """Their pids."""
        with tempfile.NamedTemporaryFile(prefix="osp-meeting-") as file:
            meeting = file.name
        arguments = {k: str(v) if isinstance(v, Path) else v for k, v in arguments.items()}
        job = {"work": work, "world": world, "meeting": meeting, "arguments": arguments}
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def wait(self):
        """Their exit codes."""
        return json.loads(self.process.stdout.readline())

    def run(self, work, world, **arguments):
        """Let them do it; each must succeed."""
        self.start(work, world, **arguments)
        assert self.wait() == [0] * world


@pytest.fixture(scope="session")
def crew():
    if not hasattr(os, "fork"):
        pytest.skip("needs fork")
    process = subprocess.Popen(
        [sys.executable, str(TESTS / "training_crew.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)]),
            "OMP_NUM_THREADS": "1",
            "GLOO_SOCKET_IFNAME": "lo",
        },
    )
    yield Crew(process)
    process.stdin.close()
    assert process.wait(timeout=30) == 0
    process.stdout.close()
