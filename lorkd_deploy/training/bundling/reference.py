"""What engines are held against: the unfused network's logits, written before any export."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from lorkd_deploy.arrays import F32, I64, U8
from lorkd_deploy.bundle.reference import ImageReference, mapped, reference_tensors
from lorkd_deploy.data import image_sha256
from lorkd_deploy.experts import ExpertClassifier, TaskNetwork
from lorkd_deploy.metrics.score import Kind
from lorkd_deploy.safety.guard import scores
from lorkd_deploy.storage import Tensors
from lorkd_deploy.training.batches.loader import Images
from lorkd_deploy.training.batches.setup import Setup
from lorkd_deploy.training.bundling.safe import Known, guard_features
from lorkd_deploy.training.networks.deployable import Guarded
from lorkd_deploy.training.networks.evaluate import task_logits
from lorkd_deploy.training.networks.explained import Explained
from lorkd_deploy.training.networks.network import TeacherNetwork, network_input

log = logging.getLogger(__name__)


def reference_logits(
    setup: Setup,
    model: ExpertClassifier | TeacherNetwork,
    pictures: U8,
    engines: Mapping[str, Sequence[int]] | None = None,
    guards: Sequence[Known | None] = (),
    *,
    maps: bool = False,
) -> dict[str, Tensors]:
    """Each engine's reference: fp32 on the CPU, wherever `model` was trained.

    `pictures` `(n, S, S, 3)` are the generated inputs; `engines` the places of each one's tasks in
    `setup`, by default an engine per task; `guards` the tasks' own; with `maps` they
    hold where the network looks, too. Raises `ModelError` for logits that are not finite.
    """
    model = model.cpu().float().eval()
    engines = engines or {name: (task,) for task, name in enumerate(setup.names)}
    found: dict[str, Tensors] = {}
    for engine, tasks in engines.items():
        logits = np.concatenate([_logits_of(model, pictures, t, setup) for t in tasks], axis=1)
        images = {setup.names[t]: _image_reference(model, t, setup) for t in tasks}
        inputs_guard = inputs_maps = None
        if guards and (known := guards[tasks[0]]) is not None:
            # An expert's engine: the teacher's, of several tasks, has no guard.
            network = Guarded(*model.dense(tasks[0])).eval()
            name, test = setup.names[tasks[0]], setup.test[tasks[0]]
            rows = images[name].indices
            images[name] = images[name]._replace(guard=_scores(network, known, test[rows], setup))
            inputs_guard = _scores(network, known, pictures, setup)
        if maps:
            of_tasks = {task: Explained(*model.dense(task), setup.preprocess) for task in tasks}
            chosen = pictures[mapped(len(pictures))]
            inputs_maps = np.concatenate([one.maps(chosen) for one in of_tasks.values()], axis=1)
            for task, one in of_tasks.items():
                log.info("maps of %s: their deletion and insertion curves", setup.names[task])
                images[setup.names[task]] = _explained(
                    one, images[setup.names[task]], setup.test[task], setup.kinds[task]
                )
        found[engine] = reference_tensors(logits, images, inputs_guard, inputs_maps)
    return found


def _explained(one: Explained, given: ImageReference, test: Images, kind: Kind) -> ImageReference:
    """`given` with the maps of those of its images that have any, and what these are worth."""
    chosen = mapped(len(given.indices))
    if not len(chosen):
        return given
    pictures, logits = test[given.indices[chosen]], given.logits[chosen]
    maps = one.maps(pictures)
    return given._replace(maps=maps, faithful=one.faithful(pictures, maps, logits, kind))


def _scores(network: Guarded, known: Known, images: U8, setup: Setup) -> F32:
    """What a guard says of uint8 images at network size, `(n,)`."""
    if not len(images):
        return np.zeros(0, np.float32)
    features = guard_features(network, images, np.arange(len(images)), setup)
    return scores(known.tensors, known.guard, features).astype(np.float32)


@torch.no_grad()
def _logits_of(model: TaskNetwork, pictures: U8, task: int, setup: Setup) -> F32:
    x = network_input(pictures, setup.preprocess, model)
    logits: F32 = model(x, torch.full((len(x),), task)).logits[task].numpy()
    return logits


def _image_reference(model: TaskNetwork, task: int, setup: Setup) -> ImageReference:
    """The task's parity images; if the recipe ships them, with their pixels and labels."""
    recipe = setup.recipe
    images = setup.data[task].test.images
    count = min(recipe.parity.test_images, len(images))
    rows = np.sort(np.random.default_rng(recipe.seed).permutation(len(images))[:count])
    digests = [np.frombuffer(image_sha256(images[int(row)]), np.uint8) for row in rows]
    hashes = np.stack(digests) if digests else np.empty((0, 32), np.uint8)
    chosen = _ChosenImages(setup.test[task], rows)
    logits = task_logits(model, chosen, task, setup.preprocess)
    if recipe.parity.images == "reference":
        return ImageReference(rows, hashes, logits)
    return ImageReference(rows, hashes, logits, setup.test[task][rows], chosen.labels)


class _ChosenImages(Images):
    """Some images of a split, in the given order."""

    def __init__(self, images: Images, rows: I64) -> None:
        self.labels = images.labels[rows]
        self._images = images
        self._rows = rows

    def __getitem__(self, rows: I64) -> U8:
        return self._images[self._rows[rows]]
