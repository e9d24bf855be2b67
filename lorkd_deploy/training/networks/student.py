"""The recipe's student: W0 with an expert for each task, and heads."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from lorkd_deploy import models
from lorkd_deploy.data import data_folders, locate
from lorkd_deploy.experts import ExpertClassifier, ExpertModel, add_experts
from lorkd_deploy.experts.probe import check_answers, probe_images
from lorkd_deploy.experts.ranks import Rank
from lorkd_deploy.lowrank.delta import NormKind
from lorkd_deploy.recipe import Recipe, StudentSpec, TeacherSpec
from lorkd_deploy.training.batches.setup import Setup

log = logging.getLogger(__name__)


def checkpoint_of(recipe: Recipe, spec: TeacherSpec | StudentSpec) -> Path | None:
    """Where a network's checkpoint is, if it has one: looked for where data is.

    Raises `DataError` where it is nowhere.
    """
    if spec.checkpoint is None:
        return None
    return locate(spec.checkpoint, data_folders(recipe.data_folder), "checkpoint")


def build_backbone(recipe: Recipe, spec: TeacherSpec | StudentSpec) -> nn.Module:
    """The network that a recipe names, with random weights.

    Raises as `models.build` and `checkpoint_of` do.
    """
    found = checkpoint_of(recipe, spec) if models.needs_folder(spec.architecture) else None
    return models.build(spec.architecture, models.read_config(spec.architecture, found))


def build_student(setup: Setup, norm: NormKind = "shared") -> ExpertClassifier:
    """The recipe's student with experts and heads; `norm` is that of a bundle that is grown.

    It is tried: raises `ModelError` where a forward passes by layers with experts, or an answer
    depends on chance or on what else is in the batch.
    """
    recipe = setup.recipe
    spec = recipe.student
    backbone = build_backbone(recipe, spec)
    if (file := checkpoint_of(recipe, spec)) is not None:
        report = models.load_checkpoint(backbone, file, spec.prefix, spec.pattern)
        if report.missing:
            log.warning("the student's checkpoint lacks %s", ", ".join(report.missing))
        if report.unexpected:
            log.info("the student's checkpoint has more, unused: %s", ", ".join(report.unexpected))
    features = models.feature_dim(backbone, recipe.preprocess.size)
    images = probe_images(recipe.preprocess.size)
    check_answers(backbone, images)
    experts = with_experts(backbone, recipe, norm=norm)
    with torch.no_grad():
        experts.eval()(images, 0)
    experts.train()
    return ExpertClassifier(experts, features, setup.classes)


def with_experts(
    backbone: nn.Module,
    recipe: Recipe,
    ranks: Sequence[Rank] | None = None,
    *,
    norm: NormKind = "shared",
) -> ExpertModel:
    """`backbone` with an expert for each of the recipe's tasks, of its ranks or of `ranks`."""
    return add_experts(
        backbone,
        len(recipe.tasks),
        ranks or [task.rank or recipe.experts.trained_rank for task in recipe.tasks],
        recipe.experts.alpha,
        norm=norm,
        factorisation=recipe.experts.factorisation,
        skip=recipe.experts.skip,
        example=probe_images(recipe.preprocess.size),
    )
