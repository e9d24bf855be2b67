"""The unfused network again, from the tensors that a bundle keeps of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from lorkd_deploy import models
from lorkd_deploy.bundle.manifest import HEAD, HEAD_TENSORS, Manifest, TaskEntry
from lorkd_deploy.errors import ModelError, UsageError
from lorkd_deploy.experts import ExpertClassifier, add_experts
from lorkd_deploy.storage import Tensors


def restored(
    manifest: Manifest, tasks: Sequence[TaskEntry], base: Tensors, experts: Mapping[str, Tensors]
) -> ExpertClassifier:
    """W0 + α/r · B A of `tasks`, as it was trained: unfused, in evaluation mode, on the CPU.

    `manifest` says the architecture, the layers, norms and factorisation; `tasks` the ranks. Raises
    `ModelError` where the code of today builds another network under that name.
    """
    backbone = models.build(manifest.architecture)
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
        )
        model.load_base({name: torch.tensor(array) for name, array in base.items()})
        classifier = ExpertClassifier(model, features, [len(task.classes) for task in tasks])
        for place, task in enumerate(tasks):
            _load(classifier, place, experts[task.name], (task.alpha or alpha) / alpha)
    except (UsageError, ModelError, RuntimeError) as exc:  # ranks, names or shapes that differ
        said = (str(exc).splitlines() or [""])[0]
        raise ModelError(
            f"the network that was decomposed can't be built again: {said}",
            where=manifest.architecture,
            fix="use the package versions and the code that made the bundle",
        ) from exc
    return classifier.eval()


def _load(classifier: ExpertClassifier, place: int, tensors: Tensors, scale: float) -> None:
    """One task's factors, norms and head; `scale` is its own α over the model's."""
    state = {name: torch.tensor(array) for name, array in tensors.items()}
    head = {name.removeprefix(HEAD): state.pop(name) for name in HEAD_TENSORS}
    if scale != 1.0:
        state |= {name: value * scale for name, value in state.items() if name.endswith(".B")}
    classifier.backbone.load_expert(place, state)
    classifier.heads.head(place).load_state_dict(head)
