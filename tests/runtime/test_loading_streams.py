"""From folders of weights in the true layout to a stream."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from diffusers import HeliosTransformer3DModel

from osp_cli import registry
from osp_cli.errors import CheckpointError, RuntimeFailureError, WeightsMissingError
from osp_cli.models.helios import load_helios_transformer, load_stage_scheduler
from osp_cli.pipelines.realtime import StreamInputs
from osp_cli.plan import Plan
from osp_cli.runtime.loading import PARTS, load_parts
from osp_cli.runtime.loading_streams import make_stream_pipeline


@pytest.fixture
def folder(tiny_helios_home, tmp_path):
    """A copy that may be damaged."""
    return shutil.copytree(tiny_helios_home / "models" / "tiny-helios", tmp_path / "weights")


def loaded(spec, folder, plan):
    return {event.component: part for event, part in load_parts(spec, plan, folder, PARTS)}
