"""What came of a transfer, as `TRANSFER/result.json` has it."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from lorkd_deploy.datacheck.result import DataCheck
from lorkd_deploy.evidence.analysis.comparison import Comparison
from lorkd_deploy.schema import Part

RESULT = "result.json"


class Untouched(Part):
    """The SHA-256 of what a task's engine is built from, before and after another was learnt."""

    before: str
    after: str


class ShotsResult(Part):
    """With at most `shots` training images per class (None: all), `images` together."""

    shots: int | None
    images: int
    comparison: Comparison

    @property
    def title(self) -> str:
        """In words, for a table."""
        return "All images" if self.shots is None else f"{self.shots} images per class"


class TransferResult(Part):
    """Figures by start (`shared+head`); differences are `first` minus another.

    `recipe` is that of the new task, `data` the provenance of its images, `seeds` those that every
    start finished. `failed` says by training's folder why it failed; `seconds` are those of all
    trainings together. `others` are, by the folder of a training that learnt an expert on the
    frozen W0, the engines of the origin's tasks. `check` is what the splits of the new data share,
    None in a result from before it was looked for.
    """

    schema_version: int = 1
    recipe: dict[str, Any]
    data: dict[str, Any]
    classes: tuple[str, ...]
    test_images: int
    starts: tuple[str, ...]
    seeds: tuple[int, ...]
    first: str
    results: tuple[ShotsResult, ...]
    failed: dict[str, str]
    others: dict[str, dict[str, Untouched]] = Field(default_factory=dict)
    seconds: float
    software: dict[str, str]
    check: DataCheck | None = None
    created: str
