"""A bundle with tasks more: W0, the graph and every task that was there stay byte for byte."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path

from lorkd_deploy.bundle import manifest as layout
from lorkd_deploy.bundle.manifest import FileEntry, Manifest, TaskEntry
from lorkd_deploy.bundle.read import Bundle, load_bundle
from lorkd_deploy.bundle.write import file_entry, manifest_json
from lorkd_deploy.recipe import Recipe
from lorkd_deploy.storage import Tensors, folder_atomic, write_atomic, write_tensors


def write_grown(
    bundle: Bundle,
    path: Path,
    *,
    tasks: Sequence[TaskEntry],
    experts: Mapping[str, Tensors],
    logits: Mapping[str, Tensors],
    parameters: Mapping[str, int],
    recipe: Recipe,
    versions: Mapping[str, str],
) -> Bundle:
    """Write `bundle` and `tasks`, with their `experts` and reference `logits`, as `path`.

    The files of `bundle` are copied and keep their hashes, which reading the new one checks; the
    manifest names the bundle that it has grown from. `recipe` holds all tasks and gives their
    order, `parameters` are the new experts'.
    """
    old = bundle.manifest
    places = {task.name: place for place, task in enumerate(recipe.tasks)}
    with folder_atomic(path) as folder:
        for relative in old.files:
            write_atomic(folder / relative, (bundle.path / relative).read_bytes())
        files: dict[str, FileEntry] = dict(old.files)
        fresh = {layout.expert_file(task): tensors for task, tensors in experts.items()}
        fresh |= {layout.parity_file(task): tensors for task, tensors in logits.items()}
        for relative, tensors in fresh.items():
            write_tensors(folder / relative, tensors)
            files[relative] = file_entry(folder / relative)
        grown = old.model_copy(
            update={
                "name": recipe.name,
                "tasks": tuple(sorted((*old.tasks, *tasks), key=lambda task: places[task.name])),
                "parameters": {**old.parameters, **parameters},
                "recipe": recipe.model_dump(mode="json"),
                "recipe_sha256": recipe.sha256,
                "versions": dict(versions),
                "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
                "files": {name: files[name] for name in sorted(files)},
                "grown_from": (*old.grown_from, bundle.sha256),
            }
        )
        checked = Manifest.model_validate(grown.model_dump())
        write_atomic(folder / layout.MANIFEST, manifest_json(checked))
        load_bundle(folder)
    return load_bundle(path)
