"""What a study is asked to do, with its data open."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from lorkd_deploy.evidence.plan import Training, Variant, trainings
from lorkd_deploy.progress import Progress
from lorkd_deploy.recipe import Recipe
from lorkd_deploy.training.batches.setup import Setup


@dataclass(frozen=True)
class Work:
    """A study's folder, its recipe with the data, and what is asked of it."""

    folder: Path
    setup: Setup
    variants: tuple[Variant, ...]
    seeds: tuple[int, ...]
    progress: Progress

    @property
    def recipe(self) -> Recipe:
        return self.setup.recipe

    @cached_property
    def trainings(self) -> list[Training]:
        images = [len(data.train) for data in self.setup.data]
        return list(trainings(self.recipe, self.variants, len(self.seeds), images))

    @property
    def factorises(self) -> bool:
        """Whether any variant learns from the teacher's stages."""
        return any(variant.method.network == "factorised" for variant in self.variants)

    @property
    def distils(self) -> bool:
        """Whether any other one learns from the teacher's features."""
        return any(
            t.recipe["transfer"]["kind"] != "none" and t.method != "kf" for t in self.trainings
        )

    @property
    def has_foundation(self) -> bool:
        """Whether the teacher itself is asked for."""
        return any(variant.method.network == "teacher" for variant in self.variants)

    @property
    def has_teacher(self) -> bool:
        """Whether any variant learns from the teacher, or is it."""
        return self.has_foundation or self.factorises or self.distils
