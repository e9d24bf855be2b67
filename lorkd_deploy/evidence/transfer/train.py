"""One training of a transfer: what a start learns from some of the new images."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from lorkd_deploy import models
from lorkd_deploy.arrays import I64
from lorkd_deploy.bundle.read import load_bundle
from lorkd_deploy.data import Split, TaskData
from lorkd_deploy.evidence.answers import Answers
from lorkd_deploy.evidence.train import answers
from lorkd_deploy.evidence.transfer.result import Untouched
from lorkd_deploy.evidence.transfer.starts import Origin, Start
from lorkd_deploy.experts import ExpertClassifier, TaskNetwork
from lorkd_deploy.recipe import Recipe
from lorkd_deploy.run import Run
from lorkd_deploy.training.batches.setup import Setup
from lorkd_deploy.training.fitting.features import TeacherFeatures
from lorkd_deploy.training.fitting.job import Job
from lorkd_deploy.training.fitting.probe import fit_heads
from lorkd_deploy.training.fitting.student import fit_student
from lorkd_deploy.training.networks.frozen import freeze
from lorkd_deploy.training.networks.network import TeacherNetwork
from lorkd_deploy.training.networks.restore import Teacher, restored_teacher
from lorkd_deploy.training.networks.student import build_backbone, build_student


@dataclass(frozen=True)
class Trial:
    """A start, trained at a seed on `shots` images per class, or on all (None)."""

    start: Start
    shots: int | None
    seed: int

    @property
    def folder(self) -> str:
        """Where it lies in the transfer's folder, `shared-head/shots-10/seed-0`."""
        name = self.start.name.replace(":", "-").replace("+", "-")
        return f"{name}/shots-{self.shots or 'all'}/seed-{self.seed}"


def setup_of(trial: Trial, recipe: Recipe, data: TaskData) -> Setup:
    """The trial's recipe and images.

    Whatever the number of images, as many are drawn in training as `recipe` draws of all of them.
    """
    train, images = recipe.train, len(data.train)
    if trial.shots is not None:
        data = replace(data, train=few(data.train, len(data.classes), trial.shots, trial.seed))
    more = images / len(data.train)
    longer = {"epochs": train.epochs * more, "validate_every": train.validate_every * more}
    update: dict[str, object] = {"seed": trial.seed, "train": train.model_copy(update=longer)}
    if trial.start.fit != "experts":
        update["experts"] = recipe.experts.model_copy(update={"rank": {"*": 0}})
    return Setup(recipe.model_copy(update=update), (data,))


def few(split: Split, classes: int, shots: int, seed: int) -> Split:
    """At most `shots` images of each class, or with each finding, drawn by the seed."""
    shown = split.labels if split.labels.ndim == 2 else np.eye(classes)[split.labels]
    rng = np.random.default_rng((seed, shots))
    drawn = [rng.permutation(np.flatnonzero(shown[:, k]))[:shots] for k in range(classes)]
    chosen: I64 = np.unique(np.concatenate(drawn))
    return split.part(chosen)


Others = dict[str, Untouched]


def train_start(
    trial: Trial, origin: Origin, setup: Setup, run: Run
) -> tuple[Answers, float, Others]:
    """Its answers on the new test images, how many seconds training took, and, where an expert was
    learnt on the frozen W0, the engines of the tasks that have their experts on it.
    """
    torch.manual_seed(trial.seed)
    fit = _fit_head if trial.start.fit == "head" else _fit_student
    network, used, seconds = fit(trial, origin, Job("decompose", run, setup, resume=True))
    network.cpu().eval()
    others: Others = {}
    if trial.start == Start("shared", "experts") and isinstance(network, ExpertClassifier):
        others = origin.engines(trial.start, trial.seed, network.backbone.base_state())
    return answers(network, used), seconds, others


def _fit_student(trial: Trial, origin: Origin, job: Job) -> tuple[TaskNetwork, Setup, float]:
    student, start = build_student(job.setup), trial.start
    if start.init != "random":
        state = origin.state(start, trial.seed)
        student.backbone.load_base({name: state[name] for name in student.backbone.base_state()})
    frozen = freeze(student.backbone) if start.fit == "experts" else []
    fitted = fit_student(job, student, None, frozen=frozen)
    return student, job.setup, fitted.seconds


def _fit_head(trial: Trial, origin: Origin, job: Job) -> tuple[TaskNetwork, Setup, float]:
    setup = job.setup
    if trial.start.init == "teacher":
        known = restored_teacher(load_bundle(origin.teacher), setup, heads=False)
        setup = replace(setup, own_preprocess=known.preprocess)
    else:
        backbone = build_backbone(setup.recipe.student)
        backbone.load_state_dict(origin.state(trial.start, trial.seed))
        features = models.feature_dim(backbone, setup.preprocess.size)
        network = TeacherNetwork(backbone, features, setup.classes).eval().requires_grad_(False)
        known = Teacher(network, setup.preprocess)
    job = replace(job, setup=setup)
    fitted = fit_heads(job, TeacherFeatures(known, job))
    return known.network, setup, fitted.seconds
