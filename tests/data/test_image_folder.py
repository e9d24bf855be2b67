"""Folders of image files."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lorkd_deploy.data import TaskData, open_data
from lorkd_deploy.data.image_folder import ImageFolderData
from lorkd_deploy.errors import DataError, ImageError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three splits of the classes `benign` and `malign`; image n of a class is n, plain grey."""
    root = tmp_path / "scans"
    for split, count in (("train", 11), ("val", 2), ("test", 3)):
        for offset, kind in ((0, "benign"), (100, "malign")):
            place = root / split / kind
            place.mkdir(parents=True)
            for n in reversed(range(count)):
                Image.new("L", (9, 8), offset + n).save(place / f"{n:03}.png")
    return root


def opened(path: Path | str, folder: Path | None = None) -> TaskData:
    return open_data(ImageFolderData(source="image-folder", path=str(path)), folder)


def test_images_come_by_class_then_by_name(folder: Path) -> None:
    data = opened(folder)
    assert (data.classes, data.kind) == (("benign", "malign"), "multiclass")
    assert data.test.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert [image[0, 0] for image in data.test.images] == [0, 1, 2, 100, 101, 102]
    assert data.train.images[10].shape == (8, 9) and data.train.images[-1][0, 0] == 110
    assert [len(s) for s in (data.train, data.val, data.test)] == [22, 4, 6]


def test_provenance_follows_names_and_sizes_and_names_no_folder_above(folder: Path) -> None:
    before = opened(folder).provenance
    assert before["name"] == "scans" and str(folder.parent) not in str(before)
    assert opened("scans", folder.parent).provenance == before
    copy = shutil.copytree(folder, folder.parent / "elsewhere" / "scans")
    assert opened(copy).provenance == before
    (copy / "val/benign/000.png").rename(copy / "val/benign/007.png")
    assert opened(copy).provenance != before


def test_jpeg_in_capitals_is_read_and_other_files_are_not(folder: Path) -> None:
    place = folder / "val/benign"
    Image.new("RGB", (20, 10), (250, 0, 0)).save(place / "photo.JPG", quality=95)
    Image.new("RGB", (20, 10), (0, 250, 0)).save(place / "photo2.jpeg", quality=95)
    (place / "._000.png").write_bytes(b"a file manager's")
    (place / "notes.txt").write_text("no image")
    images = opened(folder).val.images
    assert [image.shape for image in images[2:4]] == [(10, 20, 3), (10, 20, 3)]
    assert images[2][0, 0, 0] > 240 and images[3][0, 0, 1] > 240
    assert len(images) == 6


def test_files_are_read_when_they_are_asked_for(folder: Path) -> None:
    broken = folder / "train/malign/003.png"
    broken.write_bytes(broken.read_bytes()[:20])
    images = opened(folder).train.images
    assert images[0][0, 0] == 0
    with pytest.raises(ImageError) as caught:
        images[14]
    assert caught.value.where == str(broken)


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_a_missing_split(folder: Path, split: str) -> None:
    shutil.rmtree(folder / split)
    with pytest.raises(DataError, match=f"the folder '{split}' is missing") as caught:
        opened(folder)
    assert "train/CLASS" in (caught.value.fix or "")


def test_a_class_that_a_split_lacks_and_one_that_train_has_not(folder: Path) -> None:
    (folder / "test/malign").rename(folder / "test/maling")
    with pytest.raises(DataError, match="test lacks malign and has maling, which train has not"):
        opened(folder)


def test_a_class_without_images(folder: Path) -> None:
    for path in (folder / "val/malign").iterdir():
        path.rename(path.with_suffix(".gif"))
    with pytest.raises(
        DataError, match=r"'malign' has no image; 2 files left out: 2 × no image \(.gif\)"
    ) as caught:
        opened(folder)
    assert caught.value.where == str(folder / "val/malign") and ".png" in (caught.value.fix or "")


def test_a_single_class_and_no_class(folder: Path) -> None:
    for split in ("train", "val", "test"):
        shutil.rmtree(folder / split / "malign")
    with pytest.raises(DataError, match="two or more different classes"):
        opened(folder)
    for split in ("train", "val", "test"):
        shutil.rmtree(folder / split / "benign")
    with pytest.raises(DataError, match="two or more different classes"):
        opened(folder)


def test_a_folder_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no data at 'scans'") as caught:
        opened("scans", tmp_path)
    assert str(tmp_path / "scans") in (caught.value.where or "")


def test_labels_are_integers(folder: Path) -> None:
    assert opened(folder).train.labels.dtype == np.int64


def test_folders_of_patients_are_read_and_are_groups(folder: Path) -> None:
    assert opened(folder).val.groups is None
    for kind, grey in (("benign", 50), ("malign", 150)):
        place = folder / "val" / kind / "anna" / "second-visit"
        place.mkdir(parents=True)
        Image.new("L", (9, 8), grey).save(place / "0.bmp")
        Image.new("L", (9, 8), grey + 1).save(place.parent / "1.webp", lossless=True)
    (folder / "val/benign/bert").symlink_to(folder / "test/benign", target_is_directory=True)
    val = opened(folder).val
    assert [int(image[0, 0].flat[0]) for image in val.images] == [
        *(0, 1, 51, 50, 0, 1, 2),  # benign
        *(100, 101, 151, 150),  # malign
    ]
    assert val.groups is not None
    first = val.groups[0]  # training images have groups of their own, of other numbers
    assert (val.groups - first).tolist() == [0, 1, 2, 2, 3, 3, 3, 4, 5, 2, 2]
    (folder / "train/benign/anna").mkdir()
    Image.new("L", (9, 8), 52).save(folder / "train/benign/anna/0.png")
    data = opened(folder)
    assert data.train.groups is not None and data.val.groups is not None
    both = set(data.train.groups) & set(data.val.groups)
    assert both == {data.val.groups[2]}  # anna is the same patient in both


def test_what_is_left_out_is_counted_by_reason(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert "left_out" not in opened(folder).provenance
    place = folder / "train/benign"
    for name in ("a.gif", "b.GIF", "c.dcm", "LICENSE"):
        (place / name).touch()
    (place / "x.png").symlink_to("/nowhere/x.png")
    (place / "loop").symlink_to(place, target_is_directory=True)
    (folder / "val/loose.png").touch()
    data = opened(folder)
    assert data.provenance["left_out"] == {
        "beside the folders of the classes": 1,
        "broken link": 1,
        "link to a folder that was read already": 1,
        "no image (.dcm)": 1,
        "no image (.gif)": 2,
        "no image (no ending)": 1,
    }
    assert "7 files left out" in caplog.text and len(data.train) == 22


@pytest.mark.parametrize(
    "name", ["train/benign/caf\udce9.png", "train/b\udce9nin", "test/caf\udce9"]
)
def test_a_name_that_is_not_utf8_is_named(folder: Path, name: str) -> None:
    (folder / name).mkdir() if "." not in name else (folder / name).touch()
    with pytest.raises(ImageError, match="not UTF-8") as caught:
        opened(folder)
    assert name.replace("\udce9", "\\xe9") in (caught.value.where or "")
