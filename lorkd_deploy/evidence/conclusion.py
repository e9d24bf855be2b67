"""What a study shows: its result, of which only what is new is computed.

STUDY/computed/ has resamples and MIG of each training, and the costs; it may be deleted.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from math import fsum

import torch

from lorkd_deploy.bundle.read import load_bundle
from lorkd_deploy.bundle.write import now
from lorkd_deploy.datacheck.result import DataCheck
from lorkd_deploy.errors import BundleError, LorkdError
from lorkd_deploy.evidence.analysis.comparison import TestSplit, compared
from lorkd_deploy.evidence.analysis.directions import Directions, directions
from lorkd_deploy.evidence.answers import Answers, joined
from lorkd_deploy.evidence.costs import Deployed, costs
from lorkd_deploy.evidence.kept import Kept
from lorkd_deploy.evidence.plan import Variant
from lorkd_deploy.evidence.result import StudyResult
from lorkd_deploy.evidence.train import ANSWERS, FOUNDATION, Trained, answers
from lorkd_deploy.evidence.work import Work
from lorkd_deploy.machine.packages import software
from lorkd_deploy.progress import bar
from lorkd_deploy.recipe import parse_recipe
from lorkd_deploy.training.batches.setup import Setup
from lorkd_deploy.training.networks.restore import restored_teacher

COMPUTED, COSTS = "computed", "costs.json"


def conclusion(
    work: Work, done: dict[str, Trained], failed: dict[str, str], check: DataCheck
) -> StudyResult:
    """What the study shows, from what its trainings answered; `done` and `failed` are by folder,
    `check` says what the splits share.

    Raises `LorkdError` where no seed was finished by every method.
    """
    lacking = {(t.variant, t.seed) for t in work.trainings if t.folder not in done}
    whole = {
        variant.name: [seed for seed in work.seeds if (variant.name, seed) not in lacking]
        for variant in work.variants
    }
    variants = [variant for variant in work.variants if whole[variant.name]]
    seeds = [s for s in work.seeds if all(s in whole[variant.name] for variant in variants)]
    if not variants or not seeds:
        raise LorkdError(
            "no seed was finished by every method: there is nothing to compare",
            where=work.folder,
            fix="; ".join(f"{name}: {why}" for name, why in failed.items()) or "ask for seeds",
        )
    found = {variant.name: _answers(work, variant, seeds) for variant in variants}
    first = next((name for name in found if name.partition("+")[0] == "experts"), next(iter(found)))
    splits = [
        TestSplit(task.name, data.kind, data.test.labels, data.test.groups, task.graded)
        for task, data in zip(work.recipe.tasks, work.setup.data, strict=True)
    ]
    torch.set_num_threads(1)
    kept = Kept(work.folder / COMPUTED)
    of: dict[str, Directions | None] = {}
    with bar(work.progress, "comparing the methods", 2 + len(variants)) as shown:
        comparison = compared(splits, found, first=first, kept=kept)
        shown.advance()
        for name, own in found.items():
            of[name] = directions(splits, own, kept)
            shown.advance()
        deployed = {variant.name: _deployed(work, variant) for variant in variants}
        cost = costs(deployed, work.folder / COMPUTED / COSTS)
        shown.advance()
    return StudyResult(
        recipe=work.recipe.model_dump(mode="json"),
        recipe_sha256=work.recipe.sha256,
        variants=tuple(found),
        seeds=tuple(seeds),
        first=first,
        comparison=comparison,
        directions={name: known for name, known in of.items() if known},
        costs=cost,
        failed=failed,
        seconds=fsum(own.seconds for own in done.values()),  # workers end in any order
        software=software(),
        check=check.without_pairs(),
        created=now(),
    )


def _answers(work: Work, variant: Variant, seeds: Sequence[int]) -> list[Answers]:
    """One per seed; the foundation model is the same at every seed."""
    if variant.method.network == "teacher":
        return [_of_teacher(work)] * len(seeds)
    return [
        joined(
            [
                Answers.read(work.folder / training.folder / ANSWERS)
                for training in work.trainings
                if (training.variant, training.seed) == (variant.name, seed)
            ]
        )
        for seed in seeds
    ]


def _deployed(work: Work, variant: Variant) -> Deployed:
    """What a variant would deploy, by the recipes of its trainings at the first seed."""
    recipes = [
        parse_recipe(training.recipe, where=training.folder)
        for training in work.trainings
        if (training.variant, training.seed) == (variant.name, work.seeds[0])
    ]
    data = dict(zip(work.setup.names, work.setup.data, strict=True))
    setups = [Setup(r, tuple(data[task.name] for task in r.tasks)) for r in recipes]
    return Deployed(variant.method.network, tuple(setups) or (work.setup,))


def _of_teacher(work: Work) -> Answers:
    file = work.folder / FOUNDATION / ANSWERS
    with suppress(BundleError):  # there is none yet, or it is damaged
        return Answers.read(file)
    known = restored_teacher(load_bundle(work.folder / FOUNDATION / "teacher"), work.setup)
    answers(known.network, work.setup.for_teacher(), work.progress).write(file)
    return Answers.read(file)
