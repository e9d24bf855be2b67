"""Export one graph for all experts: norms folded, weights taken out, and the way back recorded.

The map from folded tensors to initialisers is found by value: before the export every tensor gets
values that no other tensor has, since exporters transpose and rename Linear weights and merge
equal ones. The deployed side then fills the template with NumPy alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from lorkd_deploy.bundle.manifest import HEAD, FoldEntry, GraphEntry
from lorkd_deploy.experts.copies import copy_of
from lorkd_deploy.experts.uses import COUNTER
from lorkd_deploy.runtime import FEATURES, MAPS, OUTPUT
from lorkd_deploy.storage import sha256_bytes
from lorkd_deploy.training.bundling.initializers import bind, stripped, take_weights
from lorkd_deploy.training.bundling.maps import add_maps
from lorkd_deploy.training.bundling.tracing import INPUT, exported, traced
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
    module = traced(model, example)
    folds = _without_norms(module)
    sources = _randomised(module, names | {f"{fold.conv}.bias" for fold in folds})
    proto, weights = take_weights(exported(module, example, opset, outputs), sources)
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


def _without_norms(module: fx.GraphModule) -> list[FoldEntry]:
    """Fold what can be folded, and let the exporter see a network in evaluation mode."""
    folds = _fold_norms(module)
    for part in module.modules():
        part.training = False  # a traced module refuses eval(), and the exporter looks at this
    return folds


def _fold_norms(module: fx.GraphModule) -> list[FoldEntry]:
    """Take every BatchNorm out of the graph that is alone behind one convolution.

    This looks at the traced operations, not at module types: whatever a kind of norm does after
    normalising (timm's activation) stays.
    """
    uses: Counter[Any] = Counter()
    for node in module.graph.nodes:
        if node.op == "get_attr":
            uses[node.target] += len(node.users)
    folds = []
    for norm in list(module.graph.nodes):
        fold = _foldable(norm, uses)
        if fold is None:
            continue
        conv = norm.args[0]
        if _argument(conv, 2) is None:
            _add_bias(module, conv, fold.conv)
        norm.replace_all_uses_with(conv)
        module.graph.erase_node(norm)
        folds.append(fold)
    module.graph.eliminate_dead_code()
    module.recompile()
    for fold in folds:
        owner = module.get_submodule(fold.norm)
        for tensor in [*owner._parameters, *owner._buffers]:
            delattr(owner, tensor)
    return folds


def _foldable(norm: fx.Node, uses: Counter[Any]) -> FoldEntry | None:
    """The pair that this node ends, if it is a BatchNorm behind a convolution, both used once."""
    conv = norm.args[0] if norm.target is _BATCH_NORM else None
    if not isinstance(conv, fx.Node) or conv.target not in _CONVOLUTIONS or len(conv.users) != 1:
        return None
    _, gain, shift, mean, var, training, _, eps = norm.args[:8]
    weight, bias = _argument(conv, 1), _argument(conv, 2)
    layer, own = _owner(weight), _owner(mean)
    if training or layer is None or own is None or not isinstance(eps, float):
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
        if isinstance(node, fx.Node) and (node.target != name or uses[name] != 1):
            return None
    return FoldEntry(conv=layer, norm=own, eps=eps)


def _add_bias(module: fx.GraphModule, conv: fx.Node, layer: str) -> None:
    """Give a traced convolution without bias one, as `layer.bias`."""
    channels = conv.meta["val"].shape[1]
    bias = nn.Parameter(torch.zeros(channels), requires_grad=False)
    module.get_submodule(layer).register_parameter("bias", bias)
    with module.graph.inserting_before(conv):
        node = module.graph.get_attr(f"{layer}.bias")
    conv.args = (*conv.args[:2], node, *conv.args[3:])


def _argument(node: fx.Node, index: int) -> Any:
    return node.args[index] if len(node.args) > index else None


def _owner(tensor: Any) -> str | None:
    """The module whose tensor this node reads, if it reads one directly."""
    if not isinstance(tensor, fx.Node) or tensor.op != "get_attr":
        return None
    return str(tensor.target).rpartition(".")[0]


def _randomised(module: fx.GraphModule, names: Collection[str]) -> dict[str, Tensor]:
    """Overwrite the float tensors called `names` with values that no two of them share.

    Integer tensors (an index table) and what the state has no name for are parts of the graph.
    """
    generator = torch.Generator().manual_seed(0)
    found = {n: t for n, t in module.state_dict().items() if n in names}
    for index, tensor in enumerate(found.values()):
        tensor.copy_(index + 0.25 + 0.5 * torch.rand(tensor.shape, generator=generator))
    return {name: tensor.detach().clone() for name, tensor in found.items()}


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
