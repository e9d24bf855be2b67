"""The state on which the campaign's short forms begin."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.reliability.stages import material


@pytest.fixture(scope="session")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with engines, its data and pictures; tests work on copies."""
    return material(tmp_path_factory.mktemp("reliability"))
