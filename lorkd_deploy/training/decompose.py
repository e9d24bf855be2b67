"""Low-rank knowledge decomposition: one shared W0 and one expert per task, under the teacher."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from lorkd_deploy.bundle.read import load_bundle
from lorkd_deploy.errors import UsageError
from lorkd_deploy.progress import Progress, Silent
from lorkd_deploy.recipe import load_recipe
from lorkd_deploy.run import refuse_other_bundle
from lorkd_deploy.training.batches.setup import open_setup
from lorkd_deploy.training.bundling.assemble import write_experts
from lorkd_deploy.training.bundling.result import TrainingResult
from lorkd_deploy.training.fitting.compiled import check_compiler
from lorkd_deploy.training.fitting.job import Job
from lorkd_deploy.training.fitting.student import fit_student
from lorkd_deploy.training.fitting.tensorboard import check_tensorboard
from lorkd_deploy.training.grow import add_departments, plan_growth
from lorkd_deploy.training.networks.restore import restored_teacher
from lorkd_deploy.training.networks.student import build_student
from lorkd_deploy.training.processes import joined
from lorkd_deploy.training.teacher import train_teacher, try_student

log = logging.getLogger(__name__)


def decompose(
    recipe: str | Path,
    out: str | Path,
    *,
    set: Sequence[str] = (),
    resume: bool = False,
    from_run: str | Path | None = None,
    add_department: Sequence[str] = (),
    auto_batch: bool = False,
    allow_missing: bool = False,
    tensorboard: bool = False,
    progress: Progress | None = None,
) -> TrainingResult:
    """Decompose the recipe's teacher into `out/bundle`: W0 once, one expert per task.

    The teacher is `out/teacher`; where there is none yet it is trained or imported first, as
    the recipe says. `recipe`, `set`, `resume`, `auto_batch`, `allow_missing`, `tensorboard`
    and the errors are those of `teacher`.

    `add_department` names departments that the finished run or bundle `from_run` doesn't have:
    then only their experts, norms and heads are trained, and W0 and every other task stay as they
    are in `from_run`, byte for byte. The teacher is `out/teacher`, else `from_run`'s, which
    without having been trained on the new tasks still gives features but no logits. Raises
    `UsageError` where the recipe differs from `from_run`'s in more than those departments.

    Raises `BundleError` where `out` has a bundle that was made in another way: compressed,
    extracted, or grown by departments (or, where those are to be added, trained).
    """
    loaded = load_recipe(recipe, set)
    if tensorboard:
        check_tensorboard()
    if bool(add_department) != (from_run is not None):
        raise UsageError(
            "adding a department takes both, its name and the finished run",
            fix="lorkd decompose RECIPE --from RUN --add-department D --out RUN2",
        )
    growth = None if from_run is None else plan_growth(loaded, add_department, from_run)
    trained = growth.recipe if growth else loaded
    compiling = [trained.train] if growth else [loaded.train, loaded.teacher.train]
    with joined() as processes, processes.claimed(out, loaded, "decompose") as run:
        processes.first(lambda: refuse_other_bundle(run, "grown" if growth else "trained"))
        check_compiler(processes.device, *compiling)
        job = Job(
            "decompose",
            run,
            open_setup(trained, processes, progress),
            resume=resume,
            auto_batch=auto_batch,
            allow_missing=allow_missing,
            tensorboard=tensorboard,
            progress=progress or Silent(),
        )
        job.warn_of_leaks()
        return add_departments(job, growth) if growth else _decompose(job)


def _decompose(job: Job) -> TrainingResult:
    setup, run, processes = job.setup, job.run, job.processes
    template = processes.first(lambda: try_student(setup, job.progress))
    learns = setup.recipe.transfer.kind != "none"
    if learns and not processes.first(run.teacher.exists):
        log.info("no teacher in %s yet: making it first", run.path)
        train_teacher(replace(job, name="teacher"))
    torch.manual_seed(setup.recipe.seed)
    teacher = None
    if learns:
        teacher = processes.first(lambda: restored_teacher(load_bundle(run.teacher), setup))
    student = build_student(setup)
    fitted = fit_student(job, student, teacher)
    return job.finish(lambda: write_experts(run, setup, student, fitted, template))
