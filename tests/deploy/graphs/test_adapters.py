"""One base for every task and an adapter each: the tasks' own answers, proven, shared, packed."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from lorkd_exporters import _adapters

from lorkd_deploy.bundle.read import load_bundle
from lorkd_deploy.deploy.artifact import find_artifacts, open_engine, read_artifact
from lorkd_deploy.deploy.export import export
from lorkd_deploy.deploy.graphs.adapters import adapted
from lorkd_deploy.deploy.graphs.graph import onnx_model
from lorkd_deploy.deploy.graphs.nodes import Cuttable
from lorkd_deploy.deploy.pack import pack
from lorkd_deploy.deploy.proof.chain import FUSED, Stage, opened_stage
from lorkd_deploy.deploy.switchboard import Switchboard
from lorkd_deploy.deploy.verify import verify
from lorkd_deploy.errors import ArtifactError, UsageError
from lorkd_deploy.precisions.table import BASELINE
from lorkd_deploy.runtime import RunOptions, exporter
from tests import tiny_bundle
from tests.deploy.made_run import OF_TASK, PREPROCESS, TASKS, true_logits
from tests.readme import DOCS, blocks

pytestmark = pytest.mark.skipif(
    not exporter("onnx").probe().can_run, reason="ONNX Runtime is not installed"
)
ADAPTERS = {"adapters": True}


@pytest.fixture
def batch() -> Any:
    size = PREPROCESS.size
    return np.random.default_rng(5).normal(size=(3, 3, size, size)).astype(np.float32)


def test_every_task_is_itself_on_one_base(run: Path, batch: Any) -> None:
    artifacts = export(run, options=ADAPTERS)
    assert {artifact.engine for artifact in artifacts} == set(TASKS)
    bases, inodes = set(), set()
    for artifact in artifacts:
        adapter, base = artifact.files
        assert (adapter.name, base.name) == (_adapters.ADAPTER, _adapters.BASE)
        bases.add(base.sha256)
        inodes.add((artifact.folder / base.name).stat().st_ino)
        assert artifact.adapters
        assert artifact.parity.status == "passed"
        assert [link.after for link in artifact.parity.links] == [
            "fused ONNX",
            "fp32 ONNX",
            "engine",
        ]
        with open_engine(artifact) as engine:
            expected = true_logits(run, artifact.engine, batch)
            assert engine(batch).shape == expected.shape  # their numbers of classes differ
            assert np.abs(engine(batch) - expected).max() < 1e-4
    assert len(bases) == len(inodes) == 1
    assert all(verdict.passed for verdict in verify(run))


def test_a_base_without_an_adapter_answers_with_nothing(run: Path, batch: Any) -> None:
    (artifact,) = export(run, options=ADAPTERS, task=["eye"])
    shutil.copyfile(artifact.folder / _adapters.BASE, artifact.folder / "alone.onnx")
    with exporter("onnx").open(artifact.folder, ["alone.onnx"], RunOptions()) as alone:
        assert np.isnan(alone(batch)).all()
    text = (artifact.folder / _adapters.BASE).read_bytes()
    assert b"lorkd.tasks" not in text
    assert b"eye 0" not in text  # a class's name


def test_an_adapter_of_a_layer_with_rank_r_holds_two_thin_ones(run: Path) -> None:
    bundle = load_bundle(run)
    model = onnx.load_from_string(adapted(bundle, "eye", onnx_model(bundle, "eye")))
    shapes = {i.name: tuple(i.dims) for i in model.graph.initializer}
    assert shapes["conv2.weight.A"] == (2, 4, 1, 1)
    assert shapes["conv2.weight.B"] == (5, 2, 1, 1)
    own = {value.name for value in model.graph.input[1:]}
    # The 3 × 3 convolution's update has a higher rank, interleaved; the head is a task's whole.
    assert own == {"conv1.weight", "conv2.weight.A", "conv2.weight.B", "val_1", "head.bias"}
    first = onnx.load_from_string(onnx_model(bundle, "lung")).graph.initializer
    fused = {i.name: i.raw_data for i in first}
    base = {i.name: i.raw_data for i in model.graph.initializer}
    assert base["conv2.bias"] == fused["conv2.bias"]
    assert base["conv2.weight"] != fused["conv2.weight"]  # it is W0 alone


def test_a_model_with_adapters_can_be_cut_where_a_difference_is_looked_for(
    run: Path, batch: Any
) -> None:
    bundle = load_bundle(run)
    fused = onnx_model(bundle, "eye")
    both = [Cuttable(model).up_to("x4") for model in (fused, adapted(bundle, "eye", fused))]
    found = []
    for model in both:
        with opened_stage(Stage(FUSED, model, BASELINE)) as runner:
            found.append(runner(batch))
    assert np.abs(found[0] - found[1]).max() < 1e-4
    export(run, options=ADAPTERS, task=["eye"])
    (verdict,) = verify(run, drill_down=True)
    assert verdict.drilled is not None


def test_a_board_shares_one_session(run: Path, batch: Any) -> None:
    with Switchboard(run, adapters=True) as board:
        for task, department in OF_TASK.items():
            with board.department(department, task=task) as engine:
                expected = true_logits(run, task, batch)
                assert np.abs(engine(batch) - expected).max() < 1e-4
        assert set(board.open_engines) == set(TASKS)
        assert len(_adapters.sessions) == 1
        own = sum(artifact.files[0].bytes for artifact in find_artifacts(run))
        assert own < find_artifacts(run)[0].bytes * len(TASKS)
    assert len(_adapters.sessions) == 0  # freed with the last engine


def test_the_how_to_page_opens_such_a_board(run: Path) -> None:
    page = DOCS / "how-to" / "use-an-engine.md"
    (body,) = (b.body for b in blocks(page) if b.comment.startswith("python: needs engines with"))
    names: dict[str, Any] = {"Switchboard": Switchboard}
    exec(body.replace("runs/small", str(run)), names)
    with names["board"] as board, board.department("clinic", task="eye") as engine:
        assert engine.artifact.adapters


def test_a_board_with_adapters_refuses_a_fused_engine(exported: Path) -> None:
    board = Switchboard(exported, adapters=True)
    with (
        pytest.raises(ArtifactError, match="is fused") as caught,
        board.department("clinic", task="eye"),
    ):
        pass
    assert "--option adapters=true" in str(caught.value.fix)


def test_a_department_is_packed_with_base_and_its_own_adapters(
    run: Path, tmp_path: Path, batch: Any
) -> None:
    export(run, options=ADAPTERS)
    made = pack(run, "clinic", tmp_path / "packed")
    files = [f for f in (tmp_path / "packed").rglob("*") if f.name == _adapters.BASE]
    assert len(files) == 2
    assert len({file.stat().st_ino for file in files}) == 1
    assert all(verdict.passed for verdict in verify(tmp_path / "packed"))
    assert {engine.engine for engine in made.engines} == {"eye", "findings"}


def test_a_damaged_adapter_is_refused(run: Path) -> None:
    (artifact,) = export(run, options=ADAPTERS, task=["eye"])
    (artifact.folder / _adapters.ADAPTER).write_bytes(b"no adapter")
    with pytest.raises(ArtifactError, match="has changed since"):
        open_engine(artifact)
    with pytest.raises(ArtifactError, match="damaged or no adapter"):
        exporter("onnx").open(artifact.folder, artifact.file_names, RunOptions())


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"options": ADAPTERS, "precision": "fp16"}, "adapters are fp32"),
        ({"options": ADAPTERS, "precision": "auto"}, "adapters are fp32"),
        ({"options": ADAPTERS, "teacher": True}, "no adapters"),
        ({"options": ADAPTERS | {"providers": ["CUDA"]}}, "CPU alone"),
        ({"options": {"adapters": "yes"}}, "valid boolean"),
        ({"options": ADAPTERS, "sample": ["python"]}, "samples are for fused engines"),
        ({"options": ADAPTERS, "layout": "triton"}, "knows no adapters"),
    ],
)
def test_what_has_no_adapters_is_said_before_anything_is_written(
    run: Path, given: Any, said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        export(run, **given)
    assert not list((run / "export").rglob("artifact.json"))


def test_a_bundle_with_norms_of_its_own_for_each_task_has_none(tmp_path: Path) -> None:
    bundle = load_bundle(tiny_bundle.make_bundle(tmp_path / "bundle", norm="per_task"))
    with pytest.raises(UsageError, match="stand on one W0"):
        adapted(bundle, "lung", onnx_model(bundle, "lung"))


def test_the_record_of_an_adapter_says_so(run: Path) -> None:
    (artifact,) = export(run, options=ADAPTERS, task=["eye"])
    assert read_artifact(artifact.folder).facts["options"] == {"adapters": True}
