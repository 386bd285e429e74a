"""What a run may take the place of."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from osp_cli.errors import InvalidRequestError
from osp_cli.runtime.train_refusals import refuse_name
from osp_cli.train_request import TrainRequest


def adapter(path, **changes):
    told = {"ss_output_name": "glass", "osp.dataset_sha256": "a", "osp.seed": "1", "osp.steps": "5"}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({"x": torch.zeros(1)}, path, metadata=told | changes)


def test_only_what_this_run_made_gives_way_unasked(tmp_path, monkeypatch):
    monkeypatch.setenv("OSP_HOME", str(tmp_path / "home"))
    installed = tmp_path / "home" / "loras" / "glass.safetensors"
    output = tmp_path / "glass"

    def request(**changes):
        return TrainRequest(
            dataset=Path("clips"), name="glass", output=output, width=64, height=64, **changes
        )

    refuse_name(request())
    adapter(installed)
    with pytest.raises(InvalidRequestError, match="is installed already"):
        refuse_name(request())
    # Finished once more, and stopped before it was installed.
    adapter(output / "glass.safetensors", **{"osp.steps": "9"})
    refuse_name(request())
    adapter(installed, **{"osp.dataset_sha256": "b"})
    with pytest.raises(InvalidRequestError, match="is installed already"):
        refuse_name(request())
    refuse_name(request(overwrite=True))
    installed.unlink()
    refuse_name(request())
