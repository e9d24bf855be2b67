"""The foundation model: trained by the recipe, or imported and given task heads."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from lorkd_deploy import models
from lorkd_deploy.bundle.manifest import HEAD, TEACHER
from lorkd_deploy.bundle.read import Bundle, load_bundle
from lorkd_deploy.errors import ModelError
from lorkd_deploy.progress import Progress, Silent
from lorkd_deploy.recipe import Recipe, load_recipe
from lorkd_deploy.training.batches.loader import Batch
from lorkd_deploy.training.batches.setup import Setup, open_setup
from lorkd_deploy.training.bundling.assemble import write_teacher
from lorkd_deploy.training.bundling.result import TrainingResult
from lorkd_deploy.training.fitting.checkpoint import Checkpoints
from lorkd_deploy.training.fitting.compiled import check_compiler
from lorkd_deploy.training.fitting.history import Fitted, write_history
from lorkd_deploy.training.fitting.loop import fit
from lorkd_deploy.training.fitting.losses import batch_accuracy, label_loss
from lorkd_deploy.training.fitting.processes import joined
from lorkd_deploy.training.fitting.tensorboard import check_tensorboard
from lorkd_deploy.training.fitting.update import Loss
from lorkd_deploy.training.networks.evaluate import network_input, scores, summary
from lorkd_deploy.training.networks.network import TeacherNetwork, place
from lorkd_deploy.training.networks.student import check_student

log = logging.getLogger(__name__)


def teacher(
    recipe: str | Path,
    out: str | Path,
    *,
    set: Sequence[str] = (),
    resume: bool = False,
    auto_batch: bool = False,
    tensorboard: bool = False,
    progress: Progress | None = None,
) -> TrainingResult:
    """Train or import the recipe's multi-task foundation model into `out/teacher`.

    `recipe` is a shipped name or a file, `set` overrides its values (`key.path=value`), `resume`
    goes on from the last checkpoint. `auto_batch` lets a batch that does not fit into memory pass
    in parts, as few as do; `tensorboard` writes the figures of every step to `out/tensorboard`.
    Raises `RecipeError`, `DataError`, `ModelError`, `UsageError` for bad input, that of the
    recipe's student included, `TrainingError` for a loss that is not finite, `BundleError` where
    `out` holds another run.
    """
    loaded = load_recipe(recipe, set)
    shown = progress or Silent()
    if tensorboard:
        check_tensorboard()
    with joined() as processes, processes.claimed(out, loaded, "train the teacher") as run:
        check_compiler(processes.device, loaded.teacher.train)
        return train_teacher(
            run.path,
            open_setup(loaded, processes),
            resume=resume,
            auto_batch=auto_batch,
            tensorboard=tensorboard,
            progress=shown,
        )


def train_teacher(
    run: Path,
    setup: Setup,
    *,
    resume: bool,
    auto_batch: bool = False,
    tensorboard: bool = False,
    progress: Progress,
) -> TrainingResult:
    """`teacher` over data that is open already."""
    recipe = setup.recipe
    spec = recipe.teacher
    processes = setup.processes
    processes.first(lambda: check_student(setup))  # a recipe put right is another run's
    device = processes.device
    torch.manual_seed(recipe.seed)
    backbone = models.build(spec.architecture)
    model = TeacherNetwork(
        backbone, models.feature_dim(backbone, recipe.preprocess.size), setup.classes
    )
    report = _import_checkpoint(model, recipe)
    place(model, device, channels_last=spec.train.channels_last)
    if spec.fit == "heads":
        model.backbone.requires_grad_(False)
    checkpoints = Checkpoints(run / "checkpoints" / TEACHER, recipe.sha256)
    steps, validate_steps = setup.steps(spec.train)

    weights = setup.class_weights(spec.train, device)

    def objective(batch: Batch) -> Loss:
        if spec.fit == "heads":
            model.backbone.eval()  # frozen: its batch statistics don't move either
        order = spec.train.channels_last
        x = network_input(batch.images, recipe.preprocess, device, channels_last=order)
        output = model(x, batch.route(device))
        labels = [torch.from_numpy(part).to(device) for part in batch.labels]
        smoothing = spec.train.label_smoothing
        part = label_loss(output.logits, labels, setup.kinds, smoothing, weights)
        return Loss({"labels": part}, batch_accuracy(output.logits, labels, setup.kinds))

    def validate() -> dict[str, float]:
        found = scores(model, setup.val, setup.kinds, recipe.preprocess, processes)
        return summary(found, setup.names)

    if spec.fit == "none":
        fitted = Fitted(0, 0, [], 0.0, 0.0)
    else:
        history = run / "history" / f"{TEACHER}.json"
        fitted = fit(
            model,
            setup.loader(spec.train, steps),
            spec.train,
            objective=objective,
            validate=validate,
            checkpoints=checkpoints,
            steps=steps,
            validate_steps=validate_steps,
            seed=recipe.seed,
            resume=resume,
            progress=progress,
            what="teacher",
            auto_batch=auto_batch,
            tensorboard=run / "tensorboard" / "teacher" if tensorboard else None,
            record=partial(write_history, history, device=device, finished=False),
            processes=processes,
        )

    def write() -> TrainingResult:
        result = write_teacher(run, setup, model, fitted, report=report, device=device)
        checkpoints.clear()
        return result

    return processes.first(write)


def load_teacher(
    path: Path, setup: Setup, device: torch.device, *, heads: bool = True
) -> TeacherNetwork:
    """The frozen foundation model of a teacher bundle, in evaluation mode.

    Raises `ModelError` where it doesn't know each of the tasks, with the same number of classes;
    without `heads` it need not: its features are those of any image.
    """
    bundle = load_bundle(path)
    if not knows(bundle, setup) and heads:
        raise ModelError(
            "the teacher in this run was trained on other tasks or another preprocessing",
            where=path,
            fix="run `lorkd teacher` with this recipe in a new --out",
        )
    backbone = models.build(bundle.manifest.architecture)
    size = setup.recipe.preprocess.size
    model = TeacherNetwork(backbone, models.feature_dim(backbone, size), setup.classes)
    backbone.load_state_dict({k: torch.tensor(v) for k, v in bundle.base.items()}, strict=False)
    for head, task in zip(model.heads.tasks, setup.names if heads else (), strict=heads):
        tensors = bundle.expert(task)
        head.load_state_dict({k.removeprefix(HEAD): torch.tensor(v) for k, v in tensors.items()})
    model.requires_grad_(False)
    place(model, device, channels_last=setup.recipe.train.channels_last)
    return model.eval()


def knows(bundle: Bundle, setup: Setup) -> bool:
    """Whether a teacher has a head for each task, on inputs that are prepared the same."""
    known = {task.name: len(task.classes) for task in bundle.manifest.tasks}
    wanted = zip(setup.names, setup.classes, strict=True)
    same = bundle.manifest.preprocess == setup.recipe.preprocess
    return same and all(known.get(name) == classes for name, classes in wanted)


def _import_checkpoint(model: TeacherNetwork, recipe: Recipe) -> models.LoadReport:
    spec = recipe.teacher
    if spec.checkpoint is None:
        if spec.fit != "all":
            raise ModelError(
                f"teacher.fit is {spec.fit!r} but there is no teacher.checkpoint",
                fix="name a checkpoint, or set teacher.fit to 'all'",
            )
        return models.LoadReport((), ())
    ready = spec.fit == "none"
    part = model if ready else model.backbone
    report = models.load_checkpoint(part, Path(spec.checkpoint), spec.prefix)
    if ready and report.missing:
        raise ModelError(
            f"the checkpoint lacks {len(report.missing)} weights, {report.missing[0]!r} first",
            where=spec.checkpoint,
            fix="map its key prefixes to 'backbone.' and 'heads.tasks.0.', 'heads.tasks.1.', … "
            "by teacher.prefix, or let the heads be trained: teacher.fit 'heads'",
        )
    log.info(
        "teacher checkpoint: %d keys missing, %d unexpected",
        len(report.missing),
        len(report.unexpected),
    )
    return report
