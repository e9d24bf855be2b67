"""The recipe: what one run does, as YAML checked by pydantic."""

from lorkd_deploy.recipe.engines import (
    BenchmarkSpec,
    CalibrationSpec,
    ExportSpec,
    ParitySpec,
    ReportSpec,
    ToleranceSpec,
)
from lorkd_deploy.recipe.loading import load_recipe, overridden, parse_recipe, shipped_recipes
from lorkd_deploy.recipe.networks import ExpertSpec, StudentSpec, TeacherSpec
from lorkd_deploy.recipe.recipe import DepartmentSpec, Recipe, TaskSpec
from lorkd_deploy.recipe.training import (
    AugmentSpec,
    ColorJitter,
    GaussianBlur,
    RandomErasing,
    RandomResizedCrop,
    Rotation,
    TrainSpec,
    TransferSpec,
    VerticalFlip,
)

__all__ = [
    "AugmentSpec",
    "BenchmarkSpec",
    "CalibrationSpec",
    "ColorJitter",
    "DepartmentSpec",
    "ExpertSpec",
    "ExportSpec",
    "GaussianBlur",
    "ParitySpec",
    "RandomErasing",
    "RandomResizedCrop",
    "Recipe",
    "ReportSpec",
    "Rotation",
    "StudentSpec",
    "TaskSpec",
    "TeacherSpec",
    "ToleranceSpec",
    "TrainSpec",
    "TransferSpec",
    "VerticalFlip",
    "load_recipe",
    "overridden",
    "parse_recipe",
    "shipped_recipes",
]
