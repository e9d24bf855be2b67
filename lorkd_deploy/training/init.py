"""`init(images, department)`: a recipe for a user's own images and machine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml
from pydantic import TypeAdapter

from lorkd_deploy.data import SPLITS, DataSource, DataSpec, TaskData, open_data
from lorkd_deploy.datacheck.check import check_task
from lorkd_deploy.datacheck.result import TaskCheck
from lorkd_deploy.errors import UsageError
from lorkd_deploy.progress import Progress
from lorkd_deploy.recipe.loading import parse_recipe
from lorkd_deploy.schema import Part
from lorkd_deploy.storage import write_atomic
from lorkd_deploy.training.proposal.images import as_name, data_section, shorter_side
from lorkd_deploy.training.proposal.pace import fitting, measured, networks
from lorkd_deploy.training.proposal.text import Owned, recipe_text

MINUTES = 15.0
DATA: TypeAdapter[DataSource] = TypeAdapter(DataSpec)
Paths = str | Path | Sequence[str | Path]


class Proposal(Part):
    """The recipe that was written; `minutes` is how long its training should take here.

    `lists` are CSV files that were written beside it, for images that had no splits. `checks` are
    the findings of `check_data` on each task.
    """

    recipe: Path
    name: str
    size: int
    teacher: str
    student: str
    epochs: int
    teacher_epochs: int
    minutes: float
    lists: tuple[Path, ...]
    checks: tuple[TaskCheck, ...]


def init(
    images: Paths,
    department: str | Sequence[str],
    out: str | Path = "recipe.yaml",
    *,
    task: str | Sequence[str] = (),
    group: str | None = None,
    minutes: float = MINUTES,
    progress: Progress | None = None,
) -> Proposal:
    """Write the recipe `out` for `images`, each a folder, a CSV file or an archive of a department.

    A folder has `train/`, `val/` and `test/` with a folder for each class, or just these, which
    are then divided: patients whole, near twins together. `task` names each one's task, after its
    folder otherwise; `group` is the column of patients in a CSV. A few training steps are timed
    here, and the size of the network's input and the epochs are the largest with which a training
    takes `minutes` at most. Raises `UsageError` where a file would be replaced or names don't fit,
    and `DataError` for images that can't be used; nothing is left behind then.
    """
    out = Path(out)
    if out.exists():
        raise UsageError(f"{out} exists already", fix="name another file, or move that one away")
    named = list(_named(_several(images), _several(department), _several(task)))
    lists: list[Path] = []
    try:
        return _written(out, named, lists, group=group, minutes=minutes, progress=progress)
    except BaseException:
        for path in lists:
            path.unlink(missing_ok=True)
        raise


def _written(
    out: Path,
    named: Sequence[tuple[Path, str, str]],
    lists: list[Path],
    *,
    group: str | None,
    minutes: float,
    progress: Progress | None,
) -> Proposal:
    """Write the recipe; each list that it needs is in `lists` as soon as it is there."""
    owned, opened = [], []
    for source, whose, name in named:
        divided = out.with_name(f"{out.stem}-{name}.csv")
        there = divided.exists()
        section = data_section(source, divided, group=group, progress=progress)
        lists += [divided] if divided.exists() and not there else []
        data = open_data(DATA.validate_python(section))
        owned.append(Owned(whose, name, section, _counted(data)))
        opened.append(data)
    chosen = networks()
    pace = measured(chosen, len(owned), progress)
    total = sum(len(data.train) for data in opened)
    plan = fitting(pace, total, min(map(shorter_side, opened)), 60 * minutes)
    owners = list(dict.fromkeys(one.department for one in owned))
    name = owners[0] if len(owners) == 1 else as_name(out.stem)
    text = recipe_text(name, owned, chosen, plan)
    recipe = parse_recipe(yaml.safe_load(text), where=out)
    checks = [
        check_task(spec, data, recipe.preprocess, progress)
        for spec, data in zip(recipe.tasks, opened, strict=True)
    ]
    write_atomic(out, text.encode())
    return Proposal(
        recipe=out,
        name=name,
        size=plan.size,
        teacher=chosen.teacher,
        student=chosen.student,
        epochs=plan.epochs,
        teacher_epochs=plan.teacher_epochs,
        minutes=round(pace.seconds(plan, total) / 60, 1),
        lists=tuple(lists),
        checks=tuple(checks),
    )


def _several(given: Paths) -> list[str]:
    return [str(given)] if isinstance(given, str | Path) else [str(one) for one in given]


def _named(
    images: Sequence[str], departments: Sequence[str], tasks: Sequence[str]
) -> Iterator[tuple[Path, str, str]]:
    """Images, department and task, one after the other; names that a recipe takes."""
    if not images or len(departments) != len(images) or len(tasks) not in {0, len(images)}:
        raise UsageError(
            f"{len(images)} sets of images, {len(departments)} departments and {len(tasks)} tasks",
            fix="give each --images its --department, and each or none its --task",
        )
    names = [as_name(one) for one in tasks or (Path(path).resolve().stem for path in images)]
    if len(set(names)) < len(names):
        raise UsageError(
            f"two tasks have the same name: {', '.join(names)}", fix="name each one by --task"
        )
    for path, department, name in zip(images, departments, names, strict=True):
        yield Path(path), as_name(department), name


def _counted(data: TaskData) -> str:
    sizes = ", ".join(f"{len(getattr(data, split))} {split}" for split in SPLITS)
    return f"{len(data.classes)} classes; images: {sizes}"
