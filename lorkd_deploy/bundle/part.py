"""One department's part of a bundle: a complete bundle with nothing of the other departments in it.

What a department needs is copied byte for byte. W0 comes along, and W0 is what the training on
every department's images left in it: that is the method; their experts, norms, heads, logits,
classes, data sources and names stay behind.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lorkd_deploy.bundle import manifest as layout
from lorkd_deploy.bundle.manifest import EXPERT, Manifest
from lorkd_deploy.bundle.read import Bundle
from lorkd_deploy.bundle.write import manifest_json
from lorkd_deploy.errors import UsageError, unknown_name
from lorkd_deploy.storage import canonical_json, sha256_bytes, write_atomic


def write_part(bundle: Bundle, department: str, folder: Path) -> Manifest:
    """Write `department`'s part of `bundle` into the empty `folder`; gives its manifest.

    Raises `UsageError` for an unknown department and for the teacher's bundle: one network with
    every task's knowledge.
    """
    part = manifest_of_part(bundle, department)
    for relative in part.files:
        write_atomic(folder / relative, (bundle.path / relative).read_bytes())
    write_atomic(folder / layout.MANIFEST, manifest_json(part))
    return part


def manifest_of_part(bundle: Bundle, department: str) -> Manifest:
    """What the part's `manifest.json` says; see `write_part`."""
    whole = bundle.manifest
    if whole.kind == layout.TEACHER:
        raise UsageError(
            "the teacher has every department's knowledge in one network",
            where=bundle.path,
            fix="give a RUN whose `lorkd decompose` has ended",
        )
    if department not in whole.departments:
        raise unknown_name("department", department, whole.departments, where=bundle.path)
    tasks = tuple(task for task in whole.tasks if task.department == department)
    names = {task.name for task in tasks}
    kept = {layout.BASE, layout.TEMPLATE}
    kept |= {file(name) for name in names for file in (layout.expert_file, layout.parity_file)}
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
            "files": {name: entry for name, entry in whole.files.items() if name in kept},
            "packed_from": (*whole.packed_from, bundle.sha256),
        }
    )


def _recipe_of(recipe: Mapping[str, Any], department: str) -> dict[str, Any]:
    """The recipe with one department; its description may tell of the others and is left out."""
    departments = [d for d in recipe.get("departments", ()) if d.get("name") == department]
    return {**recipe, "departments": departments, "description": ""}
