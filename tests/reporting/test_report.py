"""The report says what was measured and, where nothing was, that; the figures are a fixture's."""

from __future__ import annotations

import base64
import csv
import io
import json
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from lorkd_deploy import cli
from lorkd_deploy.errors import BundleError, LorkdError, RuntimeUnavailableError
from lorkd_deploy.metrics.decisions import calibration_error
from lorkd_deploy.metrics.score import auc
from lorkd_deploy.profiling.profile import (
    ANSWERS,
    PROFILE,
    Profile,
    answers_name,
    labels_name,
    read_profile,
)
from lorkd_deploy.reporting.cells import significant
from lorkd_deploy.reporting.report import ReportFiles, report
from lorkd_deploy.schema import document_bytes
from lorkd_deploy.storage import read_tensors
from tests.reporting.run_folder import FINDINGS, MANY_ENGINES, TASKS, build_run

EVIL = '</script><script>window.evil=1</script><img src=x onerror="window.evil=2">'


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_run(tmp_path_factory.mktemp("report") / "run")


@pytest.fixture(scope="module")
def files(run: Path) -> ReportFiles:
    return report(run)


@pytest.fixture(scope="module")
def profile(run: Path) -> Profile:
    return read_profile(run / "profile" / "profile.json")


def downloads(html: str) -> dict[str, str]:
    """File name → text of every download."""
    links = re.findall(r'download="([^"]+)" href="data:[^"]*;base64,([^"]+)"', html)
    return {name: base64.b64decode(text).decode() for name, text in links}


def test_it_writes_beside_the_run(run: Path, files: ReportFiles) -> None:
    assert files.html == run / "report.html"
    assert files.markdown == run / "report.md"
    assert files.model_cards == tuple(run / f"cards/{t[0]}/model_card.md" for t in TASKS)
    assert all(file.stat().st_size > 1000 for file in (files.html, *files.model_cards))


def test_both_forms_show_the_measured_figures(files: ReportFiles, profile: Profile) -> None:
    texts = (files.html.read_text(), files.markdown.read_text())
    for text in texts:
        assert "Not a medical device." in text
        for engine in profile.engines:
            assert significant(engine.latency.p50.value) in text
            assert significant(engine.latency.p99) in text
        for comparison in profile.comparisons:
            assert f"{significant(comparison.latency[0].ratio.value)} ×" in text
        for _, task, *_ in TASKS:
            assert task in text


def test_what_is_worse_than_the_teacher_is_said(files: ReportFiles) -> None:
    line = "Below the foundation model in accuracy or AUC by more than chance explains"
    (said,) = [text for text in files.markdown.read_text().splitlines() if line in text]
    assert said.endswith("cells.")  # the only task whose whole interval is below zero


def test_a_gain_over_a_teacher_that_knows_nothing_is_no_success(tmp_path: Path) -> None:
    # The majority class of the fixture's images is at 43.5 %.
    department, task, classes, _, _, images = TASKS[3]
    tasks = ((department, task, classes, (0.43, 0.61), (0.93, 0.99), images), TASKS[0])
    files = report(build_run(tmp_path / "run", tasks=tasks))
    said = "No more accurate than always giving the commonest class of the test images: "
    name = f"the foundation model on {task} (43.0 %, always the commonest: 43.5 %)"
    for file in (files.markdown, files.model_cards[0]):
        (line,) = [text for text in file.read_text().splitlines() if said in text]
        assert f"{said}{name}." in line.replace("\\", "")
    assert said not in files.model_cards[1].read_text()
    page = files.html.read_text()
    assert page.index('id="verdicts"') < page.index(said)
    assert '<span class="">better than</span>' in page
    assert '<span class="">+50.0</span>' in page  # in the chapter
    assert "a foundation model that beats always giving the commonest class" in page


def test_an_expert_that_knows_nothing_is_named(tmp_path: Path) -> None:
    department, task, classes, of_teacher, _, images = TASKS[0]
    tasks = ((department, task, classes, of_teacher, (0.435, 0.5), images),)
    text = report(build_run(tmp_path / "run", tasks=tasks)).markdown.read_text()
    assert f"test images: the expert on {task} (43.5 %, always" in text
    assert f"the foundation model on {task} (" not in text


def test_downloads_hold_the_profile_s_values(files: ReportFiles, profile: Profile) -> None:
    found = downloads(files.html.read_text())
    verdicts = json.loads(found["verdicts.json"])
    assert [row["department"] for row in verdicts] == [task[0] for task in TASKS]
    engines = json.loads(found["engines-table.json"])
    timings = [timing for engine in profile.engines for timing in engine.timings]
    assert [row["p50_ms"] for row in engines] == [timing.p50.value for timing in timings]
    assert {row["size_bytes"] for row in engines} == {e.bytes for e in profile.engines}
    rows = list(csv.DictReader(io.StringIO(found["department-1-latency.csv"])))
    assert len(rows) == 2 * profile.protocol.rounds
    assert {row["round"] for row in rows} == {"1", "2", "3", "4", "5"}
    assert float(rows[0]["p50_ms"]) == pytest.approx(profile.engines[0].latency.round_p50[0])
    assert {name.rpartition(".")[2] for name in found} == {"csv", "json"}


def test_the_first_table_has_one_engine_a_task_and_another_has_all(tmp_path: Path) -> None:
    run = build_run(tmp_path / "run", engines=MANY_ENGINES)
    unproven = run / "export/eye/fundus/openvino-int8/artifact.json"
    content = json.loads(unproven.read_text())
    content["parity"] = {"status": "failed", "reasons": ["it is another model"]}
    unproven.write_bytes(document_bytes(content))
    files = report(run)
    found = downloads(files.html.read_text())
    verdicts = json.loads(found["verdicts.json"])
    # onnx int8 is faster than all, and loses five points.
    assert [(row["department"], row["engine"]) for row in verdicts] == [
        ("breast", "openvino int8"),
        ("chest", "openvino int8"),
        ("eye", "openvino fp32"),
        ("blood", "openvino int8"),
    ]
    rows = json.loads(found["engines-table.json"])
    assert len(rows) == (1 + len(TASKS) * len(MANY_ENGINES)) * 2  # two batch sizes
    notes = {
        (row["target"], row["precision"]): row.get("note")
        for row in rows
        if row["department"] == "eye"
    }
    assert notes["onnx", "int8"] == "loses 5.0 points"
    assert notes["openvino", "int8"] == "parity not proven"
    assert notes["openvino", "fp32"] == ""
    text = files.markdown.read_text()
    assert "picked for being fast, so its speed-up is on the high side" in text
    assert "is below zero): cells, xray (onnx int8)." in text


def test_without_an_accepted_engine_the_fastest_is_shown_with_its_fault(tmp_path: Path) -> None:
    run = build_run(tmp_path / "run", tasks=TASKS[:1], engines=MANY_ENGINES)
    for file in (run / "export/breast").rglob("artifact.json"):
        content = json.loads(file.read_text()) | {"parity": {"status": "not run here"}}
        file.write_bytes(document_bytes(content))
    head = report(run).markdown.read_text().split("## Departments")[0]
    assert "| onnx int8 (4.88 MiB of 89.9 MiB) |" in head
    assert "an engine: this one's parity not proven (`lorkd verify`)" in head


def test_decisions_and_flips_are_shown_where_they_were_measured(
    files: ReportFiles, profile: Profile
) -> None:
    found = downloads(files.html.read_text())
    rows = json.loads(found["department-1-decisions.json"])
    assert [row["model"] for row in rows] == ["Foundation model", "Expert"]
    score = profile.engine("breast/ultrasound/onnx-fp32").scores[0]
    assert score.sensitivity and score.specificity and score.calibration_error
    assert (rows[1]["threshold"], rows[1]["sensitivity"]) == (0.37, score.sensitivity.value)
    (row,) = json.loads(found["department-1-against.json"])
    assert (row["gained"], row["lost"], row["moved"]) == (3, 11, 1)
    assert row["mcnemar_p"] == pytest.approx(0.0574, abs=1e-4)
    text = files.markdown.read_text()
    assert "chosen on the validation images" in text and "3 (of 156) | 11 (of 156)" in text
    # More of an error is worse, although the difference is above zero.
    assert re.search(r'class="bad">\+3.0<', files.html.read_text())
    assert "### Decisions and calibration" in files.model_cards[0].read_text()


def test_chapters_show_what_lies_behind_the_figures(run: Path, files: ReportFiles) -> None:
    html = files.html.read_text()
    found = downloads(html)
    answers = read_tensors(run / "profile" / ANSWERS)
    labels = answers[labels_name("fundus")]
    given = answers[answers_name("fundus", "eye/fundus/onnx-fp32")]
    rows = json.loads(found["department-3-confusion-expert.json"])
    assert [row.pop("true") for row in rows] == ["0", "1", "2", "3", "4"]
    for k, row in enumerate(rows):
        taken = [int(((labels == k) & (given.argmax(axis=1) == j)).sum()) for j in range(5)]
        assert list(row.values()) == taken

    curve = json.loads(found["department-1-roc.json"])
    for model, engine in (
        ("Foundation model", "teacher/onnx-fp32"),
        ("Expert", "breast/ultrasound/onnx-fp32"),
    ):
        points = [
            (row["false_alarms"], row["sensitivity"]) for row in curve if row["model"] == model
        ]
        across, up = np.array(points).T
        assert points[0] == (0, 0) and points[-1] == (1, 1)
        truth = answers[labels_name("ultrasound")]
        area = auc(truth, answers[answers_name("ultrasound", engine)])
        assert np.trapezoid(up, across) == pytest.approx(area)

    bins = json.loads(found["department-3-calibration.json"])
    assert sum(row["answers"] for row in bins) == 2 * len(labels)
    gaps = [
        row["answers"] * abs(row["right"] - row["confidence"])
        for row in bins
        if row["model"] == "Expert"
    ]
    assert sum(gaps) / len(labels) == pytest.approx(calibration_error(labels, given))
    text = files.markdown.read_text()
    assert text.count("Confusion: expert") == len(TASKS) and "ROC" not in text
    assert "<img" not in html  # images only on request
    assert "lorkd report --images" in html and "`lorkd report --images`" in text


def test_findings_have_four_counts_each_and_no_test_of_mcnemars(tmp_path: Path) -> None:
    run = build_run(tmp_path / "run", tasks=(FINDINGS, TASKS[0]))
    files = report(run)
    found = downloads(files.html.read_text())
    answers = read_tensors(run / "profile" / ANSWERS)
    truth = answers[labels_name("film")] == 1
    given = answers[answers_name("film", "lungs/film/onnx-fp32")]
    said = given >= 0.5
    rows = json.loads(found["department-1-confusion-expert.json"])
    assert [row["finding"] for row in rows] == list(FINDINGS[2])
    for k, row in enumerate(rows):
        four = (truth & said, truth & ~said, ~truth & said, ~truth & ~said)
        counts = [row[name] for name in ("found", "missed", "false_alarms", "cleared")]
        assert counts == [int(part[:, k].sum()) for part in four]
    (row,) = json.loads(found["department-1-against.json"])
    assert (row["gained"], row["lost"], row["moved"], row["mcnemar_p"]) == (3, 11, 0, None)
    decisions = json.loads(found["department-1-decisions.json"])
    assert [row["threshold"] for row in decisions] == [None, None]  # one for each finding
    curve = [row for row in json.loads(found["department-1-roc.json"]) if row["model"] == "Expert"]
    area = np.trapezoid(
        [row["sensitivity"] for row in curve], [row["false_alarms"] for row in curve]
    )
    assert area == pytest.approx(auc(truth.astype(np.int64), given), abs=0.01)  # on a grid
    bins = json.loads(found["department-1-calibration.json"])
    assert sum(row["answers"] for row in bins) == 2 * truth.size
    for file in (files.markdown, files.model_cards[0]):
        text = file.read_text()
        assert "3 labels, any number at once (edema, effusion, nodule)" in text
        assert "0.31 to 0.52 (one for each of 3)" in text
        assert "| 3 (of 900) | 11 (of 900) | 0 | – (findings of one image) |" in text


def test_answers_that_are_not_the_profiles_are_not_shown(tmp_path: Path) -> None:
    run = build_run(tmp_path / "run")
    (run / "profile" / ANSWERS).write_bytes(b"other")
    text = report(run).markdown.read_text()
    assert "Confusion" not in text and "Sensitivity" in text


def test_stages_and_build_time_are_shown(files: ReportFiles) -> None:
    found = downloads(files.html.read_text())
    rows = json.loads(found["department-1-stages.json"])
    assert [row["read_ms"] for row in rows] == [3.1, 3.1]
    assert rows[1]["end_to_end_ms"] == pytest.approx(8.15)
    (teacher, expert) = json.loads(found["department-1-start.json"])
    assert expert["build_s"] == 0.4
    assert expert["uncached_load_ms"] == pytest.approx(2 * expert["load_ms"])
    assert teacher["forgotten"] == 0.97


def test_what_changed_since_another_run_is_on_the_page(
    tmp_path: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = build_run(tmp_path / "before", tasks=TASKS[:1], engines=(("onnx-fp32", 2.0, 0.0),))
    assert cli.main(["report", str(run), "--against", str(before), "--json"]) == 0
    html = Path(json.loads(capsys.readouterr().out)["html"])
    rows = json.loads(downloads(html.read_text())["changes.json"])
    found = {(row["engine"], row["figure"]): row for row in rows}
    p50 = found["breast/ultrasound/onnx-fp32", "p50_ms"]
    assert p50["verdict"] == "better" and p50["change"] == pytest.approx(0.5, abs=0.05)
    assert p50["second"] == pytest.approx(0.5 * p50["first"], rel=0.1)
    text = html.with_name("report.md").read_text()
    assert "figures changed beyond noise since the run of 2026-11-23T21:14:05Z" in text
    assert "Only in the second run: blood/cells/onnx-fp32" in text.replace("\\", "")
    assert "changes.json" not in downloads(report(run).html.read_text())
    assert cli.main(["report", str(run), "--against", str(tmp_path / "nowhere")]) == 1
    assert "the folder does not exist" in capsys.readouterr().err


def test_the_layers_that_take_most_are_shown_where_a_runtime_tells(tmp_path: Path) -> None:
    run = build_run(tmp_path / "run", tasks=TASKS[:1])
    file = run / "profile" / PROFILE
    content = json.loads(file.read_text())
    content["engines"][1]["layers"] = [
        {"name": f"conv{k}", "kind": "Conv", "precision": "int8" if k else "fp32", "ms": 0.1 * k}
        for k in range(11)
    ]
    file.write_bytes(document_bytes(content))
    html = report(run).html.read_text()
    rows = json.loads(downloads(html)["layers.json"])
    assert [row["layer"] for row in rows] == [*(f"conv{k}" for k in range(10, 2, -1)), "3 others"]
    assert [row["precision"] for row in rows] == [*["int8"] * 8, "fp32, int8"]
    assert sum(row["share"] for row in rows) == pytest.approx(1)
    assert rows[0]["ms"] == pytest.approx(1) and "Where the time goes" in html


def test_what_int8_costs_is_shown_layer_by_layer(tmp_path: Path) -> None:
    run = build_run(tmp_path / "run", tasks=TASKS[:1], engines=MANY_ENGINES)
    file = run / "export" / "breast" / "ultrasound" / "onnx-int8" / "artifact.json"
    content = json.loads(file.read_text())
    gains = [2.5, 1.25, *[-0.125] * 10]
    content["sensitivity"] = {
        "max_drop": 0.5,
        "images": 78,
        "layers": [f"conv{k}" for k in range(12)],
        **{"fp32": {"ultrasound": 0.9}, "int8": {"ultrasound": 0.86}},
        "mixed": {"ultrasound": 0.897},
        "nodes_left": ["node_0"],
        "left": ["conv0"],
        "groups": [
            {"layers": [f"conv{k}"], "gain": gain, "images": 78, "left": k == 0}
            for k, gain in enumerate(gains)
        ],
    }
    file.write_bytes(document_bytes(content))
    html = report(run).html.read_text()
    rows = json.loads(downloads(html)["int8.json"])
    assert [row["layers"] for row in rows] == [*(f"conv{k}" for k in range(9)), "3 others"]
    assert [row["computes_in"] for row in rows] == ["fp32", *["int8"] * 9]
    assert [row["points"] for row in rows] == [*gains[:9], None]
    assert "--precision int8 --max-drop 0.5" in html
    assert "int8.json" not in downloads(report(build_run(tmp_path / "plain")).html.read_text())


def test_a_runtimes_own_cache_is_told_where_it_has_one(tmp_path: Path) -> None:
    run = build_run(tmp_path / "run")
    assert report(run).markdown.read_text().count("No runtime keeps a cache") == len(TASKS)
    file = run / "profile" / "profile.json"
    content = json.loads(file.read_text())
    for engine, loaded in zip(content["engines"], (True, False), strict=False):
        engine["facts"]["from_cache"] = loaded
        engine["target"] = "openvino"
    file.write_bytes(document_bytes(content))
    text = report(run).markdown.read_text()
    assert "No runtime keeps a cache" not in text  # the teacher's does, beside every department
    assert text.count("folder's files are among those that are forgotten") == len(TASKS)
    assert text.count("It was empty in the first round of Expert") == 1


def test_memory_stands_beside_each_batch_where_it_is_known(
    tmp_path: Path, files: ReportFiles
) -> None:
    rows = json.loads(downloads(files.html.read_text())["engines-table.json"])
    assert [(row["batch"], row["peak_mib"]) for row in rows][:4] == [
        *((1, 189), (8, 196)),  # the foundation model
        *((1, 32.5), (8, 39.5)),
    ]
    run = build_run(tmp_path / "run", tasks=TASKS[:1])
    file = run / "profile" / PROFILE
    content = json.loads(file.read_text())
    for timing in (t for engine in content["engines"] for t in engine["timings"]):
        timing["peak_mib"] = None
    file.write_bytes(document_bytes(content))
    text = report(run).html.read_text()
    rows = json.loads(downloads(text)["engines-table.json"])
    assert len(rows) == 4 and "peak_mib" not in rows[0]
    assert "Not measured here: Peak memory, Energy." in text


def test_memory_alone_and_of_all_departments_together(files: ReportFiles) -> None:
    found = downloads(files.html.read_text())
    rows = json.loads(found["department-1-memory.json"])
    assert rows[1]["loaded_mib"] < rows[1]["peak_mib"]
    assert "gpu_mib" not in rows[1]
    (row,) = json.loads(found["together-table.json"])
    assert (row["apart_mib"], row["apart_shared_mib"], row["one_process_mib"]) == (320, 210, 110)
    text = files.markdown.read_text()
    assert "110 MiB shared" in text and "+10.0 MiB per department" in text
    assert "GPU memory: not measured: nvidia-ml-py is not installed" in text


def test_every_download_is_a_csv_file_beside_the_report(run: Path, files: ReportFiles) -> None:
    found = downloads(files.html.read_text())
    written = {file.name: file.read_bytes().decode() for file in files.tables}
    assert written == {name: text for name, text in found.items() if name.endswith(".csv")}
    assert {file.parent for file in files.tables} == {run / "report-csv"}


def test_a_csv_file_of_what_is_measured_no_more_goes(tmp_path: Path) -> None:
    run = build_run(tmp_path / "run")
    before = set(report(run).tables)
    (run / "profile/profile.json").unlink()
    left = report(run).tables
    assert set((run / "report-csv").iterdir()) == set(left) < before


def test_answers_come_before_speed_and_words_are_explained(files: ReportFiles) -> None:
    text = files.markdown.read_text()
    chapter = text.split("### breast")[1].split("### chest")[0]
    order = ("Accuracy on the test", "Confusion", "From an image file", "Cold start", "Memory")
    places = [chapter.index(f"#### {title}") for title in order]
    assert places == sorted(places)
    assert "- Sensitivity: of the images that show the finding" in text
    assert 'href="#words"' in files.html.read_text()


def test_nothing_comes_from_the_network(files: ReportFiles) -> None:
    page = files.html.read_text()
    assert len(page) < 1_200_000
    assert not re.findall(r"https?://|//cdn|@import|url\(", page)
    assert "default-src 'none'" in page
    assert "connect-src" not in page  # the default holds: nothing may be asked for


def test_no_folder_of_this_machine_is_in_it(run: Path, files: ReportFiles) -> None:
    for file in (files.html, files.markdown, *files.model_cards):
        assert str(run.parent) not in file.read_text()


def test_the_same_run_gives_the_same_bytes(run: Path, files: ReportFiles) -> None:
    before = [file.read_bytes() for file in (files.html, files.markdown, *files.model_cards)]
    again = report(run)
    assert before == [f.read_bytes() for f in (again.html, again.markdown, *again.model_cards)]


def test_without_a_profile_gaps_are_said_and_sizes_are_known(tmp_path: Path) -> None:
    files = report(build_run(tmp_path / "run", profile=False))
    text = files.markdown.read_text()
    assert text.startswith("# Four departments, not benchmarked yet")
    assert "not measured here. Run `lorkd benchmark`, then `lorkd report` again." in text
    row = next(line for line in text.splitlines() if line.startswith("| breast"))
    assert row.count("not measured here") == 2  # the answers and the speed-up
    assert "not compared here" in row and "measuring: `lorkd benchmark`" in row
    assert "4.88 MiB" in row
    assert "| 87.2 % | 0.907 |" in text  # what training wrote down is still there
    assert 'class="plot"' not in files.html.read_text()
    assert "Latency, throughput and memory: not measured here." in files.model_cards[0].read_text()


def test_an_engine_that_the_profile_lacks_is_named(tmp_path: Path) -> None:
    run = build_run(tmp_path / "run", tasks=TASKS[:2])
    file = run / "profile" / PROFILE
    content = json.loads(file.read_text())
    kept = content["engines"][:-1]
    assert content["engines"][-1]["kind"] == "expert"
    names = [engine["engine"] for engine in kept]
    content["engines"] = kept
    content["comparisons"] = [c for c in content["comparisons"] if c["engine"] in names]
    file.write_bytes(document_bytes(content))
    text = report(run).markdown.read_text()
    assert "Not measured here: xray onnx fp32. Run `lorkd benchmark`, then" in text


def test_without_the_teacher_nothing_is_compared(tmp_path: Path) -> None:
    files = report(build_run(tmp_path / "run", teacher=False))
    text = files.markdown.read_text()
    assert "The foundation model was not measured beside the experts" in text
    assert text.startswith("# Four departments, measured without the foundation model\n")
    assert "×" not in text.split("## Departments")[0]
    assert "| Foundation model | – | all |" + " – |" * 7 + " not exported |" in text


def test_without_the_single_calls_all_rounds_are_shown_together(tmp_path: Path) -> None:
    run = build_run(tmp_path / "run")
    (run / "profile/calls.safetensors").unlink()
    page = report(run).html.read_text()
    assert "All rounds together" in page
    assert "One line per round" not in page


def test_without_engines_the_proof_says_so(tmp_path: Path) -> None:
    run = build_run(tmp_path / "run", profile=False, artifacts=False)
    text = report(run).markdown.read_text()
    assert text.count("not exported") == 1 + len(TASKS)
    assert "passed" not in text


def test_an_engine_of_another_bundle_is_no_proof(tmp_path: Path) -> None:
    run = build_run(tmp_path / "run")
    file = run / "export/breast/ultrasound/onnx-fp32/artifact.json"
    content = json.loads(file.read_text()) | {"bundle_sha256": "f" * 64}
    file.write_bytes(document_bytes(content))
    rows = [r for r in report(run).markdown.read_text().splitlines() if "Expert ultrasound" in r]
    assert any("exported from another bundle" in row for row in rows)
    assert not any("passed" in row for row in rows)


def test_names_are_text_and_never_markup(tmp_path: Path) -> None:
    department, _, _, *rest = TASKS[0]
    tasks = ((department, "ultrasound", (EVIL, "b|c `d`"), *rest), TASKS[1])
    files = report(build_run(tmp_path / "run", tasks=tasks))
    page = files.html.read_text()
    assert EVIL not in page
    assert "&lt;/script&gt;&lt;script&gt;window.evil=1" in page
    assert page.count("<script") == 2  # the numbers of the findings and the page's own script
    assert "<img" not in page
    for file in (files.markdown, files.model_cards[0]):
        assert re.search(r"(?<!\\)<(script|img)", file.read_text()) is None


def test_a_profile_of_another_bundle_is_refused(tmp_path: Path) -> None:
    run = build_run(tmp_path / "run")
    file = run / "profile/profile.json"
    file.write_bytes(document_bytes(json.loads(file.read_text()) | {"bundle_sha256": "f" * 64}))
    with pytest.raises(LorkdError, match="measured on another bundle") as caught:
        report(run)
    assert caught.value.fix and "lorkd benchmark" in caught.value.fix
    assert not (run / "report.html").exists() and not (run / "cards").exists()


def test_a_damaged_profile_or_bundle_is_refused(tmp_path: Path) -> None:
    run = build_run(tmp_path / "run")
    (run / "profile/profile.json").write_bytes(document_bytes({"schema_version": 2}))
    with pytest.raises(LorkdError, match=r"profile\.json is not valid at created"):
        report(run)
    (run / "bundle/base.safetensors").write_bytes(b"other")
    with pytest.raises(BundleError):
        report(run)
    with pytest.raises(BundleError):
        report(tmp_path / "nowhere")
    assert not (run / "report.md").exists()


@pytest.mark.parametrize("way", ["cards", "report-csv"])
def test_a_folder_that_cannot_be_written_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], way: str
) -> None:
    run = build_run(tmp_path / "run", tasks=TASKS[:1])
    (run / way).write_text("a file is in the way")  # root may write to any folder
    assert cli.main(["report", str(run)]) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("error: the report can't be written: ")
    assert f"where: {run / way}" in shown.err
    assert "to do: check who owns the run's folder" in shown.err
    assert "Traceback" not in shown.err
    assert not (run / "report.html").exists() and not (run / "report.md").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write to any folder")
def test_a_folder_that_is_only_to_be_read_is_told(tmp_path: Path) -> None:
    run = build_run(tmp_path / "run", tasks=TASKS[:1])
    run.chmod(0o555)
    try:
        with pytest.raises(LorkdError, match="can't be written: Permission denied"):
            report(run)
    finally:
        run.chmod(0o755)


def test_a_run_that_is_not_there_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["report", str(tmp_path / "nowhere")]) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert f"error: the folder does not exist\n  where: {tmp_path / 'nowhere'}" in shown.err
    assert "to do: give the folder that `lorkd decompose` wrote" in shown.err


def test_a_missing_package_is_named_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = build_run(tmp_path / "run")
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(RuntimeUnavailableError, match="jinja2") as caught:
        report(run)
    assert caught.value.fix == "install lorkd-deploy[report]"
    assert not (run / "report.md").exists()
