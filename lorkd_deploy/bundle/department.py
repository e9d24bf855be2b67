"""One department's part of a bundle: a complete bundle with nothing of the other departments in it.

What a department needs is copied byte for byte. W0 comes along, and W0 is what the training on
every department's images left in it: that is the method; their experts, norms, heads, logits,
classes, data sources and names stay behind.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lorkd_deploy.bundle.manifest import EXPERT, TEACHER, Manifest
from lorkd_deploy.bundle.read import Bundle
from lorkd_deploy.errors import UsageError, unknown_name
from lorkd_deploy.storage import canonical_json, sha256_bytes


def department_manifest(bundle: Bundle, department: str) -> Manifest:
    """The manifest of `department`'s part of `bundle`, for `write_derived`.

    Raises `UsageError` for an unknown department and for the teacher's bundle: one network with
    every task's knowledge.
    """
    whole = bundle.manifest
    if whole.kind == TEACHER:
        raise UsageError(
            "the teacher has every department's knowledge in one network",
            where=bundle.path,
            fix="give a RUN whose `lorkd decompose` has ended",
        )
    if department not in whole.departments:
        raise unknown_name("department", department, whole.departments, where=bundle.path)
    tasks = tuple(task for task in whole.tasks if task.department == department)
    names = {task.name for task in tasks}
    recipe = _recipe_of(whole.recipe, department)
    return whole.model_copy(
        update={
            "tasks": tasks,
            "parameters": {
                name: count
                for name, count in whole.parameters.items()
                if not name.startswith(EXPERT) or name.removeprefix(EXPERT) in names
            },
            "recipe": recipe,
            "recipe_sha256": sha256_bytes(canonical_json(recipe)),
            "packed_from": (*whole.packed_from, bundle.sha256),
        }
    )


def _recipe_of(recipe: Mapping[str, Any], department: str) -> dict[str, Any]:
    """The recipe with one department; its description may tell of the others and is left out."""
    departments = [d for d in recipe.get("departments", ()) if d.get("name") == department]
    return {**recipe, "departments": departments, "description": ""}
