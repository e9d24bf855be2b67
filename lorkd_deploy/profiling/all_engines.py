"""What the engines of all departments take on one machine, beside the sum of each alone."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import ExitStack

from lorkd_deploy.deploy.artifact import Artifact
from lorkd_deploy.profiling.process import EngineProcess, WorkerError
from lorkd_deploy.profiling.profile import Protocol, Together
from lorkd_deploy.profiling.selection import is_teacher

log = logging.getLogger(__name__)


def together(
    engines: Sequence[Artifact], protocol: Protocol
) -> tuple[tuple[Together, ...], list[str]]:
    """For each target and precision of at least two experts: in a process each, all at once, and
    all in one process; each has answered one image. What failed (many engines at once may not fit
    into memory) is no reason to lose what was measured before: a sentence each, for the notes.
    """
    groups: dict[tuple[str, str], list[Artifact]] = {}
    for engine in engines:
        if not is_teacher(engine):
            groups.setdefault((engine.target, engine.precision), []).append(engine)
    found, failed = [], []
    for (target, precision), group in groups.items():
        if len(group) > 1:
            try:
                found.append(_group(target, precision, group, protocol))
            except WorkerError as exc:
                log.warning("%s", exc)
                failed.append(
                    f"what all {len(group)} experts of {target} {precision} take on one machine "
                    "was not measured: an engine failed while the others were open"
                )
    return tuple(found), failed


def _group(target: str, precision: str, group: Sequence[Artifact], protocol: Protocol) -> Together:
    image = [1, *protocol.input_shape]
    with ExitStack() as stack:
        processes = [
            stack.enter_context(EngineProcess(engine, protocol.threads, protocol.cpus))
            for engine in group
        ]
        for process in processes:
            process.open()
            process.ask("first", shape=image, seed=protocol.seed)
        apart = [process.ask("memory")[0] for process in processes]
    with EngineProcess(group[0], protocol.threads, protocol.cpus) as process:
        empty = process.open()["empty"]
        process.ask("first", shape=image, seed=protocol.seed)
        first = process.ask("memory")[0]["resident"]
        for engine in group[1:]:
            process.open(engine)
            process.ask("first", shape=image, seed=protocol.seed)
        one = process.ask("memory")[0]["resident"]
    return Together(
        target=target,
        precision=precision,
        engines=tuple(engine.name for engine in group),
        bytes=sum(engine.bytes for engine in group),
        apart=_sum([entry["resident"] for entry in apart]),
        apart_shared=_sum([entry["proportional"] for entry in apart]),
        one_process=one,
        one_engine=first,
        empty=empty,
    )


def _sum(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None
