"""Everything trained again: the origin's tasks and a new one together, from the beginning.

The new task is the first of such a setup, alone in its department.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from lorkd_deploy.bundle.read import load_bundle
from lorkd_deploy.progress import Progress
from lorkd_deploy.run import Run
from lorkd_deploy.storage import carry_over
from lorkd_deploy.training.batches.setup import Setup
from lorkd_deploy.training.fitting.distillation.features import TeacherFeatures
from lorkd_deploy.training.fitting.job import Job
from lorkd_deploy.training.fitting.probe import fit_heads
from lorkd_deploy.training.networks.network import TeacherNetwork
from lorkd_deploy.training.networks.restore import Teacher, restored_teacher

CACHE = "cache"  # in the transfer's folder


def new_and_old(setup: Setup) -> tuple[Setup, Setup]:
    """The new task alone, and the origin's tasks."""
    new, *old = setup.recipe.departments
    recipes = [setup.recipe.model_copy(update={"departments": d}) for d in ((new,), tuple(old))]
    return Setup(recipes[0], setup.data[:1]), Setup(recipes[1], setup.data[1:])


def prepare(folder: Path, setup: Setup, teacher: Path, cache: Path, progress: Progress) -> None:
    """The teacher's features of the origin's training images, before any worker needs them.

    Those that the origin has in its `cache` aren't computed again. Raises `ModelError` for a
    `teacher` that wasn't trained on the origin's tasks.
    """
    if setup.recipe.transfer.kind == "none":
        return
    own = folder / CACHE
    if cache.exists() and not own.exists():
        carry_over(cache, own)
    _, old = new_and_old(setup)
    run = Run(folder, folder / "bundle")
    job = Job("decompose", run, old, progress=progress, cache_folder=own)
    TeacherFeatures(restored_teacher(load_bundle(teacher), old), job)


def teacher_of_all(teacher: Path, job: Job) -> Teacher:
    """The origin's teacher, with a head for the new task that is fitted to its features."""
    new, old = new_and_old(job.setup)
    bundle = load_bundle(teacher)
    known, other = restored_teacher(bundle, old), restored_teacher(bundle, new, heads=False)
    part = replace(job, setup=replace(new, own_preprocess=other.preprocess))
    fit_heads(part, TeacherFeatures(other, part))
    heads = [other.network.heads.head(0)]
    heads += [known.network.heads.head(number) for number in range(len(old.names))]
    network = TeacherNetwork(known.network.backbone, known.network.features, job.setup.classes)
    for number, head in enumerate(heads):
        network.heads.head(number).load_state_dict(head.state_dict())
    return Teacher(network.eval().requires_grad_(False), known.preprocess)
