"""Low-rank knowledge decomposition: one shared W0 and an expert a task, under the teacher."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import torch

from lorkd_deploy.bundle.read import load_bundle
from lorkd_deploy.errors import UsageError
from lorkd_deploy.progress import Progress, Silent
from lorkd_deploy.recipe import load_recipe
from lorkd_deploy.run import refuse_other_bundle
from lorkd_deploy.training.batches.loader import Batch
from lorkd_deploy.training.batches.setup import Setup, open_setup
from lorkd_deploy.training.bundling.assemble import write_experts
from lorkd_deploy.training.bundling.result import TrainingResult
from lorkd_deploy.training.fitting.checkpoint import Checkpoints
from lorkd_deploy.training.fitting.compiled import check_compiler
from lorkd_deploy.training.fitting.features import TeacherFeatures
from lorkd_deploy.training.fitting.history import Fitted, write_history
from lorkd_deploy.training.fitting.loop import fit
from lorkd_deploy.training.fitting.losses import (
    batch_accuracy,
    label_loss,
    logit_transfer,
    transfer_loss,
)
from lorkd_deploy.training.fitting.processes import joined
from lorkd_deploy.training.fitting.tensorboard import check_tensorboard
from lorkd_deploy.training.fitting.update import Loss, Objective
from lorkd_deploy.training.networks.evaluate import network_input, scores, summary
from lorkd_deploy.training.networks.network import TeacherNetwork, place
from lorkd_deploy.training.networks.student import Student, build_student
from lorkd_deploy.training.ranks.auto_rank import check_budget, truncate_to_budget
from lorkd_deploy.training.teacher import load_teacher, train_teacher

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
    tensorboard: bool = False,
    progress: Progress | None = None,
) -> TrainingResult:
    """Decompose the recipe's teacher into `out/bundle`: W0 once, an expert a task.

    The teacher is `out/teacher`; where there is none yet it is trained or imported first, as
    the recipe says. `recipe`, `set`, `resume`, `auto_batch`, `tensorboard` and the errors are
    those of `teacher`.

    `add_department` names departments that the finished run or bundle `from_run` doesn't have:
    then only their experts, norms and heads are trained, and W0 and every other task stay as they
    are in `from_run`, byte for byte. The teacher is `out/teacher`, else `from_run`'s, which
    without having been trained on the new tasks still gives features but no logits. Raises
    `UsageError` where the recipe differs from `from_run`'s in more than those departments.

    Raises `BundleError` where `out` has a bundle that was made in another way: compressed,
    extracted, or grown by departments (or, where those are to be added, trained).
    """
    loaded = load_recipe(recipe, set)
    shown = progress or Silent()
    if tensorboard:
        check_tensorboard()
    options = {"resume": resume, "auto_batch": auto_batch, "tensorboard": tensorboard}
    if add_department or from_run is not None:
        from lorkd_deploy.training.grow import add_departments

        if not add_department or from_run is None:
            raise UsageError(
                "adding a department takes both, its name and the finished run",
                fix="lorkd decompose RECIPE --from RUN --add-department D --out RUN2",
            )
        return add_departments(loaded, add_department, from_run, out, **options, progress=shown)
    with joined() as processes, processes.claimed(out, loaded, "decompose") as run:
        processes.first(lambda: refuse_other_bundle(run, "trained"))
        check_compiler(processes.device, loaded.train, loaded.teacher.train)
        setup = open_setup(loaded, processes)
        taught = loaded.transfer.kind == "none" or processes.first(run.teacher.exists)
        if not taught:
            log.info("no teacher in %s yet: making it first", run.path)
            train_teacher(run.path, setup, **options, progress=shown)
        return train_student(run.path, setup, **options, progress=shown)


def train_student(
    run: Path,
    setup: Setup,
    *,
    resume: bool,
    auto_batch: bool = False,
    tensorboard: bool = False,
    progress: Progress,
) -> TrainingResult:
    """`decompose` over data that is open already and a teacher that exists."""
    recipe = setup.recipe
    processes = setup.processes
    device = processes.device
    torch.manual_seed(recipe.seed)
    mentor = known = None
    if recipe.transfer.kind != "none":
        mentor, sha256 = processes.first(lambda: _teacher(run / "teacher", setup))
        mentor.to(device)
    student = build_student(setup, mentor)
    if mentor is not None:
        known = TeacherFeatures(
            mentor,
            setup,
            teacher_sha256=sha256,
            folder=run / "cache",
            device=device,
            progress=progress,
        )
    checkpoints = Checkpoints(run / "checkpoints" / "decompose", recipe.sha256)
    fitted = fit_student(
        student,
        known,
        setup,
        checkpoints,
        device=device,
        resume=resume,
        auto_batch=auto_batch,
        tensorboard=run / "tensorboard" / "decompose" if tensorboard else None,
        history=run / "history" / "bundle.json",
        progress=progress,
    )

    def write() -> TrainingResult:
        result = write_experts(run, setup, student.classifier, fitted, device=device)
        checkpoints.clear()
        return result

    return processes.first(write)


def _teacher(path: Path, setup: Setup) -> tuple[TeacherNetwork, str]:
    """The teacher on the CPU, from where it goes to every process, and its bundle's hash."""
    return load_teacher(path, setup, torch.device("cpu")), load_bundle(path).sha256


def fit_student(
    student: Student,
    known: TeacherFeatures | None,
    setup: Setup,
    checkpoints: Checkpoints,
    *,
    device: torch.device,
    resume: bool,
    auto_batch: bool = False,
    tensorboard: Path | None = None,
    history: Path | None = None,
    progress: Progress,
) -> Fitted:
    """Train what of `student` can be trained, under the teacher whose features are `known`.

    `history` is a file that is written at the start and at each validation. Under
    `experts.rank: auto` the experts are within the budget afterwards.
    """
    recipe = setup.recipe
    setup.processes.first(lambda: check_budget(setup, student.classifier))
    place(student, device, channels_last=recipe.train.channels_last)
    classifier = student.classifier
    for name, reason in classifier.backbone.skipped:
        log.info("no expert on layer %s: %s", name, reason)
    for name, largest in classifier.backbone.wasteful:
        log.info("layer %s can't use its rank: %d is the largest that changes it", name, largest)
    steps, validate_steps = setup.steps(recipe.train)

    def validate() -> dict[str, float]:
        found = scores(classifier, setup.val, setup.kinds, recipe.preprocess, setup.processes)
        return summary(found, setup.names)

    notes = {} if known is None else {"teacher_features": known.facts}

    def record(fitted: Fitted) -> None:
        fitted.notes |= notes
        if history is not None:
            write_history(history, fitted, device, finished=False)

    fitted = fit(
        student,
        setup.loader(recipe.train, steps),
        recipe.train,
        objective=_objective(student, known, setup, device),
        validate=validate,
        checkpoints=checkpoints,
        steps=steps,
        validate_steps=validate_steps,
        seed=recipe.seed,
        resume=resume,
        progress=progress,
        what="decompose",
        auto_batch=auto_batch,
        tensorboard=tensorboard,
        record=record,
        processes=setup.processes,
    )
    fitted.notes |= notes
    fitted.truncated = truncate_to_budget(setup, classifier)
    return fitted


def _objective(
    student: Student, known: TeacherFeatures | None, setup: Setup, device: torch.device
) -> Objective:
    recipe = setup.recipe
    transfer = recipe.transfer
    spec = recipe.train
    weights = setup.class_weights(spec, device)

    def objective(batch: Batch) -> Loss:
        order = spec.channels_last
        x = network_input(batch.images, recipe.preprocess, device, channels_last=order)
        task = batch.route(device)
        output = student.classifier(x, task)
        labels = [torch.from_numpy(part).to(device) for part in batch.labels]
        part = label_loss(output.logits, labels, setup.kinds, spec.label_smoothing, weights)
        parts = {"labels": part}
        accuracy = batch_accuracy(output.logits, labels, setup.kinds)
        if known is None:
            return Loss(parts, accuracy)
        features = known(batch, x)
        if transfer.kind == "features":
            target = student.projection(features)
            part = transfer_loss(target, output.features, transfer.tau)
        else:
            target = known.mentor.heads(features, task)
            part = logit_transfer(target, output.logits, setup.kinds, transfer.tau)
        return Loss(parts | {"transfer": transfer.beta * part}, accuracy)

    return objective
