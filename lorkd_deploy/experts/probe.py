"""Trials of a network on three images: what its code makes of a batch, and of experts.

Each runs in evaluation mode, where an answer must be a function of its own image and task alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from lorkd_deploy.errors import ModelError
from lorkd_deploy.experts.absent import ExpertStack
from lorkd_deploy.experts.layers import ExpertLayer
from lorkd_deploy.experts.uses import evaluated

IMAGES = 3
_TOLERANCE = 1e-4  # of the largest value: more than rounding, less than any other image makes
_KEPT = 4096  # values of a tensor that are compared


def probe_images(size: int) -> Tensor:
    """Three images of noise, float32 `(3, 3, size, size)`, the same in every process."""
    return torch.randn(IMAGES, 3, size, size, generator=torch.Generator().manual_seed(0))


def check_answers(module: nn.Module, images: Tensor) -> None:
    """Raise `ModelError` where answers for `images` `(3, …)` differ by chance, or by what else is
    in the batch; it names the layer where that begins.
    """
    with evaluated(module), torch.no_grad():
        answers, again, fewer = module(images), module(images), module(images[1:])
        if _differ(answers, again, 0):
            raise ModelError(
                "the network's answers depend on chance: the same images have others each time",
                where=_first_difference(module, images, images, 0),
                fix="let what is random happen in training alone (nn.Dropout, or F.dropout with "
                "training=self.training)",
            )
        if _differ(answers, fewer, 1):
            raise ModelError(
                "an image's answer depends on the images beside it in the batch",
                where=_first_difference(module, images, images[1:], 1),
                fix="let each image be computed by itself: a BatchNorm needs its running "
                "statistics, and means go over an image's own dimensions",
            )


def check_separation(
    mixed: Callable[[Tensor, Tensor], Any],
    dense: Callable[[int], nn.Module],
    layers: Sequence[ExpertLayer],
    rows: Tensor,
) -> None:
    """Raise `ModelError` where a mixed batch isn't what each task's fused weights make of it.

    `mixed(x, ids)` and `dense(task)` are those of one model of one or two tasks with these
    `layers`, whose factors are zero and are given random values here, and `rows` `(N, …)` its
    input. It names the layer.
    """
    tasks = range(len(layers[0].ranks))
    ids = torch.tensor([tasks[-(place + 1) % len(tasks)] for place in range(len(rows))])

    def wrong() -> bool:
        found = _rows(mixed(rows, ids.to(rows.device)), len(rows))
        for task in tasks:
            own = (ids == task).to(rows.device)
            if any(
                _far(left[own], right[own])
                for left, right in zip(found, _rows(dense(task)(rows), len(rows)), strict=True)
            ):
                return True
        return False

    for layer in layers:
        _randomise(layer)
    if not wrong():
        return
    check_answers(dense(tasks[0]), rows)
    given = {layer: layer.B for layer in layers}
    for layer in layers:
        for other in layers:
            other.B = given[other] if other is layer else ExpertStack(torch.zeros_like(other.B))
        if wrong():
            raise ModelError(
                "in a mixed batch this layer doesn't compute what its fused weights do: the "
                "forward reads its weight elsewhere too, or the rows of its input aren't the "
                "samples in turn",
                where=layer.name,
                fix=f"leave it without experts: `skip: [{layer.name!r}]` of add_experts, or of the "
                "recipe's `experts`",
            )
    raise ModelError("in a mixed batch the network doesn't compute what its fused weights do")


def _randomise(layer: ExpertLayer) -> None:
    """Give each task factors whose ΔW is about as large as the weight."""
    generator = torch.Generator().manual_seed(len(layer.name))
    size = float(layer.weight.detach().std(correction=0)) or 0.05
    for task in range(len(layer.ranks)):
        for own in layer.factors(task):
            own.data.copy_(torch.randn(own.shape, generator=generator))
        delta = layer.dense_weight(task).detach() - layer.weight.detach()
        spread = float(delta.std(correction=0))
        if spread:
            layer.factors(task)[1].data.mul_(size / spread)


def _differ(output: Any, other: Any, skipped: int) -> bool:
    """Whether tensors of `output` differ from those of a forward without its first samples."""
    pairs = zip(tree_leaves(output), tree_leaves(other), strict=False)
    for left, right in pairs:
        if isinstance(left, Tensor) and left.dim() and left.is_floating_point():
            each = left.shape[0] // IMAGES
            if left.shape[0] == IMAGES * each and _far(left[skipped * each :], right):
                return True
    return False


def _rows(output: Any, size: int) -> list[Tensor]:
    """The tensors of an output that have a row for each sample."""
    leaves = (leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor))
    return [leaf for leaf in leaves if leaf.dim() and leaf.shape[0] == size]


def _far(left: Tensor, right: Tensor) -> bool:
    if left.shape != right.shape or not left.numel():
        return left.shape != right.shape
    left, right = left.detach().double(), right.detach().double()
    largest = float(left.abs().max())
    return float((left - right).abs().max()) > _TOLERANCE * max(largest, 1e-6)


class _Event(NamedTuple):
    """A module's input or output, some of its values of the samples that are compared."""

    layer: str
    above: str
    side: str
    values: Tensor | None


def _first_difference(module: nn.Module, images: Tensor, others: Tensor, skipped: int) -> str:
    """Where the forwards on two batches part; `others` lack the first `skipped` images."""
    kind = type(module).__name__
    events = zip(_events(module, images, skipped), _events(module, others, 0), strict=False)
    for one, other in events:
        if one.values is None or other.values is None or one.layer != other.layer:
            continue
        if _far(one.values, other.values):
            if one.side == "output":
                return one.layer or kind
            return f"{one.above or kind}, before it calls {one.layer}"
    return kind


def _events(module: nn.Module, images: Tensor, skipped: int) -> list[_Event]:
    found: list[_Event] = []
    handles = []
    size = len(images)

    def kept(tensors: Any) -> Tensor | None:
        for leaf in tree_leaves(tensors):
            if isinstance(leaf, Tensor) and leaf.dim() and leaf.is_floating_point():
                each, rest = divmod(leaf.shape[0], size)
                if rest or not each:
                    return None
                values = leaf.detach()[skipped * each :].flatten()
                return values[:: max(1, len(values) // _KEPT)].clone()
        return None

    for name, part in module.named_modules():
        above = name.rpartition(".")[0]

        def before(_: nn.Module, given: Any, name: str = name, above: str = above) -> None:
            found.append(_Event(name, above, "input", kept(given)))

        def after(_: nn.Module, __: Any, out: Any, name: str = name, above: str = above) -> None:
            found.append(_Event(name, above, "output", kept(out)))

        handles += [part.register_forward_pre_hook(before), part.register_forward_hook(after)]
    try:
        module(images)
    finally:
        for handle in handles:
            handle.remove()
    return found
