"""Every figure that is measured of an engine: its name, its unit, which way is better, where it is.

Assertions (`gates`), `lorkd compare`, the tables on the terminal, the report and the cards all read
these rows. To add a figure, add its field to the profile's schema and a row here.

    FIGURES              key, as `--assert` takes it → figure; all of those below
    OF_CALLS             of the calls at one batch size
    OF_ENGINE            of an engine: its start, energy, memory and size
    OF_ANSWERS           of the answers on a test split; `of` reads one from a score or a difference
    SUBGROUP_GAP         the largest gap in accuracy between patients of two kinds
    BESIDE_TEACHER       of an expert over the teacher
    measured(engine, profile, task)  → what all of them are read from
    figure.read(of)      Interval, Spread or number as the profile has it (a fraction, bytes)
    figure.value(of)     one number in `figure.unit` (points, MiB); None where not measured
    figure.rounds(of)    its value in each round; empty where it isn't kept, or has none
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from lorkd_deploy.metrics.interval import Interval
from lorkd_deploy.profiling.profile import (
    BatchRatio,
    Comparison,
    Difference,
    EngineProfile,
    Profile,
    Score,
)
from lorkd_deploy.profiling.resampling import Spread
from lorkd_deploy.profiling.timing import Timing

Value = Interval | Spread | float | None
MIB = 1 << 20
TEACHERS = "the foundation model's over the expert's"


@dataclass(frozen=True)
class Measured:
    """One engine at one batch size, its answers on one task, and what stands beside it.

    None is what wasn't measured; of a teacher's engine there is no `teacher` and no `difference`.
    """

    engine: EngineProfile
    timing: Timing
    score: Score | None = None
    teacher: EngineProfile | None = None
    comparison: Comparison | None = None
    difference: Difference | None = None

    def at(self, timing: Timing) -> Measured:
        """The same engine at another of its batch sizes."""
        return replace(self, timing=timing)

    @property
    def ratio(self) -> BatchRatio | None:
        """What `Comparison.ratio` is."""
        return self.comparison.ratio if self.comparison else None


def measured(engine: EngineProfile, profile: Profile, task: str | None = None) -> Measured:
    """`engine` of `profile` at its smallest batch; without a `task`, on the only one that it has.

    A teacher's engine of several tasks has no score unless one of them is named.
    """
    comparison = next((c for c in profile.comparisons if c.engine == engine.engine), None)
    name = task or (engine.tasks[0] if len(engine.tasks) == 1 else None)
    return Measured(
        engine,
        engine.latency,
        engine.score(name),
        profile.engine(comparison.teacher) if comparison else None,
        comparison,
        comparison.difference(name) if comparison else None,
    )


@dataclass(frozen=True)
class Figure:
    """`key` is its name in `--assert`; in `lorkd compare` it may have another, `name_in_compare`.

    `scale` makes `unit` of what `read` gives: 100 makes points of a fraction. It is shown with
    `decimals`, or with three significant figures where that is None. `title` heads its column and
    `hint` explains it there; a `brief` one is shown where there is little room, on the terminal.
    """

    key: str
    title: str
    unit: str
    read: Callable[[Measured], Value]
    more_is_better: bool = False
    scale: float = 1
    decimals: int | None = None
    hint: str = ""
    name_in_compare: str = ""
    brief: bool = False
    by_round: Callable[[Measured], Sequence[float]] | None = None

    @property
    def compared_as(self) -> str:
        """Its name in `lorkd compare`."""
        return self.name_in_compare or self.key

    def value(self, of: Measured) -> float | None:
        """The figure in `unit`: the median of a spread, an interval without its bounds."""
        return self.in_unit(self.read(of))

    def in_unit(self, found: Value) -> float | None:
        """What was read as one number in `unit`."""
        if isinstance(found, Interval):
            found = found.value
        elif isinstance(found, Spread):
            found = found.median
        return None if found is None else self.scale * found

    def rounds(self, of: Measured) -> Sequence[float]:
        """The figure in each round, as `read` has it; empty where it has none by round."""
        if self.by_round:
            return self.by_round(of)
        found = self.read(of)
        return found.rounds if isinstance(found, Spread) else ()


@dataclass(frozen=True)
class AnswersFigure(Figure):
    """A figure of the answers, whose `key` is its field in `Score` and in `Difference` too."""

    def of(self, values: Score | Difference | None) -> Interval | None:
        """It, or how it differs from the teacher's (expert minus teacher); None if undefined."""
        found: Interval | None = getattr(values, self.key, None)
        return found


def _of_answers(
    key: str, title: str, *, points: bool = True, more_is_better: bool = True, hint: str = ""
) -> AnswersFigure:
    return AnswersFigure(
        key,
        title,
        "%" if points else "",
        lambda m: getattr(m.score, key, None),
        more_is_better=more_is_better,
        scale=100 if points else 1,
        decimals=1 if points else 3,
        hint=hint,
    )


def _drop(figure: AnswersFigure) -> Figure:
    """How much of `figure` an expert has lost against the teacher."""
    return Figure(
        f"{figure.key}_drop",
        f"Drop in {figure.title if figure.title.isupper() else figure.title.lower()}",
        "points" if figure.scale == 100 else "",
        lambda m: figure.of(m.difference),
        scale=-figure.scale,
        decimals=figure.decimals,
        hint="foundation model minus expert",
    )


def _ratio_by_round(m: Measured) -> Sequence[float]:
    if m.teacher is None or m.ratio is None:
        return ()
    slow, fast = (
        next(timing.round_p50 for timing in engine.timings if timing.batch == m.ratio.batch)
        for engine in (m.teacher, m.engine)
    )
    return [teacher / expert for teacher, expert in zip(slow, fast, strict=True)]


P50 = Figure(
    "p50_ms",
    "p50",
    "ms",
    lambda m: m.timing.p50,
    hint="median, ms",
    by_round=lambda m: m.timing.round_p50,
    brief=True,
)
P90 = Figure(
    "p90_ms",
    "p90",
    "ms",
    lambda m: m.timing.p90,
    hint="ms",
    by_round=lambda m: m.timing.round_p90,
    brief=True,
)
P99 = Figure(
    "p99_ms",
    "p99",
    "ms",
    lambda m: m.timing.p99,
    hint="ms",
    by_round=lambda m: m.timing.round_p99,
    brief=True,
)
P99_9 = Figure("p99_9_ms", "p99.9", "ms", lambda m: m.timing.p99_9, hint="ms")
MEAN = Figure("mean_ms", "Mean", "ms", lambda m: m.timing.mean, hint="ms")
THROUGHPUT = Figure(
    "images_per_s",
    "Throughput",
    "/s",
    lambda m: m.timing.throughput,
    more_is_better=True,
    hint="images per second at the same batch",
    by_round=lambda m: m.timing.round_throughput,
    brief=True,
)
OF_CALLS = (P50, P90, P99, P99_9, MEAN, THROUGHPUT)

LOAD = Figure("load_ms", "Load", "ms", lambda m: m.engine.cold_start.load, brief=True)
FIRST = Figure(
    "first_inference_ms",
    "First answer",
    "ms",
    lambda m: m.engine.cold_start.first_inference,
    brief=True,
)
START = Figure(
    "start_ms",
    "From start",
    "ms",
    lambda m: m.engine.cold_start.process_to_first_answer,
    hint="start of the process to the first answer",
    name_in_compare="process_to_first_answer_ms",
)
UNCACHED_START = Figure(
    "uncached_start_ms",
    "From start, not cached",
    "ms",
    lambda m: m.engine.cold_start.uncached_process_to_first_answer,
    name_in_compare="uncached_process_to_first_answer_ms",
)
END_TO_END = Figure(
    "end_to_end_ms",
    "End to end",
    "ms",
    lambda m: m.engine.stages.end_to_end,
    hint="from an image's file to an answer",
)
LOADED = Figure("loaded_mib", "After load", "MiB", lambda m: m.engine.memory.loaded)
PEAK = Figure(
    "peak_mib",
    "Peak memory",
    "MiB",
    lambda m: m.engine.memory.peak,
    hint="over an empty process, median over rounds",
    brief=True,
)
GPU = Figure(
    "gpu_mib",
    "GPU memory",
    "MiB",
    lambda m: m.engine.memory.gpu,
    hint="of the process, after the smallest batch",
)
JOULES = Figure(
    "joules", "Energy", "J", lambda m: m.engine.joules, hint="per image, over the idle machine's"
)
SIZE = Figure(
    "size_mib",
    "File size",
    "MiB",
    lambda m: m.engine.bytes,
    scale=1 / MIB,
    hint="the engine's files, weights included",
    name_in_compare="size_bytes",
    brief=True,
)
OF_ENGINE = (LOAD, FIRST, START, UNCACHED_START, END_TO_END, LOADED, PEAK, GPU, JOULES, SIZE)

ACCURACY = _of_answers("accuracy", "Accuracy")
AUC = _of_answers("auc", "AUC", points=False)
OF_ANSWERS = (
    ACCURACY,
    AUC,
    _of_answers("balanced_accuracy", "Balanced accuracy", hint="mean recall of the classes"),
    _of_answers("sensitivity", "Sensitivity"),
    _of_answers("specificity", "Specificity"),
    _of_answers(
        "calibration_error",
        "Calibration error",
        more_is_better=False,
        hint="expected calibration error",
    ),
)

SUBGROUP_GAP = Figure(
    "subgroup_gap",
    "Gap between subgroups",
    "points",
    lambda m: max((gap.accuracy for gap in m.score.gaps), default=None) if m.score else None,
    scale=100,
    decimals=1,
    hint="largest difference in accuracy between two values of an attribute",
)

RATIO = Figure(
    "ratio_vs_teacher",
    "Speed-up",
    "×",
    lambda m: m.ratio.ratio if m.ratio else None,
    more_is_better=True,
    hint="foundation model's median over the expert's",
    by_round=_ratio_by_round,
)
MEMORY_RATIO = Figure(
    "memory_vs_teacher",
    "Less memory",
    "×",
    lambda m: m.comparison.memory if m.comparison else None,
    more_is_better=True,
    hint=TEACHERS,
)
SIZE_RATIO = Figure(
    "size_vs_teacher",
    "Smaller files",
    "×",
    lambda m: m.comparison.size if m.comparison else None,
    more_is_better=True,
    hint=TEACHERS,
)
ACCURACY_DROP, AUC_DROP = _drop(ACCURACY), _drop(AUC)
BESIDE_TEACHER = (ACCURACY_DROP, AUC_DROP, RATIO, MEMORY_RATIO, SIZE_RATIO)

FIGURES: dict[str, Figure] = {
    figure.key: figure
    for figure in (*OF_CALLS, *OF_ENGINE, *OF_ANSWERS, SUBGROUP_GAP, *BESIDE_TEACHER)
}
