from __future__ import annotations

import csv
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lorkd_deploy.deploy.answers import classifier as classifier_module
from lorkd_deploy.deploy.artifact import read_artifact, write_artifact
from lorkd_deploy.deploy.predict import predict
from lorkd_deploy.deploy.proof.parity import Parity
from lorkd_deploy.errors import ArtifactError, ImageError, UsageError
from tests.deploy.made_run import PREPROCESS, classes_of, rewrite_record, true_logits


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder of five images of several kinds, two levels deep, and files that are none."""
    folder = tmp_path / "images"
    (folder / "b").mkdir(parents=True)
    rng = np.random.default_rng(0)
    grey, colour = (rng.integers(0, 256, shape, np.uint8) for shape in ((20, 30), (40, 25, 3)))
    Image.fromarray(grey).save(folder / "c.png")
    Image.fromarray(colour).save(folder / "b" / "a.JPG", format="JPEG")
    Image.fromarray(colour).save(folder / "a.jpeg")
    np.save(folder / "b" / "d.npy", colour)
    np.save(folder / "z.npy", grey[..., None])
    (folder / "notes.txt").write_text("none")
    (folder / ".hidden.png").write_text("none")
    return folder


def network_input(files: list[Path]) -> Any:
    """What the network should see, read by Pillow and NumPy without the product."""
    arrays = []
    for file in files:
        array = np.load(file) if file.suffix == ".npy" else np.asarray(Image.open(file))
        rgb = np.broadcast_to(array.reshape(*array.shape[:2], -1), (*array.shape[:2], 3))
        small = Image.fromarray(np.ascontiguousarray(rgb)).resize(
            (PREPROCESS.size,) * 2, Image.Resampling.BILINEAR
        )
        arrays.append((np.asarray(small, np.float64) / 255 - 0.5) / 0.5)
    return np.stack(arrays).transpose(0, 3, 1, 2)


def test_probabilities_of_a_folder(exported: Path, images: Path, tmp_path: Path) -> None:
    table, saved = tmp_path / "new" / "eye.csv", tmp_path / "new" / "input.npy"
    found = predict(exported, "eye", [images], csv=table, save_input=saved)
    names = ["a.jpeg", "b/a.JPG", "b/d.npy", "c.png", "z.npy"]
    files = [images / name for name in names]
    assert [p.file for p in found] == [str(file) for file in files]
    x = network_input(files)
    exponentials = np.exp(true_logits(exported, "eye", x))
    expected = exponentials / exponentials.sum(axis=1, keepdims=True)
    got = np.array([list(p.probabilities.values()) for p in found])
    np.testing.assert_allclose(got, expected, atol=1e-5)
    assert {tuple(p.probabilities) for p in found} == {classes_of("eye")}
    assert [p.label for p in found] == [classes_of("eye")[k] for k in expected.argmax(axis=1)]
    stored = np.load(saved)
    assert (stored.dtype, stored.shape) == (np.float32, (5, 3, 16, 16))
    np.testing.assert_allclose(stored, x, atol=1e-6)
    rows = list(csv.reader(table.open()))
    assert rows[0] == ["file", "task", "label", *(f"p({name})" for name in classes_of("eye"))]
    assert [row[0] for row in rows[1:]] == [str(file) for file in files]
    np.testing.assert_allclose([[float(v) for v in row[3:]] for row in rows[1:]], got, rtol=1e-7)


def test_findings_of_a_multilabel_task(exported: Path, images: Path) -> None:
    file = images / "c.png"
    found = predict(exported, "findings", [file])[0]
    expected = 1 / (1 + np.exp(-true_logits(exported, "findings", network_input([file]))[0]))
    np.testing.assert_allclose(list(found.probabilities.values()), expected, atol=1e-6)
    present = [name for name, p in zip(classes_of("findings"), expected, strict=True) if p >= 0.5]
    assert found.label == ", ".join(present)


def test_many_images_go_in_batches(
    exported: Path, images: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole = predict(exported, "eye", [images], save_input=tmp_path / "a.npy")
    monkeypatch.setattr(classifier_module, "BATCH", 2)
    parts = predict(exported, "eye", [images], save_input=tmp_path / "b.npy")
    assert [p.label for p in parts] == [p.label for p in whole]
    assert (tmp_path / "a.npy").read_bytes() == (tmp_path / "b.npy").read_bytes()


def test_a_large_image_is_let_go_unless_it_is_asked_for(exported: Path, images: Path) -> None:
    with classifier_module.Classifier(exported, "eye") as classifier:
        assert classifier.prepare(images / "c.png").stored is None
        kept = classifier.prepare(images / "c.png", stored=True).stored
    assert kept is not None and np.array_equal(kept, np.asarray(Image.open(images / "c.png")))


def test_files_in_the_order_they_were_given_and_what_is_left_out(
    exported: Path, images: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "lorkd_deploy"):
        found = predict(exported, "eye", [images / "z.npy", str(images / "b")])  # type: ignore[list-item]
        assert caplog.text == ""
        predict(exported, "eye", [images])
    assert [Path(p.file).name for p in found] == ["z.npy", "a.JPG", "d.npy"]
    assert "2 files left out: 1 × hidden, .hidden.png; 1 × no image (.txt)" in caplog.text
    assert "notes.txt" in caplog.text


@pytest.mark.parametrize(
    "case",
    [
        ("text.png", lambda f: f.write_text("hello"), "can't be read as an image"),
        ("deep.png", lambda f: Image.new("I;16", (30, 30)).save(f), "not 8-bit"),
        ("alpha.png", lambda f: Image.new("RGBA", (30, 30)).save(f), "transparent"),
        ("dot.png", lambda f: Image.new("L", (1, 1)).save(f), "1 × 1 px"),
        ("real.npy", lambda f: np.save(f, np.zeros((30, 30))), "float64"),
        ("many.npy", lambda f: np.save(f, np.zeros((4, 30, 30, 3), np.uint8)), r"\(4, 30, 30, 3\)"),
        ("gone.png", lambda f: None, "does not exist"),
    ],
)
def test_an_image_that_can_not_be_used_is_named_and_nothing_written(
    exported: Path, images: Path, tmp_path: Path, case: tuple[str, Any, str]
) -> None:
    name, make, message = case
    file, table = tmp_path / name, tmp_path / "f.csv"
    make(file)
    with pytest.raises(ImageError, match=message) as caught:
        predict(exported, "eye", [images / "c.png", file], csv=table)
    assert caught.value.where == str(file)
    assert not table.exists()


def test_no_image(exported: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="no image"):
        predict(exported, "eye", [tmp_path / "empty"])
    with pytest.raises(UsageError, match="no image"):
        predict(exported, "eye", [])


def test_engines_that_are_not_there(run: Path, exported: Path, images: Path) -> None:
    with pytest.raises(UsageError, match="no task is called 'eyes'"):
        predict(exported, "eyes", [images])
    with pytest.raises(ArtifactError, match="no engine onnx-fp7") as caught:
        predict(exported, "eye", [images], precision="fp7")
    assert "exported: onnx-fp32" in str(caught.value.fix)
    with pytest.raises(ArtifactError, match="no engine onnx-fp32") as caught:
        predict(run, "eye", [images])
    assert "lorkd export" in str(caught.value.fix)


def test_a_damaged_or_foreign_engine_gives_no_answer(exported: Path, images: Path) -> None:
    eye, lung, heart = (
        exported / "export" / name / "onnx-fp32"
        for name in ("clinic/eye", "ward/lung", "ward/heart")
    )
    with (eye / "model.onnx").open("ab") as stream:
        stream.write(b"x")
    with pytest.raises(ArtifactError, match="has changed"):
        predict(exported, "eye", [images])
    shutil.rmtree(lung)
    shutil.copytree(heart, lung)
    with pytest.raises(ArtifactError, match="belongs to another"):
        predict(exported, "lung", [images])
    rewrite_record(heart, bundle_sha256="0" * 64)
    with pytest.raises(ArtifactError, match="belongs to another"):
        predict(exported, "heart", [images])


def test_an_unverified_engine_is_said_to_be_one(
    exported: Path, images: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = exported / "export" / "clinic/eye/onnx-fp32"
    record = read_artifact(folder)
    write_artifact(record.model_copy(update={"parity": Parity(status="not run here")}), folder)
    predict(exported, "eye", [images / "c.png"])
    assert "not verified" in caplog.text
