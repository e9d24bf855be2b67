"""Changes of training images: those of the recipe, of the seed and step alone, on any thread."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from tiny_recipe import tiny_recipe
from torchvision.transforms.v2 import functional  # type: ignore[import-untyped,unused-ignore]

from lorkd_deploy.arrays import U8
from lorkd_deploy.errors import RecipeError
from lorkd_deploy.recipe import TrainSpec, parse_recipe
from lorkd_deploy.training.batches import augment

EVERY: list[dict[str, Any]] = [
    {"kind": "vertical_flip"},
    {"kind": "random_resized_crop", "scale": [0.5, 0.9]},
    {"kind": "rotation", "degrees": 20},
    {"kind": "color_jitter", "brightness": 0.2, "contrast": 0.2, "saturation": 0.2, "hue": 0.05},
    {"kind": "gaussian_blur", "probability": 1.0},
    {"kind": "random_erasing", "probability": 1.0},
]


def _spec(*transforms: dict[str, Any]) -> Any:
    return TrainSpec.model_validate({"augment": list(transforms)}).augment


def augmented(images: U8, spec: Any, seed: int, step: int) -> U8:
    return augment.augmented(images, spec, seed, step, np.arange(len(images)))


def _images(count: int = 6, side: int = 20) -> U8:
    rng = np.random.default_rng(1)
    coarse = rng.integers(0, 256, (count, 5, 5, 3), dtype=np.uint8)
    return coarse.repeat(side // 5, axis=1).repeat(side // 5, axis=2)


@pytest.mark.parametrize("transform", EVERY, ids=lambda t: str(t["kind"]))
def test_each_changes_images_by_seed_and_step_alone(transform: dict[str, Any]) -> None:
    images, spec = _images(), _spec(transform)
    before = images.copy()
    torch.manual_seed(1)
    first = augmented(images, spec, seed=0, step=4)
    torch.manual_seed(2)
    np.testing.assert_array_equal(augmented(images, spec, seed=0, step=4), first)
    np.testing.assert_array_equal(images, before)
    assert first.shape == images.shape and first.dtype == np.uint8
    assert (first != images).any()
    for seed, step in ((0, 5), (1, 4)):
        assert (augmented(images, spec, seed=seed, step=step) != first).any()


def test_threads_at_once_give_what_one_gives() -> None:
    images, spec = _images(), _spec(*EVERY)
    alone = [augmented(images, spec, 0, step) for step in range(8)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda step: augmented(images, spec, 0, step), range(8)))
    np.testing.assert_array_equal(together, alone)


def test_an_image_is_changed_alike_in_whichever_part_of_the_batch_it_is_read() -> None:
    images, spec = _images(), _spec(*EVERY)
    places = np.array([1, 4])
    part = augment.augmented(images[places], spec, 0, 2, places)
    np.testing.assert_array_equal(part, augmented(images, spec, 0, 2)[places])


def test_the_training_steps_own_random_numbers_stay_as_they_are() -> None:
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    augmented(_images(), _spec(*EVERY), 0, 0)
    torch.testing.assert_close(torch.rand(3), wanted, rtol=0, atol=0)


def test_they_do_what_their_names_say() -> None:
    images = _images(40)
    flipped = augmented(images, _spec({"kind": "vertical_flip"}), 0, 0)
    turned = [bool((a == b[::-1]).all()) for a, b in zip(flipped, images, strict=True)]
    kept = [bool((a == b).all()) for a, b in zip(flipped, images, strict=True)]
    assert all(a != b for a, b in zip(turned, kept, strict=True))
    assert 10 < sum(turned) < 30

    grey = np.full((30, 16, 16, 3), 100, np.uint8)
    # Reflected at the border: turning or cropping an even image brings in no black corner.
    spec = _spec({"kind": "rotation", "degrees": 45}, {"kind": "random_resized_crop"})
    np.testing.assert_allclose(augmented(grey, spec, 0, 0), grey, atol=1)
    bright = augmented(grey, _spec({"kind": "color_jitter", "brightness": 0.3}), 0, 0)
    values = bright[:, 0, 0, 0].astype(int)
    assert 70 <= values.min() < 90
    assert 110 < values.max() <= 130
    assert (bright == bright[:, :1, :1]).all()

    halves = grey.copy()
    halves[:, :8] = 200
    erased = augmented(halves, _spec({"kind": "random_erasing", "probability": 1.0}), 0, 0)
    shares = [(image == 150).mean() for image in erased]
    assert 0.005 < min(shares) <= max(shares) < 0.15


@pytest.mark.parametrize("degrees", [20, 180])
def test_a_rotation_is_torchvisions_of_the_image_with_its_mirror(degrees: float) -> None:
    """All images are turned at once: one level of 255 apart at most, where a half is rounded."""
    images = np.random.default_rng(0).integers(0, 256, (8, 33, 33, 3), dtype=np.uint8)
    turned = augmented(images, _spec({"kind": "rotation", "degrees": degrees}), 3, 2)
    room = 8  # what a turned square reaches beyond its border, at most
    for n, image in enumerate(images):
        angle = np.random.default_rng((3, 3, 2, n)).uniform(-degrees, degrees)
        wide = functional.pad(torch.from_numpy(image).permute(2, 0, 1), [room] * 4, 0, "reflect")
        wanted = functional.rotate(wide, angle, functional.InterpolationMode.BILINEAR)
        inside = functional.center_crop(wanted, [33, 33]).permute(1, 2, 0).numpy()
        away = np.abs(turned[n].astype(int) - inside)
        assert away.max() <= 1 and (away > 0).mean() < 0.01


@pytest.mark.parametrize(
    ("augment", "says"),
    [
        ([{"kind": "rotate"}], r"train.augment[0]: needs a `kind`: 'vertical_flip'"),
        ([{"degrees": 3}], r"train.augment[0]: needs a `kind`"),
        ([{"kind": "rotation", "degree": 3}], "train.augment[0].degree: unknown key"),
        ([{"kind": "rotation", "degrees": 999}], "train.augment[0].degrees: "),
        ([{"kind": "gaussian_blur", "sigma": [2, 1]}], "train.augment[0].sigma: wanted a smallest"),
    ],
)
def test_a_wrong_change_is_a_fault_with_its_place(augment: Any, says: str) -> None:
    with pytest.raises(RecipeError, match="one fault") as caught:
        parse_recipe(tiny_recipe(train={"augment": augment}), where="here")
    assert says in caught.value.what
