"""Export one graph for all experts: norms folded, weights taken out, and the way back recorded.

The map from folded tensors to initialisers is found by value: before the export every tensor gets
values that no other tensor has, since exporters transpose and rename Linear weights and merge
equal ones. The deployed side then fills the template with NumPy alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from lorkd_deploy.bundle.manifest import HEAD, FoldEntry, GraphEntry
from lorkd_deploy.experts.copies import copy_of
from lorkd_deploy.experts.uses import COUNTER
from lorkd_deploy.runtime import FEATURES, MAPS, OUTPUT
from lorkd_deploy.storage import sha256_bytes
from lorkd_deploy.training.bundling.initializers import bind, stripped, take_weights
from lorkd_deploy.training.bundling.maps import add_maps
from lorkd_deploy.training.bundling.tracing import INPUT, exported, tensors_of, traced
from lorkd_deploy.training.networks.deployable import Deployable, Guarded

_CONVOLUTIONS = (torch.ops.aten.conv2d.default, torch.ops.aten.conv2d.padding)
_BATCH_NORM = torch.ops.aten.batch_norm.default
_NORM_TENSORS = ("weight", "bias", "running_mean", "running_var")


@dataclass(frozen=True)
class Template:
    """An ONNX graph without weights, how to fill it, and which norms are folded for that.

    It is the graph of every network of the same structure and the same `constants_sha256`.
    """

    onnx: bytes
    graph: GraphEntry
    folds: tuple[FoldEntry, ...]
    constants_sha256: str


def graph_template(
    backbone: nn.Module, head: nn.Linear, size: int, opset: int = 18, *, guard: bool = False
) -> Template:
    """Export `head(backbone(x))` for `x` float32 `(N, 3, size, size)` with a free N.

    `backbone` is a plain module (no experts) that gives features `(N, F)`; neither module is
    changed. With `guard` what that looks at is a second output (`Guarded`). Sources in the map are
    the backbone's own tensor names and `HEAD_TENSORS`; a convolution whose BatchNorm was folded has
    a `.bias` even if it had none. Tensors that no answer depends on, or that are another one under
    a second name, are listed as unused.
    Raises `ModelError` where torch can't export the network, naming layer and operator, or where
    a weight has no place of its own in the graph.
    """
    model = _plain_copy(backbone, head, Guarded if guard else Deployable)
    outputs = [OUTPUT, *([FEATURES] if guard else [])]
    example = torch.zeros(2, 3, size, size)
    names = {name for name, value in model.state_dict().items() if value.is_floating_point()}
    program = traced(model, example)
    folds = _fold_norms(program)
    sources = _randomised(program)
    proto, weights = take_weights(exported(program, opset, outputs), sources)
    arrays = {_own(name): value.numpy() for name, value in sources.items()}
    folded = {f"{fold.norm}.{part}" for fold in folds for part in _NORM_TENSORS}
    graph = GraphEntry(
        opset=opset,
        input=INPUT,
        output=OUTPUT,
        features=FEATURES if guard else None,
        bindings=bind(weights, arrays),
        unused=tuple(sorted(map(_own, names - folded - sources.keys()))),
    )
    own_folds = tuple(FoldEntry(conv=_own(f.conv), norm=_own(f.norm), eps=f.eps) for f in folds)
    return Template(stripped(proto), graph, own_folds, constants_sha256(backbone))


def explained(template: Template) -> Template:
    """`template` with the class activation map as an output (`maps.py`).

    Raises `ModelError` for a network that has none.
    """
    import onnx

    model = onnx.ModelProto.FromString(template.onnx)
    add_maps(model)
    graph = template.graph.model_copy(update={"maps": MAPS})
    return replace(template, onnx=stripped(model), graph=graph)


def _plain_copy(backbone: nn.Module, head: nn.Linear, kind: type[Deployable]) -> nn.Module:
    model = copy_of(kind(backbone, head)).cpu().float()
    return model.eval().requires_grad_(False)


def _fold_norms(program: ExportedProgram) -> list[FoldEntry]:
    """Take every BatchNorm out of the graph that is alone behind one convolution.

    This looks at the traced operations, not at module types: whatever a kind of norm does after
    normalising (timm's activation) stays.
    """
    folds, tensors = [], tensors_of(program)
    for norm in list(program.graph.nodes):
        fold = _foldable(norm, tensors)
        if fold is None:
            continue
        conv, mean = norm.args[0], norm.args[3]
        if _argument(conv, 2) is None:
            _add_bias(program, conv, mean, fold.conv)
        norm.replace_all_uses_with(conv)
        program.graph.erase_node(norm)
        folds.append(fold)
    program.graph.eliminate_dead_code()
    program.graph_module.recompile()
    return folds


def _foldable(norm: fx.Node, tensors: Mapping[Any, str]) -> FoldEntry | None:
    """The pair that this node ends, if it is a BatchNorm behind a convolution, both used once."""
    conv = norm.args[0] if norm.target is _BATCH_NORM else None
    if not isinstance(conv, fx.Node) or conv.target not in _CONVOLUTIONS or len(conv.users) != 1:
        return None
    _, gain, shift, mean, var, training, _, eps = norm.args[:8]
    weight, bias = _argument(conv, 1), _argument(conv, 2)
    layer, own = (tensors.get(tensor, "").rpartition(".")[0] for tensor in (weight, mean))
    if training or not layer or not own or not isinstance(eps, float):
        return None
    expected = {
        f"{layer}.weight": weight,
        f"{layer}.bias": bias,
        f"{own}.weight": gain,
        f"{own}.bias": shift,
        f"{own}.running_mean": mean,
        f"{own}.running_var": var,
    }
    for name, node in expected.items():
        if isinstance(node, fx.Node) and (tensors.get(node) != name or len(node.users) != 1):
            return None
    return FoldEntry(conv=layer, norm=own, eps=eps)


def _add_bias(program: ExportedProgram, conv: fx.Node, mean: fx.Node, layer: str) -> None:
    """Give a traced convolution without bias one, as `layer.bias`: what was its norm's mean."""
    conv.args = (*conv.args[:2], mean, *conv.args[3:])
    spec = next(s for s in program.graph_signature.input_specs if s.arg.name == mean.name)
    program.state_dict[f"{layer}.bias"] = program.state_dict.pop(spec.target)
    spec.target = f"{layer}.bias"


def _argument(node: fx.Node, index: int) -> Any:
    return node.args[index] if len(node.args) > index else None


def _randomised(program: ExportedProgram) -> dict[str, Tensor]:
    """Overwrite the float tensors that are read with values that no two of them share.

    Integer tensors (an index table) and what the state has no name for are parts of the graph.
    """
    generator = torch.Generator().manual_seed(0)
    read = {name for node, name in tensors_of(program).items() if node.users}
    state = {n: t for n, t in program.state_dict.items() if n in read and t.is_floating_point()}
    for index, tensor in enumerate(state.values()):
        tensor.copy_(index + 0.25 + 0.5 * torch.rand(tensor.shape, generator=generator))
    return {name: tensor.detach().clone() for name, tensor in state.items()}


def constants_sha256(backbone: nn.Module) -> str:
    """Of the buffers that are a part of the graph: integers, and what its state doesn't hold."""
    state = backbone.state_dict()
    constants = {
        name: buffer.cpu().numpy()
        for name, buffer in backbone.named_buffers()
        if (name not in state or not buffer.is_floating_point()) and not name.endswith(COUNTER)
    }
    parts = [f"{n} {v.dtype} {v.shape} ".encode() + v.tobytes() for n, v in constants.items()]
    return sha256_bytes(b"".join(parts))


def _own(name: str) -> str:
    """The bundle's name of a tensor of `_Deployable`."""
    owner, _, own = name.partition(".")
    return own if owner == "backbone" else HEAD + own
