"""Archives of the user's own: what opens, and what each fault says."""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lorkd_deploy.data import TaskData, open_data
from lorkd_deploy.data.npz import NpzData
from lorkd_deploy.errors import DataError
from tests.data.archives import arrays, real_data, save


def opened(path: str | Path, folder: Path | None = None, **given: Any) -> TaskData:
    return open_data(NpzData(source="npz", path=str(path), **given), folder)


def fault(path: Path, **given: Any) -> DataError:
    """The error of opening `path` and reading all its images; it must say where and what to do."""
    with pytest.raises(DataError) as caught:
        data = opened(path, **given)
        for split in (data.train, data.val, data.test):
            assert len(split.images[:]) == len(split)
    assert caught.value.where and caught.value.fix
    return caught.value


@pytest.mark.parametrize("colour", [True, False])
def test_images_and_labels_come_out_as_they_were_saved(tmp_path: Path, colour: bool) -> None:
    saved = arrays(colour=colour)
    path = save(tmp_path / "own.npz", **saved)
    data = opened(path)
    assert data.classes == ("class-0", "class-1", "class-2")
    assert data.kind == "multiclass"
    for name in ("train", "val", "test"):
        split = getattr(data, name)
        assert len(split) == len(split.images) == len(saved[f"{name}_labels"])
        assert split.labels.dtype == np.int64
        np.testing.assert_array_equal(split.labels, saved[f"{name}_labels"][:, 0])
        np.testing.assert_array_equal(np.stack(list(split.images)), saved[f"{name}_images"])
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert data.provenance == {"source": "npz", "name": "own.npz", "sha256": digest}


def test_groups_are_read_where_all_splits_have_them(tmp_path: Path) -> None:
    saved = arrays()
    assert opened(save(tmp_path / "plain.npz", **saved)).test.groups is None
    counts = {name: len(saved[f"{name}_labels"]) for name in ("train", "val", "test")}
    groups = {f"{name}_groups": (np.arange(n) // 2)[:, None] for name, n in counts.items()}
    data = opened(save(tmp_path / "own.npz", **saved, **groups))
    assert data.test.groups is not None
    np.testing.assert_array_equal(data.test.groups, np.arange(counts["test"]) // 2)
    groups["val_groups"] = groups["val_groups"][:-1]
    assert "one whole number for each" in str(fault(save(tmp_path / "w.npz", **saved, **groups)))


def test_a_part_of_a_split_is_still_unread(tmp_path: Path) -> None:
    data = opened(save(tmp_path / "own.npz", **arrays()))
    chosen = np.array([3, 0])
    part = data.train.part(chosen)
    np.testing.assert_array_equal(part.labels, data.train.labels[chosen])
    np.testing.assert_array_equal(part.images[0], data.train.images[3])
    np.testing.assert_array_equal(
        np.stack(part.images[:]), np.stack([data.train.images[i] for i in chosen])
    )


def test_images_are_read_only_when_they_are_asked_for(tmp_path: Path) -> None:
    data = opened(save(tmp_path / "own.npz", **arrays()))
    (tmp_path / "own.npz").unlink()
    with pytest.raises(DataError, match="does not exist"):
        data.test.images[0]


def test_names_of_classes_come_from_the_recipe(tmp_path: Path) -> None:
    path = save(tmp_path / "own.npz", **arrays())
    assert opened(path, classes=("a", "b", "c")).classes == ("a", "b", "c")
    assert "labels run from 0 to 1" in fault(path, classes=("a", "b")).what
    assert "different classes" in fault(path, classes=("a", "b", "b")).what


def test_flat_labels_and_findings_are_told_apart(tmp_path: Path) -> None:
    saved = arrays()
    flat = {key: value[:, 0] for key, value in saved.items() if key.endswith("labels")}
    assert opened(save(tmp_path / "flat.npz", **{**saved, **flat})).kind == "multiclass"
    rng = np.random.default_rng(0)
    findings = {key: (rng.random((len(v), 4)) < 0.5).astype(np.uint8) for key, v in flat.items()}
    data = opened(save(tmp_path / "findings.npz", **{**saved, **findings}))
    assert (data.kind, len(data.classes)) == ("multilabel", 4)
    np.testing.assert_array_equal(data.test.labels, findings["test_labels"])


def test_one_hot_labels_are_not_taken_for_findings(tmp_path: Path) -> None:
    saved = arrays()
    hot = {k: np.eye(3, dtype=np.uint8)[v[:, 0]] for k, v in saved.items() if k.endswith("labels")}
    error = fault(save(tmp_path / "hot.npz", **{**saved, **hot}))
    assert "one-hot" in error.what and "argmax" in (error.fix or "")


def test_a_relative_path_is_looked_for_in_the_folders_in_their_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = {name: tmp_path / name for name in ("given", "environment", "home/.medmnist", "here")}
    for folder in folders.values():
        folder.mkdir(parents=True)
    monkeypatch.setenv("LORKD_DATA", str(folders["environment"]))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(folders["here"])
    for count, folder in enumerate(folders.values(), 2):
        save(folder / "own.npz", **arrays(count))
    for count, folder in enumerate(folders.values(), 2):
        assert len(opened("own.npz", folders["given"]).classes) == count
        (folder / "own.npz").unlink()
    error = fault(Path("own.npz"))
    for folder in ("environment", ".medmnist"):
        assert folder in (error.where or "")


FAULTS = {
    "labels out of range": ({"test_labels": np.full((9, 1), 3)}, "labels run from 0 to 2"),
    "negative labels": ({"val_labels": np.array([[0], [1], [-1]] * 2)}, r"image 2 has -1 \(2 "),
    "labels of halves": ({"train_labels": np.zeros((12, 1))}, "float64 values, whole numbers"),
    "labels of three dimensions": ({"val_labels": np.zeros((6, 1, 1), int)}, r"shape \(6, 1, 1\)"),
    "labels that differ in shape": ({"val_labels": np.zeros((6, 2), int)}, "differ in shape"),
    "one label only": ({"test_labels": np.ones((9, 1), int)}, "same label"),
    "more labels than images": ({"val_labels": np.zeros((7, 1), int)}, "6 images and 7 labels"),
    "16-bit images": ({"train_images": np.zeros((12, 10, 10), np.uint16)}, "uint16 values, 8-bit"),
    "floating-point images": ({"test_images": np.zeros((9, 10, 10))}, "float64 values, 8-bit"),
    "channels first": ({"train_images": np.zeros((12, 3, 10, 10), np.uint8)}, "shape .12, 3, 10"),
    "tiny images": ({"test_images": np.zeros((9, 10, 1), np.uint8)}, "1 × 10 px"),
    "an empty split": (
        {"val_images": np.zeros((0, 10, 12, 3), np.uint8), "val_labels": np.zeros((0, 1), int)},
        "the val split is empty",
    ),
    "an empty training split": (
        {"train_images": np.zeros((0, 10, 10), np.uint8), "train_labels": np.zeros((0, 1), int)},
        "different classes|split is empty",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_content_that_contradicts_itself(tmp_path: Path, name: str) -> None:
    replaced, message = FAULTS[name]
    error = fault(save(tmp_path / "own.npz", **arrays(**replaced)))
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(error.what)
    assert "own.npz" in (error.where or "")


def test_findings_other_than_0_and_1(tmp_path: Path) -> None:
    saved = arrays()
    twos = {k: np.tile([0, 1, 2], (len(v), 1)) for k, v in saved.items() if k.endswith("labels")}
    assert "labels run from 0 to 1" in fault(save(tmp_path / "x.npz", **{**saved, **twos})).what


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    assert "no data at" in fault(tmp_path / "none.npz").what
    assert "no readable NumPy archive" in fault(tmp_path).what


def test_wrong_keys_are_named(tmp_path: Path) -> None:
    saved = arrays()
    saved["images"] = saved.pop("train_images")
    error = fault(save(tmp_path / "own.npz", **saved))
    assert "lacks train_images; it has images, test_images" in error.what


@pytest.mark.parametrize("left", [0, 1, 100, 1000, -1])
def test_a_truncated_file(tmp_path: Path, left: int) -> None:
    path = save(tmp_path / "own.npz", **arrays())
    path.write_bytes(path.read_bytes()[:left])
    assert "no readable NumPy archive" in fault(path).what


def test_an_archive_of_something_else(tmp_path: Path) -> None:
    np.save(tmp_path / "plain.npy", np.zeros(3))
    assert "no readable NumPy archive" in fault(tmp_path / "plain.npy").what
    with zipfile.ZipFile(tmp_path / "other.npz", "w") as archive:
        for key in arrays():
            archive.writestr(f"{key}.npy", "no array")
    assert "no readable NumPy archive" in fault(tmp_path / "other.npz").what


def test_a_flipped_byte_in_the_images_is_found_when_they_are_read(tmp_path: Path) -> None:
    path = tmp_path / "own.npz"
    np.savez(path, **arrays())
    content = bytearray(path.read_bytes())
    pixels = arrays()["test_images"].tobytes()
    content[content.find(pixels) + len(pixels) // 2] ^= 1
    path.write_bytes(content)
    assert "CRC" in fault(path).what


def test_an_array_that_is_shorter_than_its_header_says(tmp_path: Path) -> None:
    path = save(tmp_path / "own.npz", **arrays())
    short = tmp_path / "short.npz"
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(short, "w") as new:
        for name in old.namelist():
            new.writestr(name, old.read(name)[: -1 if name == "val_images.npy" else None])
    assert "val_images has fewer or more bytes" in fault(short).what


def test_objects_are_never_unpickled(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "sprung",))

    for key in ("train_labels", "train_images"):
        trap = np.array([Trap()] * 12, dtype=object)
        path = tmp_path / f"{key}.npz"
        np.savez(path, **{**arrays(), key: trap})
        assert "array of objects" in fault(path).what
    assert not (tmp_path / "sprung").exists()


def test_blood_cells() -> None:
    path = real_data() / "pbc_blood.npz"
    data = opened(path)
    assert [len(s.images) for s in (data.train, data.val, data.test)] == [11959, 1712, 3421]
    assert len(data.classes) == 8
    assert data.test.images[3420].shape == (28, 28, 3)
    assert np.bincount(data.test.labels).tolist() == [244, 624, 311, 579, 243, 284, 666, 470]
    assert str(path.parent) not in json.dumps(data.provenance)


@pytest.mark.parametrize(
    ("shape", "advice"),
    [
        ((4, 9, 8, 4), "alpha channel"),
        ((4, 3, 9, 8), "channels last"),
        ((4, 9, 9, 9), "single slices"),
        ((4, 9, 9, 9, 1), "single slices"),
    ],
)
def test_the_advice_fits_the_shape(tmp_path: Path, shape: tuple[int, ...], advice: str) -> None:
    parts = {f"{split}_images": np.zeros(shape, np.uint8) for split in ("train", "val", "test")}
    labels = {f"{split}_labels": np.arange(4) % 2 for split in ("train", "val", "test")}
    np.savez(tmp_path / "set.npz", **parts, **labels)
    with pytest.raises(DataError, match="images have shape") as caught:
        open_data(NpzData(source="npz", path=str(tmp_path / "set.npz")))
    assert advice in (caught.value.fix or "")
