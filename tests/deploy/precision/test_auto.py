"""`--precision auto`: every candidate measured, the fastest that keeps its accuracy taken."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lorkd_deploy import cli
from lorkd_deploy.bundle.read import load_bundle
from lorkd_deploy.deploy.artifact import Artifact, find_artifacts, read_artifact
from lorkd_deploy.deploy.candidates import Candidate, Choice, drop, judged
from lorkd_deploy.deploy.export import export
from lorkd_deploy.deploy.precision import auto
from lorkd_deploy.deploy.precision.validation import accuracies, validation_splits
from lorkd_deploy.deploy.verify import verify
from lorkd_deploy.errors import DataError, GateError, RuntimeUnavailableError, UsageError
from lorkd_deploy.precisions import passes as precision
from lorkd_deploy.precisions.table import PRECISIONS, Tolerance
from lorkd_deploy.runtime import Probe, exporter
from tests.deploy.made_run import PREPROCESS, true_logits


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auto, "SECONDS", 0.0)


@pytest.fixture
def no_nncf(monkeypatch: pytest.MonkeyPatch) -> None:
    """int8 can't be built: it costs seconds."""
    monkeypatch.setattr(precision, "find_spec", lambda _: None)


def choice_of(artifact: Artifact) -> Choice:
    assert artifact.choice is not None
    return artifact.choice


def by_precision(choice: Choice) -> dict[str, Candidate]:
    return {entry.precision: entry for entry in choice.candidates}


def measured(precision: str, ms: float, lost: float) -> Candidate:
    return Candidate(precision=precision, status="not taken", p50_ms=ms, drop=lost)


@pytest.mark.thorough
@pytest.mark.skipif(not find_spec("nncf"), reason="int8 needs NNCF, not installed here")
def test_every_candidate_is_measured_and_the_fastest_kept(run: Path) -> None:
    (artifact,) = export(run, precision="auto", max_drop=100, task=["eye"])
    choice = choice_of(artifact)
    table = by_precision(choice)
    assert list(table) == ["fp32", "fp16", "int8"]
    assert (choice.max_drop, choice.images, choice.rounds) == (100, {"eye": 10}, 5)
    for entry in choice.candidates:
        assert entry.parity is not None and entry.parity.status == "passed"
        assert entry.p50_ms is not None and len(entry.rounds_ms) == 5
        assert np.median(entry.rounds_ms) == entry.p50_ms > 0
        assert entry.bytes
    fastest = min(choice.candidates, key=lambda entry: entry.p50_ms or 0)
    assert artifact.precision == choice.taken == fastest.precision
    assert all(entry.reason for entry in choice.candidates if entry is not fastest)
    assert artifact.name == f"clinic/eye/onnx-{fastest.precision}"
    assert read_artifact(run / "export" / artifact.name) == artifact
    assert [p.name for p in artifact.folder.parent.iterdir()] == [artifact.folder.name]
    assert [verdict.passed for verdict in verify(run)] == [True]


@pytest.mark.usefixtures("no_nncf")
def test_openvino_is_measured_in_what_its_device_can_do(run: Path) -> None:
    if not exporter("openvino").probe().can_run:
        pytest.skip("the target's runtime is not installed")
    (artifact,) = export(run, "openvino", precision="auto", max_drop=100, task=["eye"])
    table = by_precision(choice_of(artifact))
    assert set(table) == set(exporter("openvino").probe().precisions)
    assert table["int8"].status == "not built"
    ran = {name: entry for name, entry in table.items() if entry.p50_ms is not None}
    assert {"fp32", "fp16"} <= set(ran)
    assert artifact.precision == min(ran, key=lambda name: ran[name].p50_ms or 0)
    assert artifact.facts["precision"] == artifact.precision
    assert artifact.folder.name == f"openvino-{artifact.precision}"
    assert [verdict.passed for verdict in verify(run)] == [True]


@pytest.mark.usefixtures("no_nncf")
@pytest.mark.parametrize(("allowed", "taken"), [(None, "fp32"), (0.5, "fp32"), (2.0, "fp16")])
def test_accuracy_decides_what_may_be_taken(
    run: Path, monkeypatch: pytest.MonkeyPatch, allowed: float | None, taken: str
) -> None:
    found = {"fp32": {"eye": 0.9}, "fp16": {"eye": 0.88}}
    times = {"fp32": (2.0, 3.0, 2.5), "fp16": (1.0, 1.25, 1.5)}
    monkeypatch.setattr(auto, "accuracies", lambda *_: found)
    monkeypatch.setattr(auto, "interleaved", lambda *_, **__: times)
    (artifact,) = export(run, precision="auto", max_drop=allowed, task=["eye"])
    table = by_precision(choice_of(artifact))
    assert artifact.precision == taken
    assert table["fp16"].drop == pytest.approx(2.0)
    assert table["fp16"].p50_ms == 1.25
    assert table[taken].status == "taken"
    said = {name: entry.reason for name, entry in table.items() if entry.status == "not taken"}
    expected = "fp16 is 2.00 times as fast" if taken == "fp16" else "loses 2.00 points, 0.5 are"
    assert expected in str(said)
    assert table["int8"].status == "not built"
    assert "NNCF" in str(table["int8"].reason)


@pytest.mark.usefixtures("no_nncf")
def test_a_candidate_whose_parity_fails_is_shown_and_not_taken(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = replace(PRECISIONS["fp16"], tolerance=Tolerance(1e-9, 0.0, 1e-9))
    monkeypatch.setitem(PRECISIONS, "fp16", exact)
    (artifact,) = export(run, precision="auto", task=["eye"])
    refused = by_precision(choice_of(artifact))["fp16"]
    assert artifact.precision == "fp32"
    assert refused.status == "parity failed"
    assert "max |difference|" in str(refused.reason)
    assert refused.parity is not None and refused.parity.max_abs is not None
    assert refused.p50_ms is None
    exact = replace(PRECISIONS["fp32"], tolerance=Tolerance(1e-9, 0.0, 1e-9))
    monkeypatch.setitem(PRECISIONS, "fp32", exact)
    with pytest.raises(GateError, match="fp32 engine of lung"):
        export(run, precision="auto", task=["lung"])
    assert [a.engine for a in find_artifacts(run)] == ["eye"]
    assert not list((run / "export" / "ward").rglob("*.onnx"))


@pytest.mark.usefixtures("no_nncf")
def test_the_teacher_is_judged_by_the_task_that_loses_most(run: Path) -> None:
    (artifact,) = export(run / "teacher", precision="auto")
    choice = choice_of(artifact)
    assert choice.images == {"lung": 10, "heart": 10, "eye": 10, "findings": 10}
    assert drop({"a": 0.9, "b": 0.8}, {"a": 0.92, "b": 0.7}) == pytest.approx(10)


def test_without_validation_images(run: Path, data: Path) -> None:
    arrays = dict(np.load(data / "lung.npz"))
    np.savez(data / "lung.npz", **arrays | {"val_labels": np.zeros(10, np.int64)})
    with pytest.raises(DataError, match="validation images of lung: all images have the same"):
        export(run, precision="auto", task=["lung"])
    (data / "eye.npz").unlink()
    with pytest.raises(DataError, match="validation images of eye") as caught:
        export(run, precision="auto", task=["eye"])
    assert "choose a --precision" in str(caught.value.fix)
    assert not list((run / "export").rglob("*.onnx"))


def test_other_data_than_the_bundles(run: Path) -> None:
    bundle = load_bundle(run)
    bundle.task("eye").data["sha256"] = "0" * 64
    with pytest.raises(DataError, match="not what the bundle was made with"):
        validation_splits(bundle, "eye")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"precision": "fp32", "max_drop": 0.1}, "max_drop is for precisions auto and int8"),
        ({"precision": "auto", "max_drop": -1}, "max_drop is -1"),
        ({"precision": "int8", "max_drop": 101}, "max_drop is 101"),
    ],
)
def test_a_drop_that_can_not_be_meant(run: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        export(run, **arguments)


def test_what_can_not_run_here_can_not_be_measured(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unable = Probe(True, False, "1.0", ("fp32", "fp16"), reason="there is no GPU")
    monkeypatch.setattr(exporter("onnx"), "probe", lambda: unable)
    with pytest.raises(RuntimeUnavailableError, match="onnx can't run here: there is no GPU") as e:
        export(run, precision="auto")
    assert "fp32, fp16" in str(e.value.fix)


def test_the_rule_of_the_choice() -> None:
    exact, slow, fast = measured("fp32", 3, 0), measured("fp16", 4, -0.1), measured("int8", 1, 0.5)
    table = judged([exact, slow, fast], 0.5)
    assert [entry.status for entry in table] == ["not taken", "not taken", "taken"]
    assert table[0].reason == "int8 is 3.00 times as fast"
    stricter = judged([exact, slow, fast], 0.4)
    assert [entry.status for entry in stricter] == ["taken", "not taken", "not taken"]
    absent = Candidate(precision="bf16", status="not built", reason="no bf16")
    assert judged([exact, absent], 0)[1] == absent
    with pytest.raises(GateError, match="no candidate"):
        judged([absent], 0.5)


def test_accuracy_is_that_of_the_validation_split(run: Path) -> None:
    bundle = load_bundle(run)
    splits = validation_splits(bundle, "eye")
    images, labels = splits[0].split.images, splits[0].split.labels
    x = PREPROCESS(images[row] for row in range(10))
    expected = float((true_logits(run, "eye", x).argmax(1) == labels).mean())

    class Exact:
        def __call__(self, batch: Any) -> Any:
            return true_logits(run, "eye", batch).astype(np.float32)

    class Broken(Exact):
        def __call__(self, batch: Any) -> Any:
            logits = super().__call__(batch)
            logits[:5] = np.nan
            return logits

    found = accuracies(splits, bundle, {"a": Exact(), "b": Broken()})  # type: ignore[dict-item]
    assert found["a"] == {"eye": expected}
    assert found["b"]["eye"] <= 0.5


def test_rounds_are_interleaved(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    class Named:
        def __init__(self, name: str) -> None:
            self.name = name

        def __call__(self, batch: Any) -> Any:
            if not seen or seen[-1] != self.name:
                seen.append(self.name)

    runners: Any = {name: Named(name) for name in "abc"}
    found = auto.interleaved(runners, np.zeros((1, 3, 8, 8), np.float32), rounds=3, seconds=0)
    assert seen == ["a", "b", "c", "b", "a", "b", "c"]  # the ends of two rounds run together
    assert {name: len(medians) for name, medians in found.items()} == {"a": 3, "b": 3, "c": 3}


@pytest.mark.usefixtures("no_nncf")
def test_the_table_is_printed(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["export", str(run), "--precision", "auto", "--task", "eye"]) == 0
    shown = capsys.readouterr().out
    for part in ("Candidates of clinic/eye, at most 0.5 points", "not built", "taken", "10 valid"):
        assert part in shown
