"""What stands around the first table: the finding in a line and a sentence, and of what it is."""

from __future__ import annotations

from collections import Counter

from lorkd_deploy.reporting.facts.shown_engine import chosen
from lorkd_deploy.reporting.facts.sources import Sources
from lorkd_deploy.reporting.facts.verdicts import (
    BETTER,
    NO_WORSE,
    NOT_SHOWN,
    WORSE,
    margin,
    verdict,
)
from lorkd_deploy.reporting.words import count, extent, spelled


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
    ratios = [pair.ratio for pair in pairs if pair.ratio]
    if ratios and len(ratios) == len(pairs) and all(r.verdict == "faster" for r in ratios):
        span = extent([r.ratio.value for r in ratios], 2)
        return f"{departments}, each on engines {span} times as fast as the foundation model"
    if sources.teachers():
        return f"{departments} beside the foundation model"
    if sources.profile:
        return f"{departments}, measured without the foundation model"
    if sources.scenarios:
        return f"{departments}, measured by MLPerf's scenarios alone"
    return f"{departments}, not benchmarked yet"


def lead(sources: Sources) -> str:
    """`On these test images one expert is better than the foundation model, two are no worse within
    2 points; of one expert neither is shown.`"""
    points = margin(sources)
    words = Counter(verdict(pair, points).word for pair in chosen(sources))
    said: list[str] = []
    for word in (BETTER, NO_WORSE.format(margin=points), WORSE):
        if number := words[word]:
            who = spelled(number) if said else count(number, "expert")
            said.append(f"{who} {'is' if number == 1 else 'are'} {word} the foundation model")
    parts = [", ".join(said)] if said else []
    if unsure := words[NOT_SHOWN]:
        parts.append(
            f"of {count(unsure, 'expert')} neither is shown"
            if said
            else "it isn't shown whether the experts are as good as the foundation model"
        )
    return f"On these test images {'; '.join(parts)}." if parts else ""


def decomposed(sources: Sources) -> str:
    """What was decomposed into what, and how fast both answer."""
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
    return architecture.partition(":")[2].replace(":", ", ")


def _several(sources: Sources) -> bool:
    """Whether more engines were measured than the first screen shows."""
    return len(sources.pairs()) > len(sources.manifest.tasks)
