"""DICOM files as a source of training images: layouts, patients, rules, faults."""

from __future__ import annotations

import errno
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lorkd_deploy.cli import main
from lorkd_deploy.data import SPLITS, TaskData, open_data
from lorkd_deploy.data.dicom import DicomData
from lorkd_deploy.data.files import ImageFiles
from lorkd_deploy.datacheck.check import check_task
from lorkd_deploy.dicom.rules import DicomRules
from lorkd_deploy.errors import DataError, ImageError
from lorkd_deploy.preprocess import Preprocess
from lorkd_deploy.recipe import parse_recipe
from tests.dicom.files import dataset, real_file, saved
from tests.tiny_recipe import tiny_recipe

RAMP = np.arange(256).reshape(16, 16)


def scan(file: Path, value: int, patient: str, **elements: Any) -> Path:
    made = dataset((RAMP + value) % 4096, PatientID=patient, **elements)
    return saved(made, file)


def opened(path: Path | dict[str, str], window: Any = (128, 256), **given: Any) -> TaskData:
    path = str(path) if isinstance(path, Path) else path  # type: ignore[assignment]
    rules = {"modality": ["CT"], "window": window}
    spec = DicomData.model_validate({"source": "dicom", "path": path, "dicom": rules, **given})
    return open_data(spec)


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """`CLASS/SERIES/FILE` without endings: 20 patients with two images each, and what is none."""
    for number in range(40):
        patient = number // 2
        kind = ("benign", "malign")[patient % 2]
        scan(tmp_path / f"scans/{kind}/S{number}/IM{number:04}", number, f"SECRET-{patient}")
    (tmp_path / "scans/benign/notes.txt").write_text("none")
    (tmp_path / "scans/DICOMDIR").write_bytes(bytes(128) + b"DICM")
    return tmp_path / "scans"


def names(data: TaskData, split: str) -> list[str]:
    images = getattr(data, split).images
    assert isinstance(images, ImageFiles)
    return [path.name for path in images.paths]


def test_a_folder_of_classes_is_divided_and_patients_stay_whole(
    scans: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = opened(scans)
    assert data.classes == ("benign", "malign") and data.kind == "multiclass"
    assert sorted(n for split in SPLITS for n in names(data, split)) == [
        f"IM{n:04}" for n in range(40)
    ]
    groups = [set(getattr(data, split).groups.tolist()) for split in SPLITS]
    assert sum(map(len, groups)) == len(set().union(*groups)) == 20
    assert [len(getattr(data, split)) for split in SPLITS] == [28, 4, 8]
    for split in SPLITS:
        for name, label in zip(names(data, split), getattr(data, split).labels, strict=True):
            assert label == int(name[2:]) // 2 % 2
    spec = DicomData(source="dicom", path=str(scans))
    again = open_data(DicomData.model_validate(spec.model_dump(mode="json")))  # as a run keeps it
    assert [names(again, split) for split in SPLITS] == [names(data, split) for split in SPLITS]
    assert "2 files left out" in caplog.text
    assert data.provenance["left_out"] == {"a medium's list of files": 1, "no image (.txt)": 1}
    assert "SECRET" not in str(data.provenance) + caplog.text
    assert str(scans.parent) not in str(data.provenance)


def test_the_tasks_rules_make_the_pixels(scans: Path) -> None:
    data, other = opened(scans), opened(scans, window="minmax")
    place = names(data, "train").index("IM0005")
    shown = np.clip(((RAMP + 5 - 127.5) / 255 + 0.5) * 255, 0, 255)
    assert (data.train.images[place] == np.floor(shown + 0.5)).all()
    assert other.train.images[place].min() == 0 and other.train.images[place].max() == 255
    assert data.provenance["rules_sha256"] == DicomRules(modality=("CT",), window=(128, 256)).sha256
    assert data.provenance != other.provenance
    with pytest.raises(ImageError, match="the file has no window, and values of 12 bits") as caught:
        _ = opened(scans, window="file").train.images[0]
    assert "IM0" in str(caught.value.where) and "data.dicom in the recipe" in str(caught.value.fix)


def test_folders_of_splits(tmp_path: Path) -> None:
    for number in range(12):
        split = ("train", "valid", "test")[number // 4]
        kind = str(number % 2)
        scan(tmp_path / f"{split}/{kind}/{number}.dcm", number, f"P{number % 8}")
    data = opened(tmp_path)
    assert [len(getattr(data, split)) for split in SPLITS] == [4, 4, 4]
    assert data.classes == ("class-0", "class-1")
    assert sorted(names(data, "test")) == ["10.dcm", "11.dcm", "8.dcm", "9.dcm"]
    task = parse_recipe(tiny_recipe(), where="test").tasks[0]
    found = check_task(task, data, Preprocess(size=16)).findings
    assert any("patient" in one.says for one in found if one.level == "leakage")


def listed(folder: Path, header: str, rows: list[str]) -> Path:
    (folder / "list.csv").write_text("\n".join([header, *rows]) + "\n")
    return folder / "list.csv"


def test_a_csv_with_and_without_split_and_group(tmp_path: Path) -> None:
    for number in range(40):
        scan(tmp_path / f"{number}.dcm", number, f"P{number // 4}")
    plain = [f"{n}.dcm,{'ab'[n % 2]}" for n in range(40)]
    data = opened(listed(tmp_path, "path,label", plain))
    assert [len(getattr(data, split)) for split in SPLITS] == [28, 4, 8]
    assert data.test.groups is not None and len(set(data.test.groups.tolist())) == 2
    own = opened(
        listed(tmp_path, "path,label,Group", [f"{row},{n}" for n, row in enumerate(plain)])
    )
    assert own.train.groups is not None and len(set(own.train.groups.tolist())) == 29
    whose = [f"{row},{('train', 'val', 'test')[n // 4 % 3]}" for n, row in enumerate(plain)]
    given = opened(listed(tmp_path, "path,label,split", whose))
    assert names(given, "val") == [f"{n}.dcm" for n in range(40) if n // 4 % 3 == 1]
    with pytest.raises(DataError, match="no column is called 'fold'"):
        opened(tmp_path / "list.csv", split="fold")
    (tmp_path / "3.dcm").unlink()
    with pytest.raises(DataError, match=r"1 of 40 files are missing .*: 3\.dcm"):
        opened(tmp_path / "list.csv")


def test_data_split_keeps_patients_whole_and_their_ids_out(scans: Path, tmp_path: Path) -> None:
    out = tmp_path / "lists.csv"
    words = ["data", "split", str(scans), "--out", str(out), "--dicom", "window=[128,256]"]
    assert main([*words, "--shares", "60,20,20", "-q"]) == 0
    text = out.read_text()
    assert text.startswith("path,label,split,cluster\n") and "SECRET" not in text
    data = opened(out, root=str(scans))
    groups = [set(getattr(data, split).groups.tolist()) for split in SPLITS]
    assert sum(map(len, groups)) == len(set().union(*groups)) == 20
    assert main(["data", "split", str(scans), "--out", str(out), "-q"]) == 1


def test_anonymised_files_of_one_name_are_said_and_divided_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(20):
        scan(tmp_path / "ab"[number % 2] / f"{number}", number, "ANON")
    data = opened(tmp_path)
    assert data.train.groups is None and len(data.test) == 4
    assert "all 20 files name the same patient or none" in caplog.text
    assert "ANON" not in caplog.text


def test_faults_say_where_and_what_to_do(tmp_path: Path, scans: Path) -> None:
    with pytest.raises(DataError, match="a folder has no columns, and the recipe names findings"):
        opened(scans, findings=["a", "b"])
    with pytest.raises(DataError, match="a folder has all splits below it"):
        opened({"train": str(scans), "test": str(scans)})
    (tmp_path / "flat").mkdir()
    scan(tmp_path / "flat/a.dcm", 1, "P")
    with pytest.raises(DataError, match="no DICOM file lies in a folder of its class"):
        opened(tmp_path / "flat")
    (scans / "malign/S2/none.dcm").write_text("none")
    with pytest.raises(ImageError, match="the file is no DICOM file") as caught:
        opened(scans)
    assert str(caught.value.where).endswith("none.dcm") and caught.value.fix


def test_a_network_that_is_away_is_tried_again(
    scans: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    data = opened(scans)
    real, failed = Path.open, list[str]()

    def away(self: Path, *given: Any, **options: Any) -> Any:
        if self.name.startswith("IM") and not failed:
            failed.append(self.name)
            raise OSError(errno.ESTALE, "Stale file handle", str(self))
        return real(self, *given, **options)

    monkeypatch.setattr(Path, "open", away)
    monkeypatch.setattr("lorkd_deploy.data.files.WAITS", (0.0,))
    with caplog.at_level(logging.WARNING):
        assert data.train.images[0].shape == (16, 16)
    assert failed and "tried again" in caplog.text


def test_real_files(tmp_path: Path) -> None:
    """Encodings of a scanner, J2K and RLE, side by side in one set."""
    for name, kind in (("693_J2KI", "a"), ("693_UNCR", "b"), ("MR_small_RLE", "a"),
                       ("MR_small_jpeg_ls_lossless", "b")):  # fmt: skip
        for split in ("train", "val", "test"):
            place = tmp_path / split / kind / name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(real_file(name))
    spec = DicomData(source="dicom", path=str(tmp_path))
    data = open_data(spec)
    first, second, *_ = data.train.images
    assert first.shape == (512, 512) and first.std() > 0 and second.std() > 0
