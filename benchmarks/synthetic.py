"""Experts with random factors on the recipe's student, for what depends on no training: time, size.

Any number of tasks on ShuffleNetV2 1.0x, r = 4. No accuracy can be claimed from these.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from lorkd_deploy import add_experts, load_bundle, models
from lorkd_deploy.bundle.manifest import HEAD, LayerEntry, Manifest, ParityEntry, TaskEntry
from lorkd_deploy.bundle.parity_inputs import parity_inputs
from lorkd_deploy.bundle.read import Bundle
from lorkd_deploy.bundle.reference import ImageReference, reference_tensors
from lorkd_deploy.bundle.write import Contents, write_bundle
from lorkd_deploy.experts import ExpertClassifier
from lorkd_deploy.lowrank.delta import NormKind
from lorkd_deploy.recipe import load_recipe
from lorkd_deploy.storage import sha256_bytes
from lorkd_deploy.training.bundling.graph_template import Template

RECIPE = load_recipe("medmnist")
CLASSES = (9, 4, 11, 11, 11, 8, 2, 8, 7, 2)  # of the recipe's tasks, in its order
FEATURES = 1024


def classes_of(count: int) -> tuple[int, ...]:
    """Numbers of classes for `count` tasks: the recipe's, again and again."""
    return tuple(itertools.islice(itertools.cycle(CLASSES), count))


def student(norm: Any, count: int, size: int) -> ExpertClassifier:
    """The recipe's student with random factors; norms see noise once, then drift from that.

    Without statistics that fit the weights the logits would be nearly 0, and so their error.
    """
    torch.manual_seed(0)
    backbone = models.build(RECIPE.student.architecture)
    spec = RECIPE.experts
    experts = add_experts(backbone, count, spec.rank, spec.alpha, norm=norm)
    model = ExpertClassifier(experts, FEATURES, classes_of(count))
    state = model.state_dict()
    with torch.no_grad():
        for name, factor in model.named_parameters():
            if name.endswith(".B"):
                factor.normal_(0, 0.02)
        for part in model.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.momentum = 1.0
        images = RECIPE.preprocess.normalise(parity_inputs(4 * min(count, 10), size, 1))
        model.train()(torch.from_numpy(images), torch.arange(len(images)) % count)
        for name in [n for n in state if n.endswith("running_var")]:
            state[name] *= torch.empty_like(state[name]).uniform_(0.7, 1.4)
    return model.eval()


def inputs_logits(model: ExpertClassifier, pictures: Any) -> list[Any]:
    """Each task's logits `(n, K)` of the unfused torch model on uint8 pictures."""
    x = torch.from_numpy(RECIPE.preprocess.normalise(pictures))
    with torch.no_grad():
        return [model(x, t).logits[t].numpy() for t in range(model.backbone.tasks)]


def as_bundle(
    path: Path,
    model: ExpertClassifier,
    template: Template,
    pictures: Any,
    logits: Sequence[Any],
    *,
    norm: NormKind = "shared",
    images: int = 0,
) -> Bundle:
    """Everything that a bundle holds, one department a task; `images` test images' logits each."""
    experts, count = model.backbone, len(logits)
    names = [f"task{number}" for number in range(count)]
    rng = np.random.default_rng(0)
    size = int(pictures.shape[1])

    def arrays(state: dict[str, torch.Tensor]) -> dict[str, Any]:
        return {k: v.detach().contiguous().numpy() for k, v in state.items()}

    def reference(classes: int) -> ImageReference:
        digests = rng.integers(0, 256, (images, 32), dtype=np.uint8)
        found = rng.normal(size=(images, classes)).astype(np.float32)
        return ImageReference(np.arange(images), digests, found)

    described = Manifest(
        kind="experts",
        name=RECIPE.name,
        architecture=RECIPE.student.architecture,
        parameters={"backbone": 1_253_604},
        preprocess=RECIPE.preprocess.model_copy(update={"size": size}),
        preprocess_sha256=RECIPE.preprocess.model_copy(update={"size": size}).sha256,
        tasks=[
            TaskEntry(
                name=name,
                department=f"department{number}",
                classes=tuple(f"a class of ordinary name {k}" for k in range(classes)),
                kind="multiclass",
                data={"source": "medmnist", "name": name, "size": size, "md5": "0" * 32},
                rank=RECIPE.experts.rank,
                alpha=RECIPE.experts.alpha,
                metrics={"expert": {"accuracy": 0.912345678, "auc": 0.987654321}},
            )
            for number, (name, classes) in enumerate(zip(names, classes_of(count), strict=True))
        ],
        layers=[LayerEntry(name=e.name, kind=e.kind, shape=e.shape) for e in experts.layers],
        folds=template.folds,
        graph=template.graph,
        parity=ParityEntry(inputs=len(pictures), seed=0, sha256=sha256_bytes(pictures.tobytes())),
        recipe=RECIPE.model_dump(mode="json"),
        recipe_sha256=RECIPE.sha256,
        versions={"lorkd-deploy": "0", "torch": torch.__version__},
        created="2025-01-01T00:00:00+00:00",
        norm=norm,
    )
    contents = Contents(
        base=arrays(experts.base_state()),
        experts={
            name: arrays(experts.expert_state(task))
            | arrays({HEAD + k: v for k, v in model.heads.head(task).state_dict().items()})
            for task, name in enumerate(names)
        },
        logits={
            name: reference_tensors(found, {name: reference(found.shape[1])})
            for name, found in zip(names, logits, strict=True)
        },
        template=template.onnx,
    )
    write_bundle(path, described, contents)
    return load_bundle(path)
