"""`lorkd init`: a recipe from images of one's own, for the machine that it runs on."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image

from lorkd_deploy import cli, init
from lorkd_deploy.data import SPLITS, open_data
from lorkd_deploy.data.phantom import PhantomData
from lorkd_deploy.errors import DataError, UsageError
from lorkd_deploy.recipe import load_recipe
from lorkd_deploy.training.proposal import pace
from lorkd_deploy.training.proposal.images import as_name
from lorkd_deploy.training.proposal.pace import Networks, Pace, fitting
from tests.dicom.files import dataset, saved

FAST = Pace(teacher=0.0004, student=0.0001)


@pytest.fixture(autouse=True)
def _fast_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lorkd_deploy.training.init.measured", lambda *_: FAST)


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CLASS/PATIENT/*.png, two images of each of 30 patients, of whom 8, 10 and 12 have a class."""
    folder = tmp_path_factory.mktemp("images") / "Fundus scans"
    data = open_data(PhantomData(source="phantom", name="fundus", train=60, val=8, test=8))
    for place in range(60):
        patient = place // 2
        kind = "normal" if patient < 8 else "mild" if patient < 18 else "severe"
        (folder / kind / f"p{patient}").mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(data.train.images[place]).resize((100, 120))
        image.save(folder / kind / f"p{patient}" / f"{place}.png")
    return folder


def test_a_folder_without_splits_becomes_a_recipe_and_lists(scans: Path, tmp_path: Path) -> None:
    out = tmp_path / "mine.yaml"
    made = init(scans, "Eye Clinic", out)
    recipe = load_recipe(out)
    assert (recipe.name, recipe.tasks[0].name) == ("eye-clinic", "fundus-scans")
    assert made.size == recipe.preprocess.size == 96  # of 100 × 120 px
    assert made.lists == (tmp_path / "mine-fundus-scans.csv",)
    data = open_data(recipe.tasks[0].data)
    assert len(data.classes) == 3
    assert sum(len(split) for split in (data.train, data.val, data.test)) == 60
    with made.lists[0].open() as stream:
        rows = list(csv.DictReader(stream))
    splits = {(row["group"], row["split"]) for row in rows}
    assert len(splits) == 30  # no patient in two
    assert made.teacher_epochs == recipe.teacher.train.epochs
    assert made.epochs == recipe.train.epochs > 24  # few images: more passes
    assert made.minutes < 15


def test_a_folder_of_dicom_files_becomes_a_recipe(tmp_path: Path) -> None:
    """Its list has no column of patients: the headers say who they are."""
    rng = np.random.default_rng(0)
    for number in range(24):
        made = dataset(
            rng.integers(0, 4096, (48, 48)),
            PatientID=f"p{number // 2}",
            WindowCenter=2048,
            WindowWidth=4096,
        )
        kind = ("benign", "malign")[number // 2 % 2]
        saved(made, tmp_path / f"ct/{kind}/S{number}/IM{number}")
    made = init(tmp_path / "ct", "chest", tmp_path / "mine.yaml")
    assert made.lists == (tmp_path / "mine-ct.csv",)
    source = load_recipe(tmp_path / "mine.yaml").tasks[0].data
    assert source.source == "dicom"
    data = open_data(source)
    assert [len(data.classes), *(len(getattr(data, s)) > 0 for s in SPLITS)] == [2, 1, 1, 1]
    patients = [set(np.asarray(getattr(data, split).groups)) for split in SPLITS]
    assert not any(a & b for a, b in combinations(patients, 2))


def test_columns_are_found_and_a_leak_is_said(scans: Path, tmp_path: Path) -> None:
    files = sorted(scans.rglob("*.png"))
    table = scans.parent / "scans.csv"
    with table.open("w", newline="") as stream:
        writer = csv.writer(stream, delimiter=";")
        writer.writerow(["Filename", "diagnosis", "Patient_ID", "fold"])
        for place, file in enumerate(files):
            split = ("train", "train", "val", "test")[place % 4]  # two of a patient are apart
            writer.writerow([file.relative_to(scans.parent), file.parts[-3], file.parts[-2], split])
    made = init(table, "eye", tmp_path / "recipe.yaml", task="retina")
    section = load_recipe(tmp_path / "recipe.yaml").tasks[0].data.model_dump()
    assert (section["image"], section["label"]) == ("Filename", "diagnosis")
    assert (section["group"], section["split"]) == ("Patient_ID", "fold")
    assert made.lists == ()
    kinds = {(finding.kind, finding.level) for finding in made.checks[0].findings}
    assert any(level == "leakage" for _, level in kinds), kinds


def test_several_departments_and_an_archive(scans: Path, tmp_path: Path) -> None:
    data = open_data(PhantomData(source="phantom", name="cells", train=16, val=8, test=8))
    archive = tmp_path / "cells.npz"
    np.savez(
        archive,
        **{
            f"{name}_{part}": values
            for name in ("train", "val", "test")
            for part, values in (
                ("images", np.stack(list(getattr(data, name).images))),
                ("labels", getattr(data, name).labels),
            )
        },
    )
    out = tmp_path / "both.yaml"
    init([scans, archive], ["eye", "lab"], out)
    recipe = load_recipe(out)
    assert recipe.name == "both"
    owned = [(one.name, [task.name for task in one.tasks]) for one in recipe.departments]
    assert owned == [("eye", ["fundus-scans"]), ("lab", ["cells"])]
    assert recipe.preprocess.size == 64  # the smaller images' side decides


def test_what_cannot_be_used_is_said_before_anything_is_written(
    scans: Path, tmp_path: Path
) -> None:
    out = tmp_path / "recipe.yaml"
    with pytest.raises(DataError, match="no images"):
        init(tmp_path / "nothing", "eye", out)
    with pytest.raises(UsageError, match="1 sets of images, 2 departments"):
        init(scans, ["eye", "lab"], out)
    with pytest.raises(UsageError, match="same name"):
        init([scans, scans], ["eye", "lab"], out)
    (tmp_path / "odd.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match="hold the paths: there are a, b"):
        init(tmp_path / "odd.csv", "eye", out)
    assert not out.exists()
    out.write_text("mine")
    with pytest.raises(UsageError, match="exists already"):
        init(scans, "eye", out)
    assert out.read_text() == "mine"
    with pytest.raises(UsageError, match="can't be a name"):
        as_name("!?")


def test_no_file_is_replaced_and_none_left_behind(scans: Path, tmp_path: Path) -> None:
    """A list that a recipe needs is written beside it: never over one that is there."""
    out, taken = tmp_path / "mine.yaml", tmp_path / "mine-fundus-scans.csv"
    taken.write_text("path,label\n")
    with pytest.raises(UsageError, match=r"mine-fundus-scans\.csv exists already"):
        init(scans, "eye", out)
    assert taken.read_text() == "path,label\n"
    taken.unlink()
    with pytest.raises(DataError, match="no images"):  # of the second, once the first is divided
        init([scans, tmp_path / "nothing"], ["eye", "lab"], out)
    assert list(tmp_path.iterdir()) == []


def test_a_list_of_the_users_own_is_read_and_stays(
    scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have the very name of the one that would have been written."""
    images = shutil.copytree(scans, tmp_path / "scans")
    own = tmp_path / "mine-fundus.csv"
    rows = [
        f"{file.relative_to(tmp_path)},{file.parts[-3]},{file.parts[-2]},"
        f"{('train', 'train', 'val', 'test')[int(file.parts[-2][1:]) % 4]}\n"
        for file in sorted(images.rglob("*.png"))
    ]
    own.write_text("path,label,patient,split\n" + "".join(rows))
    before = own.read_bytes()
    made = init(own, "eye", tmp_path / "mine.yaml", task="fundus")
    assert made.lists == () and own.read_bytes() == before
    (tmp_path / "mine.yaml").unlink()

    def failing(*_: object) -> Pace:
        raise DataError("no step")

    monkeypatch.setattr("lorkd_deploy.training.init.measured", failing)
    with pytest.raises(DataError, match="no step"):
        init(own, "eye", tmp_path / "mine.yaml", task="fundus")
    assert own.read_bytes() == before


def test_the_time_there_is_decides_size_and_epochs() -> None:
    speed = Pace(teacher=0.004, student=0.001)
    plans = [fitting(speed, 4000, 500, 60.0 * minutes) for minutes in (600, 30, 6, 2)]
    assert [plan.size for plan in plans] == sorted((plan.size for plan in plans), reverse=True)
    assert (plans[0].size, plans[0].epochs) == (224, 24)
    assert plans[2].size == 64
    assert plans[3].epochs < plans[2].epochs
    for plan, minutes in zip(plans, (600, 30, 6), strict=False):
        assert speed.seconds(plan, 4000) <= 60 * minutes
    assert fitting(speed, 4000, 130, 1e9).size == 128  # never above the images' own side
    assert fitting(speed, 4000, 28, 1e9).size == 64
    never = fitting(Pace(1.0, 1.0), 10**6, 500, 60.0)
    assert (never.size, never.epochs) == (64, 4)


def test_a_step_of_both_networks_is_timed() -> None:
    small = Networks("tests.tiny_backbone:backbone", "torchvision:shufflenet_v2_x0_5")
    found = pace.measured(small, 2)
    assert 0 < found.student < 1
    assert 0 < found.teacher < 1


def test_the_command_asks(
    scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["init"]) == 2
    assert "--images DIR" in capsys.readouterr().err
    answers: Iterator[object] = iter(["nowhere", str(scans), "eye", "fundus", 20.0])
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr(typer, "prompt", lambda *_, **__: next(answers))
    monkeypatch.setattr(typer, "confirm", lambda *_, **__: False)
    assert cli.main(["init"]) == 0
    shown = capsys.readouterr()
    assert "there is nothing at nowhere" in shown.out
    assert "min of training on this machine" in shown.out
    assert "lorkd decompose recipe.yaml --out runs/eye" in shown.out
    assert load_recipe("recipe.yaml").tasks[0].name == "fundus"
