"""What a reader has to know before believing the figures, one sentence each; in the profile."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lorkd_deploy.bundle.manifest import TaskEntry
from lorkd_deploy.deploy.artifact import Artifact
from lorkd_deploy.machine.environment import Environment, disturbances
from lorkd_deploy.profiling.planning.protocol import Protocol
from lorkd_deploy.profiling.planning.selection import is_teacher, teacher_for
from lorkd_deploy.profiling.profile import EngineProfile
from lorkd_deploy.profiling.resampling import LEAST_ROUNDS

CLOCK_DRIFT = 0.9  # the slowest round's clock below this share of the fastest's is said


def unscored(tasks: Sequence[TaskEntry]) -> Iterator[str]:
    """That these tasks' test images could not be opened."""
    if tasks:
        yield (
            f"speed only, no accuracy, of {', '.join(task.name for task in tasks)}: the test "
            "images could not be opened on this machine, or are not those that the bundle was made "
            "with"
        )


def notes_of(
    engines: Sequence[Artifact],
    profiles: Sequence[EngineProfile],
    protocol: Protocol,
    machine: Environment,
    resumed: int,
) -> Iterator[str]:
    """Everything else: too few rounds, disturbances, a benchmark that was stopped, battery."""
    if protocol.quick:
        yield (
            f"a quick run ({protocol.rounds} rounds of {protocol.seconds:g} s): it does not "
            "conform to the protocol, and no figure of time in it is one to be quoted"
        )
    if protocol.rounds < LEAST_ROUNDS:
        yield (
            f"{protocol.rounds} rounds are too few for an interval: no difference is claimed below "
            f"{LEAST_ROUNDS}, whose interval covers 94 %"
        )
    apart: dict[str, list[str]] = {}
    for expert in engines:
        beside = teacher_for(expert, engines)
        like = beside and (beside.target, beside.precision) == (expert.target, expert.precision)
        if beside and not like and not is_teacher(expert):
            apart.setdefault(beside.name, []).append(expert.name)
    for name, experts in apart.items():
        yield f"compared with {name}, as there is no closer one: {', '.join(experts)}"
    if resumed:
        yield (
            f"the benchmark was stopped and resumed: {resumed} of "
            f"{protocol.rounds * len(engines)} engine rounds were measured before that"
        )
    yield from _rounds(profiles, protocol)
    yield from state_of(machine, protocol)


def state_of(machine: Environment, protocol: Protocol) -> Iterator[str]:
    """What of the machine's state may have disturbed any figure."""
    if protocol.cpus is None:
        yield "processes can't be pinned to CPUs on this system"
    if machine.load is not None:
        yield from disturbances(machine, machine.load, protocol.threads)


def _rounds(profiles: Sequence[EngineProfile], protocol: Protocol) -> Iterator[str]:
    """Rounds that were repeated or stayed disturbed, and clocks that changed between rounds."""
    states = [state for profile in profiles for state in profile.conditions]
    repeated = sum(state.attempts > 1 for state in states)
    still = sum(state.disturbed for state in states)
    if still and not protocol.repeats:
        yield f"{still} of {len(states)} engine rounds were disturbed, and none was repeated"
    elif repeated or still:
        yield (
            f"of {len(states)} engine rounds {repeated} were repeated, at most {protocol.repeats} "
            f"times each, and {still} of those kept were still disturbed"
        )
    timings = [timing for profile in profiles for timing in profile.timings]
    if unsettled := sum(timing.unsettled for timing in timings):
        yield (
            f"{unsettled} of {len(timings) * protocol.rounds} warm-ups were given up before the "
            "median had settled"
        )
    if hot := sum(bool(state.slowdowns) for state in states):
        yield f"a CPU slowed itself down for heat in {hot} of {len(states)} engine rounds"
    for why in sorted({state.gpu_slowed for state in states if state.gpu_slowed}):
        count = sum(state.gpu_slowed == why for state in states)
        yield f"the GPU was slowed by {why} in {count} of {len(states)} engine rounds"
    clocks = [state.mhz for state in states if state.mhz]
    if clocks and min(clocks) < CLOCK_DRIFT * max(clocks):
        yield (
            f"the CPU's lowest clock of a round was between {min(clocks):.0f} and "
            f"{max(clocks):.0f} MHz: it was throttled, or not yet up"
        )
