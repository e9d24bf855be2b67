"""Trainings of a study, of every kind, on networks that train in a second."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_backbone import backbone
from tiny_recipe import tiny_recipe

from lorkd_deploy import teacher
from lorkd_deploy.errors import UsageError
from lorkd_deploy.evidence.answers import Answers
from lorkd_deploy.evidence.methods import kf_training
from lorkd_deploy.evidence.plan import Training, parse_variants, trainings
from lorkd_deploy.evidence.train import ANSWERS, FOUNDATION, RECORD, Trained, train
from lorkd_deploy.metrics.score import score
from lorkd_deploy.recipe import Recipe, parse_recipe
from lorkd_deploy.training.batches.setup import open_setup

IMAGES = (48, 32, 16)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    file = tmp_path_factory.mktemp("foundation") / "foundation.pt"
    torch.save(backbone().state_dict(), file)
    raw = tiny_recipe()
    raw["teacher"] |= {"checkpoint": str(file), "fit": "heads", "preprocess": {"size": 24}}
    raw["train"] |= {"epochs": 1}
    raw["transfer"] = {"kind": "logits"}
    return parse_recipe(raw, where="test")


@pytest.fixture(scope="module")
def study(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    file = folder / "recipe.json"
    file.write_text(recipe.model_dump_json())
    teacher(file, folder / FOUNDATION)
    return folder


def planned(recipe: Recipe, methods: str) -> list[Training]:
    return list(trainings(recipe, parse_variants(methods), 1, IMAGES))


@pytest.mark.parametrize("method", ["mtl", "mtl-kd", "experts", "experts+rank=1"])
def test_a_network_of_all_tasks_answers_for_all(recipe: Recipe, study: Path, method: str) -> None:
    (training,) = planned(recipe, method)
    done = Trained.model_validate(train(training.model_dump(mode="json"), str(study)))
    assert done.training == training
    kept = Answers.read(study / training.folder / ANSWERS)
    setup = open_setup(recipe)
    for name, data in zip(setup.names, setup.data, strict=True):
        logits = kept.logits[name]
        assert logits.shape == (len(data.test), len(data.classes))
        assert kept.features[name].shape == (len(data.test), 16)
        assert 0 <= score(data.test.labels, logits, data.kind)["accuracy"] <= 1


def test_a_network_per_task_answers_for_its_own(recipe: Recipe, study: Path) -> None:
    for training in planned(recipe, "stl-kd"):
        train(training.model_dump(mode="json"), str(study))
        assert list(Answers.read(study / training.folder / ANSWERS).logits) == [training.task]


def test_what_is_done_is_not_done_again_and_says_the_same(recipe: Recipe, study: Path) -> None:
    (training,) = planned(recipe, "mtl")
    first = train(training.model_dump(mode="json"), str(study))
    weights = (study / training.folder / ANSWERS).stat().st_mtime_ns
    assert train(training.model_dump(mode="json"), str(study)) == first
    assert (study / training.folder / ANSWERS).stat().st_mtime_ns == weights
    assert json.loads((study / training.folder / RECORD).read_text())["steps"] == first["steps"]


def test_equal_seeds_give_equal_answers_and_others_others(
    recipe: Recipe, study: Path, tmp_path: Path
) -> None:
    found = []
    (study_two := tmp_path / "again").mkdir()
    (study_two / FOUNDATION).symlink_to(study / FOUNDATION)
    for folder in (study, study_two):
        (training,) = planned(recipe, "experts")
        train(training.model_dump(mode="json"), str(folder))
        found.append(Answers.read(folder / training.folder / ANSWERS))
    other = training.model_copy(update={"seed": 9, "recipe": training.recipe | {"seed": 9}})
    train(other.model_dump(mode="json"), str(study))
    found.append(Answers.read(study / other.folder / ANSWERS))
    for task, logits in found[0].logits.items():
        np.testing.assert_array_equal(logits, found[1].logits[task])
        assert not np.array_equal(logits, found[2].logits[task])


def test_knowledge_factorisation_trains_every_part_of_it(
    recipe: Recipe, study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    narrower = {"tiny_backbone:backbone": "tiny_backbone:backbone"}
    monkeypatch.setattr(kf_training, "NARROWER", narrower)
    (training,) = planned(recipe, "kf")
    done = train(training.model_dump(mode="json"), str(study))
    history = json.loads((study / training.folder / "history" / "bundle.json").read_text())
    last = history["validations"][-1]
    assert {"labels", "own labels", "transfer", "info max", "info min"} <= last.keys()
    assert done["validation"] > 0
    assert Answers.read(study / training.folder / ANSWERS).logits.keys() == {
        "cells", "xray", "fundus",
    }  # fmt: skip
    assert any(path.name.startswith("stages-") for path in (study / FOUNDATION / "cache").iterdir())


def test_a_student_without_a_narrower_one_is_told(recipe: Recipe, study: Path) -> None:
    (training,) = planned(recipe, "kf+beta=2")
    with pytest.raises(UsageError, match="no network is known that is narrower"):
        train(training.model_dump(mode="json"), str(study))
