"""`lorkd study`: the experts against every way that a user would go instead, on the same images.

STUDY/
  study.json        the recipe, resolved, and its hash: written first, never changed
  foundation/       the teacher, as a run, with its features of every training image
  VARIANT/seed-0/   a training: its recipe, history, weights, answers on the test images
  data-check.json   what the splits share
  result.json       every figure and difference
  computed/         what these took long to compute, per training; it may be deleted
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from lorkd_deploy.bundle.read import load_bundle
from lorkd_deploy.datacheck.quick import warn_of_leaks
from lorkd_deploy.datacheck.result import DataCheck, keep_check, read_check
from lorkd_deploy.errors import BundleError, LorkdError, UsageError
from lorkd_deploy.evidence.conclusion import conclusion
from lorkd_deploy.evidence.methods.kf_training import StagedTeacher, build_factorised
from lorkd_deploy.evidence.plan import Training, parse_variants
from lorkd_deploy.evidence.result import RESULT, StudyResult
from lorkd_deploy.evidence.train import ANSWERS, FOUNDATION, Trained, call_of, finished
from lorkd_deploy.evidence.work import Work
from lorkd_deploy.evidence.workers import Cluster, collected, on_cluster, on_this_machine
from lorkd_deploy.progress import Progress, Silent
from lorkd_deploy.recipe import Recipe, load_recipe
from lorkd_deploy.run import Run, refuse_foreign, refuse_other_recipe
from lorkd_deploy.schema import Part, read_part, write_part
from lorkd_deploy.storage import exclusive
from lorkd_deploy.training.batches.setup import open_setup
from lorkd_deploy.training.fitting.distillation.features import TeacherFeatures
from lorkd_deploy.training.fitting.job import Job
from lorkd_deploy.training.networks.restore import restored_teacher
from lorkd_deploy.training.teacher import teacher

ALL_METHODS = "foundation,stl,mtl,stl-kd,mtl-kd,kf,experts"
RECORD = "study.json"


class StudyRecord(Part):
    """What `study.json` says: what is studied, which all of its trainings share."""

    schema_version: int = 1
    recipe: dict[str, object]
    recipe_sha256: str


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
    changed (`experts+rank=4`); `recipe` and `set` are those of `decompose`. What `out` has
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
        opened = open_setup(loaded, progress=progress)
        work = Work(folder, opened, variants, numbers, progress or Silent())
        known = _known(work)  # a recipe that can't be is told before anything is trained
        left = [training for training in work.trainings if training.folder not in known]
        answered = (folder / FOUNDATION / ANSWERS).exists()
        new = bool(left) or (work.has_foundation and not answered)
        warned = new and _make_teacher(work, recipe, set)
        check = _check(work, warned=warned)
        if new and work.has_teacher:
            _make_features(work)
        done, failed = _train_all(work, left, workers, cluster)
        result = conclusion(work, known | done, failed, check)
        write_part(folder / RESULT, result)
        return result


def _claim(folder: Path, recipe: Recipe) -> None:
    file = folder / RECORD
    if file.exists():
        known = read_part(file, StudyRecord, BundleError, "choose another --out")
        fix = (
            "give the same recipe and --set, or choose another --out; what methods differ in goes "
            "into --methods"
        )
        refuse_other_recipe(known.recipe, recipe, folder, "a study of another recipe", fix)
        return
    refuse_foreign(folder, "study")
    asked = recipe.model_dump(mode="json")
    write_part(file, StudyRecord(recipe=asked, recipe_sha256=recipe.sha256))


def _make_teacher(work: Work, recipe: str | Path, changed: Sequence[str]) -> bool:
    """Make the teacher, where one is wanted and there is none; whether it was made."""
    if work.factorises:
        build_factorised(work.setup)  # raises where no narrower network is known
    home = work.folder / FOUNDATION
    if not work.has_teacher or (home / "teacher").exists():
        return False
    teacher(recipe, home, set=changed, resume=True, progress=work.progress)
    return True


def _check(work: Work, *, warned: bool) -> DataCheck:
    """What the splits share, looked for once for all trainings, with a warning.

    A teacher that is made looks for it too; one that was made just now has `warned`.
    """
    known = read_check(work.folder) or read_check(work.folder / FOUNDATION)
    if known is not None:
        keep_check(known, work.folder)
        if warned:
            return known
    return warn_of_leaks(work.recipe, work.setup.data, work.folder, work.progress)


def _make_features(work: Work) -> None:
    """The teacher's features of every training image, before any worker needs them."""
    home = work.folder / FOUNDATION
    known = restored_teacher(load_bundle(home / "teacher"), work.setup)
    run, cache = Run(home, home / "bundle"), home / "cache"
    job = Job("decompose", run, work.setup, progress=work.progress, cache_folder=cache)
    if work.distils:
        TeacherFeatures(known, job)
    if work.factorises:
        StagedTeacher(known, job)


def _known(work: Work) -> dict[str, Trained]:
    """By folder what every training that is done already says of itself.

    One whose folder is damaged is told by the worker that it is left to.
    """
    known = {}
    for training in work.trainings:
        with suppress(LorkdError):
            if (found := finished(training, work.folder)) is not None:
                known[training.folder] = found
    return known


def _train_all(
    work: Work, left: Sequence[Training], workers: int, cluster: Cluster | None
) -> tuple[dict[str, Trained], dict[str, str]]:
    """By folder what every training that was `left` says of itself, and why one failed."""
    if not left:
        return {}, {}
    calls = [call_of(training, work.folder) for training in left]
    outcomes = on_cluster(calls, cluster) if cluster else on_this_machine(calls, workers)
    known = len(work.trainings) - len(left)
    done, failed = collected(outcomes, work.progress, known=known, left=len(left))
    return {name: Trained.model_validate(own) for name, own in done.items()}, failed
