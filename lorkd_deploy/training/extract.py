"""`lorkd extract`: experts from models that are fine-tuned already, without training."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from lorkd_deploy.datacheck.quick import warn_of_leaks
from lorkd_deploy.errors import UsageError, unknown_name
from lorkd_deploy.experts import ExpertClassifier, ExpertModel, TaskNetwork
from lorkd_deploy.experts.copies import copy_of
from lorkd_deploy.experts.probe import check_answers, probe_images
from lorkd_deploy.experts.uses import own_state
from lorkd_deploy.metrics.score import score
from lorkd_deploy.models import build, feature_dim, needs_folder
from lorkd_deploy.progress import Progress, bar
from lorkd_deploy.recipe import Recipe, load_recipe
from lorkd_deploy.run import Run, claimed, refuse_bundle
from lorkd_deploy.schema import Part
from lorkd_deploy.storage import sha256_file
from lorkd_deploy.training.batches.loader import Images
from lorkd_deploy.training.batches.setup import Setup, open_setup
from lorkd_deploy.training.bundling.assemble import Sources, write_experts
from lorkd_deploy.training.bundling.graph_template import Template
from lorkd_deploy.training.bundling.trial import tried
from lorkd_deploy.training.fitting.history import Fitted
from lorkd_deploy.training.networks.evaluate import task_logits
from lorkd_deploy.training.networks.finetuned import fine_tuned, load_whole
from lorkd_deploy.training.networks.student import with_experts
from lorkd_deploy.training.ranks.difference import (
    Difference,
    ExtractedLayer,
    KeptTensor,
    Nearness,
    difference,
)

log = logging.getLogger(__name__)

Score = dict[str, float]


class ExtractedTask(Nearness):
    """One expert: how near its layers come, together and one by one, and what it keeps beside.

    `model` is the sha256 of the fine-tuned model's file, `parameters` the numbers in the factors.
    Scores are of the fine-tuned model itself and of the expert, on the validation and test split.
    """

    task: str
    department: str
    model: str
    layers: tuple[ExtractedLayer, ...]
    kept: tuple[KeptTensor, ...]
    parameters: int
    validation_fine_tuned: Score
    validation: Score
    test_fine_tuned: Score
    test: Score


class Extraction(Part):
    """A new run whose experts are the differences of fine-tuned models from `base` (its sha256)."""

    run: str
    bundle: str
    base: str
    tasks: tuple[ExtractedTask, ...]
    skipped_layers: tuple[tuple[str, str], ...]


def extract(
    recipe: str | Path,
    base: str | Path,
    models: Mapping[str, str | Path],
    out: str | Path,
    *,
    set: Sequence[str] = (),
    progress: Progress | None = None,
) -> Extraction:
    """Write the run `out` with an expert for each of the fine-tuned `models`, without training.

    `base` is the checkpoint that all were fine-tuned from: it becomes W0. `models` are their
    checkpoints by task, one for each task of the recipe. All are of the recipe's `student`, whose
    `prefix` maps the names in every file. Of each layer that has experts, W_t − W0 is cut off at
    the recipe's `rank` by SVD, in its `factorisation`. A task keeps its model's own norms,
    and all else that has no expert and differs from the base. Its head is
    what the model's file has beside the backbone: the weight `(classes, features)` and bias of one
    linear layer on its features, under any name.

    `recipe` and `set` are those of `decompose`. Raises `UsageError` for a task that is unknown or
    without a model, or rank `auto`; `ModelError` for a checkpoint of another network or with
    values that are not finite; `DataError` where a task's images aren't here; `BundleError` where
    `out` has a bundle or holds another run.
    """
    loaded = load_recipe(recipe, set)
    files = _files(loaded, models)
    if loaded.experts.rank == "auto":
        raise UsageError(
            "experts.rank is auto, which is for decompose",
            fix="--set experts.rank=8 --set experts.budget=null, then give the run to "
            "`lorkd compress` with --budget",
        )
    if needs_folder(loaded.student.architecture):
        raise UsageError(
            f"models of {loaded.student.architecture} can't be extracted: their names are those of "
            "a folder, not of one file",
            fix="extract models of torchvision, timm or a function of your own; a teacher may be "
            "any",
        )
    refuse_bundle(out, "an extracted one is always a new one")
    with claimed(out, loaded, "extract") as run:
        began = time.perf_counter()
        setup = open_setup(loaded, progress=progress)
        warn_of_leaks(loaded, setup.data, run.path, progress)
        w0 = build(loaded.student.architecture)
        unused = load_whole(w0, Path(base), loaded.student)
        if unused:
            log.info("not used of the base: %s", ", ".join(unused))
        source = _Base(
            w0, with_experts(copy_of(w0), loaded), feature_dim(w0, loaded.preprocess.size)
        )
        check_answers(w0, probe_images(loaded.preprocess.size))
        template = tried(
            setup,
            source.form.dense(0),
            nn.Linear(source.features, setup.classes[0]),
            progress,
            guard=loaded.safety.guard,
        )
        tuned = []
        with bar(progress, "extracting", len(files)) as shown:
            for place, file in enumerate(files):
                tuned.append(_tuned(setup, place, source, file))
                shown.advance(task=setup.names[place])
        model = _with_heads(setup, w0, tuned)
        return _write(run, setup, model, tuned, template, base=sha256_file(Path(base)), began=began)


def _files(recipe: Recipe, models: Mapping[str, str | Path]) -> list[Path]:
    """The models' files in the order of the recipe's tasks."""
    names = [task.name for task in recipe.tasks]
    for name in models:
        if name not in names:
            raise unknown_name("task of the recipe", name, names)
    if missing := [name for name in names if name not in models]:
        raise UsageError(
            f"there is no model for {', '.join(missing)}",
            fix=f"give one for each task of the recipe: --model {missing[0]}=FILE",
        )
    return [Path(models[name]) for name in names]


@dataclass(frozen=True)
class _Base:
    """W0 as a plain backbone, the same with experts as the recipe has them, its features."""

    w0: nn.Module
    form: ExpertModel
    features: int


@dataclass(frozen=True)
class _Tuned:
    """A fine-tuned model: its difference from W0, head, scores, and its file's sha256."""

    difference: Difference
    head: nn.Linear
    sha256: str
    validation: Score
    test: Score


def _tuned(setup: Setup, place: int, base: _Base, file: Path) -> _Tuned:
    """The fine-tuned model of the task at `place`."""
    recipe, name = setup.recipe, setup.names[place]
    backbone = copy_of(base.w0)
    model = fine_tuned(backbone, file, recipe.student, base.features, setup.classes[place])
    before, after = own_state(base.w0), own_state(backbone)
    found = difference(base.form, place, before, after, recipe.experts)
    if found.whole.change > 1:
        log.warning(
            "the model of %s differs from the base by %.2g times the base's own size: was it "
            "fine-tuned from it?",
            name,
            found.whole.change,
        )
    if found.kept:
        log.info(
            "%s keeps what differs from the base and can't be an expert (by relative size): %s",
            name,
            found.kept_in_words(),
        )
    model.to(setup.processes.device)
    validation, test = (
        _score(setup, place, model, 0, images[place]) for images in (setup.val, setup.test)
    )
    return _Tuned(found, model.heads.head(0).cpu(), sha256_file(file), validation, test)


def _score(setup: Setup, place: int, model: TaskNetwork, task: int, images: Images) -> Score:
    """Scores of `model`'s `task`, which in the recipe is at `place`."""
    logits = task_logits(model, images, task, setup.preprocess)
    return score(images.labels, logits, setup.kinds[place])


def _write(
    run: Run,
    setup: Setup,
    model: ExpertClassifier,
    tuned: Sequence[_Tuned],
    template: Template,
    *,
    base: str,
    began: float,
) -> Extraction:
    tasks = [_described(setup, place, one, model) for place, one in enumerate(tuned)]
    fitted = Fitted(
        steps=0,
        history=[],
        seconds=time.perf_counter() - began,
        waiting=0.0,
        notes={"extracted": {"base": base, "tasks": tasks}},
    )
    sources = Sources(base, tuple(one.sha256 for one in tuned))
    written = write_experts(run, setup, model, fitted, template, sources=sources)
    return Extraction(
        run=str(run.path),
        bundle=written.bundle,
        base=base,
        tasks=tuple(
            ExtractedTask.model_validate({**task, "test": result.expert})
            for task, result in zip(tasks, written.tasks, strict=True)
        ),
        skipped_layers=model.backbone.skipped,
    )


def _with_heads(setup: Setup, w0: nn.Module, tuned: Sequence[_Tuned]) -> ExpertClassifier:
    """W0 with the experts and heads of all tasks, in evaluation mode."""
    experts = with_experts(w0, setup.recipe, [one.difference.ranks for one in tuned])
    model = ExpertClassifier(experts, tuned[0].head.in_features, setup.classes).eval()
    for place, one in enumerate(tuned):
        experts.load_expert(place, one.difference.state)
        model.heads.head(place).load_state_dict(one.head.state_dict())
    return model.to(setup.processes.device)


def _described(setup: Setup, place: int, one: _Tuned, model: TaskNetwork) -> dict[str, Any]:
    """The fields of `ExtractedTask` but for the expert's scores on the test split."""
    found, name = one.difference, setup.names[place]
    return {
        "task": name,
        "department": setup.departments[name],
        "model": one.sha256,
        **found.whole.model_dump(),
        "layers": [layer.model_dump() for layer in found.layers],
        "kept": [kept.model_dump() for kept in found.kept],
        "parameters": found.parameters,
        "validation_fine_tuned": one.validation,
        "validation": _score(setup, place, model, place, setup.val[place]),
        "test_fine_tuned": one.test,
    }
