"""One task's expert, what may be left out of it, and what was: for `compress` and `rank: auto`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lorkd_deploy.bundle.compressed import factor_parameters, spectra_of, truncated
from lorkd_deploy.bundle.manifest import LayerEntry, TaskEntry
from lorkd_deploy.errors import UsageError
from lorkd_deploy.lowrank.budget import Budget
from lorkd_deploy.lowrank.delta import Factorisation
from lorkd_deploy.lowrank.spectrum import Spectrum, Step, ranks_of, steps_by_worth, within
from lorkd_deploy.schema import Part
from lorkd_deploy.storage import Tensors, tensor_bytes


class CompressedTask(Part):
    """One expert before and after: `ranks` by layer, sizes of its file, scores on validation.

    `energy` is the share of the sum of squares of ΔW, over all layers, that is kept.
    """

    task: str
    department: str
    ranks_before: dict[str, int]
    ranks: dict[str, int]
    energy: float
    parameters_before: int
    parameters: int
    bytes_before: int
    bytes: int
    validation_before: dict[str, float]
    validation: dict[str, float]


@dataclass(frozen=True)
class Candidates:
    """One task's expert and everything that may be left out of it, least worth last."""

    task: TaskEntry
    tensors: Tensors
    spectra: Mapping[str, Spectrum]
    layers: Sequence[LayerEntry]

    @property
    def steps(self) -> list[Step]:
        """All of the expert, in the order in which it pays to have it."""
        return steps_by_worth(self.spectra)

    def after(self, steps: Sequence[Step]) -> tuple[TaskEntry, Tensors]:
        """The expert that has these steps only."""
        ranks = ranks_of(steps, [layer.name for layer in self.layers])
        return truncated(self.task, self.tensors, self.spectra, ranks)

    def report(
        self,
        kept: Sequence[Step],
        entry: TaskEntry,
        smaller: Tensors,
        *,
        validation_before: dict[str, float],
        validation: dict[str, float],
    ) -> CompressedTask:
        """What became of the expert by keeping these steps: what `after` gave, and its scores."""
        total = sum(step.energy for step in self.steps)
        return CompressedTask(
            task=entry.name,
            department=entry.department,
            ranks_before=self._ranks(self.task),
            ranks=self._ranks(entry),
            energy=sum(step.energy for step in kept) / total if total else 1.0,
            parameters_before=factor_parameters(self.tensors),
            parameters=factor_parameters(smaller),
            bytes_before=len(tensor_bytes(self.tensors)),
            bytes=len(tensor_bytes(smaller)),
            validation_before=validation_before,
            validation=validation,
        )

    def _ranks(self, task: TaskEntry) -> dict[str, int]:
        return {layer.name: task.rank_of(layer.name) or 0 for layer in self.layers}


def candidates_of(
    task: TaskEntry, tensors: Tensors, layers: Sequence[LayerEntry], factorisation: Factorisation
) -> Candidates:
    """What there is to choose from in one expert."""
    return Candidates(task, tensors, spectra_of(task, tensors, layers, factorisation), layers)


def within_budget(candidates: Candidates, budget: Budget) -> Sequence[Step]:
    """The steps that the budget pays for, where norms and head have to be paid for first.

    Raises `UsageError` where those alone exceed it.
    """
    name = candidates.task.name
    left = affordable(budget, {name: candidates.tensors})[name]
    return (
        candidates.steps
        if factor_parameters(candidates.tensors) <= left
        else within(candidates.steps, left)
    )


def affordable(budget: Budget, experts: Mapping[str, Tensors]) -> dict[str, int]:
    """Task → parameters that the budget leaves for its factors, by the shapes of its tensors.

    Raises `UsageError` where norms and head of a task alone exceed it, with the smallest budget
    that works for all of them.
    """
    # With the header that the whole expert's file has: a smaller one's is no longer.
    fixed = {
        name: len(tensor_bytes(tensors)) - 4 * factor_parameters(tensors)
        for name, tensors in experts.items()
    }
    left = {name: budget.factors(size) for name, size in fixed.items()}
    if any(parameters < 0 for parameters in left.values()):
        largest = max(fixed, key=lambda name: fixed[name])
        raise UsageError(
            f"the head and norms of {largest} alone take {fixed[largest]:,} bytes, "
            f"the budget is {budget.amount:,}",
            fix=f"give a budget of at least {fixed[largest]}B, which leaves nothing for its "
            "factors: what is trained for a task alone isn't left out",
        )
    return left
