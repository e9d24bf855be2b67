"""What makes answers safe, from the recipe to packed departments on a machine without torch."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lorkd_deploy import cli, decompose, export, load_bundle, pack, predict, report, teacher, verify
from lorkd_deploy.clinic.audit import entries
from lorkd_deploy.errors import ArtifactError, UsageError
from lorkd_deploy.reporting.facts import looks
from lorkd_deploy.reporting.facts.sources import read_sources
from lorkd_deploy.run import open_run
from tests.tiny_recipe import write_recipe

WITHOUT_TORCH = """
import json, sys
sys.modules["torch"] = None
from lorkd_deploy import predict
run, maps, *images = sys.argv[1:]
found = {
    t: predict(run, "cells", images, target=t, coverage=0.9, explain=f"{maps}/{t}")
    for t in ("onnx", "openvino")
}
print(json.dumps({t: [answer.model_dump() for answer in a] for t, a in found.items()}))
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with engines for two targets; pictures of the task's kind in `own`, others beside."""
    folder = tmp_path_factory.mktemp("safe")
    task = {"source": "phantom", "name": "cells", "train": 96, "val": 120, "test": 40}
    safety = {"temperature": True, "coverage": True, "guard": True, "explain": True}
    recipe = write_recipe(
        folder / "recipe.yaml",
        departments=[{"name": "ward-a", "tasks": [{"name": "cells", "data": task}]}],
        transfer={"kind": "none"},
        safety=safety,
        # Two epochs leave logits that int8 may turn; maps and guard are judged by themselves.
        parity={"inputs": 6, "test_images": 10, "tolerance": {"int8": {"flips": 0.5}}},
    )
    teacher(recipe, folder / "run")
    decompose(recipe, folder / "run")
    for target in ("onnx", "openvino"):
        export(folder / "run", target, explain=True)
    images = load_bundle(folder / "run").data("cells").test.images
    (folder / "own").mkdir()
    for number in range(40):
        Image.fromarray(np.asarray(images[number]).squeeze()).save(folder / f"own/{number:02}.png")
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    Image.fromarray(noise).save(folder / "foreign.png")
    return folder / "run"


@pytest.fixture
def images(run: Path) -> list[Path]:
    return [*sorted((run.parent / "own").iterdir()), run.parent / "foreign.png"]


def test_a_packed_department_answers_without_torch_alike_on_both_runtimes(
    run: Path, images: list[Path], tmp_path: Path
) -> None:
    pack(run, "ward-a", tmp_path / "packed")
    given = [str(tmp_path / "packed"), str(tmp_path), *map(str, images)]
    command = [sys.executable, "-c", WITHOUT_TORCH, *given]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    here = [
        answer.model_dump(mode="json") for answer in predict(run, "cells", images, coverage=0.9)
    ]
    for answers in (here, found["openvino"]):
        for one, other in zip(found["onnx"], answers, strict=True):
            assert (one["outcome"], one["label"]) == (other["outcome"], other["label"])
            assert one["possible"] == other["possible"]
            assert one["guard"] == pytest.approx(other["guard"], rel=1e-4)
            assert one["probabilities"] == pytest.approx(other["probabilities"], abs=1e-5)
            assert (one["overlay"] is None) == (one["outcome"] == "outside")
    for one, other in zip(found["onnx"], found["openvino"], strict=True):
        if one["overlay"] is not None:
            pictures = [np.asarray(Image.open(p["overlay"])).astype(int) for p in (one, other)]
            stored = np.asarray(Image.open(one["file"]).convert("RGB"))
            assert pictures[0].shape == stored.shape and (pictures[0] != stored).any()
            assert (np.abs(pictures[0] - pictures[1]).max(axis=2) > 1).mean() < 0.02
    foreign = found["onnx"][-1]
    assert (foreign["outcome"], foreign["label"], foreign["probabilities"]) == (
        "outside",
        "outside",
        {},
    )
    assert foreign["guard"] > 1
    outside = [answer["outcome"] == "outside" for answer in found["onnx"][:-1]]
    assert np.mean(outside) < 0.25  # 5 % are promised on average, of 40 images
    for answer in found["onnx"][:-1]:
        if answer["outcome"] != "outside":
            alone = len(answer["possible"]) == 1
            assert answer["outcome"] == ("answered" if alone else "refer")


def test_without_the_guard_every_picture_has_an_answer_and_the_log_says_so(
    run: Path, images: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "log.jsonl"
    command = ["predict", str(run), *map(str, images), "--task", "cells", "--audit", str(log)]
    assert cli.main([*command, "--no-guard", "--json"]) == 0
    without = json.loads(capsys.readouterr().out)
    assert {answer["outcome"] for answer in without} == {"answered"}
    assert cli.main([*command, "--csv", str(tmp_path / "a.csv")]) == 0
    assert "not of this kind: guard" in capsys.readouterr().out
    row = (tmp_path / "a.csv").read_text().splitlines()[-1]
    assert row.split(",")[1:3] == ["cells", "outside"] and row.endswith(",,")
    kept = entries(log)
    assert len(kept) == 2 * len(images)
    assert {entry.guarded for entry in kept[: len(images)]} == {False}
    assert kept[-1].outcome == "outside" and kept[-1].guarded and kept[-1].ms > 0
    assert str(images[0].name) not in log.read_text()
    assert cli.main(["audit", "verify", str(log)]) == 0
    assert kept[-1].sha256 in capsys.readouterr().out


def test_drift_is_nothing_of_the_same_images_and_found_of_others(
    run: Path, images: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own, other = tmp_path / "own.jsonl", tmp_path / "other.jsonl"
    command = ["predict", str(run), "--task", "cells", "--quiet"]
    assert cli.main([*command, *map(str, images[:-1]), "--audit", str(own)]) == 0
    assert cli.main([*command, *[str(images[-1])] * 40, "--audit", str(other)]) == 0
    assert cli.main(["drift", str(own), str(run), "--limit", "1"]) == 0
    page = tmp_path / "drift.html"
    assert cli.main(["drift", str(other), str(run), "--html", str(page)]) == 3
    said = capsys.readouterr()
    assert "guard of cells has drifted" in said.err
    assert "100.0% of the pictures were answered outside" in said.out
    assert "<svg" in page.read_text() and "Over the limit" in page.read_text()


def test_what_the_bundle_can_not_do_is_said(run: Path, images: list[Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"can't promise a coverage of 0\.999"):
        predict(run, "cells", images, coverage=0.999)
    damaged = shutil.copytree(run, tmp_path / "run")
    engine = damaged / "export/ward-a/cells/onnx-fp32"
    record = json.loads((engine / "artifact.json").read_text())
    assert [entry["on"] for entry in record["parity"]["guard"]] == ["inputs", "images"]
    (damaged / "bundle/safety/cells.safetensors").write_bytes(b"other")
    with pytest.raises(Exception, match=r"cells.safetensors has changed"):
        predict(damaged, "cells", images)


def test_an_engine_without_the_guard_s_features_is_refused(
    run: Path, images: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from lorkd_exporters.onnx import OnnxRunner

    def alone(self: OnnxRunner, batch: Any) -> Any:
        return {"output": self(batch)}

    monkeypatch.setattr(OnnxRunner, "outputs", alone)
    with pytest.raises(ArtifactError, match="without what the guard needs"):
        predict(run, "cells", images[:1])
    assert predict(run, "cells", images[:1], guard=False)[0].guard is None


def test_an_int8_engine_has_guard_and_maps_that_are_proven(
    run: Path, images: list[Path], tmp_path: Path
) -> None:
    for target in ("onnx", "openvino"):
        (made,) = export(run, target, precision="int8", explain=True, out=tmp_path)
        assert [part.on for part in made.parity.guard] == ["inputs", "images"]
        assert [part.on for part in made.parity.maps] == ["inputs", "images"]
        assert all(part.passed for part in (*made.parity.guard, *made.parity.maps))
        assert made.parity.guard[1].largest < 1e-3  # the first layer stays float32
        assert made.parity.maps[1].max_abs > 1e-4  # what follows doesn't


def test_a_map_that_is_another_s_fails_the_proof(run: Path, monkeypatch: Any) -> None:
    from lorkd_exporters.onnx import OnnxRunner

    given = OnnxRunner.outputs

    def turned(self: OnnxRunner, batch: Any) -> Any:
        found = given(self, batch)
        return found | {"maps": found["maps"][..., ::-1]}

    monkeypatch.setattr(OnnxRunner, "outputs", turned)
    verdicts = {verdict.engine: verdict for verdict in verify(run)}
    reasons = verdicts["ward-a/cells/onnx-fp32"].reasons
    assert not verdicts["ward-a/cells/onnx-fp32"].passed and "the maps" in reasons[0]
    assert verdicts["ward-a/cells/openvino-fp32"].passed


def test_an_engine_without_maps_is_refused(run: Path, images: list[Path], tmp_path: Path) -> None:
    (plain,) = export(run, "onnx", precision="fp16")
    assert not plain.explain and not plain.parity.maps and plain.parity.guard
    with pytest.raises(ArtifactError, match="no map of where it looks"):
        predict(run, "cells", images[:1], precision="fp16", explain=tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_report_says_what_the_answers_come_with(run: Path) -> None:
    files = report(run, images=True)
    table = next(file for file in files.tables if file.name.endswith("in-use.csv"))
    manifest = load_bundle(run).task("cells").safety
    assert manifest.temperature and manifest.coverage and manifest.guard
    text = table.read_text()
    assert f"{manifest.guard.low}" in text
    assert f"{manifest.temperature.after.brier.value}" in text
    assert f"{manifest.coverage.tested[0].found.value}" in text
    for measure in looks.MEASURES:
        assert f"map, {measure}, Expert" in text
    page = files.html.read_text()
    assert (
        page.count("Where the models looked") == 1
        and page.count("Expert: ") >= 4
        and page.count("Foundation model: ") >= 4
    )
    assert "Where the models looked" not in report(run).html.read_text()
    assert "In use" in files.html.read_text() and "In use" in files.markdown.read_text()


def test_a_difference_of_maps_is_paired(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources = read_sources(open_run(run))
    (task,) = sources.tasks("ward-a")
    own = looks._looked(sources.bundle, "cells", task)
    assert own is not None and not np.isnan(own.figures).all()
    other = replace(own, figures=own.figures + 0.125)
    monkeypatch.setattr(
        looks, "_looked", lambda bundle, engine, task: other if engine == "teacher" else own
    )
    found = {words: interval for words, interval, _ in looks.figures(sources, task)}
    for measure in looks.MEASURES:
        paired = found[f"map, {measure}, Expert minus Foundation model"]
        assert (paired.low, paired.value, paired.high) == pytest.approx((-0.125,) * 3)
