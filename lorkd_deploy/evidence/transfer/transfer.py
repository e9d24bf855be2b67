"""`lorkd transfer`: a new data set, learnt from what a finished run or study knows already.

TRANSFER/
  transfer.json                    the new task's recipe, and what it starts from: never changed
  START/shots-10/seed-0/           a training: its recipe, history, answers on the test images
  data-check.json                  what the splits of the new data share
  result.json                      every figure and difference
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from lorkd_deploy.bundle.write import now
from lorkd_deploy.data import TaskData
from lorkd_deploy.datacheck.quick import warn_of_leaks
from lorkd_deploy.datacheck.result import DataCheck
from lorkd_deploy.errors import BundleError, LorkdError, UsageError
from lorkd_deploy.evidence.analysis.comparison import TestSplit, compared
from lorkd_deploy.evidence.answers import Answers
from lorkd_deploy.evidence.transfer.joint import prepare
from lorkd_deploy.evidence.transfer.recipes import TASK, joint_recipe, new_recipe
from lorkd_deploy.evidence.transfer.result import RESULT, ShotsResult, TransferResult
from lorkd_deploy.evidence.transfer.starts import Origin, Start, open_origin, parse_starts
from lorkd_deploy.evidence.transfer.train import ANSWERS, Trained, Trial, call_of, finished
from lorkd_deploy.evidence.workers import collected, on_this_machine
from lorkd_deploy.machine.packages import software
from lorkd_deploy.progress import Progress, Silent
from lorkd_deploy.recipe import Recipe
from lorkd_deploy.run import refuse_foreign, refuse_other_recipe
from lorkd_deploy.schema import Part, read_part, write_part
from lorkd_deploy.storage import exclusive
from lorkd_deploy.training.batches.setup import Setup, open_setup

RECORD = "transfer.json"


class TransferRecord(Part):
    """What `transfer.json` says, which all trainings in the folder share."""

    schema_version: int = 1
    recipe: dict[str, object]
    recipe_sha256: str
    origin_sha256: str


@dataclass(frozen=True)
class _Transfer:
    folder: Path
    origin: Origin
    setup: Setup
    joint: Setup | None  # with the origin's tasks, where all are trained again
    starts: tuple[Start, ...]
    shots: tuple[int | None, ...]
    seeds: tuple[int, ...]
    progress: Progress

    @property
    def data(self) -> TaskData:
        """Of the new task."""
        return self.setup.data[0]

    def opened(self, trial: Trial) -> Setup:
        """Of which tasks the trial is."""
        return self.joint if self.joint and trial.start.init == "joint" else self.setup

    @property
    def trials(self) -> list[Trial]:
        """Seed by seed, so that a stopped transfer has whole seeds to compare."""
        return [
            self.trial(start, shots, seed)
            for seed in self.seeds
            for shots in self.shots
            for start in self.starts
        ]

    def trial(self, start: Start, shots: int | None, seed: int) -> Trial:
        """A head on features that are the same at every seed is fitted once."""
        same = self.origin.bundle is not None or start.init == "teacher"
        once = start.fit == "head" and shots is None and same
        return Trial(start, shots, self.seeds[0] if once else seed)


def transfer(
    run: str | Path,
    data: str | Path,
    out: str | Path,
    *,
    init: str = "shared,teacher,random",
    fit: str = "experts,head",
    shots: str = "10,all",
    seeds: int = 3,
    set: Sequence[str] = (),
    workers: int = 1,
    progress: Progress | None = None,
) -> TransferResult:
    """Learn the task of `data` from each of `init`, by each of `fit`, from `shots` per class.

    `run` is a finished run, or a study, of whose trainings each seed has its own. `data` is a
    folder of images, an archive (`FILE.npz`), or a recipe's `data:` in YAML. `init` are
    `expert:TASK`, `shared` (W0 alone), `mtl` (of a study), `teacher`, `random`, and `joint`, which
    trains all tasks of `run` again, the new one among them. `fit` are `experts` (a low-rank expert
    and its head on the frozen rest), `head` (a logistic regression) and `all`; a teacher gets a
    head whatever is asked for, random weights are trained whole, and `joint` as `run` was. `set`
    changes the recipe that `run` was trained by. `workers` processes train side by side, a thread
    each. What `out` has finished isn't done again; a training that fails is told in the result.

    Raises `UsageError`, `RecipeError`, `DataError` for bad input, `BundleError` where `run` lacks
    what is asked for or `out` is another transfer's, `LorkdError` where nothing was finished.
    """
    if seeds < 1 or workers < 1:
        raise UsageError(f"{seeds} seeds and {workers} workers were asked for, wanted 1 at least")
    starts, numbers = parse_starts(init, fit), _parse_shots(shots)
    origin = open_origin(run)
    recipe = new_recipe(origin.recipe, data, set)
    wanted = tuple(range(origin.recipe.seed, origin.recipe.seed + seeds))
    for seed in wanted:
        for start in starts:
            origin.check(start, seed)
    again = any(start.init == "joint" for start in starts)
    joint = open_setup(joint_recipe(origin.recipe, data, set), progress=progress) if again else None
    setup = Setup(recipe, joint.data[:1]) if joint else open_setup(recipe, progress=progress)
    folder, shown = Path(out), progress or Silent()
    _claim(folder, recipe, origin)
    with exclusive(folder, "transfer"):
        work = _Transfer(folder, origin, setup, joint, starts, numbers, wanted, shown)
        check = warn_of_leaks(recipe, setup.data, folder, shown)
        known = _known(work)
        left = [trial for trial in dict.fromkeys(work.trials) if trial not in known]
        if joint and any(trial.start.init == "joint" for trial in left):
            prepare(folder, joint, origin.teacher, origin.cache, shown)
        done, failed = _train_all(work, left, len(known), workers)
        result = _result(work, known | done, failed, check)
        write_part(folder / RESULT, result)
        return result


def _parse_shots(text: str) -> tuple[int | None, ...]:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    wrong = [part for part in parts if part != "all" and not (part.isdigit() and int(part) > 0)]
    if wrong or not parts:
        raise UsageError(
            f"{(wrong or ['nothing'])[0]!r} is no number of images per class",
            fix="write --shots 10,all",
        )
    return tuple(dict.fromkeys(None if part == "all" else int(part) for part in parts))


def _claim(folder: Path, recipe: Recipe, origin: Origin) -> None:
    file, fix = folder / RECORD, "give the same RUN, --data and --set, or choose another --out"
    if file.exists():
        known = read_part(file, TransferRecord, BundleError, "choose another --out")
        what = "a transfer of other data or settings"
        refuse_other_recipe(known.recipe, recipe, folder, what, fix)
        if known.origin_sha256 != origin.sha256:
            raise BundleError(
                "this folder holds a transfer from another run", where=folder, fix=fix
            )
        return
    refuse_foreign(folder, "transfer")
    record = TransferRecord(
        recipe=recipe.model_dump(mode="json"),
        recipe_sha256=recipe.sha256,
        origin_sha256=origin.sha256,
    )
    write_part(file, record)


def _known(work: _Transfer) -> dict[Trial, Trained]:
    """What every training that is done already says of itself; a damaged one its worker tells."""
    known: dict[Trial, Trained] = {}
    for trial in dict.fromkeys(work.trials):
        with suppress(LorkdError):
            if (found := finished(trial, work.opened(trial), work.folder)) is not None:
                known[trial] = found
    return known


def _train_all(
    work: _Transfer, left: Sequence[Trial], known: int, workers: int
) -> tuple[dict[Trial, Trained], dict[str, str]]:
    """What every training that was `left` says of itself, and by folder why one failed."""
    calls = [call_of(trial, work.origin, work.opened(trial), work.folder) for trial in left]
    outcomes = on_this_machine(calls, workers)
    done, failed = collected(outcomes, work.progress, known=known, left=len(left))
    of = {trial.folder: trial for trial in left}
    return {of[name]: Trained.model_validate(own) for name, own in done.items()}, failed


def _result(
    work: _Transfer, done: dict[Trial, Trained], failed: dict[str, str], check: DataCheck
) -> TransferResult:
    def whole(start: Start, seed: int) -> bool:
        return all(work.trial(start, shots, seed) in done for shots in work.shots)

    starts = [start for start in work.starts if any(whole(start, seed) for seed in work.seeds)]
    seeds = [seed for seed in work.seeds if all(whole(start, seed) for start in starts)]
    if not starts or not seeds:
        raise LorkdError(
            "no seed was finished from every start: there is nothing to compare",
            where=work.folder,
            fix="; ".join(f"{name}: {why}" for name, why in failed.items()),
        )
    split = TestSplit(TASK, work.data.kind, work.data.test.labels, work.data.test.groups)
    first, results = starts[0].name, []
    for shots in work.shots:
        trials = {start.name: [work.trial(start, shots, s) for s in seeds] for start in starts}
        given = {
            name: [Answers.read(work.folder / trial.folder / ANSWERS) for trial in own]
            for name, own in trials.items()
        }
        images = done[trials[first][0]].images
        comparison = compared([split], given, first=first)
        results.append(ShotsResult(shots=shots, images=images, comparison=comparison))
    return TransferResult(
        recipe=work.setup.recipe.model_dump(mode="json"),
        data=work.data.provenance,
        classes=work.data.classes,
        test_images=len(work.data.test),
        starts=tuple(start.name for start in starts),
        seeds=tuple(seeds),
        first=first,
        results=tuple(results),
        failed=failed,
        others={trial.folder: own.others for trial, own in done.items() if own.others},
        seconds=sum(trained.seconds for trained in done.values()),
        software=software(),
        check=check.without_pairs(),
        created=now(),
    )
