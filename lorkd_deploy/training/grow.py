"""A department more on a finished decomposition: new experts beside the old, W0 as it is."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from lorkd_deploy.bundle.grown import write_grown
from lorkd_deploy.bundle.manifest import Manifest
from lorkd_deploy.bundle.parity_inputs import known_inputs
from lorkd_deploy.bundle.read import Bundle, load_bundle
from lorkd_deploy.errors import ModelError, UsageError, unknown_name
from lorkd_deploy.experts import ExpertClassifier
from lorkd_deploy.recipe import Recipe
from lorkd_deploy.run import Run, open_run
from lorkd_deploy.storage import carry_over, sha256_bytes
from lorkd_deploy.training.bundling.assemble import expert_parameters
from lorkd_deploy.training.bundling.reference import reference_logits
from lorkd_deploy.training.bundling.result import TrainingResult, training_result
from lorkd_deploy.training.bundling.safe import guards, make_safe, safety_tensors
from lorkd_deploy.training.fitting.history import Fitted
from lorkd_deploy.training.fitting.job import Job
from lorkd_deploy.training.fitting.student import fit_student
from lorkd_deploy.training.networks.evaluate import scores
from lorkd_deploy.training.networks.frozen import freeze_base
from lorkd_deploy.training.networks.restore import Teacher, has_heads_for, restored_teacher
from lorkd_deploy.training.networks.stored import arrays, own_tensors, task_entries
from lorkd_deploy.training.networks.student import build_student

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Growth:
    """The finished `run` and its `bundle`, the recipe of the `grown` bundle, and the part of it
    that is trained: `recipe`, of the new departments alone.
    """

    run: Run
    bundle: Bundle
    grown: Recipe
    recipe: Recipe


def plan_growth(recipe: Recipe, departments: Sequence[str], finished: str | Path) -> Growth:
    """What `departments` of `recipe` add to the run or bundle `finished`.

    Raises `UsageError` where recipe and bundle differ in more than them.
    """
    run = open_run(finished)
    bundle = load_bundle(run.bundle)
    known = {d.name: d for d in recipe.departments}
    for name in departments:
        if name not in known:
            raise unknown_name("department of the recipe", name, known)
    if faults := list(_faults(bundle.manifest, recipe, departments)):
        raise UsageError(
            "the recipe doesn't fit the finished bundle:\n    " + "\n    ".join(faults),
            where=bundle.path,
            fix="give the recipe of the finished run with nothing changed in it but the new "
            "department (training, transfer and rank may change)",
        )
    added = tuple(d for d in recipe.departments if d.name in departments)
    student = recipe.student.model_copy(update={"checkpoint": None})  # W0 is the bundle's
    part = recipe.model_copy(update={"departments": added, "student": student})
    return Growth(run, bundle, recipe, part)


def add_departments(job: Job, growth: Growth) -> TrainingResult:
    """`decompose` of new departments alone, in a run that is claimed, over data that is open."""
    setup, processes = job.setup, job.processes
    identity = sha256_bytes(f"{job.run.recipe_sha256} {growth.bundle.sha256}".encode())
    job = replace(job, identity=identity)
    torch.manual_seed(setup.recipe.seed)
    teacher = processes.first(lambda: _teacher(job, growth.run))
    student = build_student(setup, growth.bundle.manifest.norm)
    frozen = freeze_base(student.backbone, growth.bundle)
    fitted = fit_student(job, student, teacher, frozen=frozen)
    return job.finish(lambda: _write(job, growth, student, fitted))


def _teacher(job: Job, finished: Run) -> Teacher | None:
    """The teacher that fits: RUN's own, else the finished run's, which is carried over.

    One that wasn't trained on the new tasks still gives features; logits for them it has none.
    """
    setup, path, kind = job.setup, job.run.teacher, job.setup.recipe.transfer.kind
    if not path.exists() and finished.teacher.exists():
        carry_over(finished.teacher, path)
    if kind == "none":
        return None
    if not path.exists():
        log.warning("%s has no teacher: the new experts learn from labels alone", finished.path)
        return None
    bundle = load_bundle(path)
    heads, tasks = has_heads_for(bundle, setup), ", ".join(setup.names)
    if not heads and kind == "logits":
        log.warning(
            "the teacher has no logits for %s: the new experts learn from labels alone; "
            "`lorkd teacher` with this recipe and --out makes one that has",
            tasks,
        )
        return None
    if not heads:
        log.info("the teacher was not trained on %s: its features of their images are used", tasks)
    return restored_teacher(bundle, setup, heads=heads)


def _write(job: Job, growth: Growth, model: ExpertClassifier, fitted: Fitted) -> TrainingResult:
    setup, run, bundle = job.setup, job.run, growth.bundle
    moved = [
        name
        for name, array in arrays(model.backbone.base_state()).items()
        if not np.array_equal(array, bundle.base[name], equal_nan=True)
    ]
    if moved:  # the reference logits would be another network's than the bundle's
        raise ModelError(
            f"training changed {moved[0]}, which all tasks share",
            fix="a backbone must keep its own tensors as they are, but for norms",
        )
    safe = make_safe(setup, model)
    tested = {"expert": scores(model, setup.test, setup.kinds, setup.preprocess)}
    teacher = load_bundle(run.teacher) if run.teacher.exists() else None
    if teacher is not None and has_heads_for(teacher, setup):
        tested["teacher"] = [teacher.task(name).metrics["teacher"] for name in setup.names]
    own = own_tensors(setup, model)
    parameters = expert_parameters(own)
    grown = write_grown(
        bundle,
        run.bundle,
        tasks=task_entries(setup, tested, model.backbone, [one.entry for one in safe]),
        experts=own,
        logits=reference_logits(
            setup,
            model,
            known_inputs(bundle),
            guards=guards(safe),
            maps=bundle.manifest.graph.maps is not None,
        ),
        safety=safety_tensors(setup, safe),
        parameters=parameters,
        recipe=growth.grown,
    )
    kept = {name: grown.manifest.files[name].sha256 for name in bundle.manifest.files}
    result = training_result(run.bundle, setup, fitted, tested, parameters)
    return result.model_copy(
        update={
            "skipped_layers": model.backbone.skipped,
            "wasteful_layers": model.backbone.wasteful,
            "kept": kept,
        }
    )


def _faults(manifest: Manifest, recipe: Recipe, departments: Sequence[str]) -> Iterator[str]:
    if manifest.kind != "experts":
        yield "it is the teacher's, which has no experts"
    before = manifest.departments
    now = {d.name: tuple(task.name for task in d.tasks) for d in recipe.departments}
    for name in departments:
        if name in before:
            yield f"department {name} is in the bundle already"
    for name in [d for d in now if d not in before and d not in departments]:
        yield f"department {name} is in neither the bundle nor --add-department"
    for name, tasks in before.items():
        if name not in departments and now.get(name) != tasks:
            found = ", ".join(now.get(name, ())) or "missing"
            yield f"department {name} has {', '.join(tasks)}, in the recipe it is {found}"
    old = manifest.recipe
    data = {
        task["name"]: task["data"]
        for department in old.get("departments", ())
        for task in department["tasks"]
    }
    for task in recipe.model_dump(mode="json")["departments"]:
        for entry in task["tasks"]:
            if entry["name"] in data and entry["data"] != data[entry["name"]]:
                yield f"task {entry['name']} has other data"
    if recipe.preprocess != manifest.preprocess:
        yield "preprocess is another"
    experts = recipe.experts
    for key, was, now_is in (
        ("student.architecture", manifest.architecture, recipe.student.architecture),
        ("experts.skip", tuple(old.get("experts", {}).get("skip", ())), experts.skip),
        ("experts.factorisation", manifest.factorisation, experts.factorisation),
    ):
        if was != now_is:
            yield f"{key} was {was}"
