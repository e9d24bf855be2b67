"""`lorkd study`: the experts against every way that a user would go instead, on the same images.

STUDY/
  study.json        the recipe, resolved, and its hash: written first, never changed
  foundation/       the teacher, as a run, with its features of every training image
  VARIANT/seed-0/   a training: its recipe, history, weights, answers on the test images
  result.json       every figure and difference
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from lorkd_deploy.bundle.read import load_bundle
from lorkd_deploy.bundle.write import now
from lorkd_deploy.errors import BundleError, LorkdError, UsageError
from lorkd_deploy.evidence.answers import Answers, joined
from lorkd_deploy.evidence.attempt import Outcome
from lorkd_deploy.evidence.comparison import TestSplit, compared
from lorkd_deploy.evidence.costs import Deployed, costs
from lorkd_deploy.evidence.directions import directions
from lorkd_deploy.evidence.methods.kf_training import StagedTeacher, build_factorised
from lorkd_deploy.evidence.plan import Training, Variant, parse_variants, trainings
from lorkd_deploy.evidence.result import RESULT, StudyResult
from lorkd_deploy.evidence.train import ANSWERS, FOUNDATION, answers
from lorkd_deploy.evidence.workers import Cluster, on_cluster, on_this_machine
from lorkd_deploy.machine.packages import software
from lorkd_deploy.progress import Progress, Silent
from lorkd_deploy.recipe import Recipe, load_recipe, parse_recipe
from lorkd_deploy.run import Run, refuse_foreign, with_newer_keys
from lorkd_deploy.schema import Part, read_part, write_part
from lorkd_deploy.storage import exclusive
from lorkd_deploy.training.batches.setup import Setup, open_setup
from lorkd_deploy.training.fitting.features import TeacherFeatures
from lorkd_deploy.training.fitting.job import Job
from lorkd_deploy.training.networks.restore import restored_teacher
from lorkd_deploy.training.teacher import teacher

log = logging.getLogger(__name__)
ALL_METHODS = "foundation,stl,mtl,stl-kd,mtl-kd,kf,experts"
RECORD = "study.json"


class StudyRecord(Part):
    """What `study.json` says: what is studied, which all of its trainings share."""

    schema_version: int = 1
    recipe: dict[str, object]
    recipe_sha256: str


@dataclass(frozen=True)
class _Study:
    folder: Path
    setup: Setup
    variants: tuple[Variant, ...]
    seeds: tuple[int, ...]
    progress: Progress

    @property
    def recipe(self) -> Recipe:
        return self.setup.recipe

    @cached_property
    def trainings(self) -> list[Training]:
        images = [len(data.train) for data in self.setup.data]
        return list(trainings(self.recipe, self.variants, len(self.seeds), images))

    @property
    def factorises(self) -> bool:
        """Whether any variant learns from the teacher's stages."""
        return any(variant.method.network == "factorised" for variant in self.variants)

    @property
    def distils(self) -> bool:
        """Whether any other one learns from the teacher's features."""
        return any(
            t.recipe["transfer"]["kind"] != "none" and t.method != "kf" for t in self.trainings
        )

    @property
    def has_teacher(self) -> bool:
        """Whether any variant learns from the teacher, or is it."""
        teachers = any(variant.method.network == "teacher" for variant in self.variants)
        return teachers or self.factorises or self.distils


def study(
    recipe: str | Path,
    out: str | Path,
    *,
    methods: str = ALL_METHODS,
    seeds: int = 5,
    set: Sequence[str] = (),
    workers: int = 1,
    cluster: Cluster | None = None,
    progress: Progress | None = None,
) -> StudyResult:
    """Train each of `methods` at each of `seeds` seeds, and compare what they answer.

    `methods` are those of `evidence.methods.table`, each as it is or with values of the recipe
    changed (`experts+norm=per_task`); `recipe` and `set` are those of `decompose`. What `out` has
    finished already isn't done again, so a study is resumed, or grown by methods and seeds, by the
    same call. A training that fails is told in the result, and the others go on. `workers`
    processes train side by side, or those of `cluster`. Raises what loading the recipe and making
    the teacher raise, and `BundleError` where `out` is another study's.
    """
    if seeds < 1 or workers < 1:
        raise UsageError(f"{seeds} seeds and {workers} workers were asked for, wanted 1 at least")
    variants = parse_variants(methods)
    loaded = load_recipe(recipe, set)
    folder = Path(out)
    _claim(folder, loaded)
    with exclusive(folder, "study"):
        numbers = tuple(range(loaded.seed, loaded.seed + seeds))
        work = _Study(folder, open_setup(loaded), variants, numbers, progress or Silent())
        planned = work.trainings  # a recipe that can't be is told before anything is trained
        _prepare(work, recipe, set)
        outcomes = list(_shown(work, planned, workers, cluster))
        result = _result(work, outcomes)
        write_part(folder / RESULT, result)
        return result


def _claim(folder: Path, recipe: Recipe) -> None:
    file, asked = folder / RECORD, recipe.model_dump(mode="json")
    if file.exists():
        known = read_part(file, StudyRecord, BundleError, "choose another --out")
        if with_newer_keys(known.recipe) != asked:
            raise BundleError(
                "this folder holds a study of another recipe",
                where=folder,
                fix="give the same recipe and --set, or choose another --out; what methods differ "
                "in goes into --methods",
            )
        return
    refuse_foreign(folder, "study")
    write_part(file, StudyRecord(recipe=asked, recipe_sha256=recipe.sha256))


def _prepare(work: _Study, recipe: str | Path, changed: Sequence[str]) -> None:
    """The teacher and its features of every training image, before any worker needs them."""
    if work.factorises:
        build_factorised(work.setup)  # raises where no narrower network is known
    if not work.has_teacher:
        return
    home = work.folder / FOUNDATION
    if not (home / "teacher").exists():
        teacher(recipe, home, set=changed, resume=True, progress=work.progress)
    known = restored_teacher(load_bundle(home / "teacher"), work.setup)
    run, cache = Run(home, home / "bundle"), home / "cache"
    job = Job("decompose", run, work.setup, progress=work.progress, cache_folder=cache)
    if work.distils:
        TeacherFeatures(known, job)
    if work.factorises:
        StagedTeacher(known, job)


def _shown(
    work: _Study, planned: Sequence[Training], workers: int, cluster: Cluster | None
) -> Iterator[Outcome]:
    work.progress.start("trainings", len(planned))
    outcomes = (
        on_cluster(planned, work.folder.resolve(), cluster)
        if cluster
        else on_this_machine(planned, work.folder.resolve(), workers)
    )
    failed = 0
    for outcome in outcomes:
        if outcome.failed is not None:
            failed += 1
            log.warning("%s failed: %s", outcome.training.folder, outcome.failed)
        work.progress.advance(1, failed=str(failed))
        yield outcome
    work.progress.stop()


def _result(work: _Study, outcomes: Sequence[Outcome]) -> StudyResult:
    done = {(o.training.variant, o.training.seed, o.training.task) for o in outcomes if o.done}
    lacking = {
        (t.variant, t.seed) for t in work.trainings if (t.variant, t.seed, t.task) not in done
    }
    whole = {
        variant.name: [seed for seed in work.seeds if (variant.name, seed) not in lacking]
        for variant in work.variants
    }
    variants = [variant for variant in work.variants if whole[variant.name]]
    seeds = [s for s in work.seeds if all(s in whole[variant.name] for variant in variants)]
    failed = {o.training.folder: o.failed for o in outcomes if o.failed is not None}
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
    return StudyResult(
        recipe=work.recipe.model_dump(mode="json"),
        recipe_sha256=work.recipe.sha256,
        variants=tuple(found),
        seeds=tuple(seeds),
        first=first,
        comparison=compared(splits, found, first=first),
        directions={n: d for n, own in found.items() if (d := directions(splits, own))},
        costs=costs({variant.name: _deployed(work, variant) for variant in variants}),
        failed=failed,
        seconds=sum(o.done.seconds for o in outcomes if o.done),
        software=software(),
        created=now(),
    )


def _answers(work: _Study, variant: Variant, seeds: Sequence[int]) -> list[Answers]:
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


def _deployed(work: _Study, variant: Variant) -> Deployed:
    """What a variant would deploy, by the recipes of its trainings at the first seed."""
    recipes = [
        parse_recipe(training.recipe, where=training.folder)
        for training in work.trainings
        if (training.variant, training.seed) == (variant.name, work.seeds[0])
    ]
    data = dict(zip(work.setup.names, work.setup.data, strict=True))
    setups = [Setup(r, tuple(data[task.name] for task in r.tasks)) for r in recipes]
    return Deployed(variant.method.network, tuple(setups) or (work.setup,))


def _of_teacher(work: _Study) -> Answers:
    file = work.folder / FOUNDATION / ANSWERS
    if not file.exists():
        known = restored_teacher(load_bundle(work.folder / FOUNDATION / "teacher"), work.setup)
        answers(known.network, work.setup.for_teacher(), work.progress).write(file)
    return Answers.read(file)
