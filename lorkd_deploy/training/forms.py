"""`lorkd inspect --training`: how a recipe's mixed batches pass through each layer with experts.

What is shown is what is taken: the student's own forward runs on tensors that have shapes and no
values, and its choices are written down.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict

from lorkd_deploy import models
from lorkd_deploy.bundle.read import load_bundle
from lorkd_deploy.errors import ModelError, UsageError
from lorkd_deploy.experts import ExpertModel
from lorkd_deploy.experts.choice import Choice, Form, observed
from lorkd_deploy.recipe import Recipe, load_recipe, parse_recipe
from lorkd_deploy.run import RUN, open_run
from lorkd_deploy.storage import read_json
from lorkd_deploy.training.networks.student import with_experts


class LayerForm(BaseModel):
    """One layer with experts. `rows` are the output positions of all images together.

    `width` is the number of channels between A and B. `form` is exact either way: `fused` builds
    W0 + ΔW of each task present, `low_rank` runs W0 once for all and the factors beside it.
    """

    model_config = ConfigDict(frozen=True)

    layer: str
    kind: Literal["conv2d", "linear"]
    shape: tuple[int, ...]
    width: int
    rows: int
    form: Form


class TrainingForms(BaseModel):
    """Knowledge separation under one recipe; `images` pass at a time, evenly of `present` tasks."""

    model_config = ConfigDict(frozen=True)

    recipe: str
    architecture: str
    size: int
    batch_size: int
    images: int
    tasks: int
    present: int
    layers: tuple[LayerForm, ...]
    skipped: tuple[tuple[str, str], ...]


def inspect_training(path: str | Path, *, set: Sequence[str] = ()) -> TrainingForms:
    """The exact form that each bound layer takes for the batches of a run, a bundle or a recipe.

    `set` overrides values of a recipe. Reads no images, and computes nothing but shapes. Raises
    the errors of `load_recipe` and `add_experts`, `ModelError` where the student's forward needs
    values.
    """
    recipe = _recipe(path, set)
    student = with_experts(models.build(recipe.student.architecture), recipe)
    tasks, batch = len(recipe.tasks), recipe.train.batch_size
    images = -(-batch // min(recipe.train.accumulate, batch))
    task = torch.from_numpy(np.sort(np.arange(images) % tasks))
    kinds = {layer.name: layer for layer in student.layers}
    return TrainingForms(
        recipe=recipe.name,
        architecture=recipe.student.architecture,
        size=recipe.preprocess.size,
        batch_size=batch,
        images=images,
        tasks=tasks,
        present=min(tasks, images),
        layers=tuple(
            LayerForm(
                layer=name,
                kind=kinds[name].kind,
                shape=kinds[name].shape,
                width=choice.width,
                rows=choice.rows,
                form=choice.form,
            )
            for name, choice in _choices(student, task, recipe)
        ),
        skipped=student.skipped,
    )


def _recipe(path: str | Path, overrides: Sequence[str]) -> Recipe:
    folder = Path(path)
    if not folder.is_dir():
        return load_recipe(path, overrides)
    if overrides:
        raise UsageError("a run's recipe can't be overridden", fix="give the recipe itself")
    if (folder / RUN).is_file():
        return parse_recipe(read_json(folder / RUN)["recipe"], where=folder / RUN)
    bundle = load_bundle(open_run(folder).bundle)
    return parse_recipe(bundle.manifest.recipe, where=bundle.path)


@torch.no_grad()
def _choices(student: ExpertModel, task: torch.Tensor, recipe: Recipe) -> list[tuple[str, Choice]]:
    """Each layer's choice, in the order in which they are called."""
    side = recipe.preprocess.size
    order = torch.channels_last if recipe.train.channels_last else torch.contiguous_format
    student.to("meta", memory_format=order)  # type: ignore[call-overload]
    x = torch.empty(len(task), 3, side, side, device="meta", memory_format=order)
    calls: list[str] = []
    places: list[int] = []

    def note(name: str) -> Any:
        def hook(*_: object) -> None:
            calls.append(name)
            places.append(len(seen))

        return hook

    for layer in student.layers:
        student.module.get_submodule(layer.name).register_forward_pre_hook(note(layer.name))
    try:
        with observed() as seen:
            student.train()(x, task)
    except (NotImplementedError, RuntimeError) as exc:
        said = (str(exc).splitlines() or [type(exc).__name__])[0]
        raise ModelError(
            f"the student's forward can't be followed by shapes alone: {said}",
            where=recipe.student.architecture,
            fix="its forward must not look at its tensors' values",
        ) from exc
    return [
        (name, seen[place])
        for name, place, end in zip(calls, places, [*places[1:], len(seen)], strict=True)
        if place < end
    ]
