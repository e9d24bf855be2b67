"""What teacher and student training share: the recipe's data, opened and at network size."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from lorkd_deploy.arrays import I64
from lorkd_deploy.data import SPLITS, TaskData, open_every
from lorkd_deploy.errors import DataError, RecipeError
from lorkd_deploy.metrics.score import Kind
from lorkd_deploy.preprocess import Preprocess
from lorkd_deploy.progress import Progress
from lorkd_deploy.recipe import Recipe, TaskSpec, TrainSpec
from lorkd_deploy.safety.held_out import halves
from lorkd_deploy.training.batches.held import Held, fits
from lorkd_deploy.training.batches.loader import IN_MEMORY, Augment, Images, Loader, bytes_of
from lorkd_deploy.training.batches.sampler import MixedSampler
from lorkd_deploy.training.processes import Processes

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Setup:
    """A recipe with its data: one entry per task, in the recipe's order."""

    recipe: Recipe
    data: tuple[TaskData, ...]
    processes: Processes = field(default_factory=Processes)
    own_preprocess: Preprocess | None = None

    @property
    def preprocess(self) -> Preprocess:
        """From a stored image to the input of the network that is trained or tested."""
        return self.own_preprocess or self.recipe.preprocess

    def for_teacher(self) -> Setup:
        """The same data at the teacher's input, which may be another than the student's."""
        return replace(self, own_preprocess=self.recipe.teacher.preprocess)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(task.name for task in self.recipe.tasks)

    @property
    def kinds(self) -> tuple[Kind, ...]:
        return tuple(data.kind for data in self.data)

    @property
    def classes(self) -> tuple[int, ...]:
        return tuple(len(data.classes) for data in self.data)

    @property
    def departments(self) -> dict[str, str]:
        """Task → its department."""
        return {t.name: d.name for d in self.recipe.departments for t in d.tasks}

    @cached_property
    def _held(self) -> frozenset[tuple[int, str]]:
        """Task and split of the images that stay in memory, `IN_MEMORY` in all: first those that
        train, which are asked for most."""
        held, left = set(), IN_MEMORY
        for name in SPLITS:
            for place, data in enumerate(self.data):
                size = bytes_of(len(getattr(data, name)), self.preprocess)
                if size <= left:
                    held.add((place, name))
                    left -= size
        return frozenset(held)

    def _images(self, name: str) -> tuple[Images, ...]:
        return tuple(
            Images(getattr(data, name), self.preprocess, hold=(place, name) in self._held)
            for place, data in enumerate(self.data)
        )

    @cached_property
    def train(self) -> tuple[Images, ...]:
        return self._images("train")

    @cached_property
    def val(self) -> tuple[Images, ...]:
        """The validation images that may choose: all, or a half where the recipe holds out some."""
        if not self.recipe.safety.holds_out:
            return self._images("val")
        return tuple(self._part_of_val(place, 0) for place in range(len(self.data)))

    @cached_property
    def held_out(self) -> tuple[Images, ...]:
        """The validation images that have chosen nothing; none where the recipe holds out none."""
        none = not self.recipe.safety.holds_out
        return () if none else tuple(self._part_of_val(p, 1) for p in range(len(self.data)))

    def _part_of_val(self, place: int, half: int) -> Images:
        val = self.data[place].val
        indices = halves(val.labels, val.groups, self.recipe.seed)[half]
        return Images(val.part(indices), self.preprocess, hold=(place, "val") in self._held)

    @cached_property
    def test(self) -> tuple[Images, ...]:
        return self._images("test")

    def steps(self, spec: TrainSpec) -> tuple[int, int]:
        """Steps of the whole training, and between two validations."""
        epoch = sum(len(images) for images in self.train) / spec.batch_size
        return (
            max(1, math.ceil(spec.epochs * epoch)),
            max(1, round(spec.validate_every * epoch)),
        )

    def class_weights(self, spec: TrainSpec, device: torch.device) -> list[Tensor | None]:
        """Each task's weights by class for `label_loss`, on `device`."""
        if spec.class_weights == "none":
            return [None] * len(self.data)
        return [
            balanced_weights(data.train.labels, len(data.classes), data.kind).to(device)
            for data in self.data
        ]

    def loader(self, spec: TrainSpec, steps: int) -> Loader:
        """Mixed training batches under `spec`, drawn from the recipe's seed."""
        seed = self.recipe.seed
        sizes = [len(images) for images in self.train]
        sampler = MixedSampler(sizes, spec.batch_size, spec.temperature, seed, steps)
        augment = Augment(spec.flip, spec.shift, seed, spec.augment)
        index, count = self.processes.index, self.processes.count
        if spec.batch_size < count * spec.accumulate:
            raise RecipeError(
                f"a batch of {spec.batch_size} images is too small for {count} processes"
                + (f" with accumulate: {spec.accumulate}" if spec.accumulate > 1 else ""),
                fix="raise batch_size, which is that of all processes together, or start fewer",
            )
        device, held = self.processes.device, None
        images = [split.held for split in self.train]
        # What `spec.augment` lists is drawn image by image: threads do it while the GPU is busy.
        if not spec.augment and fits(images, device):
            held = Held([part for part in images if part is not None], device)
            log.debug("all training images are held on the GPU")
        return Loader(self.train, sampler, augment, share=(index, count), held=held)


def open_setup(
    recipe: Recipe, processes: Processes | None = None, progress: Progress | None = None
) -> Setup:
    """Open every task's data; the first fault names its task."""
    processes = processes or Processes()
    sections = {task.name: task.data for task in recipe.tasks}
    with processes.one_per_machine_first():
        opened = open_every(sections, recipe.data_folder, download=True, progress=progress)
    pairs = zip(recipe.tasks, opened, strict=True)
    return Setup(recipe, tuple(_checked(task, data, recipe) for task, data in pairs), processes)


def _checked(task: TaskSpec, data: TaskData, recipe: Recipe) -> TaskData:
    """The data that a training takes of a task: `images_per_task`, every class among them."""
    most = recipe.images_per_task
    if most is not None and len(data.train) > most:
        drawn = np.random.default_rng(0).permutation(len(data.train))[:most]
        data = replace(data, train=data.train.part(np.sort(drawn)))
    _check_every_class(task, data)
    _check_finding(task, data)
    return data


def _check_every_class(task: TaskSpec, data: TaskData) -> None:
    """What is never shown can't be learnt, and an engine would list it among its answers."""
    counts = class_counts(data.train.labels, len(data.classes))
    unseen = [name for name, count in zip(data.classes, counts, strict=True) if not count]
    if unseen:
        raise DataError(
            f"task {task.name!r}: no training image shows {', '.join(map(repr, unseen))}",
            where=f"{data.provenance['source']} {data.provenance['name']}",
            fix="add training images of it, or leave the class out of data and recipe",
        )


def _check_finding(task: TaskSpec, data: TaskData) -> None:
    one_of_two = data.kind == "multiclass" and len(data.classes) == 2
    if task.finding is None or (one_of_two and task.finding in data.classes):
        return
    raise RecipeError(
        f"task {task.name!r}: {task.finding!r} can't be its finding",
        where=f"classes: {', '.join(data.classes)}",
        fix="name one of two classes, or leave `finding` out",
    )


def class_counts(labels: I64, classes: int) -> I64:
    """How many images show each class of labels `(n,)`, or finding of `(n, K)`: `(K,)`."""
    if labels.ndim == 2:
        return np.asarray(labels.sum(axis=0), np.int64)
    return np.bincount(labels, minlength=classes)


def balanced_weights(labels: I64, classes: int, kind: Kind) -> Tensor:
    """Weights by which each class of a task counts the same: n / (K · n_class), float32.

    `(K,)` for the labels `(n,)` of a task with K classes; `(2, L)`, absent and present, for the
    labels `(n, L)` of a multi-label task, whose findings are a pair of classes each. They average
    to 1 over the images. A class without an image gets 0.
    """
    counts = class_counts(labels, classes)
    if kind == "multilabel":
        counts = np.stack([len(labels) - counts, counts])
    weights = np.where(counts > 0, len(labels) / (len(counts) * np.maximum(counts, 1)), 0.0)
    return torch.from_numpy(weights.astype(np.float32))
