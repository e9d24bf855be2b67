"""The foundation model: trained by the recipe, or imported and given task heads."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from lorkd_deploy import models
from lorkd_deploy.errors import ModelError
from lorkd_deploy.experts.probe import check_answers, probe_images
from lorkd_deploy.progress import Progress, Silent
from lorkd_deploy.recipe import TeacherSpec, load_recipe
from lorkd_deploy.training.batches.setup import Setup, open_setup
from lorkd_deploy.training.bundling.assemble import write_teacher
from lorkd_deploy.training.bundling.graph_template import Template
from lorkd_deploy.training.bundling.result import TrainingResult
from lorkd_deploy.training.bundling.trial import tried
from lorkd_deploy.training.fitting.compiled import check_compiler, compiled
from lorkd_deploy.training.fitting.distillation.features import TeacherFeatures
from lorkd_deploy.training.fitting.history import Fitted
from lorkd_deploy.training.fitting.job import Job
from lorkd_deploy.training.fitting.loop import fit
from lorkd_deploy.training.fitting.objective import Objective
from lorkd_deploy.training.fitting.probe import fit_heads
from lorkd_deploy.training.fitting.tensorboard import check_tensorboard
from lorkd_deploy.training.networks.network import TeacherNetwork, place
from lorkd_deploy.training.networks.restore import Teacher
from lorkd_deploy.training.networks.student import build_backbone, build_student, checkpoint_of
from lorkd_deploy.training.processes import joined
from lorkd_deploy.training.ranks.auto_rank import check_budget

log = logging.getLogger(__name__)
_STATISTICS = ("running_mean", "running_var")
_COMPLETE = (
    "map its key prefixes to 'backbone.' and 'heads.tasks.0.', 'heads.tasks.1.', … by "
    "teacher.prefix, let the heads be trained (teacher.fit 'heads'), or pass --allow-missing"
)


def teacher(
    recipe: str | Path,
    out: str | Path,
    *,
    set: Sequence[str] = (),
    resume: bool = False,
    auto_batch: bool = False,
    allow_missing: bool = False,
    tensorboard: bool = False,
    progress: Progress | None = None,
) -> TrainingResult:
    """Train or import the recipe's multi-task foundation model into `out/teacher`.

    `recipe` is a shipped name or a file, `set` overrides its values (`key.path=value`), `resume`
    continues from the last checkpoint. `auto_batch` lets a batch that does not fit into memory pass
    in parts, as few as do; `allow_missing` imports a frozen teacher whose checkpoint lacks weights,
    which stay random; `tensorboard` writes the figures of every step to `out/tensorboard`.
    Raises `RecipeError`, `DataError`, `ModelError`, `UsageError` for bad input, that of the
    recipe's student included, `TrainingError` for a loss that is not finite, `BundleError` where
    `out` holds another run.
    """
    loaded = load_recipe(recipe, set)
    if tensorboard:
        check_tensorboard()
    with joined() as processes, processes.claimed(out, loaded, "train the teacher") as run:
        check_compiler(processes.device, loaded.teacher.train)
        job = Job(
            "teacher",
            run,
            open_setup(loaded, processes, progress),
            resume=resume,
            auto_batch=auto_batch,
            allow_missing=allow_missing,
            tensorboard=tensorboard,
            progress=progress or Silent(),
        )
        job.warn_of_leaks()
        processes.first(
            lambda: try_student(job.setup, job.progress)
        )  # a recipe put right is another run's
        return train_teacher(job)


def train_teacher(job: Job) -> TrainingResult:
    """`teacher` in a run that is claimed, over data that is open."""
    setup = job.setup.for_teacher()
    job = replace(job, setup=setup)
    model, report = build_teacher(setup, allow_missing=job.allow_missing)
    template = job.processes.first(lambda: try_teacher(setup, model, job.progress))
    place(model, job.device, channels_last=job.spec.channels_last, size=setup.preprocess.size)
    fitted = _fitted(job, model)
    result = job.finish(lambda: write_teacher(job.run, setup, model, fitted, template))
    keys = {"missing_keys": report.missing, "unexpected_keys": report.unexpected}
    return result.model_copy(update=keys)


def _fitted(job: Job, model: TeacherNetwork) -> Fitted:
    kind = job.setup.recipe.teacher.fit
    if kind == "none":
        return Fitted(0, [], 0.0, 0.0)
    if kind == "all":
        return fit(job, Objective(model, job.setup, job.spec))
    frozen = Teacher(model.eval().requires_grad_(False), job.setup.preprocess)
    return fit_heads(job, TeacherFeatures(frozen, job))


def try_student(setup: Setup, progress: Progress) -> Template:
    """The graph of the recipe's student, and its faults before the hours that training may take."""
    classifier = build_student(setup)
    check_budget(setup, classifier)
    with compiled(classifier, setup.recipe.train):
        pass
    return tried(setup, *classifier.dense(0), progress, guard=setup.recipe.safety.guard)


def try_teacher(setup: Setup, model: TeacherNetwork, progress: Progress) -> Template:
    """The graph of the teacher `model`; one too large for an ONNX file can be learnt from."""
    return tried(setup, model.backbone, model.heads.head(0), progress, deployed=False)


def build_teacher(setup: Setup, *, allow_missing: bool) -> tuple[TeacherNetwork, models.LoadReport]:
    """The teacher of `Setup.for_teacher`, from its checkpoint if it has one, and what that lacks.

    Raises `ModelError` where weights are missing that nothing would train, or an answer depends on
    chance or on what else is in the batch.
    """
    torch.manual_seed(setup.recipe.seed)
    spec = setup.recipe.teacher
    backbone, checkpoint = build_backbone(setup.recipe, spec), checkpoint_of(setup.recipe, spec)
    features = models.feature_dim(backbone, setup.preprocess.size)
    check_answers(backbone, probe_images(setup.preprocess.size))
    model = TeacherNetwork(backbone, features, setup.classes)
    report = _import_checkpoint(model, spec, checkpoint, allow_missing)
    _compare_preprocessing(setup, checkpoint)
    return model, report


def _compare_preprocessing(setup: Setup, checkpoint: Path | None) -> None:
    """Warn where a hub's folder says that its network was trained on other inputs."""
    if checkpoint is None or not checkpoint.is_dir():
        return
    own = setup.recipe.teacher.preprocess
    section = "preprocess" if own is None else "teacher.preprocess"
    for said in models.contradictions(checkpoint, setup.preprocess):
        log.warning("%s of the recipe gives %s %s", section, checkpoint, said)


def _import_checkpoint(
    model: TeacherNetwork, spec: TeacherSpec, checkpoint: Path | None, allow_missing: bool
) -> models.LoadReport:
    if checkpoint is None:
        if spec.fit != "all":
            raise ModelError(
                f"teacher.fit is {spec.fit!r} but there is no teacher.checkpoint",
                fix="name a checkpoint, or set teacher.fit to 'all'",
            )
        return models.LoadReport((), ())
    ready = spec.fit == "none"
    if ready and checkpoint.is_dir():
        raise ModelError(
            "a model hub's folder has no heads of the recipe's tasks, as teacher.fit 'none' needs",
            where=checkpoint,
            fix="let the heads be trained: teacher.fit 'heads'",
        )
    part = model if ready else model.backbone
    report = models.load_checkpoint(part, checkpoint, spec.prefix, spec.pattern)
    trained = {name for name, _ in part.named_parameters()}
    random = [n for n in report.missing if n in trained or n.endswith(_STATISTICS)]
    if spec.fit != "all" and random and not allow_missing:
        raise ModelError(
            f"the checkpoint lacks {len(random)} weights, {random[0]!r} first, which teacher.fit "
            f"{spec.fit!r} would leave random",
            where=checkpoint,
            fix=_COMPLETE
            if ready
            else "map its key prefixes to the network's by teacher.prefix, "
            "let all be trained (teacher.fit 'all'), or pass --allow-missing",
        )
    log.info(
        "teacher checkpoint: %d keys missing, %d unexpected",
        len(report.missing),
        len(report.unexpected),
    )
    return report
