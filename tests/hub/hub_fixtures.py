"""A fake hub, a cache and a home of its own, and cards whose parts the hub has."""

from __future__ import annotations

import os
import sys

import hub_kit
import pytest
from fake_hub import FakeHub

import osp_cli.hub
from osp_cli import registry
from osp_cli.hub import client


@pytest.fixture
def fake_hub():
    """A hub that behaves until it is told otherwise."""
    hub = FakeHub({repo: dict(files) for repo, files in hub_kit.REPOS.items()})
    yield hub
    hub.close()


@pytest.fixture
def hub_home(tmp_path, monkeypatch):
    """Neither the user's cache nor a token, and no long pauses."""
    for name in [name for name in os.environ if name.startswith(("OSP_", "HF_", "HUGGING"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("OSP_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setattr(client, "FIRST_PAUSE_SECONDS", 0.001)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: os.environ.get("HF_TOKEN"))
    return tmp_path


@pytest.fixture
def wee(fake_hub, hub_home, monkeypatch):
    """The fake hub is the hub, and the card `wee` is known; gives the card."""
    specs = {**registry.model_specs(), **hub_kit.wee_specs()}
    monkeypatch.setattr(registry, "model_specs", lambda: specs)
    monkeypatch.setenv("HF_ENDPOINT", fake_hub.url)
    module = hub_kit.install_module()
    monkeypatch.setitem(sys.modules, "osp_cli.hub.install", module)
    monkeypatch.setattr(osp_cli.hub, "install", module, raising=False)
    return specs["wee"]
