"""A study's page: it says what the result says, and no more."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from lorkd_deploy.datacheck.result import DataCheck, TaskCheck
from lorkd_deploy.evidence.analysis.comparison import TestSplit, compared
from lorkd_deploy.evidence.analysis.directions import directions
from lorkd_deploy.evidence.answers import Answers
from lorkd_deploy.evidence.costs import Cost
from lorkd_deploy.evidence.pages.page import lead, study_page
from lorkd_deploy.evidence.pages.report import write_report
from lorkd_deploy.evidence.result import RESULT, StudyResult, read_result
from lorkd_deploy.recipe import load_recipe
from lorkd_deploy.schema import write_part

TASKS = ("breast", "pneumonia", "retina", "blood")
SKILLS = {
    "foundation": 1.3,
    "mtl": 1.0,
    "mtl-kd": 1.19,
    "experts": 1.2,
    "experts+norm=per_task": 1.2,
}


def answers(skill: float, noise: float, seed: int) -> Answers:
    logits = {}
    for number, split in enumerate(splits()):
        classes = int(split.labels.max()) + 1
        hard = np.random.default_rng(number).normal(size=(len(split.labels), classes))
        moved = skill + noise * np.random.default_rng((seed, number)).normal()
        logits[split.task] = (hard + moved * np.eye(classes)[split.labels]).astype(np.float32)
    return Answers(
        logits, {task: np.hstack([v[:, :2], v[:, :2] ** 2]) for task, v in logits.items()}
    )


def splits() -> list[TestSplit]:
    return [
        TestSplit(task, "multiclass", np.arange(300) % (2 + n), graded=task == "retina")
        for n, task in enumerate(TASKS)
    ]


@cache
def made(seeds: int) -> StudyResult:
    """A study's result; nothing may change it."""
    recipe = load_recipe("medmnist-small")
    found = {
        name: [
            answers(skill, 0.0 if name == "foundation" else 0.03, 10 * n + s) for s in range(seeds)
        ]
        for n, (name, skill) in enumerate(SKILLS.items())
    }
    return StudyResult(
        recipe=recipe.model_dump(mode="json"),
        recipe_sha256=recipe.sha256,
        variants=tuple(found),
        seeds=tuple(range(seeds)),
        first="experts",
        comparison=compared(splits(), found, first="experts", n=200),
        directions={n: d for n, own in found.items() if (d := directions(splits(), own))},
        costs={n: Cost(parameters=341792, stored=10**6, mib=1.3, latency=0.7) for n in found},
        failed={"kf/seed-0": "the loss is <not> finite"},
        seconds=5400.0,
        software={"torch": "2.15"},
        created="2026-11-28T00:00:00+00:00",
    )


@pytest.fixture(scope="module")
def result() -> StudyResult:
    return made(5)


def test_the_lead_says_each_word_of_the_result(result: StudyResult) -> None:
    said = lead(result)
    assert "experts is better than mtl" in said
    assert "worse than foundation" in said
    assert "against mtl-kd and experts+norm=per_task no difference is shown" in said


def test_tables_hold_every_method_and_task(result: StudyResult) -> None:
    page = study_page(result)
    assert [row[0].text for row in page.methods.rows] == list(SKILLS)
    assert len(page.differences.rows) == 4
    for table in page.tasks:
        graded = table.key == "tasks-kappa"
        wanted = ["retina"] if graded else list(TASKS)
        assert [column.title for column in table.columns[1:]] == wanted
        assert len(table.rows) == 5
    word = {row[0].text: row[2] for row in page.differences.rows}
    assert (word["mtl"].text, word["mtl"].tone) == ("better", "good")
    assert (word["foundation"].text, word["foundation"].tone) == ("worse", "bad")
    assert word["mtl-kd"].text == "not shown"
    needed = result.comparison.difference("mtl-kd", None, "auc").needed
    told = f"{needed} seeds would show it" if needed else "more seeds alone wouldn't show it"
    assert (word["mtl-kd"].note or "").endswith(f"; {told}")
    assert "kf/seed-0 failed" in page.warnings[0]


def test_one_seed_shows_nothing_and_says_so() -> None:
    page = study_page(made(1))
    assert {row[2].text for row in page.differences.rows} == {"not shown"}
    assert any("One seed" in text for text in page.warnings)
    assert "no difference is shown" in page.lead


def test_a_task_that_nobody_has_looked_at_is_told(result: StudyResult) -> None:
    tasks = tuple(
        TaskCheck(task=task, source="csv", splits=(), findings=(), compared=task != "blood")
        for task in TASKS
    )
    check = DataCheck(created="", recipe="scans", tasks=tasks, leaks_only=True)
    page = study_page(result.model_copy(update={"check": check, "failed": {}}))
    assert page.warnings == (
        "Whether images of blood lie in two splits was not looked for, since they are many: "
        "`lorkd data check RECIPE --run STUDY` does it.",
    )
    assert study_page(result.model_copy(update={"failed": {}})).warnings == ()


def test_page_markdown_and_tables_are_written(result: StudyResult, tmp_path: Path) -> None:
    pytest.importorskip("jinja2")
    write_part(tmp_path / RESULT, result)
    assert read_result(tmp_path) == result
    html, markdown, _ = write_report(tmp_path, study_page(read_result(tmp_path)))
    page, text = html.read_text(), markdown.read_text()
    assert "the loss is &lt;not&gt; finite" in page
    assert page.count('class="plot"') == 2
    # Of each method a dot per seed, and its difference from the first, where it has one.
    drawings = re.findall(r'<svg class="drawing".*?</div>', page, re.S)
    assert [d.count("<title>") for d in drawings] == [5 * 5, 4]
    assert not re.search(r'(src|href)="https?:', page.split("<script>")[0])
    for name in SKILLS:
        assert name in page
        assert name.replace("_", r"\_") in text
    assert {f.name for f in (tmp_path / "study-csv").iterdir()} >= {"methods.csv", "seeds.csv"}
    assert len((tmp_path / "study-csv" / "seeds.csv").read_text().splitlines()) == 1 + 5 * 5
