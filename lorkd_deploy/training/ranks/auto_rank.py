"""`experts.rank: auto`: experts are trained at one rank, then truncated to the recipe's budget.

Each task by itself, with what `lorkd compress` does to a finished bundle: here it is done to the
network in memory, so that all that is written of it (scores, reference logits, factors) is the
smaller one's. A task with a rank of its own keeps it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import partial

import torch

from lorkd_deploy.bundle.manifest import FACTORS
from lorkd_deploy.errors import UsageError
from lorkd_deploy.experts import ExpertClassifier
from lorkd_deploy.lowrank.budget import Budget, parse_budget
from lorkd_deploy.storage import Tensors
from lorkd_deploy.training.batches.setup import Setup
from lorkd_deploy.training.networks.evaluate import scores
from lorkd_deploy.training.networks.stored import layer_entries, own_tensors, task_entries
from lorkd_deploy.training.ranks.shrinking import (
    CompressedTask,
    affordable,
    candidates_of,
    within_budget,
)

log = logging.getLogger(__name__)


def check_budget(setup: Setup, model: ExpertClassifier) -> None:
    """Before any training: raise `UsageError` where no rank at all would fit into the budget."""
    if budget := _budget(setup):
        own = own_tensors(setup, model)
        try:
            affordable(budget, {setup.names[place]: own[setup.names[place]]
                                for place in _without_a_rank(setup)})  # fmt: skip
        except UsageError as exc:
            raise UsageError(exc.what, where="experts.budget", fix=exc.fix) from exc


def truncate_to_budget(setup: Setup, model: ExpertClassifier) -> tuple[CompressedTask, ...]:
    """Lower the ranks of a trained `model`, in place, to the recipe's budget; what each task got.

    Nothing where the recipe has ranks. Every process that shares a training calls it.
    """
    budget = _budget(setup)
    if budget is None:
        return ()
    recipe, layers = setup.recipe, layer_entries(model.backbone)
    entries, own = task_entries(setup, {}, model.backbone), own_tensors(setup, model)
    before = _validation(setup, model)
    reports = {}
    for place in _without_a_rank(setup):
        name = setup.names[place]
        candidates = candidates_of(entries[place], own[name], layers, recipe.experts.factorisation)
        kept = within_budget(candidates, budget)
        entry, own[name] = candidates.after(kept)
        reports[place] = partial(candidates.report, kept, entry, own[name])
    model.backbone.set_factors([_factors(own[name]) for name in setup.names])
    after = _validation(setup, model)
    truncated = tuple(
        report(validation_before=before[place], validation=after[place])
        for place, report in reports.items()
    )
    for task in truncated:
        _log(task)
    return truncated


def _budget(setup: Setup) -> Budget | None:
    text = setup.recipe.experts.budget
    return None if text is None else parse_budget(text)


def _without_a_rank(setup: Setup) -> Iterator[int]:
    """Places of the tasks that the budget is for."""
    return (place for place, task in enumerate(setup.recipe.tasks) if task.rank is None)


def _validation(setup: Setup, model: ExpertClassifier) -> list[dict[str, float]]:
    return scores(model, setup.val, setup.kinds, setup.preprocess, setup.processes)


def _factors(own: Tensors) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(v) for name, v in own.items() if name.endswith(FACTORS)}


def _log(task: CompressedTask) -> None:
    ranks = task.ranks.values()
    if not any(ranks):
        log.warning("%s got no expert at all: the budget doesn't pay for one of rank 1 on any "
                    "layer, or its ΔW is zero", task.task)  # fmt: skip
        return
    log.info(
        "%s: ranks %d to %d, %.2f %% of ΔW's energy, %s bytes, validation accuracy %.3f (%.3f)",
        task.task, min(ranks), max(ranks), 100 * task.energy, f"{task.bytes:,}",
        task.validation["accuracy"], task.validation_before["accuracy"],
    )  # fmt: skip
