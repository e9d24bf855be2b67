"""Model cards: Hugging Face's format, the measured figures, the gaps."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from lorkd_deploy.deploy.artifact import read_artifact
from lorkd_deploy.profiling.profile import PROFILE
from lorkd_deploy.reporting.report import report
from lorkd_deploy.schema import document_bytes
from lorkd_deploy.storage import sha256_file
from tests.reporting.run_folder import MANY_ENGINES, TASKS, build_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = build_run(tmp_path_factory.mktemp("cards") / "run")
    report(folder)
    return folder


def front_matter(text: str) -> dict[str, object]:
    start, head, _ = text.split("---\n", 2)
    assert start == ""
    found: dict[str, object] = yaml.safe_load(head)
    return found


def test_front_matter_holds_what_the_engine_scored(run: Path) -> None:
    head = front_matter((run / "cards/blood/model_card.md").read_text())
    assert head["pipeline_tag"] == "image-classification"
    assert "not-a-medical-device" in head["tags"]  # type: ignore[operator]
    (index,) = head["model-index"]  # type: ignore[misc]
    (result,) = index["results"]
    assert result["dataset"]["name"] == "medmnist/cellsmnist"
    values = {metric["type"]: metric["value"] for metric in result["metrics"]}
    assert values == {"accuracy": 0.938, "roc_auc": 0.996}


def test_hugging_face_reads_it(run: Path) -> None:
    hub = pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")
    card = hub.ModelCard.load(run / "cards/eye/model_card.md")
    found = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert found == {"accuracy": 0.505, "roc_auc": 0.698}
    assert card.data.library_name == "lorkd-deploy"


def test_it_says_what_it_is_for_and_what_is_unknown(run: Path) -> None:
    text = (run / "cards/blood/model_card.md").read_text()
    for heading in ("Intended use", "Data", "How it was decomposed", "Evaluation", "Limits"):
        assert f"\n## {heading}\n" in text
    assert "**Not a medical device.**" in text
    assert "Patients' ages, sexes, devices and sites: not recorded here." in text
    assert "Below the foundation model by more than chance explains: cells." in text
    assert sha256_file(run / "bundle/manifest.json") in text
    assert sha256_file(run / "bundle/experts/cells.safetensors") in text
    assert "ultrasound" not in text  # another department's


def test_it_has_the_hashes_of_its_engines_and_of_the_teacher(tmp_path: Path) -> None:
    run = build_run(tmp_path / "run", tasks=TASKS[:2], engines=MANY_ENGINES)
    report(run)
    hashes = (run / "cards/breast/model_card.md").read_text().split("## Hashes")[1]
    for name, *_ in MANY_ENGINES:
        engine = read_artifact(run / f"export/breast/ultrasound/{name}")
        (line,) = [text for text in hashes.splitlines() if f"ultrasound/{name}/" in text]
        file = engine.files[0]
        assert line == f"- export/{engine.name}/{file.name}, sha256: {file.sha256}"
    teacher = sha256_file(run / "teacher/manifest.json")
    assert f"- Foundation model's bundle (manifest.json), sha256: {teacher}\n" in hashes
    assert "xray" not in hashes  # another department's


def test_hashes_that_are_not_there_are_said(tmp_path: Path) -> None:
    run = build_run(tmp_path / "run", tasks=TASKS[:1], profile=False, artifacts=False)
    shutil.rmtree(run / "teacher")
    report(run)
    hashes = (run / "cards/breast/model_card.md").read_text().split("## Hashes")[1]
    assert "- Engines: not exported\n" in hashes
    assert "bundle (manifest.json), sha256: not recorded here\n" in hashes


def test_a_latency_stands_beside_how_it_was_measured(tmp_path: Path) -> None:
    run = build_run(tmp_path / "run", tasks=TASKS[:1])
    file = run / "profile" / PROFILE
    content = json.loads(file.read_text())
    content["notes"] = ["a quick run (5 rounds of 3 s): no figure to be quoted", "ran on battery"]
    file.write_bytes(document_bytes(content))
    report(run)
    card = (run / "cards/breast/model_card.md").read_text()
    speed = card.split("## Latency and memory")[1].split("\n## ")[0]
    assert "Measured 2026-11-23 on Fixture CPU @ 2.50GHz, one thread, pinned to CPU 1" in speed
    assert "ran five rounds in fresh processes" in speed and "at least 100 images and 3 s" in speed
    assert "- A quick run (5 rounds of 3 s): no figure to be quoted.\n- Ran on battery.\n" in speed
    assert speed.index("Ran on battery") < speed.index("| Engine |")


def test_nothing_is_claimed_that_was_not_measured(tmp_path: Path) -> None:
    run = build_run(tmp_path / "run", profile=False, artifacts=False)
    report(run)
    text = (run / "cards/eye/model_card.md").read_text()
    assert "model-index" not in front_matter(text)
    assert "Latency, throughput and memory: not measured here." in text
    assert "not exported" in text
