"""What a training looks for before it begins, and what is kept of a large task."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lorkd_deploy import check_data, load_recipe
from lorkd_deploy.data import Split, TaskData, open_data
from lorkd_deploy.datacheck import kept, quick
from lorkd_deploy.datacheck.quick import warn_of_leaks
from lorkd_deploy.recipe import Recipe
from tests.datacheck.planted import copied, pictures


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    """Ten images, two a patient; test image 9 is training image 0 mirrored, and of its patient."""
    rows = ["path,label,split,patient"]
    images = pictures(9, seed=1)
    images.append(copied(images[0], "mirrored"))
    for n, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"p{n // 2}_{n}.png")
        rows.append(
            f"p{n // 2}_{n}.png,{n % 2},{['train', 'val', 'test'][n % 5 // 2]},{n // 2 % 4}"
        )
    (tmp_path / "scans.csv").write_text("\n".join(rows) + "\n")
    data = "{source: csv, path: scans.csv, group: patient}"
    (tmp_path / "recipe.yaml").write_text(
        f"name: scans\ndata_folder: {tmp_path}\npreprocess: {{size: 64}}\n"
        f"departments: [{{name: lungs, tasks: [{{name: scan, data: {data}}}]}}]\n"
    )
    return load_recipe(tmp_path / "recipe.yaml")


def data_of(recipe: Recipe) -> list[TaskData]:
    return [open_data(task.data, recipe.data_folder) for task in recipe.tasks]


def kinds(check: quick.DataCheck) -> set[str]:
    return {finding.kind for task in check.tasks for finding in task.findings}


def new(folder: Path) -> Path:
    folder.mkdir()
    return folder


def test_what_a_check_found_is_kept_until_an_image_changes(
    recipe: Recipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("LORKD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(kept, "WORTH_KEEPING", 10)
    data = data_of(recipe)
    with monkeypatch.context() as patched:
        patched.setattr(quick, "MOST", 9)
        patched.setattr(kept, "_stated", None)  # no file is asked for: nothing is kept yet
        check = warn_of_leaks(recipe, data, new(tmp_path / "a"))
    assert kinds(check) == {"patients in two splits"} and not check.tasks[0].compared
    assert "scan: images not compared across splits, more than 9 each" in caplog.text
    check_data(recipe)  # keeps what it finds
    with monkeypatch.context() as patched:
        patched.setattr(quick, "MOST", 9)
        patched.setattr(quick, "check_task", None)
        check = warn_of_leaks(recipe, data, new(tmp_path / "b"))
    assert kinds(check) >= {"near duplicates", "patients in two splits"}
    assert check.tasks[0].compared and check.leaks == ("scan",)
    assert "p0_0" not in (tmp_path / "cache").rglob("*.json").__next__().read_text()
    Image.fromarray(pictures(1, seed=2)[0]).save(tmp_path / "p4_9.png")
    check = warn_of_leaks(recipe, data, new(tmp_path / "c"))
    assert "near duplicates" not in kinds(check)
    assert len(list((tmp_path / "cache/checks").iterdir())) == 2


def test_a_check_that_lies_in_the_run_stands_and_is_warned_of_again(
    recipe: Recipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    run = new(tmp_path / "run")
    first = warn_of_leaks(recipe, data_of(recipe), run)
    monkeypatch.setattr(quick, "check_task", None)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        assert warn_of_leaks(recipe, data_of(recipe), run).created == first.created
    assert "figures on such a split are too good" in caplog.text


def test_patients_are_found_by_the_names_of_some_of_the_images(
    recipe: Recipe, tmp_path: Path
) -> None:
    data = data_of(recipe)[0]
    part: Split = data.train.part(np.arange(1, len(data.train)))
    drawn = TaskData(data.classes, data.kind, part, data.val, data.test, data.provenance)
    (task,) = recipe.tasks
    named = task.model_copy(update={"group_pattern": r"p(\d)_"})
    recipe = recipe.model_copy(
        update={
            "departments": (recipe.departments[0].model_copy(update={"tasks": (named,)}),),
        }
    )
    check = warn_of_leaks(recipe, [drawn], new(tmp_path / "run"))
    assert check.tasks[0].splits[0].groups == len({p.name[1] for p in part.images.paths})  # type: ignore[attr-defined]
