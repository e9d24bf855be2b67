"""The commands on a finished run: one JSON document each, tables with its figures, exit codes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lorkd_deploy import cli
from tests.cli.contract import ERROR, keys, printed
from tests.deploy.made_run import DEPARTMENTS, TASKS, make_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with its engines; tests that damage it work on their own export."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / "data").mkdir()
    made = make_run(folder / "run", folder / "data")
    assert cli.main(["export", str(made), "--teacher", "--quiet"]) == 0
    return made


def document(arguments: list[str], capsys: pytest.CaptureFixture[str], code: int = 0) -> Any:
    """What the command prints with `--json`: it has to be one document with its own keys alone."""
    capsys.readouterr()
    assert cli.main([*arguments, "--json"]) == code
    shown = json.loads(capsys.readouterr().out)
    listed = ERROR if "error" in shown else keys(arguments[0])
    assert set(printed(shown, listed)) <= set(listed)
    return shown


def test_export_takes_departments_and_tasks(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--out", str(tmp_path / "engines")]
    artifacts = document(["export", str(run), "--department", "clinic", *out], capsys)
    assert [a["engine"] for a in artifacts] == list(DEPARTMENTS["clinic"])
    assert all(a["parity"]["status"] == "passed" for a in artifacts)
    folder = Path(artifacts[0]["folder"])
    assert (folder / artifacts[0]["files"][0]["name"]).is_file()
    assert cli.main(["export", str(run), "--task", "lung", *out]) == 0
    shown = capsys.readouterr().out
    assert "ward/lung/onnx-fp32" in shown
    assert "passed" in shown


def test_export_says_where_repository_and_programs_are(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    repository = tmp_path / "models"
    asked = ["--layout", "triton", "--sample", "python", "--out", str(repository)]
    assert cli.main(["export", str(run), "--task", "lung", *asked]) == 0
    shown = capsys.readouterr().out
    assert f"model repository: {repository}" in shown
    assert "sample-python" in shown
    assert (repository / "lung" / "config.pbtxt").is_file()
    assert (run / "export/ward/lung/onnx-fp32/sample-python/classify.py").is_file()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--layout", "tritn"], "'triton'"),
        (["--sample", "java"], "cpp, python"),
        (["--task", "lungs"], "'lung'"),
        (["--department", "wrad"], "'ward'"),
        (["--target", "onxn"], "'onnx'"),
    ],
)
def test_export_names_the_nearest(
    run: Path, options: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    fault = document(["export", str(run), *options], capsys, code=2)
    assert says in fault["error"]["fix"]


def test_verify_passes_and_fails_with_exit_3(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    verdicts = document(["verify", str(run)], capsys)
    assert len(verdicts) == len(TASKS) + 1
    assert all(verdict["passed"] for verdict in verdicts)

    (tmp_path / "data").mkdir()
    damaged = make_run(tmp_path / "run", tmp_path / "data")
    assert cli.main(["export", str(damaged), "--quiet"]) == 0
    engine = damaged / "export" / "ward" / "lung" / "onnx-fp32" / "model.onnx"
    content = bytearray(engine.read_bytes())
    content[len(content) // 2] ^= 1
    engine.write_bytes(bytes(content))
    failed = document(["verify", str(damaged)], capsys, code=3)
    assert [v["engine"] for v in failed if not v["passed"]] == ["ward/lung/onnx-fp32"]
    assert cli.main(["verify", str(damaged), "--quiet"]) == 3
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "warning: ward/lung/onnx-fp32: model.onnx has changed" in shown.err


def test_fuse_writes_the_file_it_names(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "eye.safetensors"
    said = document(["fuse", str(run), "--task", "eye", "--out", str(file)], capsys)
    assert said == {"task": "eye", "file": str(file), "bytes": file.stat().st_size}


def test_pack_says_what_it_delivered(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["pack", str(run), "--department", "clinic", "--out", str(tmp_path / "clinic")]
    made = document(arguments, capsys)
    assert made["tasks"] == list(DEPARTMENTS["clinic"])
    assert made["engines"] == [f"clinic/{task}/onnx-fp32" for task in made["tasks"]]
    assert cli.main(["verify", made["folder"], "--quiet"]) == 0
    assert "holds something" in document(arguments, capsys, code=2)["error"]["what"]
    assert cli.main([*arguments[:-1], str(tmp_path / "again")]) == 0
    shown = capsys.readouterr().out
    assert "eye, findings, 2 engines" in shown
    assert made["bundle_sha256"] in shown


def test_predict_prints_and_writes_probabilities(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    for index in range(2):
        pixels = rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{index}.png")
    csv, inputs = tmp_path / "out.csv", tmp_path / "x.npy"
    arguments = ["predict", str(run), "--task", "eye", str(tmp_path), "--csv", str(csv)]
    predictions = document([*arguments, "--save-input", str(inputs)], capsys)
    assert [Path(entry["file"]).name for entry in predictions] == ["0.png", "1.png"]
    for entry in predictions:
        assert len(entry["probabilities"]) == TASKS["eye"]
        assert sum(entry["probabilities"].values()) == pytest.approx(1, abs=1e-5)
        assert entry["label"] == max(entry["probabilities"], key=entry["probabilities"].get)
    assert len(csv.read_text(encoding="utf-8").splitlines()) == 3
    assert np.load(inputs, allow_pickle=False).shape == (2, 3, 16, 16)

    (tmp_path / "bad.png").write_bytes(b"no image")
    fault = document(arguments, capsys, code=1)
    assert "bad.png" in fault["error"]["where"]


def test_inspect_shows_run_and_engine(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = document(["inspect", str(run)], capsys)
    assert [task["name"] for task in found["bundle"]["tasks"]] == list(TASKS)
    assert cli.main(["inspect", str(run)]) == 0
    shown = capsys.readouterr().out
    for part in ("ward/heart/onnx-fp32", found["bundle"]["sha256"], "Teacher made"):
        assert part in shown
    engine = run / "export" / "clinic" / "eye" / "onnx-fp32"
    assert document(["inspect", str(engine)], capsys)["engines"][0]["name"] == (
        "clinic/eye/onnx-fp32"
    )
    missing = document(["inspect", str(run / "nowhere")], capsys, code=1)
    assert "does not exist" in missing["error"]["what"]


@pytest.mark.thorough
def test_benchmark_and_report(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    short = ["--rounds", "1", "--seconds", "0.01", "--iterations", "2", "--department", "ward"]
    short += ["--repeats", "0", "--largest-batch", "0"]
    profile = document(["benchmark", str(run), *short], capsys)
    assert {engine["engine"] for engine in profile["engines"]} == {
        "ward/lung/onnx-fp32",
        "ward/heart/onnx-fp32",
        "teacher/onnx-fp32",
    }
    files = document(["report", str(run)], capsys)
    assert Path(files["html"]).is_file()
    assert Path(files["markdown"]).is_file()
