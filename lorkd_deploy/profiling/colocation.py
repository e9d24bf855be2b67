"""What the engines of all departments take, co-located on one machine, beside each alone."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import ExitStack

from lorkd_deploy.deploy.artifact import Artifact
from lorkd_deploy.machine.memory import process_memory
from lorkd_deploy.profiling.planning.protocol import Protocol
from lorkd_deploy.profiling.planning.selection import is_teacher
from lorkd_deploy.profiling.worker.process import EngineProcess, WorkerError
from lorkd_deploy.schema import Part

log = logging.getLogger(__name__)


class Colocation(Part):
    """Experts of one target and precision on one machine, MiB, each after its first answer.

    `apart` is the sum of their resident memory in processes of their own, all at once, and
    `apart_shared` the sum of their proportional set sizes, where what they share (libraries, above
    all) counts once: that is what they take of the machine. `one_process` is the resident memory
    of a single process that has opened all of them, `one_engine` that of the same process with the
    first one only, `empty` that before any. None: the kernel doesn't tell. `bytes` is their size on
    disk.
    """

    target: str
    precision: str
    engines: tuple[str, ...]
    bytes: int
    apart: float | None
    apart_shared: float | None
    one_process: float | None
    one_engine: float | None
    empty: float | None


def colocated(
    engines: Sequence[Artifact], protocol: Protocol
) -> tuple[tuple[Colocation, ...], list[str]]:
    """For each target and precision of at least two experts: in processes of their own, all at
    once, and all in one process; each has answered one image. What failed (many engines at once may
    not fit into memory) is no reason to lose what was measured before: one sentence each, for the
    notes.
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


def _group(
    target: str, precision: str, group: Sequence[Artifact], protocol: Protocol
) -> Colocation:
    with ExitStack() as stack:
        processes = [
            stack.enter_context(EngineProcess(engine, protocol.threads, protocol.cpus))
            for engine in group
        ]
        for process in processes:
            process.open()
            process.ask("first", shape=[1, *process.engine.input_shape], seed=protocol.seed)
        apart = [process_memory(process.pid) for process in processes]
    with EngineProcess(group[0], protocol.threads, protocol.cpus) as process:
        empty = process.open()["empty"]
        process.ask("first", shape=[1, *group[0].input_shape], seed=protocol.seed)
        first = process_memory(process.pid).resident
        for engine in group[1:]:
            process.open(engine)
            process.ask("first", shape=[1, *engine.input_shape], seed=protocol.seed)
        one = process_memory(process.pid).resident
    return Colocation(
        target=target,
        precision=precision,
        engines=tuple(engine.name for engine in group),
        bytes=sum(engine.bytes for engine in group),
        apart=_sum([entry.resident for entry in apart]),
        apart_shared=_sum([entry.proportional for entry in apart]),
        one_process=one,
        one_engine=first,
        empty=empty,
    )


def _sum(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None
