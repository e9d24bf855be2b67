"""benchmarks/study_table.py writes into the README what a study's result says, and no more."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import study_table
from lorkd_deploy.errors import BundleError
from lorkd_deploy.evidence.result import RESULT, StudyResult
from lorkd_deploy.schema import read_part, write_part
from tests.evidence.pages.test_report import made
from tests.readme import DOCS, README


def test_the_table_has_each_method_and_word_of_the_result() -> None:
    result = made(5)
    lines = study_table.first_screen(result).splitlines()
    rows = {line.split(" | ")[0].strip("| *"): line for line in lines if line.startswith("|")}
    assert len(rows) == 2 + 4  # head and rule; `experts+norm=per_task` is no row
    own = rows["`experts`: W0 and a low-rank expert per task"]
    for metric in study_table.METRICS:
        value = result.comparison.figure("experts", None, metric).estimate.value
        assert f"| {value:.3f} |" in own
    assert "*" not in own.replace("**", "")
    said = {"foundation": "worse", "mtl": "better", "mtl-kd": "not shown"}
    for method, word in said.items():
        (row,) = (line for line in rows.values() if f"`{method}`:" in line)
        for metric in study_table.METRICS:
            found = result.comparison.difference(method, None, metric)
            interval = found.estimate.interval
            assert interval is not None
            shown = f"{found.estimate.value:+.3f} ({interval.low:+.3f} to {interval.high:+.3f})"
            assert f"{shown.replace('-', '−')}, *{found.verdict}*" in row
        assert result.comparison.difference(method, None, "auc").verdict == word
    assert result.created[:10] in lines[-1]
    assert "5 seeds" in lines[-1]


def test_what_is_missed_is_said_with_the_seeds_that_would_show_it() -> None:
    result = made(5)
    needed = result.comparison.difference("mtl-kd", None, "auc").needed
    told = f"{needed} seeds" if needed else "more seeds alone wouldn't"
    assert f"in AUC against `mtl-kd` ({told})" in study_table.missed(result)
    shown = study_table.every_task(result)
    assert f"in AUC against `mtl-kd` ({told})" in shown
    assert "per_task" not in shown
    assert shown.splitlines()[-1].endswith("; 2026-11-28, torch 2.15.")
    sure = [
        d.model_copy(update={"verdict": "better", "needed": None})
        for d in result.comparison.differences
    ]
    comparison = result.comparison.model_copy(update={"differences": tuple(sure)})
    assert study_table.missed(result.model_copy(update={"comparison": comparison})) == ""
    assert "One seed" in study_table.missed(made(1))


def test_the_first_sentence_needs_no_methods_name() -> None:
    result = made(5)
    shown = study_table.first_screen(result)
    assert "per_task" not in shown
    said = (
        '"W0 and a low-rank expert per task" is better than "one small network for all tasks"; '
        'worse than "foundation model (the teacher)"; against "one small network for all tasks, '
        'distilled" no difference is shown.'
    )
    assert shown.startswith(f"In mean AUC and accuracy over all tasks, {said}\n")
    found = result.comparison.difference("mtl", None, "accuracy")
    changed = [
        one.model_copy(update={"verdict": "not shown"}) if one == found else one
        for one in result.comparison.differences
    ]
    comparison = result.comparison.model_copy(update={"differences": tuple(changed)})
    shown = study_table.first_screen(result.model_copy(update={"comparison": comparison}))
    assert shown.startswith(f"In mean AUC over all tasks, {said} In mean accuracy over all tasks, ")
    assert "One seed" in study_table.first_screen(made(1))


def test_one_command_fills_both_pages_and_keeps_the_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = made(2)
    recipe = result.recipe | {"teacher": result.recipe["teacher"] | {"checkpoint": "/a/b/c.pth"}}
    failed = {"kf/seed-0": "it failed\n  where: /a/b/kf/seed-0"}
    write_part(tmp_path / RESULT, result.model_copy(update={"recipe": recipe, "failed": failed}))
    kept, pages = tmp_path / "study-seven-tasks.json", {}
    for name, page in (("README", README), ("PAGE", DOCS / "results.md")):
        pages[name] = tmp_path / page.name
        pages[name].write_text(page.read_text(encoding="utf-8"), encoding="utf-8")
        monkeypatch.setattr(study_table, name, pages[name])
    monkeypatch.setattr(study_table, "KEPT", tmp_path)
    for arguments in ([str(tmp_path)], []):  # the second time from what was kept
        monkeypatch.setattr("sys.argv", ["study_table.py", *arguments])
        study_table.main()
        text = pages["README"].read_text(encoding="utf-8")
        assert study_table.first_screen(result) in text
        assert "isn't complete" not in text
        assert text.split("<!--")[0] == README.read_text(encoding="utf-8").split("<!--")[0]
        assert study_table.every_task(result) in pages["PAGE"].read_text(encoding="utf-8")
    found = read_part(kept, StudyResult, BundleError, "")
    assert found.recipe["teacher"]["checkpoint"] == "c.pth"
    assert found.failed == {"kf/seed-0": "it failed\n  where: seed-0"}
    assert found.comparison == result.comparison
    assert "# experts against" in kept.with_suffix(".md").read_text(encoding="utf-8")
    with pytest.raises(ValueError, match="no marks"):
        study_table.with_table("a page", "results", "a table")


def test_a_study_beside_the_main_one_has_a_table_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = made(2)
    write_part(tmp_path / RESULT, result)
    page = tmp_path / "results.md"
    page.write_text("A\n<!-- wide: begin; by a script -->\n<!-- wide: end -->\nB\n")
    monkeypatch.setattr(study_table, "PAGE", page)
    monkeypatch.setattr(study_table, "KEPT", tmp_path)
    monkeypatch.setattr("sys.argv", ["study_table.py", str(tmp_path), "--name", "wide"])
    study_table.main()
    text = page.read_text(encoding="utf-8")
    for name in ("foundation", "mtl", "mtl-kd"):
        found = result.comparison.difference(name, None, "auc")
        (row,) = (line for line in text.splitlines() if f"| `{name}`:" in line)
        assert f"*{found.verdict}*" in row
        assert f"{found.estimate.value:+.3f}".replace("-", "−") in row
    assert "2 seeds" in text and "study-wide.md" in text
    assert (tmp_path / "study-wide.md").exists()
