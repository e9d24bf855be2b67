"""Each layer's rank for each task: one number, one per task, or by pattern of layer names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

from lorkd_deploy.errors import UsageError, unknown_name
from lorkd_deploy.lowrank.delta import Factorisation, largest_rank

Rank = int | Mapping[str, int]


def ranks_by_layer(
    rank: Rank | Sequence[Rank], tasks: int, layers: Sequence[str]
) -> dict[str, tuple[int, ...]]:
    """The ranks of every layer of `layers`, one per task.

    `rank` is one for all tasks or one for each: a number, or patterns with numbers
    (`{"stage4.*": 8, "*": 4}`), of which the one with the most characters beside its wildcards
    counts, whatever their order; 0 leaves a task's W0 as it is.

    Raises `UsageError` for numbers out of range, a pattern without a match and a layer that no
    pattern fits.
    """
    each = (rank,) * tasks if isinstance(rank, int | Mapping) else tuple(rank)
    if len(each) != tasks:
        raise UsageError(f"{len(each)} ranks were given for {tasks} tasks")
    of_tasks = [_of_layers(one, layers) for one in each]
    return {name: tuple(found[name] for found in of_tasks) for name in layers}


def _of_layers(rank: Rank, layers: Sequence[str]) -> dict[str, int]:
    lowest = 0 if isinstance(rank, Mapping) else 1
    numbers = list(rank.values()) if isinstance(rank, Mapping) else [rank]
    if any(isinstance(r, bool) or not isinstance(r, int) or r < lowest for r in numbers):
        raise UsageError(f"rank is {rank!r}, wanted numbers of at least {lowest}")
    if not isinstance(rank, Mapping):
        return dict.fromkeys(layers, rank)
    for pattern in rank:
        if not any(fnmatchcase(name, pattern) for name in layers):
            raise unknown_layer(pattern, layers, where="experts.rank, or a task's rank")
    closest_first = sorted(rank, key=_vagueness)
    found = {}
    for name in layers:
        fits = [pattern for pattern in closest_first if fnmatchcase(name, pattern)]
        if not fits:
            raise UsageError(
                f"no pattern of the ranks fits the layer {name!r}",
                fix='give the rank of all other layers as "*"',
            )
        found[name] = rank[fits[0]]
    return found


def unknown_layer(pattern: str, layers: Iterable[str], *, where: str) -> UsageError:
    """The error for a pattern without a match, with all that it could have matched."""
    kind = "layer that can have experts"
    return unknown_name(kind, pattern, layers, where=where, all_of_them=True)


def _vagueness(pattern: str) -> tuple[int, int, str]:
    return -len(re.sub(r"\[.*?\]|[*?]", "", pattern)), -len(pattern), pattern


def wasteful_layers(
    ranks: Mapping[str, Sequence[int]],
    shapes: Mapping[str, Sequence[int]],
    factorisation: Factorisation,
) -> tuple[tuple[str, int], ...]:
    """Layers with a rank above the largest that their weight can use, and that largest one.

    They are used all the same, as the papers' own stem is (rank 4 on 3 input channels). Raises
    `UsageError` where it is so of every layer of a task.
    """
    largest = {name: largest_rank(shape, factorisation) for name, shape in shapes.items()}
    for task, of_task in enumerate(zip(*ranks.values(), strict=True)):
        used = [(r, largest[name]) for name, r in zip(ranks, of_task, strict=True) if r]
        if used and all(r > most for r, most in used):
            raise UsageError(
                f"rank {max(r for r, _ in used)} of task {task} is above what any layer can use",
                fix=f"the largest sensible rank is {max(most for _, most in used)}",
            )
    return tuple((name, most) for name, most in largest.items() if max(ranks[name]) > most)
