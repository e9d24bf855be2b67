"""A network as a bundle keeps it: its tensors by name, and the manifest's entries of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from lorkd_deploy.arrays import F32
from lorkd_deploy.bundle.manifest import HEAD, LayerEntry, SafetyEntry, TaskEntry
from lorkd_deploy.experts import ExpertClassifier, ExpertModel
from lorkd_deploy.storage import Tensors
from lorkd_deploy.training.batches.setup import Setup

Scores = list[dict[str, float]]  # one entry per task


def arrays(tensors: Mapping[str, torch.Tensor]) -> dict[str, F32]:
    """The tensors as NumPy arrays on the CPU."""
    return {k: v.detach().cpu().contiguous().numpy() for k, v in tensors.items()}


def head_tensors(head: nn.Module) -> dict[str, F32]:
    """One task's head."""
    return arrays({HEAD + name: value for name, value in head.state_dict().items()})


def own_tensors(setup: Setup, model: ExpertClassifier) -> dict[str, Tensors]:
    """Task → its factors, norms where they are its own, and head."""
    return {
        name: arrays(model.backbone.expert_state(task)) | head_tensors(model.heads.tasks[task])
        for task, name in enumerate(setup.names)
    }


def layer_entries(experts: ExpertModel) -> tuple[LayerEntry, ...]:
    """The layers with experts."""
    return tuple(
        LayerEntry(name=layer.name, kind=layer.kind, shape=tuple(layer.shape))
        for layer in experts.layers
    )


def task_entries(
    setup: Setup,
    tested: Mapping[str, Scores],
    experts: ExpertModel | None = None,
    safety: Sequence[SafetyEntry] = (),
) -> tuple[TaskEntry, ...]:
    """The tasks; `tested` are the test scores of each network, by its role; `safety` is a task's
    own, if there is any."""
    recipe = setup.recipe
    ranks = [experts.ranks_of(task) if experts else {} for task in range(len(setup.names))]
    largest = [max(of_task.values(), default=None) for of_task in ranks]
    return tuple(
        TaskEntry(
            name=task.name,
            department=setup.departments[task.name],
            classes=setup.data[index].classes,
            kind=setup.data[index].kind,
            data=setup.data[index].provenance,
            rank=largest[index],
            ranks={name: rank for name, rank in ranks[index].items() if rank != largest[index]},
            alpha=recipe.experts.alpha if experts else None,
            safety=safety[index] if safety else SafetyEntry(),
            metrics={role: scores[index] for role, scores in tested.items()},
            dicom=task.data.dicom,
        )
        for index, task in enumerate(recipe.tasks)
    )
