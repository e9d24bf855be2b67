"""From a trained network to its bundle: scores, reference logits, graph template, tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import nn

from lorkd_deploy.arrays import U8
from lorkd_deploy.bundle.compressed import factor_parameters
from lorkd_deploy.bundle.manifest import EXPERT, TEACHER, Manifest, ParityEntry
from lorkd_deploy.bundle.parity_inputs import parity_inputs
from lorkd_deploy.bundle.read import load_bundle
from lorkd_deploy.bundle.write import Contents, now, write_bundle
from lorkd_deploy.experts import ExpertClassifier
from lorkd_deploy.experts.uses import own_state
from lorkd_deploy.machine.packages import software
from lorkd_deploy.models import config_of
from lorkd_deploy.preprocess import resampling_sha256
from lorkd_deploy.run import Run
from lorkd_deploy.storage import Tensors, sha256_bytes
from lorkd_deploy.training.batches.setup import Setup
from lorkd_deploy.training.bundling.graph_template import Template
from lorkd_deploy.training.bundling.reference import reference_logits
from lorkd_deploy.training.bundling.result import TrainingResult, training_result
from lorkd_deploy.training.bundling.safe import guards, make_safe, safety_tensors
from lorkd_deploy.training.bundling.trial import still_its_own
from lorkd_deploy.training.fitting.history import Fitted
from lorkd_deploy.training.networks.evaluate import scores
from lorkd_deploy.training.networks.network import TeacherNetwork
from lorkd_deploy.training.networks.stored import (
    Scores,
    arrays,
    head_tensors,
    layer_entries,
    own_tensors,
    task_entries,
)


class Sources(NamedTuple):
    """What extracted experts are the difference of: sha256 of the base and of each task's model."""

    base: str
    models: tuple[str, ...]


def write_teacher(
    run: Run, setup: Setup, model: TeacherNetwork, fitted: Fitted, template: Template
) -> TrainingResult:
    """Write `RUN/teacher`: backbone, heads, graph, reference logits, and its test scores."""
    recipe, backbone = setup.recipe, model.backbone
    tested = {"teacher": scores(model, setup.test, setup.kinds, setup.preprocess)}
    template = still_its_own(template, setup, backbone, model.heads.head(0), deployed=False)
    parameters = {"backbone": _count(backbone), "heads": _count(model.heads)}
    pictures = _pictures(setup)
    described = _described(
        setup,
        template,
        pictures,
        kind="teacher",
        architecture=recipe.teacher.architecture,
        network_config=config_of(backbone),
        parameters=parameters,
        tasks=task_entries(setup, tested),
        layers=(),
        norm="shared",
    )
    contents = Contents(
        base=arrays(own_state(backbone)),
        experts={
            task: head_tensors(head)
            for task, head in zip(setup.names, model.heads.tasks, strict=True)
        },
        logits=reference_logits(
            setup,
            model,
            pictures,
            {TEACHER: range(len(setup.names))},
            maps=template.graph.maps is not None,
        ),
        template=template.onnx,
    )
    write_bundle(run.teacher, described, contents)
    return training_result(run.teacher, setup, fitted, tested, parameters)


def write_experts(
    run: Run,
    setup: Setup,
    model: ExpertClassifier,
    fitted: Fitted,
    template: Template,
    *,
    sources: Sources | None = None,
) -> TrainingResult:
    """Write `RUN/bundle`: W0 once, one expert per task, graph, reference logits, test scores.

    `sources` are of experts that were extracted.
    """
    recipe, experts = setup.recipe, model.backbone
    safe = make_safe(setup, model)  # first: all that follows is of the heads that it leaves
    tested = {"expert": scores(model, setup.test, setup.kinds, setup.preprocess)}
    tested |= _teacher_scores(run)
    template = still_its_own(template, setup, *model.dense(0), guard=recipe.safety.guard)
    own = own_tensors(setup, model)
    parameters = {"backbone": _count(experts.dense(0))} | expert_parameters(own)
    tasks = task_entries(setup, tested, experts, [one.entry for one in safe])
    if sources is not None:
        pairs = zip(tasks, sources.models, strict=True)
        tasks = tuple(task.model_copy(update={"model": sha256}) for task, sha256 in pairs)
    pictures = _pictures(setup)
    described = _described(
        setup,
        template,
        pictures,
        kind="experts",
        architecture=recipe.student.architecture,
        network_config=config_of(experts.module),
        parameters=parameters,
        tasks=tasks,
        layers=layer_entries(experts),
        norm=experts.norm,
        factorisation=recipe.experts.factorisation,
        extracted_from=sources.base if sources else None,
    )
    base = arrays(experts.base_state())
    has_maps = template.graph.maps is not None
    logits = reference_logits(setup, model, pictures, guards=guards(safe), maps=has_maps)
    contents = Contents(base, own, logits, template.onnx, safety_tensors(setup, safe))
    write_bundle(run.bundle, described, contents)
    result = training_result(run.bundle, setup, fitted, tested, parameters)
    return result.model_copy(
        update={"skipped_layers": experts.skipped, "wasteful_layers": experts.wasteful}
    )


def expert_parameters(own: Mapping[str, Tensors]) -> dict[str, int]:
    """`expert:TASK` → numbers in its factors."""
    return {EXPERT + name: factor_parameters(tensors) for name, tensors in own.items()}


def _described(setup: Setup, template: Template, pictures: U8, **own: Any) -> Manifest:
    """The manifest, but for its files: what is the recipe's and the graph's, and `own` fields."""
    recipe = setup.recipe
    return Manifest(
        name=recipe.name,
        preprocess=setup.preprocess,
        preprocess_sha256=setup.preprocess.sha256,
        resampling_sha256=resampling_sha256(setup.preprocess.interpolation),
        folds=template.folds,
        graph=template.graph,
        parity=ParityEntry(
            inputs=len(pictures), seed=recipe.seed, sha256=sha256_bytes(pictures.tobytes())
        ),
        recipe=recipe.model_dump(mode="json"),
        recipe_sha256=recipe.sha256,
        versions=software(),
        created=now(),
        **own,
    )


def _pictures(setup: Setup) -> U8:
    recipe = setup.recipe
    return parity_inputs(recipe.parity.inputs, setup.preprocess.size, recipe.seed)


def _teacher_scores(run: Run) -> dict[str, Scores]:
    if not run.teacher.exists():
        return {}
    tasks = load_bundle(run.teacher).manifest.tasks
    return {"teacher": [task.metrics["teacher"] for task in tasks]}


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
