"""A task's guard over what an engine gives."""

from __future__ import annotations

from collections.abc import Mapping

from lorkd_deploy.arrays import F32, F64
from lorkd_deploy.bundle.read import Bundle
from lorkd_deploy.errors import ArtifactError
from lorkd_deploy.runtime import FEATURES
from lorkd_deploy.safety.guard import Guard, scores
from lorkd_deploy.storage import Tensors


class TaskGuard:
    """The guard that a bundle has of a task."""

    def __init__(self, guard: Guard, known: Tensors) -> None:
        self._guard, self._known = guard, known

    def scores(self, outputs: Mapping[str, F32]) -> F64:
        """Scores `(N,)` of a runner's `outputs` of N images: above 1 an image is outside.

        Raises `ArtifactError` for an engine without the guard's features.
        """
        if FEATURES not in outputs:
            raise ArtifactError(
                "this engine gives its logits alone, without what the guard needs",
                fix="run `lorkd export` again, or leave the guard out: --no-guard",
            )
        return scores(self._known, self._guard, outputs[FEATURES])


def task_guard(bundle: Bundle, task: str) -> TaskGuard | None:
    """The guard of a task; None where the bundle has none."""
    guard = bundle.task(task).safety.guard
    return None if guard is None else TaskGuard(guard, bundle.safety(task))
