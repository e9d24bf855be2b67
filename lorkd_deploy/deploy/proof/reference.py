"""Run an engine on the inputs whose logits the bundle holds, and judge it.

The generated inputs are rebuilt anywhere. Test images are used where they are: shipped in the
bundle, or opened as the bundle's recipe says and recognised by their hashes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
from pydantic import ValidationError

from lorkd_deploy.arrays import F32, I64, U8
from lorkd_deploy.bundle.manifest import TaskEntry, columns_of
from lorkd_deploy.bundle.parity_inputs import known_inputs
from lorkd_deploy.bundle.read import Bundle
from lorkd_deploy.bundle.reference import (
    INPUTS,
    ImageReference,
    image_reference,
    inputs_reference,
)
from lorkd_deploy.data import image_sha256
from lorkd_deploy.deploy.guarded import task_guard
from lorkd_deploy.deploy.proof.beside import Beside, compare_beside
from lorkd_deploy.deploy.proof.chain import ENGINE, TRAINED, Stage, opened_stage
from lorkd_deploy.deploy.proof.parity import Compared, Link, Parity, compare
from lorkd_deploy.deploy.proof.sample import Sample, in_two_sizes
from lorkd_deploy.errors import BundleError, LorkdError
from lorkd_deploy.precisions.table import Tolerance, precision_of
from lorkd_deploy.recipe import ParitySpec
from lorkd_deploy.runtime import Runner
from lorkd_deploy.storage import Tensors, sha256_bytes


class _NotHereError(LorkdError):
    """A task's test images can't be used on this machine, which is no fault of the engine."""


class _RefutedError(LorkdError):
    """An image is certainly not the one that the reference was made with."""


class _Answers(NamedTuple):
    """One side's answers to every sample, probabilities with `raw`, and how far off they may be."""

    answers: list[F32]
    allowed: Tolerance
    raw: bool = False


class Reference:
    """A bundle's reference, read once and used for any of its engines on any target."""

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        self._known: dict[tuple[str, str, int], list[F32]] = {}

    def check(
        self,
        engine: str,
        runner: Runner,
        precision: str,
        stages: Sequence[Stage] = (),
        *,
        raw: bool = False,
    ) -> Parity:
        """Run `engine`, which is open as `runner`, on everything there is a reference for.

        With `raw` it is given the images as they are, and held against the reference's
        probabilities. `stages` are the models between the trained one and the engine, in order:
        each is run too, so that a difference is found where it arises. The first, the fused model,
        has to be within the tolerance of fp32 by itself. Raises `BundleError` where the reference
        itself is damaged, `ArtifactError` where the engine doesn't run at all.
        """
        allowed = self.tolerance(precision)
        samples, not_here, reasons = self._samples(engine)
        found = _Answers(self._given(runner, samples, raw=raw), allowed, raw=raw)
        needed = samples[0].expected.shape
        if found.answers[0].shape != needed:  # there is nothing to compare
            what = "probabilities" if raw else "logits"
            reason = f"the engine gives {what} {found.answers[0].shape}, {needed} are needed"
            return Parity(status="failed", reasons=(reason,))
        compared = self._compared(samples, [s.expected for s in samples], found)
        beside = self._beside(engine, runner, samples, found)
        reasons += beside.reasons
        links, links_not_here = self._links(engine, stages, samples, found)
        reasons += [str(entry) for entry in compared if not entry.passed]
        if links:
            wrong = [entry for entry in links[0].compared if not entry.passed]
            reasons += [f"the fused model itself, before any target: {entry}" for entry in wrong]
        return Parity(
            status="failed" if reasons else "passed",
            compared=compared,
            guard=beside.guard,
            maps=beside.maps,
            links=links,
            links_not_here=links_not_here,
            images_not_here=not_here,
            reasons=tuple(reasons),
        )

    def trial(self, engine: str, precision: str, count: int) -> tuple[U8, float]:
        """`count` images at most, uint8 `(n, S, S, 3)`, and how far values may differ on them as
        a fraction of the largest: test images where they are here, else generated ones."""
        samples, _, _ = self._samples(engine)
        sample = samples[min(1, len(samples) - 1)]
        allowed = self.tolerance(precision)
        share = allowed.logits if sample.on == "images" else allowed.inputs
        return sample.images[:count], share

    def tolerance(self, precision: str) -> Tolerance:
        """How far an engine of this precision may be from the model, as the recipe says."""
        known = precision_of(precision).tolerance
        given = self._spec.tolerance.get(precision)
        return known if given is None else known.changed(given.logits, given.flips)

    def _samples(self, engine: str) -> tuple[list[Sample], dict[str, str], list[str]]:
        """The generated inputs, then the test images of each task that has them here; tasks whose
        images aren't here, and images that are certainly not those of the reference."""
        tensors = self.bundle.logits(engine)
        tasks = tuple(columns_of(self.bundle.engine(engine)))
        samples = [
            in_two_sizes(
                Sample(
                    "inputs",
                    self._inputs,
                    inputs_reference(tensors, self.bundle.path),
                    tasks,
                    guard=tensors.get(f"{INPUTS}.guard"),
                    maps=tensors.get(f"{INPUTS}.maps"),
                )
            )
        ]
        not_here: dict[str, str] = {}
        refuted: list[str] = []
        for task, columns in tasks:
            try:
                samples.append(self._sample(task, columns, tensors))
            except _NotHereError as exc:
                not_here[task.name] = exc.what
            except _RefutedError as exc:
                refuted.append(exc.what)
        return samples, not_here, refuted

    def _sample(self, task: TaskEntry, columns: slice, tensors: Tensors) -> Sample:
        chosen = image_reference(tensors, task.name, self.bundle.path)
        if not len(chosen.indices):
            raise _NotHereError("the bundle has no reference for test images")
        images, labels = chosen.images, chosen.labels
        if images is None:
            images, labels = self._opened(task, chosen)
        tasks = ((task, columns),)
        return in_two_sizes(
            Sample("images", images, chosen.logits, tasks, labels, chosen.guard, chosen.maps)
        )

    def _links(
        self,
        engine: str,
        stages: Sequence[Stage],
        samples: list[Sample],
        found: _Answers,
    ) -> tuple[tuple[Link, ...], str | None]:
        """The chain's links, from the trained model over every stage to the engine."""
        if not stages:
            return (), None
        links: list[Link] = []
        before, logits = TRAINED, [sample.expected for sample in samples]
        for stage in stages:
            try:
                after = self._of_stage(engine, stage, samples)
            except LorkdError as exc:
                return tuple(links), exc.what
            of_stage = _Answers(after, self.tolerance(stage.precision))
            compared = self._compared(samples, logits, of_stage)
            links.append(Link(before=before, after=stage.name, compared=compared))
            before, logits = stage.name, after
        compared = self._compared(samples, logits, found)
        return (*links, Link(before=before, after=ENGINE, compared=compared)), None

    def _of_stage(self, engine: str, stage: Stage, samples: list[Sample]) -> list[F32]:
        """A stage's logits for every sample; kept, since engines of other targets share it."""
        key = (engine, sha256_bytes(stage.model), len(samples))
        if key not in self._known:
            with opened_stage(stage) as runner:
                self._known[key] = self._given(runner, samples)
        return self._known[key]

    @staticmethod
    def _compared(
        samples: list[Sample], before: list[F32], after: _Answers
    ) -> tuple[Compared, ...]:
        """Both sides' answers of every task; of the engine's whole output its own columns."""
        found = []
        for sample, whole, answers in zip(samples, before, after.answers, strict=True):
            for task, columns in sample.tasks:
                left, right = (
                    given if given.shape[1] == len(task.classes) else given[:, columns]
                    for given in (whole, answers)
                )
                allowed, labels = after.allowed, sample.labels
                found.append(compare(task, sample.on, left, right, allowed, labels, raw=after.raw))
        return tuple(found)

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
        return known_inputs(self.bundle)

    def _opened(self, task: TaskEntry, chosen: ImageReference) -> tuple[U8, I64]:
        """The chosen test images at network size uint8 `(m, S, S, 3)`, each recognised, and their
        labels."""
        manifest = self.bundle.manifest
        try:
            split = self.bundle.data(task.name).test
            images = split.images
            found = {i: images[i] for i in chosen.indices.tolist() if i < len(images)}
        except LorkdError as exc:
            raise _NotHereError(exc.what) from exc
        for index, digest in zip(chosen.indices.tolist(), chosen.sha256, strict=True):
            if index not in found or image_sha256(found[index]) != digest.tobytes():
                raise _RefutedError(
                    f"{task.name}: image {index} of the test split here is not the one that the "
                    "reference was made with"
                )
        resized = np.stack([manifest.preprocess.geometry(image) for image in found.values()])
        return resized, split.labels[chosen.indices]

    def _beside(
        self, engine: str, runner: Runner, samples: list[Sample], found: _Answers
    ) -> Beside:
        """What the engine gives beside its logits, held against the reference."""
        guard = task_guard(self.bundle, self.bundle.engine(engine)[0].name)
        way = self.bundle.manifest.preprocess
        return compare_beside(runner, samples, way, guard, found.allowed, raw=found.raw)

    def _given(self, runner: Runner, samples: list[Sample], *, raw: bool = False) -> list[F32]:
        """Of each sample what the runner says, `(n, K)`, of the images with expected logits."""
        way, found = self.bundle.manifest.preprocess, []
        for sample in samples:
            answers = np.concatenate([runner(batch) for batch in sample.batches(way, raw=raw)])
            found.append(answers[: len(sample.expected)])
        return found
