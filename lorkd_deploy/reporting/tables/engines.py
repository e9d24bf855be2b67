"""The tables of the report, from what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from lorkd_deploy.bundle.manifest import TaskEntry
from lorkd_deploy.profiling.profile import BatchRatio, EngineProfile, Score
from lorkd_deploy.profiling.timing import Timing
from lorkd_deploy.reporting.cells import (
    FOUNDATION,
    UNMEASURED,
    MiB,
    area,
    between,
    mebibytes,
    number,
    percent,
    points,
    significant,
    spread,
    tail,
    words,
)
from lorkd_deploy.reporting.shown_engine import RULE, chosen, fault
from lorkd_deploy.reporting.sources import Pair, Sources
from lorkd_deploy.reporting.table import Cell, Column, Table, Tone

LATENCY = (
    "Times are in ms, over every call of every round, none trimmed; the 95 % interval is in small "
    "print. Memory is resident memory over an empty process."
)
PEAK = "over an empty process, smaller batches having run before; median over rounds"
BESIDE = (
    "In small print the foundation model, or the 95 % interval; latency is the median at the "
    "smallest batch."
)
ACCURACY = (
    "Accuracy is that of every test image through the engine, with its 95 % bootstrap interval; "
    "beside it stands the same split through the unfused torch model, before any export."
)


def summary(sources: Sources) -> Table:
    """A row for each task: the engine that `chosen` picks beside the foundation model."""
    several = len({pair.target for pair in sources.pairs()}) > 1
    caption = f"{BESIDE} {RULE}" if several else BESIDE
    title = "Every department beside the foundation model"
    return _beside_teacher(
        chosen(sources), sources, "summary-table", title, caption, several=several
    )


def every_engine(sources: Sources, department: str, key: str) -> Table | None:
    """The same of all engines of a department; None where the summary shows them already."""
    pairs = sources.pairs(department)
    if len(pairs) == len({pair.task.name for pair in pairs}):
        return None
    title = "Every engine beside the foundation model"
    return _beside_teacher(pairs, sources, key, title, BESIDE, several=True)


def _beside_teacher(
    pairs: Sequence[Pair], sources: Sources, key: str, title: str, caption: str, *, several: bool
) -> Table:
    """Size, latency, speed-up, accuracy and AUC, a row an engine; `several` names the engines."""
    columns = [
        Column("department", "Department", numeric=False),
        *([Column("engine", "Engine", numeric=False)] if several else []),
        Column("size_bytes", "Engine size"),
        Column("p50_ms", "Latency", hint="median of one image, ms"),
        Column("speed_up", "Speed-up", hint="foundation model's median over the expert's"),
        Column("accuracy", "Accuracy"),
        Column("accuracy_difference", "Difference", hint="expert minus foundation model"),
        Column("auc", "AUC"),
        Column("auc_difference", "Difference in AUC", hint="expert minus foundation model"),
    ]
    rows = []
    for pair in pairs:
        cells = [words(pair.task.department, note=_beside(pair))]
        if several:
            cells.append(_target(pair, sources))
        rows.append((*cells, *_speed(pair), *_quality(pair)))
    return Table(key, title, caption, tuple(columns), tuple(rows))


def _target(pair: Pair, sources: Sources) -> Cell:
    """The engine's target and precision, and why it isn't accepted where it is not."""
    if not pair.target:
        return words(UNMEASURED, tone="quiet")
    own = [p for p in sources.pairs(pair.task.department) if p.task.name == pair.task.name]
    return words(pair.target, note=fault(pair, own) if pair.expert else "")


def _beside(pair: Pair) -> str:
    return "" if pair.task.name == pair.task.department else pair.task.name


def _speed(pair: Pair) -> tuple[Cell, ...]:
    expert, teacher = pair.expert, pair.teacher
    if expert is None:
        return mebibytes(pair.bytes), number(None), number(None)
    of_teacher = f"of {significant(teacher.bytes / MiB)} MiB" if teacher else ""
    latency = number(
        expert.latency.p50.value,
        unit="ms",
        note=f"of {significant(teacher.latency.p50.value)} ms" if teacher else "",
    )
    return mebibytes(expert.bytes, note=of_teacher), latency, times(pair)


def times(pair: Pair) -> Cell:
    """The speed-up with its interval and, where the interval doesn't show one, that it doesn't."""
    ratio = pair.ratio
    if ratio is None:
        return number(None)
    note = between(ratio.ratio)
    if ratio.verdict != "faster":
        note += f"; {ratio.verdict}"
    tones: dict[str, Tone] = {"faster": "good", "slower": "bad"}
    cell = number(ratio.ratio.value, unit="×", note=note)
    return replace(cell, tone=tones.get(ratio.verdict, ""))


def _quality(pair: Pair) -> tuple[Cell, ...]:
    expert, teacher = pair.score(pair.expert), pair.score(pair.teacher)
    difference = pair.difference
    gain: Tone = "" if pair.weak_teacher else "good"
    return (
        percent(expert.accuracy if expert else None, teacher.accuracy if teacher else None),
        points(difference.accuracy if difference else None, gain=gain),
        area(expert.auc if expert else None, teacher.auc if teacher else None),
        points(difference.auc if difference else None, scale=1, unit="", gain=gain),
    )


def engines(sources: Sources, department: str, key: str) -> Table:
    """Latency, memory and size of a department's engines and of the teacher's."""
    columns: tuple[Column, ...] = (
        Column("engine", "Engine", numeric=False),
        Column("p50_ms", "p50", hint="median, ms"),
        Column("p90_ms", "p90", hint="ms"),
        Column("p99_ms", "p99", hint="ms"),
        Column("p99_9_ms", "p99.9", hint="ms"),
        Column("mean_ms", "Mean", hint="ms"),
        Column("images_per_s", "Throughput", hint="images per second at the same batch"),
        Column("peak_mib", "Peak memory", hint="over an empty process, median over rounds"),
        Column("size_bytes", "File size"),
    )
    listed = of_department(sources, department)
    rows = [_engine_row(engine) for engine in listed]
    if any(engine.joules for engine in listed):
        columns += (Column("joules", "Energy", hint="an image, over the idle machine's"),)
        rows = [
            (*row, spread(engine.joules, "J")) for row, engine in zip(rows, listed, strict=True)
        ]
    return Table(
        key,
        "Latency, memory and size",
        "",
        columns,
        tuple(rows),
    )


def of_department(sources: Sources, department: str) -> list[EngineProfile]:
    """The teacher's engines, then the department's, each once."""
    pairs = sources.pairs(department)
    teachers = {p.teacher.engine: p.teacher for p in pairs if p.teacher}
    experts = {p.expert.engine: p.expert for p in pairs if p.expert}
    return [*teachers.values(), *experts.values()]


def engine_name(engine: EngineProfile) -> str:
    """What a reader calls the engine."""
    if engine.kind == "teacher":
        return FOUNDATION
    return "Expert " + ", ".join(engine.tasks)


def _engine_row(engine: EngineProfile) -> tuple[Cell, ...]:
    timing = engine.latency
    return (
        words(engine_name(engine), note=f"{engine.target} {engine.precision}"),
        number(timing.p50.value, note=between(timing.p50)),
        number(timing.p90),
        tail(timing.p99),
        tail(timing.p99_9),
        number(timing.mean),
        number(timing.throughput.value, unit="/s", note=between(timing.throughput)),
        spread(engine.memory.peak, "MiB"),
        mebibytes(engine.bytes),
    )


def batches(sources: Sources, department: str, key: str) -> Table | None:
    """Each batch size of each engine; None where only one was measured."""
    listed = of_department(sources, department)
    if max((len(engine.timings) for engine in listed), default=0) < 2:
        return None
    known = any(timing.peak_mib is not None for engine in listed for timing in engine.timings)
    columns = (
        Column("engine", "Engine", numeric=False),
        Column("batch", "Batch"),
        Column("p50_ms", "p50", hint="ms a batch"),
        Column("p99_ms", "p99", hint="ms a batch"),
        Column("images_per_s", "Throughput"),
        *([Column("peak_mib", "Peak memory", hint=PEAK)] if known else []),
        Column("speed_up", "Speed-up", hint="foundation model's median over the expert's"),
        Column("verdict", "Verdict", numeric=False),
    )
    pairs = [pair.comparison for pair in sources.pairs(department) if pair.comparison]
    ratios = {(pair.engine, entry.batch): entry for pair in pairs for entry in pair.latency}
    rows = []
    for engine in listed:
        for timing in engine.timings:
            ratio = ratios.get((engine.engine, timing.batch))
            peak = (number(timing.peak_mib, unit="MiB"),) if known else ()
            rows.append((*_batch_row(engine, timing), *peak, *_verdict(engine, ratio)))
    at_best = [
        f"{pair.engine} {significant(pair.throughput.value)} × ({between(pair.throughput)})"
        for pair in pairs
        if pair.throughput
    ]
    return Table(
        key,
        "Throughput by batch size",
        "Images a second over the foundation model's, each at its own best batch: "
        f"{', '.join(at_best)}."
        if at_best
        else "",
        columns,
        tuple(rows),
    )


def _batch_row(engine: EngineProfile, timing: Timing) -> tuple[Cell, ...]:
    return (
        words(engine_name(engine), note=f"{engine.target} {engine.precision}"),
        number(timing.batch, note="its best" if timing.batch == engine.best_batch else ""),
        number(timing.p50.value, note=between(timing.p50)),
        tail(timing.p99),
        number(timing.throughput.value, unit="/s", note=between(timing.throughput)),
    )


def _verdict(engine: EngineProfile, ratio: BatchRatio | None) -> tuple[Cell, Cell]:
    if ratio:
        return (
            number(ratio.ratio.value, unit="×", note=between(ratio.ratio)),
            words(ratio.verdict),
        )
    if engine.kind == "teacher":
        return Cell("1", 1.0, "the reference", "quiet"), Cell("–", "", tone="quiet")
    return number(None), Cell(UNMEASURED, tone="quiet")


def accuracy(sources: Sources, department: str, key: str) -> Table:
    """Accuracy and AUC a task: through the engines, and of the torch models before export."""
    columns = (
        Column("task", "Task", numeric=False),
        Column("model", "Model", numeric=False),
        Column("test_images", "Test images"),
        Column("accuracy", "Accuracy"),
        Column("auc", "AUC"),
        Column("majority", "Majority class", hint="accuracy of always giving the commonest class"),
        Column("accuracy_before_export", "Accuracy before export", hint="the unfused torch model"),
        Column("auc_before_export", "AUC before export", hint="the unfused torch model"),
    )
    rows = []
    for task in (t for t in sources.manifest.tasks if t.department == department):
        pairs = [p for p in sources.pairs(department) if p.task.name == task.name]
        # Several targets may share one engine of the teacher, or have none.
        teachers = {p.teacher.engine: p.teacher for p in pairs if p.teacher}
        experts = {p.expert.engine: p.expert for p in pairs if p.expert}
        for model, found in (("teacher", teachers), ("expert", experts)):
            listed: list[EngineProfile | None] = [*found.values()] or [None]
            rows += [_accuracy_row(task, model, engine) for engine in listed]
    return Table(
        key,
        "Accuracy on the test split",
        "",
        columns,
        tuple(rows),
    )


def _accuracy_row(task: TaskEntry, model: str, engine: EngineProfile | None) -> tuple[Cell, ...]:
    before = task.metrics.get(model, {})
    name = FOUNDATION if model == "teacher" else "Expert"
    return (
        words(task.name),
        words(name, note=f"{engine.target} {engine.precision}" if engine else ""),
        *_score_cells(Pair(task).score(engine)),
        _before(before.get("accuracy"), "{:.1%}"),
        _before(before.get("auc"), "{:.3f}"),
    )


def _before(value: float | None, form: str) -> Cell:
    if value is None:
        return number(None)
    return Cell(form.format(value).replace("%", " %"), value)


def _score_cells(score: Score | None) -> tuple[Cell, ...]:
    if score is None:
        return number(None), number(None), number(None), number(None)
    wide = score.accuracy
    auc = number(None)
    if score.auc:
        auc = Cell(
            f"{score.auc.value:.3f}",
            score.auc.value,
            f"{score.auc.low:.3f} to {score.auc.high:.3f}",
        )
    return (
        Cell(f"{score.images:,}", score.images),
        Cell(
            f"{100 * wide.value:.1f} %",
            wide.value,
            f"{100 * wide.low:.1f} to {100 * wide.high:.1f} %",
        ),
        auc,
        Cell(f"{100 * score.majority:.1f} %", score.majority),
    )
