"""A department more on a finished decomposition: new experts beside the old, W0 as it is.

Only the new tasks' factors, heads and (where the experts have their own) norms are trained. What
all tasks share is part of W0: shared norms keep their weights and statistics, in training too.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from lorkd_deploy.bundle.grown import write_grown
from lorkd_deploy.bundle.manifest import Manifest
from lorkd_deploy.bundle.parity_inputs import known_inputs
from lorkd_deploy.bundle.read import Bundle, load_bundle
from lorkd_deploy.errors import ModelError, UsageError, unknown_name
from lorkd_deploy.experts.absent import ExpertStack
from lorkd_deploy.experts.norms import PerTaskNorm
from lorkd_deploy.machine.packages import software
from lorkd_deploy.progress import Progress
from lorkd_deploy.recipe import Recipe
from lorkd_deploy.run import Run, open_run, refuse_other_bundle
from lorkd_deploy.storage import carry_over, sha256_bytes
from lorkd_deploy.training.batches.setup import Setup, open_setup
from lorkd_deploy.training.bundling.assemble import (
    arrays,
    expert_parameters,
    own_tensors,
    reference_logits,
    task_entries,
    task_results,
    training_result,
)
from lorkd_deploy.training.bundling.result import TrainingResult
from lorkd_deploy.training.decompose import fit_student
from lorkd_deploy.training.fitting.checkpoint import Checkpoints
from lorkd_deploy.training.fitting.compiled import check_compiler
from lorkd_deploy.training.fitting.features import TeacherFeatures
from lorkd_deploy.training.fitting.history import Fitted
from lorkd_deploy.training.fitting.processes import joined
from lorkd_deploy.training.networks.evaluate import scores
from lorkd_deploy.training.networks.network import TeacherNetwork
from lorkd_deploy.training.networks.student import Student, build_student
from lorkd_deploy.training.teacher import knows, load_teacher

log = logging.getLogger(__name__)


def add_departments(
    recipe: Recipe,
    departments: Sequence[str],
    finished: str | Path,
    out: str | Path,
    *,
    resume: bool,
    auto_batch: bool = False,
    tensorboard: bool = False,
    progress: Progress,
) -> TrainingResult:
    """`decompose` of `departments` alone, on the finished run or bundle `finished`; see there."""
    source = open_run(finished)
    bundle = load_bundle(source.bundle)
    _check_fits(bundle, recipe, departments)
    added = tuple(d for d in recipe.departments if d.name in departments)
    student = recipe.student.model_copy(update={"checkpoint": None})  # W0 is the bundle's
    part = recipe.model_copy(update={"departments": added, "student": student})
    with joined() as processes, processes.claimed(out, recipe, "decompose") as run:
        processes.first(lambda: refuse_other_bundle(run, "grown"))
        check_compiler(processes.device, part.train)
        setup = open_setup(part, processes)
        device = processes.device
        torch.manual_seed(recipe.seed)
        mentor, sha256 = processes.first(lambda: _mentor(run, source, setup))
        grown = settled(build_student(setup, mentor), bundle)
        known = None
        if mentor is not None:
            known = TeacherFeatures(
                mentor.to(device),
                setup,
                teacher_sha256=sha256,
                folder=run.path / "cache",
                device=device,
                progress=progress,
            )
        both = sha256_bytes(f"{recipe.sha256} {bundle.sha256}".encode())
        checkpoints = Checkpoints(run.path / "checkpoints" / "decompose", both)
        fitted = fit_student(
            grown,
            known,
            setup,
            checkpoints,
            device=device,
            resume=resume,
            auto_batch=auto_batch,
            tensorboard=run.path / "tensorboard" / "decompose" if tensorboard else None,
            history=run.path / "history" / "bundle.json",
            progress=progress,
        )

        def write() -> TrainingResult:
            result = _write(run, setup, bundle, grown, fitted, recipe=recipe, device=device)
            checkpoints.clear()
            return result

        return processes.first(write)


class SettledStudent(Student):
    """A student whose W0 stays: norms that all tasks share are in evaluation mode, always."""

    def train(self, mode: bool = True) -> SettledStudent:
        super().train(mode)
        backbone = self.classifier.backbone
        per_task = (m for m in backbone.modules() if isinstance(m, PerTaskNorm))
        own = {norm for several in per_task for norm in several.modules()}
        for module in backbone.modules():
            if isinstance(module, _NormBase) and module not in own:
                module.eval()
        return self


def settled(student: Student, bundle: Bundle) -> SettledStudent:
    """`student` on the bundle's W0, with nothing to be trained but what is its tasks' own.

    Per-task norms begin at the mean of those that the bundle's tasks have. Raises `ModelError`
    where the student isn't the network that was decomposed.
    """
    experts = student.classifier.backbone
    shapes = {name: tuple(tensor.shape) for name, tensor in experts.base_state().items()}
    found = {name: array.shape for name, array in bundle.base.items()}
    layers = {(layer.name, layer.shape) for layer in experts.layers}
    if shapes != found or layers != {(layer.name, layer.shape) for layer in bundle.manifest.layers}:
        other = sorted(shapes.items() ^ found.items()) or sorted(layers)
        raise ModelError(
            "the student is not the network that was decomposed: its layers or norms have other "
            f"names or shapes, {other[0][0]} first",
            where=bundle.path,
            fix="use the package versions and the code that made the bundle "
            f"({bundle.manifest.architecture})",
        )
    with torch.no_grad():
        state = experts.module.state_dict()
        for name, array in bundle.base.items():
            state[name].copy_(torch.tensor(array))
        _begin_at_the_mean(experts.module, bundle)
    experts.requires_grad_(False)
    for own in _own(experts.module):
        own.requires_grad_(True)
    made = SettledStudent(student.classifier, student.projection)
    return made.train()


def _own(module: nn.Module) -> Iterator[nn.Parameter]:
    yield from (p for p in module.parameters() if isinstance(p, ExpertStack))
    for part in module.modules():
        if isinstance(part, PerTaskNorm):
            yield from part.parameters()


def _begin_at_the_mean(module: nn.Module, bundle: Bundle) -> None:
    norms = {n: m for n, m in module.named_modules() if isinstance(m, PerTaskNorm)}
    if not norms:
        return
    known = [bundle.expert(task.name) for task in bundle.manifest.tasks]
    for name, several in norms.items():
        for norm in several.tasks:
            for key, tensor in norm.state_dict().items():
                if tensor.is_floating_point():
                    mean = np.mean([tensors[f"{name}.{key}"] for tensors in known], axis=0)
                    tensor.copy_(torch.from_numpy(mean))


def _mentor(run: Run, source: Run, setup: Setup) -> tuple[TeacherNetwork | None, str]:
    """The teacher that fits, on the CPU, and its bundle's hash: RUN's own, else the finished run's,
    which is carried over.

    One that doesn't know the new tasks still gives features; logits for them it has none.
    """
    cpu = torch.device("cpu")
    kind = setup.recipe.transfer.kind
    if not run.teacher.exists() and source.teacher.exists():
        carry_over(source.teacher, run.teacher)
    if kind == "none":
        return None, ""
    if not run.teacher.exists():
        log.warning("%s has no teacher: the new experts learn from labels alone", source.path)
        return None, ""
    bundle = load_bundle(run.teacher)
    if knows(bundle, setup):
        return load_teacher(run.teacher, setup, cpu), bundle.sha256
    tasks = ", ".join(setup.names)
    if kind == "logits":
        log.warning(
            "the teacher has no logits for %s: the new experts learn from labels alone; "
            "`lorkd teacher` with this recipe and --out makes one that has",
            tasks,
        )
        return None, ""
    log.info("the teacher was not trained on %s: its features of their images are used", tasks)
    return load_teacher(run.teacher, setup, cpu, heads=False), bundle.sha256


def _write(
    run: Run,
    setup: Setup,
    bundle: Bundle,
    student: Student,
    fitted: Fitted,
    *,
    recipe: Recipe,
    device: torch.device,
) -> TrainingResult:
    model = student.classifier
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
    tested = scores(model, setup.test, setup.kinds, setup.recipe.preprocess)
    metrics = {"expert": tested}
    teacher = load_bundle(run.teacher) if run.teacher.exists() else None
    if teacher is not None and knows(teacher, setup):
        metrics["teacher"] = [teacher.task(name).metrics["teacher"] for name in setup.names]
    own = own_tensors(setup, model)
    parameters = expert_parameters(own)
    grown = write_grown(
        bundle,
        run.bundle,
        tasks=task_entries(setup, metrics, model.backbone),
        experts=own,
        logits=reference_logits(
            setup,
            model,
            known_inputs(bundle),
            {name: (place,) for place, name in enumerate(setup.names)},
        ),
        parameters=parameters,
        recipe=recipe,
        versions=software(),
    )
    result = training_result(
        run.path,
        "bundle",
        task_results(setup, teacher=metrics.get("teacher"), expert=tested),
        fitted,
        parameters=parameters,
        device=device,
        skipped=model.backbone.skipped,
        wasteful=model.backbone.wasteful,
    )
    kept = {name: grown.manifest.files[name].sha256 for name in bundle.manifest.files}
    return result.model_copy(update={"kept": kept})


def _check_fits(bundle: Bundle, recipe: Recipe, departments: Sequence[str]) -> None:
    """Raise `UsageError` where recipe and bundle differ in more than the new departments."""
    manifest = bundle.manifest
    known = {d.name: d for d in recipe.departments}
    for name in departments:
        if name not in known:
            raise unknown_name("department of the recipe", name, known)
    if faults := list(_faults(manifest, recipe, departments)):
        raise UsageError(
            "the recipe doesn't fit the finished bundle:\n    " + "\n    ".join(faults),
            where=bundle.path,
            fix="give the recipe of the finished run with nothing changed in it but the new "
            "department (training, transfer and rank may change)",
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
        ("experts.norm", manifest.norm, experts.norm),
        ("experts.skip", tuple(old.get("experts", {}).get("skip", ())), experts.skip),
        ("experts.factorisation", manifest.factorisation, experts.factorisation),
    ):
        if was != now_is:
            yield f"{key} was {was}"
