"""One training of a study: a function that a worker anywhere can call, JSON in and JSON out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from lorkd_deploy.bundle.read import load_bundle
from lorkd_deploy.errors import BundleError
from lorkd_deploy.evidence.answers import Answers
from lorkd_deploy.evidence.attempt import Call
from lorkd_deploy.evidence.methods.kf_training import train_factorised
from lorkd_deploy.evidence.methods.table import method_named
from lorkd_deploy.evidence.plan import Training
from lorkd_deploy.experts import TaskNetwork
from lorkd_deploy.progress import Progress, Silent
from lorkd_deploy.recipe import parse_recipe
from lorkd_deploy.run import claim, claimed
from lorkd_deploy.schema import Part, read_part, write_part
from lorkd_deploy.storage import write_tensors
from lorkd_deploy.training.batches.setup import Setup, open_setup
from lorkd_deploy.training.fitting.history import Fitted, write_history
from lorkd_deploy.training.fitting.job import Job
from lorkd_deploy.training.fitting.student import fit_student
from lorkd_deploy.training.networks.network import network_input
from lorkd_deploy.training.networks.restore import Teacher, restored_teacher
from lorkd_deploy.training.networks.student import build_student

RECORD, ANSWERS, WEIGHTS = "trained.json", "answers.safetensors", "weights.safetensors"
FOUNDATION = "foundation"  # the study's run of the teacher
CHUNK = 256
AGAIN = "delete the training's folder and run the study again"


class Trained(Part):
    """What a finished training says of itself."""

    training: Training
    steps: int
    seconds: float
    validation: float


def train(given: dict[str, Any], study: str) -> dict[str, Any]:
    """Do the `Training` `given` in the folder `study`, or find it done; returns its `Trained`.

    It takes one thread, is continued where it was stopped, and leaves its answers on the test
    images and its weights. Raises what a training raises.
    """
    training = Training.model_validate(given)
    folder = Path(study) / training.folder
    torch.set_num_threads(1)
    recipe = parse_recipe(training.recipe, where=training.folder)
    with claimed(folder, recipe, "train") as run:
        if (folder / RECORD).exists():
            return read_record(folder).model_dump(mode="json")
        foundation = Path(study) / FOUNDATION
        job = Job(
            "decompose", run, open_setup(recipe), resume=True, cache_folder=foundation / "cache"
        )
        torch.manual_seed(recipe.seed)
        network, fitted = _trained(training, job, foundation / "teacher")
        network.cpu().eval()
        answers(network, job.setup).write(folder / ANSWERS)
        state = network.state_dict()
        write_tensors(folder / WEIGHTS, {n: v.numpy() for n, v in state.items()}, digest=True)
        write_history(job.history, fitted, job.device, finished=True)
        done = Trained(
            training=training,
            steps=fitted.steps,
            seconds=round(fitted.seconds, 1),
            validation=fitted.history[-1]["score"],
        )
        write_part(folder / RECORD, done)
        job.checkpoints.clear()
        return done.model_dump(mode="json")


def call_of(training: Training, study: Path) -> Call:
    """`train` of it in the folder `study`, for a worker."""
    function = f"{train.__module__}:{train.__name__}"
    given = training.model_dump(mode="json")
    return Call(name=training.folder, function=function, given=given, folder=str(study.resolve()))


def finished(training: Training, study: Path) -> Trained | None:
    """What it says of itself where it is done already.

    Raises `BundleError` where its folder holds another training, or is damaged.
    """
    folder = study / training.folder
    if not (folder / RECORD).exists():
        return None
    claim(folder, parse_recipe(training.recipe, where=training.folder))
    return read_record(folder)


def read_record(folder: Path) -> Trained:
    """Raises `BundleError` where the record is missing or damaged."""
    return read_part(folder / RECORD, Trained, BundleError, AGAIN)


def _trained(training: Training, job: Job, folder: Path) -> tuple[TaskNetwork, Fitted]:
    """The network of a training; `folder` has the teacher."""
    if method_named(training.method).network == "factorised":
        return train_factorised(job, restored_teacher(load_bundle(folder), job.setup))
    teacher: Teacher | None = None
    if job.setup.recipe.transfer.kind != "none":
        teacher = restored_teacher(load_bundle(folder), job.setup)
    student = build_student(job.setup)
    fitted = fit_student(job, student, teacher)
    return student, fitted


@torch.no_grad()
def answers(network: TaskNetwork, setup: Setup, progress: Progress | None = None) -> Answers:
    """What `network`, on the CPU in evaluation mode, says of every test image, in fp32."""
    shown = progress or Silent()
    logits, features = {}, {}
    shown.start("answering the test images", sum(len(split) for split in setup.test))
    for number, (name, split) in enumerate(zip(setup.names, setup.test, strict=True)):
        parts = []
        for start in range(0, len(split), CHUNK):
            chosen = np.arange(start, min(start + CHUNK, len(split)))
            x = network_input(split[chosen], setup.preprocess, network)
            parts.append(network(x, number))
            shown.advance(len(chosen))
        logits[name] = torch.cat([part.logits[number] for part in parts]).float().numpy()
        features[name] = torch.cat([part.features for part in parts]).float().numpy()
    shown.stop()
    return Answers(logits, features)
