"""Data that can be opened and still can't be trained on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny_recipe import write_recipe

from lorkd_deploy.errors import DataError, RecipeError
from lorkd_deploy.progress import Silent
from lorkd_deploy.recipe import load_recipe
from lorkd_deploy.training.batches import setup as module
from lorkd_deploy.training.batches.setup import open_setup


def opened(
    folder: Path, labels: dict[str, list[object]], classes: list[str], **task: object
) -> None:
    """Open a recipe whose one task has these labels."""
    arrays = {}
    for split, values in labels.items():
        arrays[f"{split}_labels"] = np.array(values)
        arrays[f"{split}_images"] = np.zeros((len(values), 16, 16), np.uint8)
    np.savez(folder / "own.npz", **arrays)
    data = {"source": "npz", "path": str(folder / "own.npz"), "classes": classes}
    departments = [{"name": "ward", "tasks": [{"name": "own", "data": data, **task}]}]
    open_setup(load_recipe(write_recipe(folder / "r.yaml", departments=departments)))


def test_a_class_that_no_training_image_shows_is_named(tmp_path: Path) -> None:
    labels: dict[str, list[object]] = {"train": [0, 1, 1], "val": [0, 2], "test": [0, 1, 2, 3]}
    with pytest.raises(DataError, match="task 'own': no training image shows 'c', 'd'"):
        opened(tmp_path, labels, ["a", "b", "c", "d"])


def test_a_finding_that_no_training_image_shows_is_named(tmp_path: Path) -> None:
    labels: dict[str, list[object]] = {
        "train": [[0, 1, 0], [0, 0, 0]],
        "val": [[1, 0, 1], [0, 0, 0]],
        "test": [[0, 1, 1], [0, 0, 0]],
    }
    with pytest.raises(DataError, match="no training image shows 'a', 'c'"):
        opened(tmp_path, labels, ["a", "b", "c"])


def test_a_task_with_one_training_image(tmp_path: Path) -> None:
    labels: dict[str, list[object]] = {"train": [1], "val": [0, 1], "test": [0, 1]}
    with pytest.raises(DataError, match="task 'own': all images have the same label"):
        opened(tmp_path, labels, ["a", "b"])


def test_a_limit_takes_the_same_training_images_at_every_seed(tmp_path: Path) -> None:
    file = write_recipe(tmp_path / "r.yaml", images_per_task=20)
    first, second = (open_setup(load_recipe(file, [f"seed={seed}"])) for seed in (0, 1))
    assert [len(data.train) for data in first.data] == [20, 20, 16]
    whole = open_setup(load_recipe(file, ["images_per_task=null"]))
    for one, other, full in zip(first.data, second.data, whole.data, strict=True):
        np.testing.assert_array_equal(one.train.labels, other.train.labels)
        images = [image.tobytes() for image in full.train.images]
        taken = [image.tobytes() for image in one.train.images]
        assert taken == [image.tobytes() for image in other.train.images]
        assert set(taken) <= set(images)
        assert len(one.test) == len(full.test)
        assert one.provenance == full.provenance


@pytest.mark.parametrize("classes", [["a", "b"], ["a", "b", "c"]])
def test_a_finding_that_is_none_of_two_classes_is_refused(
    tmp_path: Path, classes: list[str]
) -> None:
    places = list(range(len(classes)))
    labels: dict[str, list[object]] = {"train": [*places], "val": [*places], "test": [*places]}
    wrong = "x" if len(classes) == 2 else "a"
    with pytest.raises(RecipeError, match=f"'{wrong}' can't be its finding"):
        opened(tmp_path, labels, classes, finding=wrong)
    if len(classes) == 2:
        opened(tmp_path, labels, classes, finding="a")


def test_images_are_held_within_one_limit_for_all_tasks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup = open_setup(load_recipe(write_recipe(tmp_path / "r.yaml")))
    every = (setup.train, setup.val, setup.test)
    assert all(images.held is not None for split in every for images in split)
    sizes = [[len(split[task]) * setup.preprocess.size**2 * 3 for split in every]
             for task in range(3)]  # fmt: skip
    monkeypatch.setattr(module, "IN_MEMORY", sum(own[0] for own in sizes) + sizes[0][1])
    setup = open_setup(setup.recipe)
    held = [[split[task].held is not None for split in (setup.train, setup.val, setup.test)]
            for task in range(3)]  # fmt: skip
    assert held == [[True, True, False], [True, False, False], [True, False, False]]
    np.testing.assert_array_equal(setup.val[1][np.arange(3)], every[1][1][np.arange(3)])


def test_tasks_are_opened_with_a_bar_and_the_first_fault_is_named(tmp_path: Path) -> None:
    class Bar(Silent):
        def __init__(self) -> None:
            self.seen: list[str] = []

        def start(self, what: str, total: int) -> None:
            self.seen.append(f"{what} {total}")

        def advance(self, steps: int = 1, **shown: str) -> None:
            self.seen += shown.values()

    shown = Bar()
    recipe = load_recipe(write_recipe(tmp_path / "r.yaml"))
    setup = open_setup(recipe, progress=shown)
    assert shown.seen == ["opening the data 3", *setup.names]
    tasks = [
        {"name": name, "data": {"source": "npz", "path": f"{name}.npz"}} for name in ("one", "two")
    ]
    faulty = write_recipe(tmp_path / "f.yaml", departments=[{"name": "ward", "tasks": tasks}])
    with pytest.raises(DataError, match=r"task 'one': there is no data at 'one\.npz'"):
        open_setup(load_recipe(faulty))
