"""The drawn sets: the same everywhere, and nothing that a linear model could learn."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from lorkd_deploy.data import Split, TaskData, image_sha256, open_data
from lorkd_deploy.data.phantom import SETS, Draws, PhantomData, wave

KNOWN = {
    "cells": "863d6006568a600d",
    "fundus": "7ef0e49cb64624f6",
    "tissue": "ce13acd2962a42c0",
    "xray": "2b964f62470d1bf3",
}


def opened(name: str, **given: int) -> TaskData:
    return open_data(PhantomData(source="phantom", name=name, **given))  # type: ignore[arg-type]


def digest(name: str) -> str:
    """One hash of 20 test images."""
    images = opened(name, test=20).test.images
    return hashlib.sha256(b"".join(image_sha256(image) for image in images)).hexdigest()[:16]


@pytest.mark.parametrize("name", SETS)
def test_shapes_and_classes(name: str) -> None:
    data = opened(name, train=30, val=10, test=20)
    side = (64, 64, 3) if SETS[name].colour else (64, 64)
    for split, count in ((data.train, 30), (data.val, 10), (data.test, 20)):
        assert len(split) == len(split.images) == count
        assert {image.shape for image in split.images} == {side}
        assert split.images[0].dtype == np.uint8
        counts = np.bincount(split.labels, minlength=len(data.classes))
        assert counts.max() - counts.min() <= 1
    assert data.provenance["source"] == "phantom" and "not for claims" in data.provenance["note"]


def test_four_sets_with_different_numbers_of_classes() -> None:
    assert sorted(len(drawing.classes) for drawing in SETS.values()) == [2, 3, 4, 5]


@pytest.mark.parametrize("name", SETS)
def test_images_are_what_they_were(name: str) -> None:
    """A change of one pixel would make bundles refuse their own reference images."""
    assert digest(name) == KNOWN[name]


def test_another_process_on_a_plainer_processor_draws_the_same() -> None:
    """NumPy without its vector instructions stands for the other machine."""
    program = (
        "from tests.data.test_phantom import SETS, digest; print({n: digest(n) for n in SETS})"
    )
    vector = np.show_config(mode="dicts")["SIMD Extensions"].get("found", [])
    environment = {**os.environ, "NPY_DISABLE_CPU_FEATURES": " ".join(vector)}
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", program]
    run = subprocess.run(
        command, capture_output=True, text=True, check=True, cwd=root, env=environment
    )
    assert run.stdout.strip() == str(KNOWN)


@pytest.mark.parametrize("name", SETS)
def test_an_image_depends_on_its_index_not_on_how_many_there_are(name: str) -> None:
    few, many = opened(name, test=9), opened(name, test=40)
    for index, image in enumerate(few.test.images):
        np.testing.assert_array_equal(image, many.test.images[index])


def test_seeds_sets_and_splits_share_no_image() -> None:
    seen: list[bytes] = []
    for name in SETS:
        for seed in (0, 1):
            data = opened(name, train=40, val=20, test=20, seed=seed)
            for split in (data.train, data.val, data.test):
                seen += [image_sha256(image) for image in split.images]
    assert len(set(seen)) == len(seen) == 4 * 2 * 80


def test_the_wave_is_nearly_a_sine_and_directions_have_length_one() -> None:
    turns = np.linspace(-2, 2, 401, dtype=np.float32)
    assert np.abs(wave(turns) - np.sin(2 * np.pi * turns)).max() < 0.06
    x, y = Draws(np.linspace(0, 1, 50)[:, None]).direction()
    np.testing.assert_allclose(x * x + y * y, 1, atol=1e-6)


def test_drawing_all_images_of_a_demo_takes_seconds() -> None:
    began = time.process_time()  # the machine may be busy: this process's own time
    for name in SETS:
        data = opened(name)
        for split in (data.train, data.val, data.test):
            assert split.images[0].any()
    assert time.process_time() - began < 3


@pytest.mark.thorough
@pytest.mark.filterwarnings("ignore:lbfgs failed to converge")
@pytest.mark.parametrize("what", ["pixels", "channel means"])
@pytest.mark.parametrize("name", SETS)
def test_a_linear_model_learns_little(name: str, what: str) -> None:
    """Logistic regression stays under 60 % of the way from chance to 100 % (it gets 20 %)."""
    linear_model = pytest.importorskip("sklearn.linear_model")
    threads = pytest.importorskip("threadpoolctl").threadpool_limits

    def features(split: Split) -> np.ndarray:
        pixels = np.asarray(split.images[:], np.float32).reshape(len(split), 64 * 64, -1)
        pixels = (pixels - 128) / 40
        return pixels.mean(axis=1) if what == "channel means" else pixels.reshape(len(split), -1)

    data = opened(name)
    seen, unseen = features(data.train), features(data.test)
    if what == "pixels":
        # Penalised weights lie in the span of the training images: in its coordinates the
        # solution is the same, with 512 weights a class instead of 12,288.
        span, _ = np.linalg.qr(seen.T)
        seen, unseen = seen @ span, unseen @ span
    # Weak and strong regularisation, chosen in the model's favour: by the test images themselves.
    best = 0.0
    for strength in (1e-5, 1e-3, 1.0):
        model = linear_model.LogisticRegression(C=strength, max_iter=300)
        with threads(1):  # many small products: threads of a busy machine wait for each other
            model.fit(seen, data.train.labels)
        best = max(best, model.score(unseen, data.test.labels))
    chance = 1 / len(data.classes)
    assert (best - chance) / (1 - chance) < 0.6
