"""What every step of `benchmarks/on_gpu.py` is given, and the recipe that some of them train."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

RECIPE = "seven-tasks"
WEIGHTS = "efficientnet-lite2-9656183e.pth"  # the recipe's foundation model


class LeftOutError(Exception):
    """What a step needs isn't here: the sentence says what."""


@dataclass(frozen=True)
class Given:
    """`device` is `cuda`, or `cpu` for a rehearsal; `work` a folder for runs, engines and studies,
    `data` one with the recipe's files."""

    device: str
    data: Path | None
    work: Path

    @property
    def rehearsal(self) -> bool:
        return self.device == "cpu"

    @property
    def run(self) -> Path:
        """What the step `decompose` leaves behind, in the recipe's own precision."""
        return self.work / "run-fp32"

    def recipe(self) -> tuple[str | Path, list[str]]:
        """The seven tasks, and what of them is set; in a rehearsal three of drawn images.

        Raises `LeftOutError` where the data isn't here.
        """
        if self.rehearsal:
            from tests.tiny_recipe import tiny_recipe, write_recipe

            network = {"architecture": "tests.tiny_backbone:backbone"}
            short = tiny_recipe()["train"] | {"epochs": 1}
            changes = {"student": network, "teacher": network | {"train": short}, "train": short}
            return write_recipe(self.work / "recipe.yaml", **changes), []
        if self.data is None or not (self.data / WEIGHTS).is_file():
            where = "no --data was given" if self.data is None else f"{self.data} has no {WEIGHTS}"
            raise LeftOutError(f"{where}: benchmarks/pack_for_gpu.sh packs what {RECIPE} needs")
        return RECIPE, [f"teacher.checkpoint={self.data / WEIGHTS}"]
