"""The recipe of a transfer's new task, alone or with the origin's tasks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import yaml

from lorkd_deploy.errors import UsageError
from lorkd_deploy.models import needs_folder
from lorkd_deploy.recipe import ExpertSpec, Recipe, overridden, parse_recipe

TASK = "new"


def new_recipe(origin: Recipe, data: str | Path, changes: Sequence[str]) -> Recipe:
    """The new task's: the origin's, with that task alone, no teacher to learn from, and W0 given.

    Norms are shared, so that a frozen start's statistics stay as they are.
    """
    if needs_folder(origin.student.architecture):
        raise UsageError(
            f"a student of {origin.student.architecture} is built by its checkpoint's folder, "
            "which a new task has none of",
            fix="transfer from a run whose student is of torchvision or timm; its teacher may be "
            "any",
        )
    known = origin.experts
    experts = ExpertSpec(
        rank=known.trained_rank,
        alpha=known.alpha,
        factorisation=known.factorisation,
        skip=known.skip,
    )
    raw = origin.model_copy(
        update={
            "experts": experts,
            "student": origin.student.model_copy(update={"checkpoint": None, "prefix": {}}),
            "transfer": origin.transfer.model_copy(update={"kind": "none"}),
        }
    ).model_dump(mode="json")
    raw["departments"] = [_department(data)]
    return overridden(parse_recipe(raw, where="--data"), changes)


def joint_recipe(origin: Recipe, data: str | Path, changes: Sequence[str]) -> Recipe:
    """The origin's with the new task, which is the first, as in its own recipe."""
    raw = origin.model_dump(mode="json")
    raw["departments"] = [_department(data), *raw["departments"]]
    return overridden(parse_recipe(raw, where="--data"), changes)


def _department(data: str | Path) -> dict[str, object]:
    return {"name": TASK, "tasks": [{"name": TASK, "data": _data(str(data))}]}


def _data(given: str) -> object:
    """A recipe's `data:`, of a file or folder too."""
    if given.lstrip().startswith("{"):
        try:
            return yaml.safe_load(given)
        except yaml.YAMLError as exc:
            raise UsageError(f"--data is not valid YAML: {exc}") from exc
    return {"source": "npz" if given.endswith(".npz") else "image-folder", "path": given}
