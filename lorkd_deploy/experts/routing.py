"""Which rows of a mixed batch belong to which task: worked out once a batch, used by every layer.

Samples are sorted so that a task's rows lie together, and tasks with equally many samples lie
side by side: a `Group` is then one batched matrix product, without padding. There are at most
√(2N) different counts in a batch of N samples, however many tasks there are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from lorkd_deploy.errors import ModelError, UsageError


@dataclass(frozen=True)
class Group:
    """Tasks with `count` samples each, in adjacent rows: `places` index `Route.tasks`."""

    places: slice
    rows: slice
    count: int


@dataclass(frozen=True)
class Route:
    """The order in which a batch passes through the layers.

    `tasks` are the tasks present, by count and number; `order` sorts the batch into that order
    and `back` undoes it (None: it came sorted). `index` are `tasks` as int64 on the batch's
    device, or None where they are simply all tasks in their order.
    """

    size: int
    tasks: tuple[int, ...]
    counts: tuple[int, ...]
    groups: tuple[Group, ...]
    order: Tensor | None
    back: Tensor | None
    index: Tensor | None

    def pick(self, stacked: Tensor) -> Tensor:
        """The present tasks' slices of a `(T, …)` tensor: `(len(tasks), …)`."""
        return stacked if self.index is None else stacked.index_select(0, self.index)

    def segments(self) -> Iterator[tuple[int, slice]]:
        """Task and its rows, for each task present."""
        start = 0
        for task, count in zip(self.tasks, self.counts, strict=True):
            yield task, slice(start, start + count)
            start += count

    def sort(self, x: Tensor) -> Tensor:
        """`x` `(N, …)` in the route's order."""
        return x if self.order is None else x.index_select(0, self.order)

    def restore(self, output: Any) -> Any:
        """A forward's output (tensors `(N, …)`, tuples, lists and mappings of them) as it came.

        Raises `ModelError` for a tensor whose leading dimension isn't the batch.
        """
        if self.back is not None:
            if isinstance(output, Tensor):
                return self._restore_rows(output, self.back)
            kind: Any = type(output)
            if isinstance(output, Mapping):
                return kind({key: self.restore(value) for key, value in output.items()})
            if isinstance(output, tuple | list):
                values = [self.restore(value) for value in output]
                return kind(*values) if hasattr(kind, "_fields") else kind(values)
        return output

    def _restore_rows(self, output: Tensor, back: Tensor) -> Tensor:
        if output.dim() == 0:  # a mean or sum over the batch: the same in any order
            return output
        if output.shape[0] != self.size:
            raise ModelError(
                f"the module gives a tensor {tuple(output.shape)} for {self.size} samples: "
                "it can't be put back into the batch's order",
                fix="pass the batch sorted by task and count, or one task as an int",
            )
        return output.index_select(0, back)


def plan_route(task: Tensor | int, size: int, tasks: int, device: torch.device) -> Route:
    """The route of `size` samples with `task` int64 `(N,)`, or one int for all of them.

    Raises `UsageError` for ids of another shape or dtype, or outside `0 … tasks - 1`.
    """
    if size == 0:
        raise UsageError("the batch is empty: it has no samples")
    if not isinstance(task, Tensor):
        return _one_task(task, size, tasks, device)
    if task.dtype != torch.int64 or tuple(task.shape) != (size,):
        raise UsageError(
            f"task ids are {task.dtype} {tuple(task.shape)}, wanted torch.int64 ({size},)",
            fix="give one task number a sample of the batch, or one int for all",
        )
    ids = task.detach().cpu()
    _check_range(int(ids.min()), int(ids.max()), tasks)
    counts = torch.bincount(ids, minlength=tasks).tolist()
    present = sorted((t for t in range(tasks) if counts[t]), key=lambda t: (counts[t], t))
    rank = torch.empty(tasks, dtype=torch.int64)
    rank[present] = torch.arange(len(present))
    place = rank[ids]
    order = None
    if bool((place[1:] < place[:-1]).any()):
        order = torch.argsort(place, stable=True)
    return Route(
        size=size,
        tasks=tuple(present),
        counts=tuple(counts[t] for t in present),
        groups=_groups([counts[t] for t in present]),
        order=None if order is None else order.to(device),
        back=None if order is None else torch.argsort(order).to(device),
        index=None if present == list(range(tasks)) else torch.tensor(present, device=device),
    )


def _one_task(task: int, size: int, tasks: int, device: torch.device) -> Route:
    if not isinstance(task, int) or isinstance(task, bool):
        raise UsageError(
            f"task is a {type(task).__name__}, wanted an int64 tensor ({size},) or an int"
        )
    _check_range(task, task, tasks)
    index = None if tasks == 1 else torch.tensor([task], device=device)
    return Route(size, (task,), (size,), _groups([size]), None, None, index)


def _check_range(low: int, high: int, tasks: int) -> None:
    wrong = low if low < 0 else high
    if low < 0 or high >= tasks:
        raise UsageError(
            f"there is no task {wrong}: the model has tasks 0 to {tasks - 1}",
            fix="task ids count from 0 in the order in which the tasks were added",
        )


def _groups(counts: list[int]) -> tuple[Group, ...]:
    groups = []
    place = row = 0
    for count, same in groupby(counts):
        width = len(list(same))
        rows = slice(row, row + width * count)
        groups.append(Group(slice(place, place + width), rows, count))
        place, row = place + width, rows.stop
    return tuple(groups)


Census = Callable[[list[int]], list[int]]


class Router:
    """What the layers of one `ExpertModel` share: the current batch's route, and who was called."""

    def __init__(self) -> None:
        self.route: Route | None = None
        self.called: set[str] = set()
        self.census: Census | None = None
        self.everywhere: list[int] | None = None

    def count(self, tasks: int, training: bool) -> None:
        """Let `everywhere` be the samples of each task in all processes that share the batch."""
        self.everywhere = None
        if training and self.census is not None and self.route is not None:
            own = dict(zip(self.route.tasks, self.route.counts, strict=True))
            self.everywhere = self.census([own.get(task, 0) for task in range(tasks)])

    def enter(self, layer: str, x: Tensor) -> Route:
        """The route for `layer`'s input `x`, whose leading dimension must be the batch."""
        if self.route is None:
            raise ModelError(
                "a layer with experts was called outside its ExpertModel, so its task is unknown",
                where=layer,
                fix="call the model that add_experts returned: student(x, task=ids)",
            )
        if x.shape[0] != self.route.size:
            raise ModelError(
                f"the layer's input is {tuple(x.shape)} for a batch of {self.route.size}: its "
                "leading dimension isn't the batch (windows, sequence first?), so the task of a "
                "row is unknown",
                where=layer,
                fix=f"leave it without experts: `skip: [{layer!r}]` of add_experts, or of the "
                "recipe's `experts`; a pattern such as '*.attn.*' does too",
            )
        self.called.add(layer)
        return self.route
