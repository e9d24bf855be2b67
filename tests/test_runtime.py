"""Exporters are found by name, and what looks for them is quick."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from lorkd_deploy.runtime import exporter, targets
from tests.trial_target import RUNTIME, install_target


def test_packages_are_looked_through_once_for_each_search_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A switchboard opens an engine at each switch; it reads no package's metadata for that."""
    looked = []
    real = metadata.entry_points

    def counted(**given: Any) -> Any:
        looked.append(given)
        return real(**given)

    exporter("onnx")
    monkeypatch.setattr(metadata, "entry_points", counted)
    for _ in range(3):
        exporter("onnx")
    assert looked == []
    install_target(tmp_path, monkeypatch, "added", RUNTIME)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert "added" in targets()
    assert exporter("added").__name__ == "lorkd_added"  # type: ignore[attr-defined]
    assert len(looked) == 1
