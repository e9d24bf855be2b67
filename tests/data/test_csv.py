"""CSV files: what is read from them, and what each fault says."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from lorkd_deploy.data import TaskData, open_data
from lorkd_deploy.data.csv import CsvData
from lorkd_deploy.errors import DataError
from tests.data.listed import ROWS, images, listed

FULL = {"group": "patient", "attributes": {"age": [40, 65], "sex": []}}


def opened(path: Path | str, folder: Path | None = None, **given: Any) -> TaskData:
    spec = CsvData.model_validate({"source": "csv", "path": path, **given})
    return open_data(spec, folder)


def test_everything_a_row_says(tmp_path: Path) -> None:
    data = opened(str(listed(tmp_path)), **FULL)
    assert (data.classes, data.kind) == (("benign", "malign"), "multiclass")
    assert data.train.labels.tolist() == [0, 1, 0, 1] and data.test.labels.tolist() == [0, 1]
    assert [image[0, 0] for image in data.test.images] == [6, 7]
    assert data.train.groups is not None and data.val.groups is not None
    groups = [*data.train.groups, *data.val.groups]
    assert len(set(groups)) == len(groups)  # an empty cell is a patient of its own
    age, sex = data.train.attributes["age"], data.train.attributes["sex"]
    assert age.values == ("< 40", "40 to < 65", "≥ 65") and age.codes.tolist() == [0, 1, 2, 2]
    assert sex.values == ("f", "m") and sex.codes.tolist() == [0, 1, -1, 0]
    assert data.test.attributes["age"].codes.tolist() == [-1, 0]
    chosen = data.train.part(np.array([3, 1]))
    assert chosen.attributes["sex"].codes.tolist() == [0, 1] and chosen.images[0][0, 0] == 3


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
def test_delimiter_and_encoding_are_found(tmp_path: Path, delimiter: str, encoding: str) -> None:
    path = listed(tmp_path, delimiter, encoding)
    path.write_bytes(
        path.read_bytes().decode(encoding).replace("malign", "bösartig").encode(encoding)
    )
    assert opened(str(path)).classes == ("benign", "bösartig")


def test_a_number_that_is_an_attribute_is_banded_by_the_training_quartiles(tmp_path: Path) -> None:
    names = [f"{n}.png" for n in range(40)]
    images(tmp_path, names)
    rows = [f"{name},{n % 2},{('train', 'val', 'test')[n % 3]},{n}" for n, name in enumerate(names)]
    (tmp_path / "list.csv").write_text("\n".join(["path,label,split,dose", *rows]))
    age = opened(str(tmp_path / "list.csv"), attributes=["dose"]).train.attributes["dose"]
    assert len(age.values) == 4 and set(np.bincount(age.codes)) <= {3, 4}


def test_numbers_of_classes_and_their_names(tmp_path: Path) -> None:
    path = listed(tmp_path)
    text = path.read_text().replace("benign", "4").replace("malign", "7.0")
    path.write_text(text)
    assert opened(str(path)).classes == ("class-4", "class-7")
    path.write_text(text.replace(",4,", ",0,").replace(",7.0,", ",1,"))
    named = opened(str(path), classes=["gutartig", "bösartig"])
    assert named.classes[1] == "bösartig" and named.val.labels.tolist() == [0, 1]


def test_findings_are_columns_of_0_and_1(tmp_path: Path) -> None:
    images(tmp_path, [row[0] for row in ROWS])
    rows = [f"{row[0]},{row[2]},{n % 2},{n // 2 % 2}" for n, row in enumerate(ROWS)]
    (tmp_path / "list.csv").write_text("\n".join(["path,split,edema,mass", *rows]))
    data = opened(str(tmp_path / "list.csv"), findings=["edema", "mass"])
    assert (data.kind, data.classes) == ("multilabel", ("edema", "mass"))
    assert data.train.labels.tolist() == [[0, 0], [1, 0], [0, 1], [1, 1]]
    (tmp_path / "list.csv").write_text(
        "\n".join(["path,split,edema,mass", *rows[:-1], "x,test,,1"])
    )
    with pytest.raises(DataError, match="1 labels are none of 'edema', 0 or 1: ''"):
        opened(str(tmp_path / "list.csv"), findings=["edema", "mass"])


def test_a_file_a_split_and_paths_below_a_root(tmp_path: Path) -> None:
    path = listed(tmp_path / "scans")
    header, *rows = path.read_text().splitlines()
    lists = tmp_path / "lists"
    lists.mkdir()
    for split, own in (("train", rows[:4]), ("val", rows[4:6]), ("test", rows[6:])):
        (lists / f"{split}.csv").write_text("\n".join([header, *own]))
    files = {split: f"lists/{split}.csv" for split in ("train", "val", "test")}
    data = opened(files, tmp_path, root="scans", split="none")  # type: ignore[arg-type]
    assert [len(s) for s in (data.train, data.val, data.test)] == [4, 2, 2]
    assert str(tmp_path) not in str(data.provenance)


def test_without_a_val_split_some_training_groups_validate(tmp_path: Path) -> None:
    path = listed(tmp_path)
    path.write_text(path.read_text().replace(",valid,", ",train,").replace(",val,", ",train,"))
    data = opened(str(path), group="patient", val_share=0.34)
    assert (len(data.train), len(data.val)) == (4, 2) and sorted(data.val.labels) == [0, 1]
    again = opened(str(path), group="patient", val_share=0.34)
    assert [p.name for p in again.val.images.paths] == [p.name for p in data.val.images.paths]  # type: ignore[attr-defined]


def test_missing_files_are_counted_before_any_work(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = listed(tmp_path)
    (tmp_path / "a/1.png").unlink()
    (tmp_path / "a/3.png").unlink()
    (tmp_path / "a/3.png").symlink_to(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"2 of 8 files are missing .*: a/1.png, a/3.png") as caught:
        opened(str(path))
    assert "leave-out" in str(caught.value.fix)
    with caplog.at_level(logging.WARNING), pytest.raises(DataError, match="same label"):
        opened(str(path), missing="leave-out")
    assert "2 of 8 files" in caplog.text


def test_what_is_missing_stands_in_the_provenance(tmp_path: Path) -> None:
    path = listed(tmp_path)
    path.write_text(path.read_text() + "gone.png,benign,train,P9,3,f\n")
    data = opened(str(path), missing="leave-out")
    assert len(data.train) == 4 and data.provenance["left_out"] == {"missing": 1}


FAULTS = {
    "no such column": ("label", "diagnosis", {}, "no column is called 'label'"),
    "no split": ("split", "fold", {}, "no column is called 'split'"),
    "wrong split": (",valid,", ",later,", {}, "line 6: 'later' is no split"),
    "unknown class": ("malign,val,", "odd,val,", {}, "1 labels are none of benign, malign: 'odd'"),
    "too few cells": ("b/4.png,malign,", "b/4.png,", {}, "the row has 5 cells, the header 6"),
    "outside": ("a/1.png", "../a/1.png", {}, "line 2: '../a/1.png' is no path below the root"),
    "absolute": ("a/1.png", "/etc/passwd", {}, "lies outside the root"),
    "same names": ("patient", "label", {}, "two columns have the same name"),
    "no images": ("\n.*", "", {}, "the list names no image"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults_say_where_and_what_to_do(tmp_path: Path, name: str) -> None:
    before, after, given, message = FAULTS[name]
    path = listed(tmp_path)
    text = path.read_text()
    path.write_text(text.splitlines()[0] if name == "no images" else text.replace(before, after, 1))
    with pytest.raises(DataError) as caught:
        opened(str(path), **given)
    assert message in str(caught.value) and caught.value.where and caught.value.fix


def test_an_absolute_path_below_the_root_is_a_path(tmp_path: Path) -> None:
    path = listed(tmp_path)
    path.write_text(path.read_text().replace("a/1.png", str(tmp_path / "a/1.png")))
    assert opened(str(path)).train.images[0][0, 0] == 0


def test_a_section_that_contradicts_itself() -> None:
    for given in ({"findings": ["a"], "classes": ["x", "y"]}, {"attributes": {"age": [60, 40]}}):
        with pytest.raises(ValidationError):
            CsvData.model_validate({"source": "csv", "path": "x.csv", **given})
