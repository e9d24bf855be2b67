"""What one training answers on the test images: all that a study keeps of it beside its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lorkd_deploy.arrays import F32
from lorkd_deploy.errors import BundleError
from lorkd_deploy.storage import read_tensors, write_tensors


@dataclass(frozen=True, eq=False)
class Answers:
    """By task, for its whole test split in order: `logits` `(N, K)`, `features` `(N, F)`."""

    logits: Mapping[str, F32]
    features: Mapping[str, F32]

    def write(self, path: Path) -> None:
        """As safetensors, atomically; features in half precision."""
        logits = {f"{task}/logits": values for task, values in self.logits.items()}
        features = {
            f"{task}/features": values.astype(np.float16) for task, values in self.features.items()
        }
        write_tensors(path, {**logits, **features}, digest=True)

    @classmethod
    def read(cls, path: Path) -> Answers:
        """Raises `BundleError` where the file is missing or damaged."""
        try:
            found = read_tensors(path)
        except BundleError as exc:
            fix = "delete the folder that it is in, and make the same call again"
            raise BundleError(exc.what, where=path, fix=fix) from exc
        kept = {name: values.astype(np.float32) for name, values in found.items()}
        return cls(_of(kept, "/logits"), _of(kept, "/features"))


def _of(kept: Mapping[str, F32], ending: str) -> dict[str, F32]:
    return {n.removesuffix(ending): v for n, v in kept.items() if n.endswith(ending)}


def joined(parts: list[Answers]) -> Answers:
    """The answers of several trainings, each of tasks of its own, as those of one."""
    logits = {task: v for part in parts for task, v in part.logits.items()}
    return Answers(logits, {task: v for part in parts for task, v in part.features.items()})
