"""The recipe's sections on networks: the teacher, the student, and the student's experts."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    field_validator,
    model_validator,
)

from lorkd_deploy.errors import UsageError
from lorkd_deploy.lowrank.budget import parse_budget
from lorkd_deploy.lowrank.delta import Factorisation
from lorkd_deploy.preprocess import Preprocess
from lorkd_deploy.recipe.training import TrainSpec
from lorkd_deploy.schema import Part


def _in_one_message(value: Any, validate: ValidatorFunctionWrapHandler) -> Any:
    try:
        return validate(value)
    except ValidationError as exc:
        raise ValueError(
            "a rank is a number of at least 1, or layer patterns with numbers of at least 0, such "
            'as {"*": 4, "stage4.*": 8}; experts.rank may be auto, with experts.budget'
        ) from exc


# One number, or by pattern of layer names; the pattern that fits most closely counts.
_Ranks = Annotated[int, Field(ge=1)] | dict[str, Annotated[int, Field(ge=0)]]
Rank = Annotated[_Ranks, WrapValidator(_in_one_message)]
RankOrAuto = Annotated[Literal["auto"] | _Ranks, WrapValidator(_in_one_message)]


def _compiling(patterns: dict[str, str]) -> dict[str, str]:
    for pattern, replacement in patterns.items():
        try:
            re.compile(pattern).sub(replacement, "")
        except (re.error, IndexError) as exc:
            raise ValueError(f"{pattern!r}: {replacement!r} can't be used: {exc}") from exc
    return patterns


Patterns = Annotated[dict[str, str], AfterValidator(_compiling)]


class TeacherSpec(Part):
    """The foundation model: trained by this recipe, or imported and given task heads."""

    architecture: str = Field(
        default="torchvision:resnet50",
        description="torchvision:NAME, timm:NAME, transformers:CLASS, open_clip:NAME or "
        "pkg.module:function (images → features); :cls, :mean or :map behind a transformer's name "
        "says how its tokens are pooled",
    )
    checkpoint: str | None = Field(
        default=None,
        description="safetensors, a torch file that loads with weights_only=True, or a model hub's "
        "folder with configuration and weights; looked for where the data is",
    )
    prefix: dict[str, str] = Field(
        default_factory=dict, description="key prefixes to replace, e.g. {'module.': ''}"
    )
    pattern: Patterns = Field(
        default_factory=dict,
        description="parts of keys to replace behind that, as regular expressions: DenseNet's old "
        "names by {'(norm|conv)\\.([12])\\.': '\\1\\2.'}",
    )
    preprocess: Preprocess | None = Field(
        default=None,
        description="what its input is made by, where that isn't the student's `preprocess`: a "
        "teacher of 224 px may teach a student of 64",
    )
    fit: Literal["all", "heads", "none"] = Field(
        default="all",
        description="what training changes: everything, only the task heads, or nothing "
        "(the checkpoint has the heads: map its keys to 'backbone.' and 'heads.tasks.INDEX.')",
    )
    train: TrainSpec = TrainSpec()


class StudentSpec(Part):
    """The light network whose weights become W0."""

    architecture: str = "torchvision:shufflenet_v2_x1_0"
    checkpoint: str | None = None
    prefix: dict[str, str] = Field(default_factory=dict)
    pattern: Patterns = Field(default_factory=dict)


class ExpertSpec(Part):
    """The low-rank experts (LoRKD, section 3)."""

    rank: RankOrAuto = Field(
        default=16,
        description='a number, or by layer: {"*": 8, "stage4.*": 16}; auto: trained at '
        "highest_rank, then each layer's by the singular values of its ΔW, within budget",
    )
    budget: str | None = Field(
        default=None,
        description="with rank: auto, at most this for each task: 0.3MB of its file (factors, "
        "head, norms of its own), or '40000 parameters' of its factors",
    )
    highest_rank: Rank = Field(default=16, description="with rank: auto, the rank in training")
    alpha: float = Field(default=16, gt=0, description="ΔW is scaled by alpha / rank")
    factorisation: Factorisation = Field(
        default="interleaved",
        description="of kernels larger than a pixel: interleaved, the papers', or separable, a "
        "convolution to rank channels and a 1 × 1 behind it",
    )
    skip: tuple[str, ...] = Field(
        default=(), description='layers without experts, by name or pattern: ["*.attn.*"]'
    )

    @model_validator(mode="before")
    @classmethod
    def _norms_are_shared(cls, value: Any) -> Any:
        """Recipes of 0.2.0 say so by a key, in the records of runs too."""
        if not isinstance(value, dict) or "norm" not in value:
            return value
        if value["norm"] == "per_task":
            raise ValueError(
                "norm: per_task is no more, for over three seeds norms per task were no better "
                "than shared ones: leave the key out (a bundle that has them is read, and grown, "
                "as before)"
            )
        return {k: v for k, v in value.items() if (k, v) != ("norm", "shared")}

    @field_validator("budget")
    @classmethod
    def _readable(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                parse_budget(value)
            except UsageError as exc:
                raise ValueError(f"{exc.what}: {exc.fix}") from exc
        return value

    @model_validator(mode="after")
    def _budget_and_auto(self) -> ExpertSpec:
        if self.rank == "auto" and self.budget is None:
            raise ValueError(
                "rank: auto needs a budget for each task: budget: 0.3MB, or 40000 parameters"
            )
        for key in ("budget", "highest_rank"):
            if self.rank != "auto" and getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"{key} is for rank: auto, the rank here is {self.rank}")
        return self

    @property
    def trained_rank(self) -> int | dict[str, int]:
        """The rank that experts are trained at."""
        return self.highest_rank if self.rank == "auto" else self.rank
