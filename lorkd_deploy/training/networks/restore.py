"""Unfused networks again, from the tensors that bundles keep of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch

from lorkd_deploy import models
from lorkd_deploy.bundle.manifest import HEAD, HEAD_TENSORS, Manifest, TaskEntry
from lorkd_deploy.bundle.read import Bundle
from lorkd_deploy.errors import ModelError, UsageError, first_line
from lorkd_deploy.experts import ExpertClassifier, add_experts
from lorkd_deploy.experts.probe import probe_images
from lorkd_deploy.preprocess import Preprocess
from lorkd_deploy.storage import Tensors
from lorkd_deploy.training.batches.setup import Setup
from lorkd_deploy.training.networks.network import TeacherNetwork, place


def restored(
    manifest: Manifest, tasks: Sequence[TaskEntry], base: Tensors, experts: Mapping[str, Tensors]
) -> ExpertClassifier:
    """W0 + α/r · B A of `tasks`, as it was trained: unfused, in evaluation mode, on the CPU.

    `manifest` says the architecture, the layers, norms and factorisation; `tasks` the ranks. Raises
    `ModelError` where the code of today builds another network under that name.
    """
    backbone = models.build(manifest.architecture, manifest.network_config)
    alpha = next(task.alpha for task in tasks if task.alpha)
    ranks = [{layer.name: task.rank_of(layer.name) or 0 for layer in manifest.layers}
             for task in tasks]  # fmt: skip
    try:
        features = models.feature_dim(backbone, manifest.preprocess.size)
        model = add_experts(
            backbone,
            len(tasks),
            ranks,
            alpha,
            norm=manifest.norm,
            factorisation=manifest.factorisation,
            skip=manifest.recipe.get("experts", {}).get("skip", ()),
            example=probe_images(manifest.preprocess.size),
        )
        model.probed = True  # when it was trained
        model.load_base({name: torch.tensor(array) for name, array in base.items()})
        classifier = ExpertClassifier(model, features, [len(task.classes) for task in tasks])
        for index, task in enumerate(tasks):
            _load(classifier, index, experts[task.name], (task.alpha or alpha) / alpha)
    except (UsageError, ModelError, RuntimeError) as exc:  # ranks, names or shapes that differ
        raise ModelError(
            f"the network that was decomposed can't be built again: {first_line(exc)}",
            where=manifest.architecture,
            fix="use the package versions and the code that made the bundle",
        ) from exc
    return classifier.eval()


def _load(classifier: ExpertClassifier, task: int, tensors: Tensors, scale: float) -> None:
    """One task's factors, norms and head; `scale` is its own α over the model's."""
    state = {name: torch.tensor(array) for name, array in tensors.items()}
    head = {name.removeprefix(HEAD): state.pop(name) for name in HEAD_TENSORS}
    if scale != 1.0:
        state |= {name: value * scale for name, value in state.items() if name.endswith(".B")}
    classifier.backbone.load_expert(task, state)
    classifier.heads.head(task).load_state_dict(head)


class Teacher(NamedTuple):
    """The frozen foundation model, on the CPU in evaluation mode, and its preprocessing.

    `has_heads`: it was trained on the tasks of the recipe, so that its logits mean something.
    """

    network: TeacherNetwork
    preprocess: Preprocess
    has_heads: bool = True


def restored_teacher(bundle: Bundle, setup: Setup, *, heads: bool = True) -> Teacher:
    """The foundation model of a teacher's bundle.

    Raises `ModelError` where it wasn't trained on all of the tasks, with the same classes; without
    `heads` it need not be: its features are those of any image.
    """
    if heads and not has_heads_for(bundle, setup):
        raise ModelError(
            "the teacher in this run was trained on other tasks or another preprocessing",
            where=bundle.path,
            fix="run `lorkd teacher` with this recipe in a new --out",
        )
    backbone = models.build(bundle.manifest.architecture, bundle.manifest.network_config)
    size = bundle.manifest.preprocess.size
    model = TeacherNetwork(backbone, models.feature_dim(backbone, size), setup.classes)
    backbone.load_state_dict({k: torch.tensor(v) for k, v in bundle.base.items()}, strict=False)
    for index, task in enumerate(setup.names if heads else ()):
        state = {k.removeprefix(HEAD): torch.tensor(v) for k, v in bundle.expert(task).items()}
        model.heads.head(index).load_state_dict(state)
    model.requires_grad_(False)
    asked = setup.recipe.train.channels_last
    place(model, torch.device("cpu"), channels_last=asked, size=size)
    return Teacher(model.eval(), bundle.manifest.preprocess, heads)


def has_heads_for(bundle: Bundle, setup: Setup) -> bool:
    """Whether a teacher has a head for each task, on inputs that are prepared the same."""
    heads = {task.name: len(task.classes) for task in bundle.manifest.tasks}
    wanted = zip(setup.names, setup.classes, strict=True)
    same = bundle.manifest.preprocess == setup.for_teacher().preprocess
    return same and all(heads.get(name) == classes for name, classes in wanted)
