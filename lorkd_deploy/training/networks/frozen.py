"""A student on a finished bundle's W0, which stays: nothing is trained but what is its tasks' own.

What all tasks share is part of W0: shared norms keep their weights and statistics, in training too.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from lorkd_deploy.bundle.read import Bundle
from lorkd_deploy.errors import ModelError
from lorkd_deploy.experts import ExpertModel
from lorkd_deploy.experts.absent import ExpertStack
from lorkd_deploy.experts.norms import PerTaskNorm


def freeze_base(experts: ExpertModel, bundle: Bundle) -> list[nn.Module]:
    """Give `experts` the bundle's W0, for good; gives the norms that have to stay in evaluation
    mode, since all tasks share them.

    Per-task norms begin at the mean of those that the bundle's tasks have. Raises `ModelError`
    where the student isn't the network that was decomposed.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in experts.base_state().items()}
    found = {name: array.shape for name, array in bundle.base.items()}
    layers = {(layer.name, layer.shape) for layer in experts.layers}
    if shapes != found or layers != {(layer.name, layer.shape) for layer in bundle.manifest.layers}:
        other = sorted(shapes.items() ^ found.items()) or sorted(layers)
        raise ModelError(
            "the student is not the network that was decomposed: its layers or norms have other "
            f"names or shapes, {other[0][0]} first",
            where=bundle.path,
            fix="use the package versions and the code that made the bundle "
            f"({bundle.manifest.architecture})",
        )
    with torch.no_grad():
        state = experts.module.state_dict()
        for name, array in bundle.base.items():
            state[name].copy_(torch.tensor(array))
        _begin_at_the_mean(experts.module, bundle)
    return freeze(experts)


def freeze(experts: ExpertModel) -> list[nn.Module]:
    """Let nothing be trained but what is its tasks' own; gives the norms that have to stay in
    evaluation mode.
    """
    experts.requires_grad_(False)
    for own in _own_parameters(experts.module):
        own.requires_grad_(True)
    return _shared_norms(experts.module)


def _own_parameters(module: nn.Module) -> Iterator[nn.Parameter]:
    yield from (p for p in module.parameters() if isinstance(p, ExpertStack))
    for part in module.modules():
        if isinstance(part, PerTaskNorm):
            yield from part.parameters()


def _shared_norms(module: nn.Module) -> list[nn.Module]:
    per_task = (m for m in module.modules() if isinstance(m, PerTaskNorm))
    own = {norm for several in per_task for norm in several.modules()}
    return [m for m in module.modules() if isinstance(m, _NormBase) and m not in own]


def _begin_at_the_mean(module: nn.Module, bundle: Bundle) -> None:
    norms = {n: m for n, m in module.named_modules() if isinstance(m, PerTaskNorm)}
    if not norms:
        return
    trained = [bundle.expert(task.name) for task in bundle.manifest.tasks]
    for name, several in norms.items():
        for norm in several.tasks:
            for key, tensor in norm.state_dict().items():
                if tensor.is_floating_point():
                    mean = np.mean([tensors[f"{name}.{key}"] for tensors in trained], axis=0)
                    tensor.copy_(torch.from_numpy(mean))
