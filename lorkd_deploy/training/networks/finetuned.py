"""Fine-tuned models and their base, from files: a plain backbone each, and a model's head."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from lorkd_deploy.errors import ModelError
from lorkd_deploy.experts.uses import COUNTER
from lorkd_deploy.recipe.networks import StudentSpec
from lorkd_deploy.training.networks.network import TeacherNetwork
from lorkd_deploy.weight_files import read_weights, some


def load_whole(backbone: nn.Module, path: Path, spec: StudentSpec) -> dict[str, Tensor]:
    """Load all of `backbone` from a checkpoint, whose names `spec` maps; gives what else it has.

    Raises `ModelError` as `read_weights` does, and for a file that lacks a tensor of `backbone` or
    has one in another shape (naming all kinds of fault). The backbone is then unchanged.
    """
    own = backbone.state_dict(keep_vars=True)
    state = read_weights(path, spec.prefix, own, spec.pattern)
    missing = [name for name in own if name not in state and not name.endswith(COUNTER)]
    differ = [
        f"{name} {tuple(state[name].shape)}, wanted {tuple(value.shape)}"
        for name, value in own.items()
        if name in state and state[name].shape != value.shape
    ]
    more = {n: v for n, v in state.items() if n not in own and not n.endswith(COUNTER)}
    if missing or differ:
        faults = [("missing", missing), ("of another shape", differ), ("unknown", _shaped(more))]
        raise ModelError(
            "the checkpoint is not of the recipe's student:\n    "
            + "\n    ".join(f"{len(names)} {what}: {some(names)}" for what, names in faults),
            where=path,
            fix="name the architecture that was fine-tuned by student.architecture; if only names "
            "differ, map their beginnings by student.prefix, parts of them by student.pattern",
        )
    backbone.load_state_dict({n: v for n, v in state.items() if n in own}, strict=False)
    return more


def fine_tuned(
    backbone: nn.Module, path: Path, spec: StudentSpec, features: int, classes: int
) -> TeacherNetwork:
    """A fine-tuned model as a network of one task; `backbone` gives its form and is changed.

    The head is what the file has beside the backbone: one `NAME.weight` `(classes, features)`, with
    or without `NAME.bias`, whatever its name. Raises `ModelError` as `load_whole`, and where there
    is more, less or another form of it: a convolution may have an activation behind it that its
    file doesn't tell of.
    """
    weight, bias = _head(load_whole(backbone, path, spec), path, features, classes)
    model = TeacherNetwork(backbone, features, [classes])
    with torch.no_grad():
        head = model.heads.head(0)
        head.weight.copy_(weight)
        head.bias.zero_()
        if bias is not None:
            head.bias.copy_(bias)
    return model.eval()


def _head(
    more: Mapping[str, Tensor], path: Path, features: int, classes: int
) -> tuple[Tensor, Tensor | None]:
    weights = [name for name in more if name.endswith("weight")]
    weight = more[weights[0]] if len(weights) == 1 else None
    bias = more.get(weights[0].removesuffix("weight") + "bias") if weights else None
    if weight is None or len(more) > 1 + (bias is not None):
        listed = some(_shaped(more)) if more else "nothing"
        raise ModelError(
            f"beside the backbone the checkpoint has {listed}; wanted one head, its weight "
            f"({classes}, {features}) and bias",
            where=path,
            fix="save the state_dict of backbone and last layer alone; if a name of the backbone "
            "differs, map its beginning by student.prefix",
        )
    if weight.shape != (classes, features) or (bias is not None and bias.shape != (classes,)):
        raise ModelError(
            f"the head is {some(_shaped(more))}; the task's images have {classes} classes and the "
            f"backbone {features} features: wanted ({classes}, {features})",
            where=path,
            fix="give each task its own model, and list its classes in the model's order",
        )
    return weight, bias


def _shaped(tensors: Mapping[str, Tensor]) -> list[str]:
    return [f"{name} {tuple(value.shape)}" for name, value in tensors.items()]
