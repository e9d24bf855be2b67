"""Teacher features that are held equal those of every step, and are never another teacher's."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_backbone import backbone
from tiny_recipe import tiny_recipe

from lorkd_deploy.recipe import parse_recipe
from lorkd_deploy.run import Run
from lorkd_deploy.storage import sha256_file
from lorkd_deploy.training.batches.setup import Setup, open_setup
from lorkd_deploy.training.fitting.features import TeacherFeatures
from lorkd_deploy.training.fitting.job import Job
from lorkd_deploy.training.networks.network import TeacherNetwork, network_input
from lorkd_deploy.training.networks.restore import Teacher
from tests.stopping import KilledError, killed_when

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def setup() -> Setup:
    return open_setup(parse_recipe(tiny_recipe(), where="test"))


def _teacher(setup: Setup, seed: int) -> TeacherNetwork:
    torch.manual_seed(seed)
    return TeacherNetwork(backbone(), 16, setup.classes).eval()


def _features(setup: Setup, seed: int, run: Path) -> TeacherFeatures:
    job = Job("decompose", Run(run, run / "bundle"), setup)
    return TeacherFeatures(Teacher(_teacher(setup, seed), str(seed)), job)


def _compare(setup: Setup, features: TeacherFeatures, seed: int) -> None:
    teacher = _teacher(setup, seed)
    seen_flips = 0
    for batch in setup.loader(setup.recipe.train, steps=4).batches():
        x = network_input(batch.images, setup.recipe.preprocess, CPU)
        with torch.no_grad():
            expected = teacher.backbone(x).numpy()
        np.testing.assert_allclose(features(batch, x).numpy(), expected, rtol=1e-4, atol=1e-6)
        seen_flips += sum(int(part.sum()) for part in batch.flips)
    assert seen_flips > 0, "the mirrored form was never asked for"


def test_held_features_are_those_of_the_batch(setup: Setup, tmp_path: Path) -> None:
    features = _features(setup, 0, tmp_path)
    assert len(list((tmp_path / "cache").iterdir())) == 1
    _compare(setup, features, 0)


def test_a_second_training_reads_them(setup: Setup, tmp_path: Path) -> None:
    _features(setup, 0, tmp_path)
    (file,) = (tmp_path / "cache").iterdir()
    written = file.stat().st_mtime_ns
    _compare(setup, _features(setup, 0, tmp_path), 0)
    assert file.stat().st_mtime_ns == written


def test_another_teachers_cache_is_computed_again_and_it_is_said(
    setup: Setup, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    first = _features(setup, 0, tmp_path)
    _compare(setup, _features(setup, 1, tmp_path), 1)
    assert f"{first.facts['file']} is of another teacher or recipe: computed again" in caplog.text
    assert len(list((tmp_path / "cache").iterdir())) == 1


@pytest.mark.parametrize("damage", ["truncated", "flipped"])
def test_a_damaged_cache_is_computed_again_and_it_is_said(
    setup: Setup, tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    made = _features(setup, 0, tmp_path)
    (file,) = (tmp_path / "cache").iterdir()
    whole = file.read_bytes()
    assert sha256_file(file) == made.facts["sha256"]
    if damage == "truncated":
        file.write_bytes(whole[:-100])
    else:
        file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))  # a number that could be true
    _compare(setup, _features(setup, 0, tmp_path), 0)
    assert f"{file.name} is damaged: computed again" in caplog.text
    assert file.read_bytes() == whole


def test_a_writer_that_was_killed_leaves_nothing_to_learn_from(
    setup: Setup, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with pytest.MonkeyPatch.context() as patch:
        killed_when(lambda change, _: change == "replace", patch)
        with pytest.raises(KilledError):
            _features(setup, 0, tmp_path)
    (unfinished,) = (tmp_path / "cache").iterdir()
    assert unfinished.name.endswith(".tmp")
    _compare(setup, _features(setup, 0, tmp_path), 0)
    assert "teacher features read" not in caplog.text
    assert not unfinished.exists()


def test_the_caches_hash_is_told(
    setup: Setup, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    made = _features(setup, 0, tmp_path)
    (file,) = (tmp_path / "cache").iterdir()
    assert made.facts == {"cached": True, "file": file.name, "sha256": sha256_file(file)}
    assert _features(setup, 0, tmp_path).facts == made.facts
    assert caplog.text.count(sha256_file(file)) == 2


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"shift": 0.1}, "train.shift moves the images"),
        (
            {"augment": [{"kind": "rotation"}, {"kind": "color_jitter", "contrast": 0.2}]},
            "train.augment changes the images (rotation, color_jitter)",
        ),
    ],
)
def test_changed_images_are_not_held_and_it_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, change: dict[str, Any], why: str
) -> None:
    caplog.set_level(logging.INFO)
    moving = tiny_recipe()
    moving["train"] = moving["train"] | change
    setup = open_setup(parse_recipe(moving, where="test"))
    features = _features(setup, 0, tmp_path)
    assert not list(tmp_path.iterdir())
    assert features.facts == {"cached": False, "because": why}
    assert f"computed in every step: {why}" in caplog.text
    _compare(setup, features, 0)
