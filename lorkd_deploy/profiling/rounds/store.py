"""Rounds that are done are kept below RUN/profile/rounds until it has ended, for `--resume`.

rounds/plan.json                    what is measured, and how
rounds/ROUND/ENGINE/calls.safetensors, round.json (written last: the round is whole)
"""

from __future__ import annotations

import dataclasses
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lorkd_deploy._version import __version__
from lorkd_deploy.deploy.artifact import Artifact
from lorkd_deploy.errors import LorkdError, UsageError
from lorkd_deploy.profiling.conditions import Conditions
from lorkd_deploy.profiling.planning.protocol import Protocol
from lorkd_deploy.profiling.rounds.round import Round
from lorkd_deploy.profiling.timing import RoundCalls
from lorkd_deploy.schema import document_bytes, read_document
from lorkd_deploy.storage import (
    read_tensors,
    write_atomic,
    write_tensors,
)

ROUNDS_FOLDER = "rounds"  # below RUN/profile
PLAN = "plan.json"
_CALLS = "calls.safetensors"
_ROUND = "round.json"
AFRESH = "leave out --resume to measure afresh"
log = logging.getLogger(__name__)


class KeptRounds:
    """The rounds of one benchmark on disk; `protocol` is what they are measured by, `machine` on
    what (`environment.identity`).

    With `resume` those that an earlier process left are taken over; raises `UsageError` where that
    was another benchmark, with what differs. Without it, earlier rounds are dropped.
    """

    def __init__(
        self,
        folder: Path,
        protocol: Protocol,
        engines: Sequence[Artifact],
        machine: dict[str, Any],
        *,
        resume: bool,
    ) -> None:
        self.folder, self.protocol = folder, protocol
        plan = _plan(protocol, engines) | {"machine": machine}
        stopped = (folder / PLAN).is_file()
        if stopped and resume:
            known = read_document(folder / PLAN, LorkdError, AFRESH)
            _check_same(plan, known, folder)
            self.protocol = protocol.model_copy(update={"best_batches": known["best_batches"]})
            return
        if stopped:
            log.info("the rounds of a benchmark that was stopped are dropped (no --resume)")
            shutil.rmtree(folder)
        elif resume:
            log.info("there is no stopped benchmark here: this one starts from its first round")
        self._write_plan(plan)

    def decide(self, best_batches: dict[str, int]) -> Protocol:
        """Keep which batch of each engine is measured as its best one."""
        self.protocol = self.protocol.model_copy(update={"best_batches": best_batches})
        plan = read_document(self.folder / PLAN, LorkdError, AFRESH)
        self._write_plan(plan | {"best_batches": best_batches})
        return self.protocol

    def load(self, number: int, engine: str) -> Round | None:
        """The round `number` of `engine`, or None where it isn't done."""
        folder = self._place(number, engine)
        if not (folder / _ROUND).is_file():
            return None
        facts = read_document(folder / _ROUND, LorkdError, AFRESH)
        calls = read_tensors(folder / _CALLS)
        batches = {
            int(size): RoundCalls(calls[size], **part)
            for size, part in facts.pop("batches").items()
        }
        facts["conditions"] = Conditions.model_validate(facts["conditions"])
        return Round(batches=batches, **facts)

    def save(self, number: int, engine: str, measured: Round) -> None:
        """Keep a round that is done."""
        folder = self._place(number, engine)
        fields = {f.name: getattr(measured, f.name) for f in dataclasses.fields(measured)}
        fields["conditions"] = measured.conditions.model_dump(mode="json")
        fields["batches"] = {
            str(size): {
                "peak": part.peak,
                "interruptions": part.interruptions,
                "settled": part.settled,
            }
            for size, part in measured.batches.items()
        }
        write_tensors(
            folder / _CALLS,
            {str(size): part.calls for size, part in measured.batches.items()},
            digest=True,
        )
        write_atomic(folder / _ROUND, document_bytes(fields))

    def drop(self) -> None:
        """Everything is in the profile now."""
        shutil.rmtree(self.folder)

    def _place(self, number: int, engine: str) -> Path:
        return self.folder / str(number) / engine

    def _write_plan(self, plan: dict[str, Any]) -> None:
        write_atomic(self.folder / PLAN, document_bytes(plan))


def _check_same(plan: dict[str, Any], known: dict[str, Any], folder: Path) -> None:
    """Raise `UsageError` where the benchmark that was stopped had another plan."""
    differ = [key for key in plan if key != "best_batches" and plan[key] != known.get(key)]
    if "machine" in differ:
        now, was = plan["machine"], known.get("machine") or {}
        parts = [key for key in now if now[key] != was.get(key)]
        differ[differ.index("machine")] = f"the machine ({', '.join(parts)})"
    if differ:
        raise UsageError(
            f"the benchmark that was stopped here was another one: {', '.join(differ)} differ",
            where=folder,
            fix="give the same options on the same machine and packages, or leave out --resume to "
            "measure afresh",
        )


def _plan(protocol: Protocol, engines: Sequence[Artifact]) -> dict[str, Any]:
    plan = protocol.model_dump(mode="json")
    plan["best_batches"] = {}  # not found yet; no part of what was asked for
    plan["version"] = __version__
    plan["engines"] = {e.name: [file.sha256 for file in e.files] for e in engines}
    return plan
