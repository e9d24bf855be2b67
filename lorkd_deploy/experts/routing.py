"""Which samples of a mixed batch belong to which task: planned once per batch, used by every layer.

Samples are sorted so that those of one task lie together, and tasks with equally many samples lie
side by side: a `Span` of them is then one batched matrix product, without padding. There are at
most √(2N) different counts in a batch of N samples, however many tasks there are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from lorkd_deploy.errors import ModelError, UsageError


class Span(NamedTuple):
    """Adjacent tasks (indices into `Route.tasks`) with equally many rows each, and those rows."""

    tasks: slice
    rows: slice


def spans_of(counts: Sequence[int], rows: int) -> list[Span]:
    """The spans of tasks with `counts` samples of `rows` rows each."""
    spans, place, start = [], 0, 0
    for count, equal in groupby(counts):
        tasks = slice(place, place + len(list(equal)))
        end = start + (tasks.stop - place) * count * rows
        spans.append(Span(tasks, slice(start, end)))
        place, start = tasks.stop, end
    return spans


@dataclass(frozen=True)
class Route:
    """The order in which the samples of one batch pass through the layers.

    Of the model's tasks `tasks` are present, by count and then by number, with `counts` samples
    each. `order` sorts the batch into that order and `back` undoes it, both int64 `(N,)` on the
    batch's device (None: the batch came sorted). `index` are `tasks` as int64 on that device, or
    None where they are simply all tasks in their order. `rows` is above 1 for a layer whose input
    has as many rows of each sample (windows): `size` and `counts` are then of rows.
    """

    size: int
    model_tasks: int
    tasks: tuple[int, ...]
    counts: tuple[int, ...]
    order: Tensor | None
    back: Tensor | None
    index: Tensor | None
    rows: int = 1

    def of_rows(self, rows: int) -> Route:
        """The route of an input in this one's order, with `rows` rows of each sample in turn."""
        counts = tuple(count * rows for count in self.counts)
        return Route(
            self.size * rows, self.model_tasks, self.tasks, counts, None, None, self.index, rows
        )

    def pick(self, stacked: Tensor) -> Tensor:
        """The present tasks' slices of a `(T, …)` tensor: `(len(tasks), …)`."""
        return stacked if self.index is None else stacked.index_select(0, self.index)

    def segments(self) -> Iterator[tuple[int, slice]]:
        """Each task present, and its samples in the sorted batch."""
        for task, end, count in zip(self.tasks, accumulate(self.counts), self.counts, strict=True):
            yield task, slice(end - count, end)

    def parts(self, x: Tensor) -> dict[int, Tensor]:
        """Of `x` `(N, …)` in the route's order each present task's samples; views.

        By one split, whose backward writes each gradient once; that of a slice fills a whole batch.
        """
        return dict(zip(self.tasks, torch.split(x, list(self.counts)), strict=True))

    def spans(self, rows: int) -> list[Span]:
        """Tasks with equal counts together, for a layer with `rows` matrix rows per sample."""
        return spans_of(self.counts, rows)

    def sort(self, x: Tensor) -> Tensor:
        """`x` `(N, …)` in the route's order, and in its own memory format."""
        return x if self.order is None else _reordered(x, self.order)

    def restore(self, output: Any) -> Any:
        """A forward's output (tensors `(N, …)`, tuples, lists and mappings of them) as it came.

        Raises `ModelError` for a tensor whose leading dimension isn't the batch.
        """
        if self.back is not None:
            if isinstance(output, Tensor):
                return self._restored(output, self.back)
            kind: Any = type(output)
            if isinstance(output, Mapping):
                return kind({key: self.restore(value) for key, value in output.items()})
            if isinstance(output, tuple | list):
                values = [self.restore(value) for value in output]
                return kind(*values) if hasattr(kind, "_fields") else kind(values)
        return output

    def _restored(self, output: Tensor, back: Tensor) -> Tensor:
        if output.dim() == 0:  # a mean or sum over the batch: the same in any order
            return output
        if output.shape[0] != self.size:
            raise ModelError(
                f"the module gives a tensor {tuple(output.shape)} for {self.size} samples: "
                "it can't be put back into the batch's order",
                fix="pass the batch sorted by task and count, or one task as an int",
            )
        return _reordered(output, back)


def _reordered(x: Tensor, order: Tensor) -> Tensor:
    """`x` `(N, …)` in another order; images that are channels-last stay it, unlike by torch's."""
    if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last):
        return x.permute(0, 2, 3, 1).index_select(0, order).permute(0, 3, 1, 2)
    return x.index_select(0, order)


def plan_route(task: Tensor | int | Route, size: int, tasks: int, device: torch.device) -> Route:
    """The route of `size` samples: `task` is int64 `(N,)`, one int for all, or a route already.

    Ids on a GPU are copied to the CPU, which waits for the GPU once; `route_of_counts` needs no
    ids. Raises `UsageError` for ids of another shape or dtype or outside `0 … tasks - 1`, and for
    a route of another batch.
    """
    if size == 0:
        raise UsageError("the batch is empty: it has no samples")
    if isinstance(task, Route):
        if (task.size, task.model_tasks) != (size, tasks):
            raise UsageError(
                f"the route is of {task.size} samples for a model of {task.model_tasks} tasks, "
                f"here are {size} samples and {tasks} tasks",
                fix="plan a route for this batch, with a count for each of the model's tasks",
            )
        return task
    if not isinstance(task, Tensor):
        return _of_one_task(task, size, tasks, device)
    if task.dtype != torch.int64 or tuple(task.shape) != (size,):
        raise UsageError(
            f"task ids are {task.dtype} {tuple(task.shape)}, wanted torch.int64 ({size},)",
            fix="give one task number for each sample of the batch, or one int for all",
        )
    ids = task.detach().cpu()
    _check_range(int(ids.min()), int(ids.max()), tasks)
    counts = torch.bincount(ids, minlength=tasks).tolist()
    return _planned(counts, torch.argsort(ids, stable=True), device)


def route_of_counts(counts: Sequence[int], device: torch.device) -> Route:
    """The route of a batch in task order: `counts[t]` samples of task `t`, 0 where it is absent.

    The tensors go to `device`, that of the batch. Raises `UsageError` for counts that sum to 0.
    """
    if not any(counts):
        raise UsageError("the batch is empty: it has no samples")
    return _planned(list(counts), torch.arange(sum(counts)), device)


def _planned(counts: list[int], by_task: Tensor, device: torch.device) -> Route:
    """The route for `counts` of all tasks; `by_task` sorts the batch into task order."""
    present = sorted((t for t, count in enumerate(counts) if count), key=lambda t: (counts[t], t))
    samples = torch.split(by_task, counts)
    order = torch.cat([samples[t] for t in present])
    in_order = bool((order[1:] > order[:-1]).all())
    return Route(
        size=len(order),
        model_tasks=len(counts),
        tasks=tuple(present),
        counts=tuple(counts[t] for t in present),
        order=None if in_order else _moved(order, device),
        back=None if in_order else _moved(torch.argsort(order), device),
        index=None if present == [*range(len(counts))] else _moved(torch.tensor(present), device),
    )


def _moved(index: Tensor, device: torch.device) -> Tensor:
    # A blocking copy would wait for all that the GPU has still to do.
    return index.to(device, non_blocking=True)


def _of_one_task(task: int, size: int, tasks: int, device: torch.device) -> Route:
    if not isinstance(task, int) or isinstance(task, bool):
        raise UsageError(
            f"task is a {type(task).__name__}, wanted an int64 tensor ({size},) or an int"
        )
    _check_range(task, task, tasks)
    return route_of_counts([size if t == task else 0 for t in range(tasks)], device)


def _check_range(low: int, high: int, tasks: int) -> None:
    wrong = low if low < 0 else high
    if low < 0 or high >= tasks:
        raise UsageError(
            f"there is no task {wrong}: the model has tasks 0 to {tasks - 1}",
            fix="task ids count from 0 in the order in which the tasks were added",
        )


Census = Callable[[list[int]], list[int]]


class Router:
    """What the layers of one `ExpertModel` share: the current batch's route, and who was called.

    `probed`: a trial shows, or has shown, that rows are told from samples rightly.
    """

    def __init__(self) -> None:
        self.probed = False
        self.route: Route | None = None
        self.recomputed: tuple[Route, list[int] | None] | None = None
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
        """The route for `layer`'s input `x`, whose leading dimension must be the batch.

        It may be a multiple of it, the rows of one sample together, as windows are: that they are
        is for the model's trial to show, so before it they are refused.
        """
        route = self.route or self._recomputing()
        if route is None:
            raise ModelError(
                "a layer with experts was called outside its ExpertModel, so its task is unknown",
                where=layer,
                fix="call the model that add_experts returned: student(x, task=ids)",
            )
        rows, rest = divmod(x.shape[0], route.size)
        if rest or not rows or (rows > 1 and not self.probed):
            raise ModelError(
                f"the layer's input is {tuple(x.shape)} for a batch of {route.size}: its "
                "leading dimension isn't the batch (sequence first?), so the task of a row is "
                "unknown",
                where=layer,
                fix=f"leave it without experts: `skip: [{layer!r}]` of add_experts, or of the "
                "recipe's `experts`; a pattern such as '*.attn.*' does too"
                + ("; call the student once before torch.compile" if rows > 1 > rest else ""),
            )
        self.called.add(layer)
        return route if rows == 1 else route.of_rows(rows)

    def recompute(self, output: Any) -> None:
        """Let the backward through `output` know the route that its forward ends with here.

        Under activation checkpointing it calls layers again, after later forwards maybe. Autograd
        comes to an output before whatever made it, and to later forwards' before earlier ones'.
        """
        assert self.route is not None
        now = self.route, self.everywhere

        def arrived(_: Tensor) -> None:
            self.recomputed = now

        for tensor in tree_leaves(output):
            if isinstance(tensor, Tensor) and tensor.requires_grad:
                tensor.register_hook(arrived)  # type: ignore[no-untyped-call]

    def _recomputing(self) -> Route | None:
        """The route of the forward that a backward is at; None outside of any."""
        if self.recomputed is None or torch._C._current_graph_task_id() == -1:
            return None
        route, self.everywhere = self.recomputed
        return route

    def check_called(self, layers: Iterable[str]) -> None:
        """Raise `ModelError` where the forward that has ended passed by one of `layers`."""
        missing = [name for name in layers if name not in self.called]
        if missing:
            shown = ", ".join(repr(name) for name in missing[:5])
            more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
            raise ModelError(
                f"the forward never calls {shown}{more}, so its experts have no effect (such a "
                "layer's weight is read directly, as MultiheadAttention reads out_proj's, or the "
                "layer isn't used)",
                where=missing[0],
                fix=f"leave it without experts: `skip: {missing[:5]!r}` of add_experts, or of the "
                "recipe's `experts`",
            )
