"""Beyond which bounds a round is disturbed, in words: the profile and the report say these."""

from __future__ import annotations

from lorkd_deploy.profiling.profile import Protocol


def bounds(protocol: Protocol) -> str:
    """What disturbs a round, as `conditions` judges it; nothing where rounds were not watched."""
    if protocol.most_others is None or protocol.most_throttled is None:
        return ""
    found = [
        f"other processes took more than {100 * protocol.most_others:g} % of the engine's CPUs",
        f"a CPU limit stopped it for more than {100 * protocol.most_throttled:g} % of the time",
        *_slower(protocol),
        "a CPU slowed itself down for heat",
        "the GPU was slowed (by heat or a cap on its power)",
    ]
    return f"{', '.join(found[:-1])}, or {found[-1]}"


def _slower(protocol: Protocol) -> tuple[str, ...]:
    if protocol.most_slower is None:  # a profile from before the machine's pace was watched
        return ()
    share = f"{100 * protocol.most_slower:g} %"
    return (f"a fixed piece of work took {share} longer than in the median of the benchmark",)
