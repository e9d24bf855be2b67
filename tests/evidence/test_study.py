"""A study from the recipe to its result, on networks that train in a second."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_backbone import backbone
from tiny_recipe import tiny_recipe, write_recipe

from lorkd_deploy.datacheck import quick
from lorkd_deploy.datacheck.result import DATA_CHECK, read_check
from lorkd_deploy.errors import BundleError, LorkdError, UsageError
from lorkd_deploy.evidence.attempt import Call, Outcome, attempt
from lorkd_deploy.evidence.methods import kf_training
from lorkd_deploy.evidence.pages.page import study_page
from lorkd_deploy.evidence.result import StudyResult, read_result
from lorkd_deploy.evidence.study import FOUNDATION, study
from lorkd_deploy.evidence.train import ANSWERS
from tests.datacheck.planted import leaky

TESTS = Path(__file__).parents[1]
METHODS = "foundation,stl,mtl,mtl-kd,experts,experts+rank=1"


@pytest.fixture(autouse=True, scope="module")
def _backbone() -> None:
    os.environ["PYTHONPATH"] = os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recipe")
    torch.save(backbone().state_dict(), folder / "foundation.pt")
    tiny = tiny_recipe()
    own = {"checkpoint": str(folder / "foundation.pt"), "fit": "heads", "preprocess": {"size": 24}}
    return write_recipe(
        folder / "tiny.yaml",
        teacher=tiny["teacher"] | own,
        train=tiny["train"] | {"epochs": 1},
        transfer={"kind": "logits"},
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("out") / "study"


@pytest.fixture(scope="module")
def result(recipe: Path, folder: Path) -> StudyResult:
    return study(recipe, folder, methods=METHODS, seeds=2, workers=2)


def test_every_method_has_every_figure(result: StudyResult) -> None:
    assert list(result.variants) == METHODS.split(",")
    assert result.seeds == (3, 4)
    assert not result.failed
    tasks = ("cells", "xray", "fundus", None)
    figures = {(f.method, f.task, f.metric): f for f in result.comparison.figures}
    assert len(figures) == 6 * len(tasks) * 3
    assert all(len(figure.seeds) == 2 for figure in figures.values())
    teacher = figures["foundation", None, "auc"].seeds
    assert teacher[0] == teacher[1]
    differences = {(d.first, d.second, d.task) for d in result.comparison.differences}
    others = [name for name in result.variants if name != "experts"]
    assert differences == {("experts", name, task) for name in others for task in tasks}


def test_an_expert_costs_what_a_network_without_experts_costs(result: StudyResult) -> None:
    mtl, experts, stl = (result.costs[name] for name in ("mtl", "experts", "stl"))
    assert mtl.parameters == experts.parameters == stl.parameters
    assert mtl.latency == experts.latency
    assert mtl.latency is not None and mtl.latency > 0
    assert experts.stored > mtl.stored > mtl.parameters - 1
    assert stl.stored > 2 * mtl.parameters
    assert 0 < mtl.mib < 1


def test_directions_are_told_of_every_method(result: StudyResult) -> None:
    assert result.directions.keys() == set(result.variants)
    for found in result.directions.values():
        assert 0 <= found.within.value <= 1
        assert found.task is not None
        assert {(s.bins, s.dimensions) for s in found.settings} >= {(20, 10), (40, 5)}


def test_the_result_is_read_back_as_it_was(result: StudyResult, folder: Path) -> None:
    assert read_result(folder) == result


def test_what_was_computed_is_not_computed_again(
    recipe: Path, folder: Path, result: StudyResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (
        "analysis.comparison.resampled",
        "analysis.directions.disentanglement",
        "costs._measured",
        "conclusion.answers",
        "study.TeacherFeatures",
        "study.on_this_machine",
    ):
        monkeypatch.setattr(f"lorkd_deploy.evidence.{name}", None)  # a call would be an error
    again = study(recipe, folder, methods=METHODS, seeds=2)
    assert again.model_copy(update={"created": result.created}) == result
    fewer = study(recipe, folder, methods="mtl,experts", seeds=1)
    assert fewer.costs == {name: result.costs[name] for name in ("mtl", "experts")}
    assert (
        fewer.comparison.figure("mtl", "cells", "auc").seeds
        == (result.comparison.figure("mtl", "cells", "auc").seeds[:1])
    )


def test_a_second_call_does_only_what_is_new(
    recipe: Path, folder: Path, result: StudyResult
) -> None:
    made = {p: p.stat().st_mtime_ns for p in folder.rglob(ANSWERS)}
    grown = study(recipe, folder, methods="mtl,experts", seeds=3, workers=2)
    assert {p: p.stat().st_mtime_ns for p in made} == made
    assert grown.seeds == (3, 4, 5)
    before = {(f.method, f.task, f.metric): f.seeds for f in result.comparison.figures}
    for figure in grown.comparison.figures:
        assert figure.seeds[:2] == before[figure.method, figure.task, figure.metric]


def test_a_training_that_fails_is_told_and_the_others_are_compared(
    recipe: Path, folder: Path, result: StudyResult
) -> None:
    found = study(recipe, folder, methods="mtl,experts,mtl+lr=1e30", seeds=2)
    assert found.variants == ("mtl", "experts")
    assert set(found.failed) == {"mtl_lr_1e30/seed-3", "mtl_lr_1e30/seed-4"}
    assert "not finite" in found.failed["mtl_lr_1e30/seed-3"]


def test_nothing_to_compare_is_an_error_that_says_why(recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(LorkdError, match="nothing to compare") as caught:
        study(recipe, tmp_path / "s", methods="mtl+lr=1e30", seeds=1)
    assert "not finite" in (caught.value.fix or "")


def test_another_recipes_folder_is_refused(recipe: Path, folder: Path, result: StudyResult) -> None:
    with pytest.raises(BundleError, match="a study of another recipe"):
        study(recipe, folder, methods="mtl", set=["train.epochs=2"])


def test_what_no_method_can_do_is_told_before_anything_is_trained(
    recipe: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="no network is known that is narrower"):
        study(recipe, tmp_path / "s", methods="kf,experts")
    assert not (tmp_path / "s" / FOUNDATION).exists()
    assert "tiny_backbone:backbone" not in kf_training.NARROWER


@pytest.mark.parametrize("methods", ["foundation,mtl", "mtl"])
def test_leaks_are_looked_for_once_and_told_by_the_page_and_the_result(
    recipe: Path,
    tmp_path: Path,
    methods: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """With a teacher, whose own making looks for them, and without."""

    def here(calls: Sequence[Call], workers: int) -> Iterator[Outcome]:
        return (Outcome.model_validate(attempt(call.model_dump(mode="json"))) for call in calls)

    monkeypatch.setattr("lorkd_deploy.evidence.study.on_this_machine", here)
    data = f"{{source: npz, path: {leaky(tmp_path / 'scans.npz')}}}"
    asked: Any = {"methods": methods, "set": [f"departments.0.tasks.0.data={data}"]}

    def told() -> list[str]:
        return [r.getMessage() for r in caplog.records if "too good" in r.getMessage()]

    with caplog.at_level(logging.WARNING):
        found = study(recipe, tmp_path / "s", seeds=2, **asked)
    assert len(told()) == 1 and told()[0].startswith("cells: 1 of 8 test images")
    assert found.check is not None and found.check.leaks == ("cells",)
    assert read_check(tmp_path / "s") == found.check
    (said,) = study_page(found).warnings
    assert said.startswith("Leakage in the data of cells: 1 of 8 test images")
    monkeypatch.setattr(quick, "check_task", None)  # it isn't looked for again
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        assert study(recipe, tmp_path / "s", seeds=1, **asked).check == found.check
    assert len(told()) == 1
    assert sorted(f.parent.name for f in (tmp_path / "s").rglob(DATA_CHECK)) == [
        *(["foundation"] if "foundation" in methods else []), "s",
    ]  # fmt: skip
