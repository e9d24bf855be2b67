"""From a trained network to its bundle: scores, reference logits, graph template, tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from lorkd_deploy.bundle.compressed import factor_parameters
from lorkd_deploy.bundle.manifest import (
    EXPERT,
    HEAD,
    TEACHER,
    LayerEntry,
    Manifest,
    ParityEntry,
    TaskEntry,
)
from lorkd_deploy.bundle.parity_inputs import parity_inputs
from lorkd_deploy.bundle.read import load_bundle
from lorkd_deploy.bundle.reference import ImageReference, reference_tensors
from lorkd_deploy.bundle.write import Contents, write_bundle
from lorkd_deploy.data import image_sha256
from lorkd_deploy.experts import ExpertClassifier, ExpertModel
from lorkd_deploy.lowrank.delta import Factorisation
from lorkd_deploy.machine.packages import software
from lorkd_deploy.metrics.score import majority
from lorkd_deploy.models import LoadReport
from lorkd_deploy.storage import Tensors, sha256_bytes
from lorkd_deploy.training.batches.loader import Images
from lorkd_deploy.training.batches.setup import Setup
from lorkd_deploy.training.bundling.graph_template import Template, graph_template
from lorkd_deploy.training.bundling.result import TaskResult, TrainingResult
from lorkd_deploy.training.fitting.history import Fitted, write_history
from lorkd_deploy.training.networks.evaluate import network_input, scores, task_logits
from lorkd_deploy.training.networks.network import TaskNetwork, TeacherNetwork

Scores = list[dict[str, float]]
F32 = npt.NDArray[np.float32]


def write_teacher(
    run: Path,
    setup: Setup,
    model: TeacherNetwork,
    fitted: Fitted,
    *,
    device: torch.device,
    report: LoadReport,
) -> TrainingResult:
    """Write `run/teacher`: backbone, heads, graph, reference logits, and its test scores."""
    tested = scores(model, setup.test, setup.kinds, setup.recipe.preprocess)
    backbone = model.backbone
    template = _template(setup, backbone, model.heads.head(0))
    heads = {
        task: _head_tensors(head) for task, head in zip(setup.names, model.heads.tasks, strict=True)
    }
    parameters = {"backbone": _count(backbone), "heads": _count(model.heads)}
    _write(
        run / "teacher",
        setup,
        model,
        kind="teacher",
        architecture=setup.recipe.teacher.architecture,
        parameters=parameters,
        tasks=task_entries(setup, {"teacher": tested}),
        layers=(),
        template=template,
        base=arrays(_shared_state(backbone)),
        experts=heads,
        engines={TEACHER: range(len(setup.names))},
    )
    tasks = task_results(setup, teacher=tested, expert=None)
    return training_result(
        run, "teacher", tasks, fitted, parameters=parameters, device=device, report=report
    )


def write_experts(
    run: Path,
    setup: Setup,
    model: ExpertClassifier,
    fitted: Fitted,
    *,
    device: torch.device,
    extracted_from: str | None = None,
    models: Sequence[str] = (),
) -> TrainingResult:
    """Write `run/bundle`: W0 once, an expert a task, graph, reference logits, test scores.

    `extracted_from` and `models` are the sha256 of the files of which extracted experts are the
    difference: the base, and one a task.
    """
    experts = model.backbone
    tested = scores(model, setup.test, setup.kinds, setup.recipe.preprocess)
    known = _teacher_scores(run, setup)
    template = _template(setup, *model.dense(0))
    own = own_tensors(setup, model)
    base = arrays(experts.base_state())
    parameters = {"backbone": _count(experts.dense(0))} | expert_parameters(own)
    metrics = {"expert": tested} | ({"teacher": known} if known else {})
    tasks = task_entries(setup, metrics, experts)
    if models:
        pairs = zip(tasks, models, strict=True)
        tasks = tuple(task.model_copy(update={"model": sha256}) for task, sha256 in pairs)
    _write(
        run / "bundle",
        setup,
        model,
        kind="experts",
        architecture=setup.recipe.student.architecture,
        parameters=parameters,
        tasks=tasks,
        layers=layer_entries(experts),
        template=template,
        base=base,
        experts=own,
        engines={name: (task,) for task, name in enumerate(setup.names)},
        factorisation=setup.recipe.experts.factorisation,
        extracted_from=extracted_from,
    )
    return training_result(
        run,
        "bundle",
        task_results(setup, teacher=known, expert=tested),
        fitted,
        parameters=parameters,
        device=device,
        skipped=experts.skipped,
        wasteful=experts.wasteful,
    )


def layer_entries(experts: ExpertModel) -> tuple[LayerEntry, ...]:
    """The manifest's entries of the layers with experts."""
    return tuple(
        LayerEntry(name=layer.name, kind=layer.kind, shape=tuple(layer.shape))
        for layer in experts.layers
    )


def own_tensors(setup: Setup, model: ExpertClassifier) -> dict[str, Tensors]:
    """Each task's factors, norms where they are its own, and head, as a bundle stores them."""
    return {
        name: arrays(model.backbone.expert_state(task)) | _head_tensors(model.heads.tasks[task])
        for task, name in enumerate(setup.names)
    }


def expert_parameters(own: Mapping[str, Tensors]) -> dict[str, int]:
    """`expert:TASK` → numbers in its factors."""
    return {EXPERT + name: factor_parameters(tensors) for name, tensors in own.items()}


def _write(
    path: Path,
    setup: Setup,
    model: TaskNetwork,
    *,
    kind: Literal["experts", "teacher"],
    architecture: str,
    parameters: dict[str, int],
    tasks: tuple[TaskEntry, ...],
    layers: tuple[LayerEntry, ...],
    template: Template,
    base: Tensors,
    experts: Mapping[str, Tensors],
    engines: Mapping[str, Sequence[int]],
    factorisation: Factorisation = "interleaved",
    extracted_from: str | None = None,
) -> None:
    recipe = setup.recipe
    pictures = parity_inputs(recipe.parity.inputs, recipe.preprocess.size, recipe.seed)
    described = Manifest(
        kind=kind,
        name=recipe.name,
        architecture=architecture,
        parameters=parameters,
        preprocess=recipe.preprocess,
        preprocess_sha256=recipe.preprocess.sha256,
        tasks=tasks,
        layers=layers,
        folds=template.folds,
        graph=template.graph,
        factorisation=factorisation,
        norm=recipe.experts.norm if kind == "experts" else "shared",
        parity=ParityEntry(
            inputs=len(pictures), seed=recipe.seed, sha256=sha256_bytes(pictures.tobytes())
        ),
        recipe=recipe.model_dump(mode="json"),
        recipe_sha256=recipe.sha256,
        versions=software(),
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        extracted_from=extracted_from,
    )
    logits = reference_logits(setup, model, pictures, engines)
    write_bundle(path, described, Contents(base, experts, logits, template.onnx))


def reference_logits(
    setup: Setup,
    model: TaskNetwork,
    pictures: npt.NDArray[np.uint8],
    engines: Mapping[str, Sequence[int]],
) -> dict[str, Tensors]:
    """What each engine is held against: fp32 on the CPU, wherever `model` was trained.

    `engines` are the places of each one's tasks in `setup`; `pictures` `(n, S, S, 3)` the
    generated inputs.
    """
    model = model.cpu().float().eval()
    return {
        engine: reference_tensors(
            np.concatenate([_logits_of(model, pictures, t, setup) for t in members], axis=1),
            {setup.names[t]: _image_reference(model, t, setup) for t in members},
        )
        for engine, members in engines.items()
    }


def _template(setup: Setup, backbone: nn.Module, head: nn.Linear) -> Template:
    size, opset = setup.recipe.preprocess.size, setup.recipe.export.opset
    return graph_template(backbone, head, size=size, opset=opset)


@torch.no_grad()
def _logits_of(model: TaskNetwork, pictures: npt.NDArray[np.uint8], task: int, setup: Setup) -> F32:
    x = network_input(pictures, setup.recipe.preprocess, torch.device("cpu"))
    logits: F32 = model(x, torch.full((len(x),), task)).logits[task].numpy()
    return logits


def _image_reference(model: TaskNetwork, task: int, setup: Setup) -> ImageReference:
    """The task's parity images; if the recipe ships them, with their pixels and labels."""
    recipe = setup.recipe
    images = setup.data[task].test.images
    count = min(recipe.parity.test_images, len(images))
    rows = np.sort(np.random.default_rng(recipe.seed).permutation(len(images))[:count])
    digests = [np.frombuffer(image_sha256(images[int(row)]), np.uint8) for row in rows]
    hashes = np.stack(digests) if digests else np.empty((0, 32), np.uint8)
    shown = _Chosen(setup.test[task], rows)
    logits = task_logits(model, shown, task, recipe.preprocess)
    if recipe.parity.images == "reference":
        return ImageReference(rows, hashes, logits)
    return ImageReference(rows, hashes, logits, setup.test[task][rows], shown.labels)


class _Chosen(Images):
    """Some images of a split, in the given order."""

    def __init__(self, images: Images, rows: npt.NDArray[np.int64]) -> None:
        self.labels = images.labels[rows]
        self._images = images
        self._rows = rows

    def __getitem__(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
        return self._images[self._rows[rows]]


def task_entries(
    setup: Setup, tested: dict[str, Scores], experts: ExpertModel | None = None
) -> tuple[TaskEntry, ...]:
    """The manifest's entries; `tested` is each network's test scores a task, by its role."""
    recipe = setup.recipe
    ranks = [experts.ranks_of(task) if experts else {} for task in range(len(setup.names))]
    largest = [max(of_task.values(), default=None) for of_task in ranks]
    return tuple(
        TaskEntry(
            name=task.name,
            department=setup.departments[task.name],
            classes=setup.data[index].classes,
            kind=setup.data[index].kind,
            data=setup.data[index].provenance,
            rank=largest[index],
            ranks={name: rank for name, rank in ranks[index].items() if rank != largest[index]},
            alpha=recipe.experts.alpha if experts else None,
            metrics={who: results[index] for who, results in tested.items()},
        )
        for index, task in enumerate(recipe.tasks)
    )


def task_results(
    setup: Setup, teacher: Scores | None, expert: Scores | None
) -> tuple[TaskResult, ...]:
    """Test scores a task, of whichever of the two there is."""
    return tuple(
        TaskResult(
            task=name,
            department=setup.departments[name],
            majority=majority(setup.test[index].labels),
            teacher=teacher[index] if teacher else None,
            expert=expert[index] if expert else None,
        )
        for index, name in enumerate(setup.names)
    )


def training_result(
    run: Path,
    folder: str,
    tasks: tuple[TaskResult, ...],
    fitted: Fitted,
    *,
    parameters: dict[str, int],
    device: torch.device,
    report: LoadReport | None = None,
    skipped: Sequence[tuple[str, str]] = (),
    wasteful: Sequence[tuple[str, int]] = (),
) -> TrainingResult:
    """What a finished training gives back; writes `RUN/history/FOLDER.json`."""
    write_history(run / "history" / f"{folder}.json", fitted, device, finished=True)
    return TrainingResult(
        run=str(run),
        bundle=str(run / folder),
        tasks=tasks,
        steps=fitted.steps,
        best_step=fitted.best_step,
        seconds=round(fitted.seconds, 1),
        parameters=parameters,
        device=device.type,
        truncated=fitted.truncated,
        skipped_layers=tuple(skipped),
        wasteful_layers=tuple(wasteful),
        missing_keys=report.missing if report else (),
        unexpected_keys=report.unexpected if report else (),
    )


def _teacher_scores(run: Path, setup: Setup) -> Scores | None:
    if not (run / "teacher").exists():
        return None
    manifest = load_bundle(run / "teacher").manifest
    return [task.metrics["teacher"] for task in manifest.tasks]


def _shared_state(module: nn.Module) -> dict[str, torch.Tensor]:
    state = module.state_dict()
    return {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}


def _head_tensors(head: nn.Module) -> dict[str, npt.NDArray[np.float32]]:
    return arrays({HEAD + name: value for name, value in head.state_dict().items()})


def arrays(tensors: dict[str, torch.Tensor]) -> dict[str, npt.NDArray[np.float32]]:
    """The tensors as NumPy arrays on the CPU."""
    return {k: v.detach().cpu().contiguous().numpy() for k, v in tensors.items()}


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
