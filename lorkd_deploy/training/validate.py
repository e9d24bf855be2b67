"""`lorkd recipe validate --deep`: all that can be known of a recipe before anything is trained."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lorkd_deploy.progress import Progress, Silent
from lorkd_deploy.recipe import load_recipe
from lorkd_deploy.schema import Part
from lorkd_deploy.training.batches.setup import open_setup
from lorkd_deploy.training.teacher import build_teacher, try_student, try_teacher


class Validation(Part):
    """A recipe that can be trained and exported; `images` are those of each task's training split.

    `unused` are, of student and teacher, the tensors that no answer depends on.
    """

    name: str
    sha256: str
    images: dict[str, int]
    unused: dict[str, tuple[str, ...]]


def validate(
    recipe: str | Path,
    *,
    set: Sequence[str] = (),
    allow_missing: bool = False,
    progress: Progress | None = None,
) -> Validation:
    """Open the data of `recipe`, build its networks, load their checkpoints and export both.

    Nothing is written. `set` and `allow_missing` are those of `decompose`. Raises what `teacher`
    and `decompose` raise before they train.
    """
    loaded, shown = load_recipe(recipe, set), progress or Silent()
    setup = open_setup(loaded, progress=shown)
    unused = {"student": try_student(setup, shown).graph.unused}
    if loaded.transfer.kind != "none":
        own = setup.for_teacher()
        model, _ = build_teacher(own, allow_missing=allow_missing)
        template = try_teacher(own, model, shown)
        unused["teacher"] = template.graph.unused
    return Validation(
        name=loaded.name,
        sha256=loaded.sha256,
        images={name: len(split) for name, split in zip(setup.names, setup.train, strict=True)},
        unused=unused,
    )
