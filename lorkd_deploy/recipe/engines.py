"""The recipe's sections on engines: their export, their proof, and how they are measured."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from lorkd_deploy.precisions.table import PRECISIONS
from lorkd_deploy.schema import Part


class ToleranceSpec(Part):
    """How far engines of one precision may be from the model; what isn't given stays."""

    logits: float | None = Field(
        default=None,
        gt=0,
        description="difference as a fraction of max(1, largest logit); on generated inputs it "
        "changes in proportion",
    )
    flips: float | None = Field(
        default=None, ge=0, le=1, description="share of the test images' labels that may differ"
    )


class ParitySpec(Part):
    """The proof that an engine equals the model it came from."""

    inputs: int = Field(default=64, ge=1, description="generated inputs per task")
    test_images: int = Field(default=256, ge=0, description="at most this many per task")
    images: Literal["reference", "bundle"] = Field(
        default="reference",
        description="reference: index and hash only; bundle: ship the images beside the weights",
    )
    tolerance: dict[str, ToleranceSpec] = Field(
        default={}, description="by precision, e.g. {int8: {logits: 0.3}}"
    )

    @field_validator("tolerance")
    @classmethod
    def _known_precisions(cls, value: dict[str, ToleranceSpec]) -> dict[str, ToleranceSpec]:
        if unknown := [name for name in value if name not in PRECISIONS]:
            raise ValueError(f"{', '.join(unknown)} is none of {', '.join(PRECISIONS)}")
        return value


class CalibrationSpec(Part):
    """The training images that int8 is calibrated on; never any of the test split."""

    images: int = Field(default=256, ge=1, description="per engine")
    seed: int = Field(default=0, ge=0)


class SafetySpec(Part):
    """What a task's answers come with, each fitted when the bundle is made."""

    temperature: bool = Field(
        default=False,
        description="fold one temperature per task into its head, so that probabilities say how "
        "often they are right",
    )
    coverage: bool = Field(
        default=False,
        description="keep what `lorkd predict --coverage 0.95` needs: sets of classes that hold "
        "the right one as often as asked. Half of the validation images are held out for it",
    )

    guard: bool = Field(
        default=False,
        description="let engines tell pictures that aren't of the task's kind, which `lorkd "
        "predict` then answers `outside`; its threshold is set on the images that are held out",
    )

    explain: bool = Field(
        default=False,
        description="let `lorkd export --explain` give engines a map of where each class was seen, "
        "and keep the maps that this is proven by",
    )

    @property
    def holds_out(self) -> bool:
        """Whether a part of it needs validation images that chose nothing."""
        return self.coverage or self.guard


class ExportSpec(Part):
    """What every engine is exported from."""

    opset: int = Field(default=18, ge=18, le=23, description="of the ONNX graph")


class BenchmarkSpec(Part):
    """The measuring protocol; see `lorkd benchmark --help`."""

    rounds: int = Field(default=5, ge=1)
    seconds: float = Field(default=3, gt=0, description="at least this long per round")
    iterations: int = Field(default=100, ge=1, description="at least this many images per round")
    warmup: int = Field(default=20, ge=0)
    threads: int = Field(default=1, ge=1)
    batch_sizes: tuple[int, ...] = (1, 8, 32)
    seed: int = 0
    repeats: int = Field(
        default=3, ge=0, le=3, description="how often a disturbed round is measured again at most"
    )
    largest_batch: int = Field(
        default=256, ge=0, description="the best batch is looked for up to this; 0: not at all"
    )
    uncached: bool = Field(
        default=True,
        description="start each engine once more in every round, without its files in the system's "
        "cache",
    )


class ReportSpec(Part):
    """How `lorkd report` judges an expert beside the foundation model."""

    margin: float = Field(
        default=2,
        gt=0,
        lt=100,
        description="points of accuracy: an expert whose 95 % interval ends above this much less "
        "than the foundation model's is called no worse than it",
    )
