"""The ways that a user could go, a row each: what is trained, and what of the recipe it changes.

All see the same data, draws and schedule; a network of a single task sees of it as many images as
the mix of all tasks draws of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from lorkd_deploy.errors import unknown_name
from lorkd_deploy.recipe import Recipe

Network = Literal["teacher", "student", "factorised"]


@dataclass(frozen=True)
class Method:
    """`per_task`: one network per task; `distilled`: it learns from the teacher too; `experts`: it
    has ΔW per task.
    """

    name: str
    title: str
    network: Network = "student"
    per_task: bool = False
    distilled: bool = False
    experts: bool = False


METHODS = {
    method.name: method
    for method in (
        Method("foundation", "foundation model (the teacher)", network="teacher"),
        Method("stl", "one small network per task", per_task=True),
        Method("mtl", "one small network for all tasks"),
        Method("stl-kd", "one small network per task, distilled", per_task=True, distilled=True),
        Method("mtl-kd", "one small network for all tasks, distilled", distilled=True),
        Method("kf", "knowledge factorisation", network="factorised", distilled=True),
        Method("experts", "W0 and a low-rank expert per task", distilled=True, experts=True),
    )
}


def method_named(name: str) -> Method:
    """Raises `UsageError` for an unknown name."""
    if name not in METHODS:
        raise unknown_name("method", name, METHODS)
    return METHODS[name]


def recipes_of(method: Method, recipe: Recipe, images: Sequence[int]) -> tuple[Recipe, ...]:
    """What `method` trains of `recipe`: one recipe for all tasks, or one per task.

    `images` are the training images of each task, in the recipe's order.
    """
    changed = recipe if method.experts else _without_experts(recipe)
    if not method.distilled:
        none = changed.transfer.model_copy(update={"kind": "none"})
        changed = changed.model_copy(update={"transfer": none})
    if not method.per_task:
        return (changed,)
    return tuple(_of_one_task(changed, number, images) for number in range(len(images)))


def _without_experts(recipe: Recipe) -> Recipe:
    """The same student with rank 0: at inference it costs what an expert costs."""
    departments = tuple(
        department.model_copy(
            update={"tasks": tuple(t.model_copy(update={"rank": None}) for t in department.tasks)}
        )
        for department in recipe.departments
    )
    plain = {"rank": {"*": 0}, "skip": (), "budget": None}
    experts = recipe.experts.model_copy(update=plain)
    return recipe.model_copy(update={"departments": departments, "experts": experts})


def _of_one_task(recipe: Recipe, number: int, images: Sequence[int]) -> Recipe:
    """The task alone, for as many images of it as a mix of all tasks draws."""
    wanted = recipe.tasks[number].name
    departments = tuple(
        department.model_copy(
            update={"tasks": tuple(task for task in department.tasks if task.name == wanted)}
        )
        for department in recipe.departments
        if any(task.name == wanted for task in department.tasks)
    )
    train = recipe.train
    weights = [n ** (1 / train.temperature) for n in images]
    drawn = train.epochs * sum(images) * weights[number] / sum(weights)
    epochs = drawn / images[number]
    every = train.validate_every * epochs / train.epochs  # as many validations
    own = train.model_copy(update={"epochs": epochs, "validate_every": every})
    return recipe.model_copy(update={"departments": departments, "train": own})
