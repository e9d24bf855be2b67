from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lorkd_deploy.bundle.read import load_bundle
from lorkd_deploy.deploy.graphs.graph import onnx_model
from lorkd_deploy.deploy.graphs.raw import raw_model
from lorkd_deploy.runtime import EngineSpec, exporter, targets
from tests import tiny_bundle

BUILDABLE = [name for name in targets() if exporter(name).probe().can_build]
RUNNABLE = [name for name in BUILDABLE if exporter(name).probe().can_run]


@dataclass(frozen=True)
class Built:
    """An engine of the tiny network with three classes, and what it has to compute."""

    target: str
    folder: Path
    files: tuple[str, ...]
    state: dict[str, Any]

    def expected(self, x: Any) -> Any:
        return tiny_bundle.forward(self.state, x)


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fused ONNX model that every target builds from."""
    folder = tmp_path_factory.mktemp("source")
    bundle = load_bundle(tiny_bundle.make_bundle(folder / "bundle"))
    (folder / "fused.onnx").write_bytes(onnx_model(bundle, "eye"))
    raw = raw_model(onnx_model(bundle, "eye"), bundle, "eye")
    (folder / "raw.onnx").write_bytes(raw)
    return folder


def build(source: Path, target: str, folder: Path, *, raw: bool = False) -> Built:
    """Build the engine into `folder`, with a precision that every target has to have."""
    bundle = load_bundle(source)
    spec = EngineSpec("fp32", {"raw": True} if raw else {})
    file = source / ("raw.onnx" if raw else "fused.onnx")
    files = exporter(target).export(file, folder, spec).files
    state = tiny_bundle.unfused(bundle.base, bundle.expert("eye"), 2.5)
    return Built(target, folder, files, state)


@pytest.fixture
def batch() -> Any:
    """Network input float32 `(5, 3, S, S)`."""
    shape = (5, 3, tiny_bundle.SIZE, tiny_bundle.SIZE)
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)
