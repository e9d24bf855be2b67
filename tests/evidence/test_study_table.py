"""benchmarks/study_table.py writes into the README what a study's result says, and no more."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import study_table
from lorkd_deploy.evidence.result import RESULT
from lorkd_deploy.schema import write_part
from tests.evidence.test_report import made
from tests.readme import README


def test_the_table_has_each_method_and_word_of_the_result() -> None:
    result = made(5)
    lines = study_table.table(result).splitlines()
    rows = {line.split(" | ")[0].strip("| *"): line for line in lines if line.startswith("|")}
    assert len(rows) == 2 + 4  # head and rule; `experts+norm=per_task` is no row
    own = rows["W0 and a low-rank expert per task"]
    figure = result.comparison.figure("experts", None, "auc").estimate
    assert f"{figure.value:.3f} (" in own
    assert "*" not in own.replace("**", "")
    said = {"foundation model (the teacher)": "worse", "one small network for all tasks": "better"}
    said["one small network for all tasks, distilled"] = "not shown"
    for method, word in said.items():
        assert f"| *{word}* |" in rows[method]
    assert result.created[:10] in lines[-1]


def test_one_command_fills_the_page_and_keeps_the_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_part(tmp_path / RESULT, made(2))
    (tmp_path / "study.md").write_text("# A study\n")
    page, kept = tmp_path / "README.md", tmp_path / "kept.json"
    page.write_text(README.read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.setattr(study_table, "README", page)
    monkeypatch.setattr(study_table, "KEPT", kept)
    for arguments in ([str(tmp_path)], []):  # the second time from what was kept
        monkeypatch.setattr("sys.argv", ["study_table.py", *arguments])
        study_table.main()
        text = page.read_text(encoding="utf-8")
        assert study_table.table(made(2)) in text
        assert text.split("<!--")[0] == README.read_text(encoding="utf-8").split("<!--")[0]
    assert kept.is_file()
    assert kept.with_suffix(".md").is_file()
    with pytest.raises(ValueError, match="no marks"):
        study_table.with_table("a page", "a table")
