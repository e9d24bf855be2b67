"""What stands on the first screen: the finding in a line, in a sentence and in four figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lorkd_deploy.metrics.interval import Interval
from lorkd_deploy.profiling.figures import ACCURACY, AUC, MIB, Figure
from lorkd_deploy.reporting.cells import UNMEASURED, signed
from lorkd_deploy.reporting.shown_engine import chosen
from lorkd_deploy.reporting.sources import Pair, Sources
from lorkd_deploy.reporting.words import count, extent


@dataclass(frozen=True)
class Tile:
    """One of the figures that stand large on the first screen; `value` None: not measured."""

    title: str
    value: str | None
    note: str

    @property
    def shown(self) -> str:
        """The value, or that it was not measured."""
        return UNMEASURED if self.value is None else self.value


def dateline(sources: Sources) -> str:
    """What was measured, when and on what processor."""
    if sources.profile:
        day, cpu = sources.profile.created[:10], sources.profile.environment.cpu
    elif sources.scenarios:
        day = max(entry.measured for entry in sources.scenarios.runs)[:10]
        cpu = sources.scenarios.environment.cpu
    else:
        return sources.manifest.name
    return f"{sources.manifest.name} · measured {day} on {cpu}"


def title(sources: Sources) -> str:
    """The finding in one line; a speed-up only where every interval shows one."""
    departments = count(len(sources.manifest.departments), "department").capitalize()
    pairs = chosen(sources)
    ratios = _speed_ups(pairs)
    if (
        ratios
        and len(ratios) == len(pairs)
        and all(p.ratio.verdict == "faster" for p in pairs if p.ratio)
    ):
        span = extent([ratio.value for ratio in ratios], 2)
        return f"{departments}, each on engines {span} times as fast as the foundation model"
    if sources.teachers():
        return f"{departments} beside the foundation model"
    if sources.profile:
        return f"{departments}, measured without the foundation model"
    if sources.scenarios:
        return f"{departments}, measured by MLPerf's scenarios alone"
    return f"{departments}, not benchmarked yet"


def lead(sources: Sources) -> str:
    """What was decomposed into what, in a sentence or two."""
    manifest = sources.manifest
    teacher = _short(sources.teacher.manifest.architecture) if sources.teacher else None
    experts = count(len(manifest.tasks), "expert")
    what = f"The foundation model{f' ({teacher})' if teacher else ''}"
    text = f"{what} was decomposed into one shared {_short(manifest.architecture)} and {experts}"
    ranks = sorted({task.rank for task in manifest.tasks if task.rank})
    if ranks:
        text += f" of rank {ranks[0]}" + (f" to {ranks[-1]}" if len(ranks) > 1 else "")
    text += ", each fused into an engine of its own."
    pairs = [p for p in chosen(sources) if p.expert and p.teacher]
    if pairs:
        own = extent([p.expert.latency.p50.value for p in pairs if p.expert])
        theirs = extent([p.teacher.latency.p50.value for p in pairs if p.teacher])
        which = "Each task's engine below" if _several(sources) else "An engine"
        text += f" {which} answers in {own} ms, the foundation model in {theirs} ms."
    return text


def _short(architecture: str) -> str:
    """`torchvision:resnet50` as a reader calls it."""
    return architecture.rpartition(":")[2]


def tiles(sources: Sources) -> tuple[Tile, ...]:
    """The four figures of the first screen."""
    pairs = chosen(sources)
    experts = [p.expert for p in sources.pairs() if p.expert]
    teachers = [p.teacher for p in pairs if p.teacher] or sources.teachers()
    sizes = [p.bytes / MIB for p in pairs if p.bytes is not None]
    of_teacher = f"{extent([t.bytes / MIB for t in teachers])} MiB" if teachers else "unknown"
    ratios = [ratio.value for ratio in _speed_ups(pairs)]
    tasks = count(len(sources.manifest.tasks), "task")
    return (
        Tile(
            "Departments",
            str(len(sources.manifest.departments)),
            f"{tasks}, {count(len(experts), 'engine')} measured",
        ),
        Tile(
            "Engine size",
            f"{extent(sizes, 2)} MiB" if sizes else None,
            f"foundation model {of_teacher}",
        ),
        Tile("Speed-up", f"{extent(ratios, 2)} ×" if ratios else None, _of_speed_up(sources)),
        Tile("Accuracy difference", *_accuracy_difference(pairs)),
    )


def _speed_ups(pairs: Sequence[Pair]) -> list[Interval]:
    """Teacher's median over the expert's of every engine where both were measured."""
    return [pair.ratio.ratio for pair in pairs if pair.ratio]


def _several(sources: Sources) -> bool:
    """Whether more engines were measured than the first screen shows."""
    return len(sources.pairs()) > len(sources.manifest.tasks)


def _of_speed_up(sources: Sources) -> str:
    """What the speed-up is; beside it that of every engine, where those shown were picked for being
    fast."""
    ratios = [ratio.value for ratio in _speed_ups(sources.pairs())]
    if not _several(sources) or not ratios:
        return "median latency, against the foundation model"
    return f"median latency, of the engines below; of all {extent(ratios, 2)} ×"


def _accuracy_difference(pairs: Sequence[Pair]) -> tuple[str | None, str]:
    """The least and the greatest difference in points, and below it those in AUC."""
    compared = [pair.difference for pair in pairs if pair.difference]
    if not compared:
        return None, "against the foundation model"
    areas = [entry.auc.value for entry in compared if entry.auc]
    note = f"points; AUC {_signed_extent(AUC, areas)}" if areas else "points"
    if weak := sorted({pair.task.name for pair in pairs if pair.weak_teacher}):
        note += f"; see the note on {', '.join(weak)}"
    return _signed_extent(ACCURACY, [entry.accuracy.value for entry in compared]), note


def _signed_extent(figure: Figure, values: Sequence[float]) -> str:
    ends = (min(values), max(values))
    low, high = (signed(figure.scale * value, figure.decimals or 0) for value in ends)
    return low if low == high else f"{low} to {high}"
