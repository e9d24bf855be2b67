"""Run an engine on the inputs whose logits the bundle holds, and judge it.

The generated inputs are rebuilt anywhere. Test images are used where they are: shipped in the
bundle, or opened as the bundle's recipe says and recognised by their hashes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from lorkd_deploy.bundle.manifest import TaskEntry
from lorkd_deploy.bundle.read import Bundle
from lorkd_deploy.data import image_sha256, open_data
from lorkd_deploy.deploy.inputs import parity_inputs
from lorkd_deploy.deploy.parity import (
    INPUTS,
    Compared,
    ImageReference,
    Parity,
    Tolerance,
    compare,
    tolerance_of,
)
from lorkd_deploy.errors import BundleError, LorkdError
from lorkd_deploy.preprocess import U8
from lorkd_deploy.recipe import ParitySpec, parse_recipe
from lorkd_deploy.runtime import F32, Runner
from lorkd_deploy.storage import sha256_bytes

BATCH = 32
Tensors = Mapping[str, npt.NDArray[Any]]


class _NotHereError(LorkdError):
    """A task's test images can't be used on this machine, which is no fault of the engine."""


class _RefutedError(LorkdError):
    """The engine, or an image, is certainly not the one that the reference was made with."""


class Reference:
    """A bundle's reference, read once and used for any of its engines on any target."""

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle

    def check(self, engine: str, runner: Runner, precision: str) -> Parity:
        """Run `engine`, which is open as `runner`, on everything there is a reference for.

        Raises `BundleError` where the reference itself is damaged, `ArtifactError` where the
        engine doesn't run at all.
        """
        tensors = self.bundle.logits(engine)
        allowed = tolerance_of(precision, self._spec.tolerance)
        compared: list[Compared] = []
        not_here: dict[str, str] = {}
        reasons: list[str] = []
        try:
            compared += self._on_inputs(engine, tensors, runner, allowed)
        except _RefutedError as exc:  # logits of another shape: there is nothing to compare
            return Parity(status="failed", reasons=(exc.what,))
        for task, columns in self._columns(engine):
            try:
                compared.append(self._on_images(task, columns, tensors, runner, allowed))
            except _NotHereError as exc:
                not_here[task.name] = exc.what
            except _RefutedError as exc:
                reasons.append(exc.what)
        reasons += [str(entry) for entry in compared if not entry.passed]
        return Parity(
            status="failed" if reasons else "passed",
            compared=tuple(compared),
            images_not_here=not_here,
            reasons=tuple(reasons),
        )

    def _on_inputs(
        self, engine: str, tensors: Tensors, runner: Runner, allowed: Tolerance
    ) -> Iterator[Compared]:
        expected = self._tensor(tensors, INPUTS)
        found = self._logits(runner, self._inputs)
        if found.shape != expected.shape:
            raise _RefutedError(
                f"the engine gives logits {found.shape}, {expected.shape} are needed"
            )
        for task, columns in self._columns(engine):
            yield compare(task, "inputs", expected[:, columns], found[:, columns], allowed)

    def _on_images(
        self, task: TaskEntry, columns: slice, tensors: Tensors, runner: Runner, allowed: Tolerance
    ) -> Compared:
        chosen = ImageReference(
            self._tensor(tensors, f"{task.name}.index"),
            self._tensor(tensors, f"{task.name}.sha256"),
            self._tensor(tensors, f"{task.name}.logits"),
            tensors.get(f"{task.name}.images"),
        )
        if not len(chosen.rows):
            raise _NotHereError("the bundle has no reference for test images")
        images = self._opened(task, chosen) if chosen.images is None else chosen.images
        found = self._logits(runner, images)[:, columns]
        return compare(task, "images", chosen.logits, found, allowed)

    @cached_property
    def _spec(self) -> ParitySpec:
        """The `parity` section of the bundle's recipe."""
        try:
            return ParitySpec.model_validate(self.bundle.manifest.recipe.get("parity", {}))
        except ValidationError as exc:
            raise BundleError(
                "the bundle's recipe has a parity section that can't be read",
                where=self.bundle.path,
                fix="use the version of lorkd-deploy that wrote the bundle",
            ) from exc

    @cached_property
    def _inputs(self) -> U8:
        """The generated inputs, checked against what they were when the reference was made."""
        manifest = self.bundle.manifest
        known = manifest.parity
        inputs = parity_inputs(known.inputs, manifest.preprocess.size, known.seed)
        if sha256_bytes(inputs.tobytes()) != known.sha256:
            raise BundleError(
                "the generated parity inputs are not those of the bundle",
                where=self.bundle.path,
                fix="use the version of lorkd-deploy that wrote the bundle: "
                f"{manifest.versions.get('lorkd-deploy', 'unknown')}",
            )
        return inputs

    def _opened(self, task: TaskEntry, chosen: ImageReference) -> U8:
        """The chosen test images at network size uint8 `(m, S, S, 3)`, each recognised."""
        manifest = self.bundle.manifest
        try:
            recipe = parse_recipe(manifest.recipe, where=self.bundle.path)
            spec = {entry.name: entry.data for entry in recipe.tasks}[task.name]
            images = open_data(spec, recipe.data_folder).test.images
            found = {row: images[row] for row in chosen.rows.tolist() if row < len(images)}
        except LorkdError as exc:
            raise _NotHereError(exc.what) from exc
        for row, digest in zip(chosen.rows.tolist(), chosen.sha256, strict=True):
            if row not in found or image_sha256(found[row]) != digest.tobytes():
                raise _RefutedError(
                    f"{task.name}: image {row} of the test split here is not the one that the "
                    "reference was made with"
                )
        return np.stack([manifest.preprocess.geometry(image) for image in found.values()])

    def _logits(self, runner: Runner, images: U8) -> F32:
        """Logits `(n, K)` of images at network size; the first one alone, as devices run it."""
        starts = [0, *range(1, len(images), BATCH)]
        batches = [images[a:b] for a, b in zip(starts, [*starts[1:], len(images)], strict=True)]
        preprocess = self.bundle.manifest.preprocess
        return np.concatenate([runner(preprocess.normalise(batch)) for batch in batches])

    def _columns(self, engine: str) -> Iterator[tuple[TaskEntry, slice]]:
        """The engine's tasks, each with the columns of its logits."""
        start = 0
        for task in self.bundle.engine(engine):
            yield task, slice(start, start + len(task.classes))
            start += len(task.classes)

    def _tensor(self, tensors: Tensors, name: str) -> npt.NDArray[Any]:
        if name not in tensors:
            raise BundleError(
                f"the bundle has no reference {name!r}",
                where=self.bundle.path,
                fix="run `lorkd decompose` again",
            )
        return tensors[name]
