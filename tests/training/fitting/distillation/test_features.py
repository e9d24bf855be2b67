"""Teacher features are those of the stored images at the teacher's size, and never another's."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_backbone import backbone
from tiny_recipe import tiny_recipe

from lorkd_deploy.preprocess import Preprocess
from lorkd_deploy.recipe import parse_recipe
from lorkd_deploy.run import Run
from lorkd_deploy.storage import sha256_file
from lorkd_deploy.training.batches.setup import Setup, open_setup
from lorkd_deploy.training.fitting.distillation.features import TeacherFeatures
from lorkd_deploy.training.fitting.job import Job
from lorkd_deploy.training.networks.network import TeacherNetwork, network_input
from lorkd_deploy.training.networks.restore import Teacher
from tests.stopping import KilledError, killed_when

LARGER = Preprocess(size=48, mean=(0.4, 0.5, 0.6))


@pytest.fixture(scope="module")
def setup() -> Setup:
    return open_setup(parse_recipe(tiny_recipe(), where="test"))


def _teacher(setup: Setup, seed: int) -> TeacherNetwork:
    torch.manual_seed(seed)
    return TeacherNetwork(backbone(), 16, setup.classes).eval()


def _features(
    setup: Setup, seed: int, run: Path, preprocess: Preprocess = LARGER
) -> TeacherFeatures:
    job = Job("decompose", Run(run, run / "bundle"), setup)
    return TeacherFeatures(Teacher(_teacher(setup, seed), preprocess), job)


def _compare(setup: Setup, features: TeacherFeatures, seed: int) -> None:
    """Against the teacher run on the stored images of each batch."""
    teacher = _teacher(setup, seed)
    for batch in setup.loader(setup.recipe.train, steps=3).batches():
        stored = [
            data.train.images[int(index)]
            for data, indices in zip(setup.data, batch.indices, strict=True)
            for index in indices
        ]
        shown = np.stack([LARGER.geometry(image) for image in stored])
        with torch.no_grad():
            expected = teacher.backbone(network_input(shown, LARGER, teacher)).numpy()
        np.testing.assert_allclose(features(batch).numpy(), expected, rtol=2e-3, atol=1e-4)


def _files(run: Path) -> dict[str, Path]:
    return {path.name.split("-")[1]: path for path in (run / "cache").iterdir()}


@pytest.mark.parametrize(
    "change",
    [{}, {"shift": 0.1, "flip": True}, {"augment": [{"kind": "rotation"}]}],
    ids=["plain", "shifted", "turned"],
)
def test_features_are_those_of_the_stored_images(tmp_path: Path, change: dict[str, Any]) -> None:
    raw = tiny_recipe()
    raw["train"] = raw["train"] | change
    setup = open_setup(parse_recipe(raw, where="test"))
    _compare(setup, _features(setup, 0, tmp_path), 0)
    assert _files(tmp_path).keys() == set(setup.names)


def test_a_second_training_reads_them(setup: Setup, tmp_path: Path) -> None:
    first = _features(setup, 0, tmp_path)
    written = {path: path.stat().st_mtime_ns for path in _files(tmp_path).values()}
    again = _features(setup, 0, tmp_path)
    _compare(setup, again, 0)
    assert {path: path.stat().st_mtime_ns for path in _files(tmp_path).values()} == written
    assert again.facts == first.facts
    for number, name in enumerate(setup.names):
        np.testing.assert_array_equal(again.of_task(number), first.of_task(number))
        file = tmp_path / "cache" / first.facts[name]["file"]
        assert first.facts[name]["sha256"] == sha256_file(file)


def test_a_training_of_one_task_reads_that_tasks_file(setup: Setup, tmp_path: Path) -> None:
    _features(setup, 0, tmp_path)
    written = {path: path.stat().st_mtime_ns for path in _files(tmp_path).values()}
    raw = tiny_recipe()
    raw["departments"] = raw["departments"][:1]
    raw["departments"][0]["tasks"] = raw["departments"][0]["tasks"][:1]
    alone = open_setup(parse_recipe(raw, where="test"))
    _compare(alone, _features(alone, 0, tmp_path), 0)
    assert {path: path.stat().st_mtime_ns for path in _files(tmp_path).values()} == written


@pytest.mark.parametrize("change", ["teacher", "preprocess"])
def test_what_belongs_to_another_teacher_is_computed_again_and_it_is_said(
    setup: Setup, tmp_path: Path, caplog: pytest.LogCaptureFixture, change: str
) -> None:
    caplog.set_level(logging.INFO)
    other = Preprocess(size=48) if change == "preprocess" else LARGER
    before = _features(setup, 0, tmp_path, other)
    seed = 1 if change == "teacher" else 0
    _compare(setup, _features(setup, seed, tmp_path), seed)
    for name in setup.names:
        old = before.facts[name]["file"]
        assert f"{old} is of another teacher or recipe: computed again" in caplog.text
        assert not (tmp_path / "cache" / old).exists()


@pytest.mark.parametrize("damage", ["truncated", "flipped"])
def test_a_damaged_cache_is_computed_again_and_it_is_said(
    setup: Setup, tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    _features(setup, 0, tmp_path)
    file = _files(tmp_path)[setup.names[0]]
    whole = file.read_bytes()
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
    assert f"teacher features of {setup.names[0]} read" not in caplog.text
    assert not unfinished.exists()


def test_a_folder_that_jobs_share_keeps_every_teachers(setup: Setup, tmp_path: Path) -> None:
    def shared(seed: int) -> set[Path]:
        job = Job("decompose", Run(tmp_path, tmp_path), setup, cache_folder=tmp_path / "cache")
        TeacherFeatures(Teacher(_teacher(setup, seed), LARGER), job)
        return set((tmp_path / "cache").iterdir())

    first = shared(0)
    unfinished = tmp_path / "cache" / ".features-cells-another-is-writing.npy.0.tmp"
    unfinished.touch()
    both = shared(1)
    assert first < both and len(both) == 2 * len(first) + 1
    times = {path: path.stat().st_mtime_ns for path in both}
    assert {path: path.stat().st_mtime_ns for path in shared(0)} == times
