"""The fixtures of `hub_fixtures`, which the tests of the command use too."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import pytest
from hub_fixtures import fake_hub, hub_home, wee  # noqa: F401


@pytest.fixture(autouse=True)
def _home(hub_home):  # noqa: F811
    """Every test here has its own home and cache."""
