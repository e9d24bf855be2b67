"""`lorkd compress`: smaller experts from trained ones, by the singular values of their ΔW."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from lorkd_deploy.bundle.compressed import write_compressed
from lorkd_deploy.bundle.manifest import TaskEntry
from lorkd_deploy.bundle.parity_inputs import known_inputs
from lorkd_deploy.bundle.read import Bundle, load_bundle
from lorkd_deploy.datacheck.quick import warn_of_leaks
from lorkd_deploy.datacheck.result import keep_check, read_check
from lorkd_deploy.errors import UsageError
from lorkd_deploy.lowrank.budget import parse_budget
from lorkd_deploy.lowrank.spectrum import Step, holding
from lorkd_deploy.metrics.score import score
from lorkd_deploy.progress import Progress, bar
from lorkd_deploy.run import Run, claimed, open_run, refuse_bundle
from lorkd_deploy.schema import Part
from lorkd_deploy.storage import Tensors, carry_over
from lorkd_deploy.training.batches.setup import Setup, open_setup
from lorkd_deploy.training.bundling.reference import reference_logits
from lorkd_deploy.training.bundling.safe import guards, make_safe, safety_tensors
from lorkd_deploy.training.networks.evaluate import scores, task_logits
from lorkd_deploy.training.networks.restore import restored
from lorkd_deploy.training.networks.stored import head_tensors
from lorkd_deploy.training.ranks.shrinking import (
    Candidates,
    CompressedTask,
    affordable,
    candidates_of,
    within_budget,
)

Score = Callable[[TaskEntry, Tensors], dict[str, float]]  # of an expert, on its validation split
Choice = Callable[[Candidates, Score], Sequence[Step]]


class Compression(Part):
    """A new run whose bundle has the smaller experts."""

    run: str
    bundle: str
    rule: str
    compressed_from: str
    tasks: tuple[CompressedTask, ...]


def compress(
    run: str | Path,
    out: str | Path,
    *,
    budget: str | None = None,
    energy: float | None = None,
    max_drop: float | None = None,
    progress: Progress | None = None,
) -> Compression:
    """Write the run `out` with `run`'s experts truncated to lower ranks, layer by layer.

    One of three rules, for each task: `budget`, the largest part of the expert that a size pays
    for (`"0.3MB"` of its file, or `"40000 parameters"`); `energy`, the smallest that keeps this
    share of ΔW's sum of squares; `max_drop`, the smallest found whose accuracy on the validation
    split is at most so many percentage points below the whole expert's. `run` is not changed.

    Raises `UsageError` for none or several rules, or a budget that norms and head alone exceed;
    `DataError` where the images of a task aren't here.
    """
    rule, choose = _rule(budget, energy, max_drop)
    source = open_run(run)
    bundle = load_bundle(source.bundle)
    if bundle.manifest.kind != "experts":
        raise UsageError("the teacher has no experts", where=bundle.path)
    refuse_bundle(out, "a compressed one is always a new one")
    if budget is not None:  # for every task before the first one is worked on
        affordable(
            parse_budget(budget),
            {task.name: bundle.expert(task.name) for task in bundle.manifest.tasks},
        )
    recipe = bundle.recipe
    with claimed(out, recipe, "compress") as new:
        setup = open_setup(recipe, progress=progress)
        for name, data in zip(setup.names, setup.data, strict=True):
            bundle.task(name).require_own(data)
        if (check := read_check(source.path)) is not None:
            keep_check(check, new.path)
        warn_of_leaks(recipe, setup.data, new.path, progress)
        shrunk = _all_shrunk(bundle, setup, choose, progress)
        return _write(source, bundle, new, setup=setup, rule=rule, shrunk=shrunk)


def _rule(budget: str | None, energy: float | None, max_drop: float | None) -> tuple[str, Choice]:
    given = [value for value in (budget, energy, max_drop) if value is not None]
    if len(given) != 1:
        raise UsageError(
            "give one of --budget, --energy and --max-drop",
            fix="lorkd compress RUN --out RUN2 --budget 0.3MB",
        )
    if budget is not None:
        limit = parse_budget(budget)
        return f"budget {budget}", lambda candidates, _: within_budget(candidates, limit)
    if energy is not None:
        if not 0 < energy <= 1:
            raise UsageError(f"energy is {energy}, wanted a share above 0 and at most 1")
        return f"energy {energy:g}", lambda candidates, _: holding(candidates.steps, energy)
    assert max_drop is not None
    if max_drop < 0:
        raise UsageError(f"max-drop is {max_drop}, wanted points of accuracy, at least 0")
    return f"max-drop {max_drop:g}", lambda candidates, scored: _within_drop(
        candidates, scored, max_drop
    )


def _within_drop(candidates: Candidates, scored: Score, points: float) -> Sequence[Step]:
    """The shortest beginning of the steps that halving finds to be good enough.

    Accuracy need not rise with every step, so a shorter one might do too; what is given back was
    measured, and the whole expert is always good enough.
    """
    steps = candidates.steps
    least = scored(candidates.task, candidates.tensors)["accuracy"] - points / 100
    low, high = -1, len(steps)  # `high` is good enough, `low` is not
    while high - low > 1:
        middle = (low + high) // 2
        good = scored(*candidates.after(steps[:middle]))["accuracy"] >= least - 1e-9
        low, high = (low, middle) if good else (middle, high)
    return steps[:high]


@dataclass(frozen=True)
class _Shrunk:
    """One task's smaller expert: as a bundle keeps it, and what became of it."""

    task: TaskEntry
    tensors: Tensors
    report: CompressedTask


def _shrunk(bundle: Bundle, setup: Setup, place: int, choose: Choice) -> _Shrunk:
    """The expert of the task at `place`, by the steps that `choose` keeps."""
    manifest = bundle.manifest
    task = manifest.tasks[place]
    tensors = bundle.expert(task.name)
    scored = partial(_validated, bundle, setup, place)
    candidates = candidates_of(task, tensors, manifest.layers, manifest.factorisation)
    kept = choose(candidates, scored)
    entry, smaller = candidates.after(kept)
    before, after = scored(task, tensors), scored(entry, smaller)
    report = candidates.report(kept, entry, smaller, validation_before=before, validation=after)
    return _Shrunk(entry, smaller, report)


def _all_shrunk(
    bundle: Bundle, setup: Setup, choose: Choice, progress: Progress | None
) -> list[_Shrunk]:
    shrunk = []
    with bar(progress, "compressing", len(bundle.manifest.tasks)) as shown:
        for place, task in enumerate(bundle.manifest.tasks):
            shrunk.append(_shrunk(bundle, setup, place, choose))
            shown.advance(task=task.name)
    return shrunk


def _validated(
    bundle: Bundle, setup: Setup, place: int, task: TaskEntry, tensors: Tensors
) -> dict[str, float]:
    """Scores of one expert on its validation split, by the unfused network."""
    model = restored(bundle.manifest, [task], bundle.base, {task.name: tensors})
    images = setup.val[place]
    return score(images.labels, task_logits(model, images, 0, setup.preprocess), task.kind)


def _write(
    source: Run, bundle: Bundle, new: Run, *, setup: Setup, rule: str, shrunk: Sequence[_Shrunk]
) -> Compression:
    experts = {one.task.name: one.tensors for one in shrunk}
    model = restored(bundle.manifest, [one.task for one in shrunk], bundle.base, experts)
    safe = make_safe(setup, model, tuple(one.task.safety for one in shrunk))
    experts = {
        name: {**tensors, **head_tensors(model.heads.head(place))}
        for place, (name, tensors) in enumerate(experts.items())
    }
    tested = scores(model, setup.test, setup.kinds, setup.preprocess)
    tasks = [
        one.task.model_copy(
            update={"metrics": {**one.task.metrics, "expert": of_task}, "safety": of_safety.entry}
        )
        for one, of_task, of_safety in zip(shrunk, tested, safe, strict=True)
    ]
    maps = bundle.manifest.graph.maps is not None
    inputs = known_inputs(bundle)
    logits = reference_logits(setup, model, inputs, guards=guards(safe), maps=maps)
    for part in ("teacher", "history"):
        if (source.path / part).is_dir() and source.path != source.bundle:
            carry_over(source.path / part, new.path / part)
    written = write_compressed(
        bundle,
        new.bundle,
        tasks=tasks,
        experts=experts,
        logits=logits,
        safety=safety_tensors(setup, safe),
        rule=rule,
    )
    return Compression(
        run=str(new.path),
        bundle=str(written.path),
        rule=rule,
        compressed_from=bundle.sha256,
        tasks=tuple(one.report for one in shrunk),
    )
