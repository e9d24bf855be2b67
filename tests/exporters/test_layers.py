"""Where an engine's time goes, as each runtime that tells it does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lorkd_deploy.runtime import EngineSpec, LayerTime, RunOptions, exporter


@pytest.mark.parametrize("target", ["onnx", "openvino"])
def test_every_layer_has_its_time_and_precision(
    source: Path, tmp_path: Path, batch: Any, target: str
) -> None:
    module: Any = exporter(target)
    if not module.probe().can_run:
        pytest.skip(f"{target} isn't installed here")
    files = module.export(source / "fused.onnx", tmp_path, EngineSpec("fp32")).files
    found: list[LayerTime] = module.layers(tmp_path, files, RunOptions(1), batch, 5)
    assert len(found) >= 3
    assert all(layer.ms >= 0 for layer in found) and sum(layer.ms for layer in found) > 0
    assert len({layer.name for layer in found}) == len(found)
    heavy = [layer for layer in found if "conv" in layer.kind.lower()]
    assert heavy and {layer.precision for layer in heavy} == {"fp32"}
    # The session that watched its layers leaves nothing behind, beside the engine or elsewhere.
    assert {file.name for file in tmp_path.iterdir()} == set(files)
