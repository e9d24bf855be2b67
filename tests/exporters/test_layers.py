"""Where an engine's time goes, as each runtime that tells it does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from lorkd_exporters._layers import of_tensorrt

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


@pytest.mark.parametrize(
    ("said", "precision"),
    [
        ("Thirty-two wide channel vectorized row major Int8 format", "int8"),
        ("Two wide channel vectorized row major FP16 format", "fp16"),
        ("Row major linear FP32", "fp32"),
        ("Half", "fp16"),
        ("BFloat16", "bf16"),
        ("Row major Int32 format", "other"),
    ],
)
def test_what_tensorrt_says_of_a_layer(said: str, precision: str) -> None:
    """In the words of NVIDIA's documentation, and of other engines' files; none of ours ran."""
    layer = {"Name": "a + b", "LayerType": "CaskConvolution"}
    layer |= {"Inputs": [{"Name": "x", "Dimensions": [1, 3, 8, 8], "Format/Datatype": said}]}
    information = json.dumps({"Layers": [layer], "Bindings": ["x", "y"]})
    found = of_tensorrt(information, {"a + b": [0.3, 0.1, 0.2], "unknown": [1.0]})
    assert found == [
        LayerTime("a + b", "CaskConvolution", precision, 0.2),
        LayerTime("unknown", "", "other", 1.0),
    ]
    names_alone = json.dumps({"Layers": ["a + b"], "Bindings": []})
    assert of_tensorrt(names_alone, {"a + b": [2.0]}) == [LayerTime("a + b", "", "other", 2.0)]
