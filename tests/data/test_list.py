"""List files as RadImageNet and Med-MT have them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lorkd_deploy.data import TaskData, open_data
from lorkd_deploy.data.list import ListData
from lorkd_deploy.errors import DataError
from lorkd_deploy.recipe import load_recipe
from tests.data.listed import images


def opened(folder: Path, delimiter: str = " ", labels: str = "{0}", **given: Any) -> TaskData:
    """Lists of 6, 4 and 4 images with labels 0 and 1 in turn, opened."""
    for split, count in (("train", 6), ("val", 4), ("test", 4)):
        names = [f"{split}/scan {n}.png" for n in range(count)]
        images(folder, names)
        lines = [
            name + delimiter + labels.format(n % 2, n // 2 % 2) for n, name in enumerate(names)
        ]
        (folder / f"{split}.txt").write_text("\n".join(lines) + "\n")
    files = {split: f"{split}.txt" for split in ("train", "val", "test")}
    return open_data(ListData.model_validate({"source": "list", **files, **given}), folder)


@pytest.mark.parametrize("delimiter", [" ", "\t", ",", ", "])
def test_paths_and_labels_with_white_space_or_commas(tmp_path: Path, delimiter: str) -> None:
    data = opened(tmp_path, delimiter, classes=["normal", "effusion"])
    assert data.val.labels.tolist() == [0, 1, 0, 1] and data.classes == ("normal", "effusion")
    assert [image[0, 0] for image in data.train.images] == [0, 1, 2, 3, 4, 5]


def test_findings_are_several_labels_a_line(tmp_path: Path) -> None:
    data = opened(tmp_path, ",", "{0},{1}", findings=["edema", "mass"])
    assert data.kind == "multilabel"
    assert data.val.labels.tolist() == [[0, 0], [1, 0], [0, 1], [1, 1]]


def test_without_a_list_of_validation_images_some_training_images_validate(tmp_path: Path) -> None:
    data = opened(tmp_path, val=None, val_share=0.34)
    assert (len(data.train), len(data.val)) == (4, 2)


def test_a_line_without_a_label_is_named(tmp_path: Path) -> None:
    opened(tmp_path)
    with (tmp_path / "val.txt").open("a") as stream:
        stream.write("val/scan.png\n")
    files = {split: f"{split}.txt" for split in ("train", "val", "test")}
    with pytest.raises(DataError, match="no label behind its path") as caught:
        open_data(ListData.model_validate({"source": "list", **files}), tmp_path)
    assert str(caught.value.where).endswith("val.txt, line 5")


@pytest.mark.parametrize("name", ["\0/scan.png", "val/\0.png"])
def test_a_name_that_no_file_can_have_is_missing(tmp_path: Path, name: str) -> None:
    opened(tmp_path)
    with (tmp_path / "val.txt").open("a") as stream:
        stream.write(f"{name} 1\n")
    files = {split: f"{split}.txt" for split in ("train", "val", "test")}
    with pytest.raises(DataError, match="1 of 15 files are missing"):
        open_data(ListData.model_validate({"source": "list", **files}), tmp_path)


def test_a_list_of_several_tasks_gives_each_its_own_classes(tmp_path: Path) -> None:
    names = [f"{split}/{n}.png" for split in ("train", "test") for n in range(12)]
    images(tmp_path, names)
    for split, part in (("train", names[:12]), ("test", names[12:])):
        lines = [f"{name} {n % 6}" for n, name in enumerate(part)]
        (tmp_path / f"{split}.txt").write_text("\n".join(lines))
    given = {"source": "list", "train": "train.txt", "test": "test.txt", "val_share": 0.34}

    def opened(**more: Any) -> TaskData:
        return open_data(ListData.model_validate(given | more), tmp_path)

    data = opened(label_range=[2, 4])
    assert data.classes == ("class-2", "class-3", "class-4")
    assert data.test.labels.tolist() == [0, 1, 2] * 2
    assert [image[0, 0] for image in data.test.images] == [14, 15, 16, 20, 21, 22]
    assert (len(data.train), len(data.val)) == (4, 2)
    named = opened(label_range=[2, 4], classes=["cyst", "mass", "none"])
    assert named.classes == ("cyst", "mass", "none") and named.test.labels.max() == 2
    with pytest.raises(DataError, match="no image whose label is a number from 7 to 9"):
        opened(label_range=[7, 9])
    for wrong in ({"label_range": [4, 4]}, {"label_range": [2, 4], "classes": ["a", "b"]},
                  {"label_range": [0, 1], "findings": ["a", "b"]}):  # fmt: skip
        with pytest.raises(ValueError, match="label_range"):
            opened(**wrong)
    with (tmp_path / "train.txt").open("a") as stream:
        stream.write("\ntrain/0.png cyst")
    with pytest.raises(DataError, match="line 13: 'cyst' is no number"):
        opened(label_range=[2, 4])


def test_radimagenet_reads_its_two_lists_of_165_classes(tmp_path: Path) -> None:
    tasks = load_recipe("radimagenet").tasks
    numbers = [number for number in range(165) for _ in range(10)]
    names = [f"{split}_{n}.png" for split in ("train", "test") for n in range(len(numbers))]
    (tmp_path / "radimagenet/images").mkdir(parents=True)
    for name in names:
        (tmp_path / "radimagenet/images" / name).touch()
    for file, part in (("rad_train_shuffled", names[:1650]), ("rad_test", names[1650:])):
        lines = [f"{name} {number}" for name, number in zip(part, numbers, strict=True)]
        (tmp_path / f"radimagenet/{file}.txt").write_text("\n".join(lines))
    classes = []
    for task in tasks:
        assert isinstance(task.data, ListData)
        data = open_data(task.data, tmp_path)
        assert len(data.test) == 10 * len(data.classes) == len(data.train) + len(data.val)
        classes += data.classes
    assert classes == [f"class-{number}" for number in range(165)] and len(tasks) == 11


def test_med_mt_reads_lists_of_its_layout(tmp_path: Path) -> None:
    tasks = load_recipe("med-mt").tasks
    assert len(tasks) == 8
    for task in tasks:
        spec = task.data
        assert isinstance(spec, ListData)
        files = {"train": spec.train, "val": spec.val, "test": spec.test}
        for split, file in files.items():
            if file:
                root = tmp_path / (spec.root or Path(file).parent)
                names = [f"{task.name}/{split}_{n}.png" for n in range(20)]
                images(root, names)
                lines = [f"{name},{n % 2}" for n, name in enumerate(names)]
                (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
                (tmp_path / file).write_text("\n".join(lines))
        data = open_data(spec, tmp_path)
        wanted = [20, 20, 20] if spec.val else [18, 2, 20]
        assert [len(s) for s in (data.train, data.val, data.test)] == wanted
        assert data.test.images[3].shape == (9, 8)
