"""What an engine gives beside its logits, held against the reference: guard scores and maps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from lorkd_deploy.arrays import F32
from lorkd_deploy.bundle.reference import mapped
from lorkd_deploy.deploy.guarded import TaskGuard
from lorkd_deploy.deploy.proof.parity import GuardCompared, MapsCompared, compare_guard
from lorkd_deploy.deploy.proof.sample import Sample
from lorkd_deploy.precisions.table import Tolerance
from lorkd_deploy.preprocess import Preprocess
from lorkd_deploy.runtime import MAPS, Runner


class Beside(NamedTuple):
    """The figures of everything that was compared."""

    guard: tuple[GuardCompared, ...]
    maps: tuple[MapsCompared, ...]

    @property
    def reasons(self) -> list[str]:
        """Why the engine failed."""
        compared: list[GuardCompared | MapsCompared] = [*self.guard, *self.maps]
        return [str(part) for part in compared if not part.passed]


def compare_beside(
    runner: Runner,
    samples: Sequence[Sample],
    preprocess: Preprocess,
    guard: TaskGuard | None,
    allowed: Tolerance,
    *,
    raw: bool = False,
) -> Beside:
    """Run the engine on each of `samples`, all outputs at once, and compare these.

    Maps are looked at where the engine gives them. Raises `ArtifactError` for an engine without the
    guard's features.
    """
    guards, maps = [], []
    for sample in samples:
        has_guard = guard is not None and sample.guard is not None and len(sample.guard)
        has_maps = sample.maps is not None and len(sample.maps)
        if not has_guard and not has_maps:
            continue
        outputs = [runner.outputs(batch) for batch in sample.batches(preprocess, raw=raw)]
        if guard is not None and sample.guard is not None and has_guard:
            scores = np.concatenate([guard.scores(given) for given in outputs])
            found = scores[: len(sample.guard)]
            guards.append(compare_guard(sample.on, sample.guard, found, allowed))
        if sample.maps is not None and has_maps and MAPS in outputs[0]:
            whole = np.concatenate([given[MAPS][:, sample.columns] for given in outputs])
            chosen = whole[mapped(len(sample.expected))]
            maps.append(compare_maps(sample.on, sample.maps, chosen, allowed))
    return Beside(tuple(guards), tuple(maps))


def compare_maps(
    on: Literal["inputs", "images"], expected: F32, found: F32, allowed: Tolerance
) -> MapsCompared:
    """Figures of maps `found` against `expected`, both `(n', K, h, w)`, n' ≥ 1."""
    share = allowed.logits if on == "images" else allowed.inputs
    tolerance = share * float(np.abs(expected).max())
    if found.shape != expected.shape:
        return MapsCompared(on=on, rows=len(expected), tolerance=tolerance, max_abs=None)
    difference = np.abs(found - expected)
    largest = float(difference.max()) if np.isfinite(difference).all() else None
    return MapsCompared(on=on, rows=len(expected), tolerance=tolerance, max_abs=largest)
