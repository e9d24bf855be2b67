"""`--precision int8 --max-drop`: layers that stay in float32, in the engine, its record, its proof.

Which layers those are NNCF finds in tests/precisions/test_sensitivity.py; here it is given.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest

from lorkd_deploy import cli
from lorkd_deploy.bundle.read import load_bundle
from lorkd_deploy.cli.shared.parity import show_sensitivity
from lorkd_deploy.cli.shared.render import Output
from lorkd_deploy.deploy.artifact import find_artifacts
from lorkd_deploy.deploy.graphs.graph import onnx_model
from lorkd_deploy.deploy.precision import sensitivity as deployed
from lorkd_deploy.deploy.verify import verify
from lorkd_deploy.errors import GateError
from lorkd_deploy.precisions.accuracy_control import in_int8
from lorkd_deploy.precisions.sensitivity import Labelled, LayerGroup, Sensitivity
from lorkd_deploy.runtime import exporter

needs_nncf = pytest.mark.skipif(not find_spec("nncf"), reason="int8 needs NNCF, not installed here")


def found(node: str, layer: str, **changes: Any) -> Sensitivity:
    whole = Sensitivity(
        max_drop=5,
        images=10,
        layers=(layer, "head"),
        fp32={"eye": 0.9},
        int8={"eye": 0.7},
        mixed={"eye": 0.9},
        nodes_left=(node,),
        left=(layer,),
        groups=(LayerGroup(layers=(layer,), gain=20, images=10, left=True),),
    )
    return whole.model_copy(update=changes)


def a_convolution(run: Path) -> tuple[str, str]:
    """A node of the engine that has weights, and their name."""
    graph = onnx.load_from_string(onnx_model(load_bundle(run), "eye")).graph
    place = next(k for k, node in enumerate(graph.node) if node.op_type == "Conv")
    assert not graph.node[place].name  # the tiny network's have none: they are numbered then
    return f"Conv_nncf_{place}", graph.node[place].input[1]


@needs_nncf
def test_the_layers_are_in_record_engine_and_proof(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    node, layer = a_convolution(run)
    asked: list[Sequence[Labelled]] = []

    def measured(
        model: bytes,
        calibration: Callable[[], Any],
        validation: Sequence[Labelled],
        **how: Any,
    ) -> Sensitivity:
        asked.append(validation)
        assert how == {"form": exporter("onnx").probe().int8, "max_drop": 5.0}
        assert calibration().shape == (10, 3, 16, 16)
        return found(node, layer)

    monkeypatch.setattr(deployed, "measured", measured)
    arguments = ["--task", "eye", "--precision", "int8", "--max-drop", "5"]
    assert cli.main(["export", str(run), *arguments]) == 0
    shown = capsys.readouterr().out
    assert "1 of 2 layers stay in float32" in shown and "+20.00" in shown
    ((one,),) = asked
    val = load_bundle(run).own_data("eye").val
    assert one.task == "eye" and one.columns == slice(0, 3)
    assert np.array_equal(one.labels, val.labels)
    (artifact,) = find_artifacts(run)
    assert artifact.sensitivity == found(node, layer)
    coarse = in_int8(onnx.load(artifact.folder / "model.onnx"))
    assert coarse and node not in coarse
    # Made again from the record, without another trial.
    assert [verdict.passed for verdict in verify(run)] == [True]
    assert len(asked) == 1
    record = json.loads((artifact.folder / "artifact.json").read_text())
    assert record["sensitivity"]["nodes_left"] == [node]


def test_where_nothing_was_lost_no_table_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    kept = found("n", "conv", left=(), nodes_left=(), groups=())
    artifact: Any = SimpleNamespace(name="ward/eye/onnx-int8", sensitivity=kept)
    show_sensitivity(Output(as_json=False, quiet=False), [artifact])
    shown = capsys.readouterr().out
    assert "0 of 2 layers stay in float32" in shown and "What int8 costs" not in shown


def test_every_task_of_the_teacher_is_judged_on_its_own_columns(run: Path) -> None:
    parts = list(deployed._labelled(load_bundle(run / "teacher"), "teacher"))
    assert [part.task for part in parts] == ["lung", "heart", "eye", "findings"]
    stops = [part.columns.stop for part in parts]
    assert [part.columns.start for part in parts] == [0, *stops[:-1]]
    assert [part.labels.shape for part in parts] == [(10,), (10,), (10,), (10, 3)]
    assert {part.kind for part in parts[:3]} == {"multiclass"} and parts[3].kind == "multilabel"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"left": ("conv", "head")}, "no layer of eye can be in int8"),
        ({"mixed": {"eye": 0.8}}, r"1 of 2 layers in float32, .* still loses 10\.00 points"),
    ],
)
def test_what_can_not_be_kept_is_not_written(
    run: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], message: str
) -> None:
    monkeypatch.setattr(deployed, "measured", lambda *_, **__: found("n", "conv", **changes))
    bundle, probe = load_bundle(run), exporter("onnx").probe()
    with pytest.raises(GateError, match=message) as caught:
        deployed.sensitivity(b"", bundle, "eye", probe, 5)
    assert "--max-drop" in str(caught.value.fix)
