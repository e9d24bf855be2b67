"""One training of a transfer: a function that a worker can call, JSON in and JSON out."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field

from lorkd_deploy import models
from lorkd_deploy.arrays import I64
from lorkd_deploy.bundle.read import load_bundle
from lorkd_deploy.data import Split
from lorkd_deploy.errors import BundleError
from lorkd_deploy.evidence.answers import Answers
from lorkd_deploy.evidence.attempt import Call
from lorkd_deploy.evidence.train import answers
from lorkd_deploy.evidence.transfer.joint import CACHE, new_and_old, teacher_of_all
from lorkd_deploy.evidence.transfer.result import Untouched
from lorkd_deploy.evidence.transfer.starts import Origin, Start, open_origin
from lorkd_deploy.experts import ExpertClassifier, TaskNetwork
from lorkd_deploy.recipe import parse_recipe
from lorkd_deploy.run import claim, claimed
from lorkd_deploy.schema import Part, read_part, write_part
from lorkd_deploy.training.batches.setup import Setup, open_setup
from lorkd_deploy.training.fitting.distillation.features import TeacherFeatures
from lorkd_deploy.training.fitting.job import Job
from lorkd_deploy.training.fitting.probe import fit_heads
from lorkd_deploy.training.fitting.student import fit_student
from lorkd_deploy.training.networks.frozen import freeze
from lorkd_deploy.training.networks.network import TeacherNetwork
from lorkd_deploy.training.networks.restore import Teacher, restored_teacher
from lorkd_deploy.training.networks.student import build_backbone, build_student

TRAINED, ANSWERS = "trained.json", "answers.safetensors"


class Trained(Part):
    """What a finished training says of itself: of how many images of the new task it learnt."""

    images: int
    seconds: float
    others: dict[str, Untouched] = Field(default_factory=dict)


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


class Given(Part):
    """What a worker is told: the origin's folder, the trial, and the recipe of `Setup`."""

    run: str
    trial: Trial
    recipe: dict[str, Any]


def call_of(trial: Trial, origin: Origin, setup: Setup, transfer: Path) -> Call:
    """`train` of a trial in the folder `transfer`, for a worker."""
    recipe = setup.recipe.model_dump(mode="json")
    given = Given(run=str(origin.folder.resolve()), trial=trial, recipe=recipe)
    return Call(
        name=trial.folder,
        function=f"{train.__module__}:{train.__name__}",
        given=given.model_dump(mode="json"),
        folder=str(transfer.resolve()),
    )


def train(given: dict[str, Any], transfer: str) -> dict[str, Any]:
    """Do the training `Given` in the folder `transfer`, or find it done; returns its `Trained`.

    It takes one thread and is continued where it was stopped. Raises what a training raises.
    """
    asked = Given.model_validate(given)
    trial, folder = asked.trial, Path(transfer) / asked.trial.folder
    torch.set_num_threads(1)
    origin, opened = _opened(asked.run, json.dumps(asked.recipe, sort_keys=True))
    setup = setup_of(trial, opened)
    with claimed(folder, setup.recipe, "train") as run:
        if not (folder / TRAINED).exists():
            shared = Path(transfer) / CACHE if trial.start.init == "joint" else None
            job = Job("decompose", run, setup, resume=True, cache_folder=shared)
            found, seconds, others = train_start(trial, origin, job)
            found.write(folder / ANSWERS)
            images = len(setup.data[0].train)
            write_part(
                folder / TRAINED, Trained(images=images, seconds=round(seconds, 1), others=others)
            )
            job.checkpoints.clear()
        return _read(folder).model_dump(mode="json")


@lru_cache(maxsize=2)  # a worker does one trial after another on the same images
def _opened(run: str, recipe: str) -> tuple[Origin, Setup]:
    return open_origin(run), open_setup(parse_recipe(json.loads(recipe), where=run))


def finished(trial: Trial, opened: Setup, transfer: Path) -> Trained | None:
    """What a trial says of itself where it is done already.

    Raises `BundleError` where its folder holds another training, or is damaged.
    """
    folder = transfer / trial.folder
    if not (folder / TRAINED).exists():
        return None
    claim(folder, setup_of(trial, opened).recipe)
    return _read(folder)


def _read(folder: Path) -> Trained:
    return read_part(folder / TRAINED, Trained, BundleError, "delete the training's folder")


def setup_of(trial: Trial, opened: Setup) -> Setup:
    """The trial's recipe and images, of `opened`, which has all; the new task is its first.

    Whatever the number of images, as many are drawn in training as the recipe draws of all of them.
    Jointly with others a new task's share is that of its images.
    """
    recipe, (data, *others) = opened.recipe, opened.data
    train, images = recipe.train, len(data.train)
    if trial.shots is not None:
        drawn = {"shots": trial.shots, "drawn_by": trial.seed}  # what a cache must tell apart
        chosen = few(data.train, len(data.classes), trial.shots, trial.seed)
        data = replace(data, train=chosen, provenance=data.provenance | drawn)
    update: dict[str, object] = {"seed": trial.seed}
    if not others:
        more = images / len(data.train)
        longer = {"epochs": train.epochs * more, "validate_every": train.validate_every * more}
        update["train"] = train.model_copy(update=longer)
    if trial.start.fit != "experts":
        update["experts"] = recipe.experts.model_copy(update={"rank": {"*": 0}})
    return Setup(recipe.model_copy(update=update), (data, *others))


def few(split: Split, classes: int, shots: int, seed: int) -> Split:
    """At most `shots` images of each class, or with each finding, drawn by the seed."""
    shown = split.labels if split.labels.ndim == 2 else np.eye(classes)[split.labels]
    rng = np.random.default_rng((seed, shots))
    drawn = [rng.permutation(np.flatnonzero(shown[:, k]))[:shots] for k in range(classes)]
    chosen: I64 = np.unique(np.concatenate(drawn))
    return split.part(chosen)


Others = dict[str, Untouched]


def train_start(trial: Trial, origin: Origin, job: Job) -> tuple[Answers, float, Others]:
    """Its answers on the new test images, how many seconds training took, and, where an expert was
    learnt on the frozen W0, the engines of the tasks that have their experts on it.
    """
    torch.manual_seed(trial.seed)
    fit = _fit_head if trial.start.fit == "head" else _fit_student
    if trial.start.init == "joint":
        fit = _fit_jointly
    network, used, seconds = fit(trial, origin, job)
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


def _fit_jointly(trial: Trial, origin: Origin, job: Job) -> tuple[TaskNetwork, Setup, float]:
    student, learns = build_student(job.setup), job.setup.recipe.transfer.kind != "none"
    teacher = teacher_of_all(origin.teacher, job) if learns else None
    fitted = fit_student(job, student, teacher)
    return student, new_and_old(job.setup)[0], fitted.seconds


def _fit_head(trial: Trial, origin: Origin, job: Job) -> tuple[TaskNetwork, Setup, float]:
    setup = job.setup
    if trial.start.init == "teacher":
        known = restored_teacher(load_bundle(origin.teacher), setup, heads=False)
        setup = replace(setup, own_preprocess=known.preprocess)
    else:
        backbone = build_backbone(setup.recipe, setup.recipe.student)
        backbone.load_state_dict(origin.state(trial.start, trial.seed))
        features = models.feature_dim(backbone, setup.preprocess.size)
        network = TeacherNetwork(backbone, features, setup.classes).eval().requires_grad_(False)
        known = Teacher(network, setup.preprocess)
    job = replace(job, setup=setup)
    fitted = fit_heads(job, TeacherFeatures(known, job))
    return known.network, setup, fitted.seconds
