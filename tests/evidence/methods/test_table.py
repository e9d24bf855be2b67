"""What each method trains: recipes that differ in what the method is, and in nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from lorkd_deploy.errors import UsageError
from lorkd_deploy.evidence.methods.table import METHODS, method_named, recipes_of
from lorkd_deploy.recipe import Recipe, load_recipe, parse_recipe
from lorkd_deploy.training.batches.sampler import MixedSampler

IMAGES = (500, 4700, 1000, 12000)


@pytest.fixture
def recipe() -> Recipe:
    return load_recipe("medmnist-small", ["departments.0.tasks.0.rank=8", "train.epochs=3"])


def test_experts_train_the_recipe_as_it_is(recipe: Recipe) -> None:
    assert recipes_of(METHODS["experts"], recipe, IMAGES) == (recipe,)


def test_a_network_for_all_tasks_is_the_student_at_rank_0(recipe: Recipe) -> None:
    (mtl,) = recipes_of(METHODS["mtl"], recipe, IMAGES)
    (distilled,) = recipes_of(METHODS["mtl-kd"], recipe, IMAGES)
    assert mtl.experts.rank == distilled.experts.rank == {"*": 0}
    assert all(task.rank is None for task in mtl.tasks)
    assert (mtl.transfer.kind, distilled.transfer.kind) == ("none", recipe.transfer.kind)
    assert mtl.train == distilled.train == recipe.train
    assert mtl.student == recipe.student


def test_a_network_per_task_sees_as_many_images_of_it_as_the_mix_draws(recipe: Recipe) -> None:
    alone = recipes_of(METHODS["stl"], recipe, IMAGES)
    assert [[task.name for task in one.tasks] for one in alone] == [
        [task.name] for task in recipe.tasks
    ]
    steps = round(recipe.train.epochs * sum(IMAGES) / 128)
    sampler = MixedSampler(IMAGES, 128, recipe.train.temperature, 0, steps)
    drawn = np.sum([sampler[step].counts for step in range(steps)], axis=0)
    for one, images, count in zip(alone, IMAGES, drawn, strict=True):
        assert one.train.epochs * images == pytest.approx(count, rel=0.01)
        states = one.train.epochs / one.train.validate_every
        assert states == pytest.approx(recipe.train.epochs / recipe.train.validate_every)
        assert one.experts.rank == {"*": 0}
        assert one.transfer.kind == "none"


@pytest.mark.parametrize("name", list(METHODS))
def test_every_methods_recipes_are_recipes(name: str, recipe: Recipe) -> None:
    for one in recipes_of(METHODS[name], recipe, IMAGES):
        assert parse_recipe(one.model_dump(mode="json"), where=name) == one


def test_an_unknown_method_is_told_with_those_that_there_are() -> None:
    with pytest.raises(UsageError, match="mtl-kd"):
        method_named("mtl-dk")
