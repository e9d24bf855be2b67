"""A bundle with more tasks: W0, the graph and every task that was there stay byte for byte."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from lorkd_deploy.bundle.manifest import TaskEntry
from lorkd_deploy.bundle.read import Bundle
from lorkd_deploy.bundle.write import now, own_files, write_derived
from lorkd_deploy.machine.packages import software
from lorkd_deploy.recipe import Recipe
from lorkd_deploy.storage import Tensors


def write_grown(
    bundle: Bundle,
    path: Path,
    *,
    tasks: Sequence[TaskEntry],
    experts: Mapping[str, Tensors],
    logits: Mapping[str, Tensors],
    safety: Mapping[str, Tensors],
    parameters: Mapping[str, int],
    recipe: Recipe,
) -> Bundle:
    """Write `bundle` and `tasks`, with their `experts`, reference `logits` and `safety`, as `path`.

    The files of `bundle` are copied byte for byte; the manifest names the bundle that it has grown
    from. `recipe` holds all tasks and gives their order, `parameters` are the new experts'.
    """
    old = bundle.manifest
    places = {task.name: place for place, task in enumerate(recipe.tasks)}
    described = old.model_copy(
        update={
            "name": recipe.name,
            "tasks": tuple(sorted((*old.tasks, *tasks), key=lambda task: places[task.name])),
            "parameters": {**old.parameters, **parameters},
            "recipe": recipe.model_dump(mode="json"),
            "recipe_sha256": recipe.sha256,
            "versions": software(),
            "created": now(),
            "grown_from": (*old.grown_from, bundle.sha256),
        }
    )
    return write_derived(bundle, path, described, own_files(experts, logits, safety))
