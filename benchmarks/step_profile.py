"""Where the time of one training step goes, with experts and without, operator by operator.

`python benchmarks/knowledge_separation.py --profile` calls it: see there for variants and cases.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import torch
from knowledge_separation import Case, step_of
from torch.profiler import ProfilerActivity, profile

from lorkd_deploy.machine.environment import environment

VARIANTS = ("plain-channels-last", "ours")
STEPS = 5
ROWS = 15  # operators of which the most is left
PYTHON = "Python, autograd and torch's dispatch"


def write(cases: Sequence[Case], file: Path) -> None:
    """Profile `cases`, and write a table of each to `file`."""
    machine = environment()
    parts = [
        "# Where a step's time goes",
        f"Milliseconds a step by torch's profiler, means of {STEPS} steps after one to warm up, "
        f"{torch.get_num_threads()} threads, each operator's own time without those that it calls; "
        f"what is left to a step's time is *{PYTHON}*, the profiler's own cost with it. Operators "
        f"in the order of what *ours* has more than *plain*, the first {ROWS}. {machine.cpu}, "
        f"{machine.allowed_cpus} CPUs, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}.",
    ]
    for case in cases:
        parts += [f"## {case.name()}", table({v: of_step(v, case) for v in VARIANTS})]
        print(parts[-2], parts[-1], sep="\n\n", flush=True)
        file.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def of_step(variant: str, case: Case) -> dict[str, float]:
    """Milliseconds of a step by operator, `PYTHON` for the rest."""
    step = step_of(variant, case)
    step()
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        began = time.perf_counter()
        for _ in range(STEPS):
            step()
        whole = time.perf_counter() - began
    own = {
        event.key: event.self_cpu_time_total / 1e3 / STEPS
        for event in seen.key_averages()
        if event.key.startswith("aten::")
    }
    return own | {PYTHON: 1e3 * whole / STEPS - sum(own.values())}


def table(found: dict[str, dict[str, float]]) -> str:
    """A row an operator, a column a variant."""
    plain, ours = found[VARIANTS[0]], found[VARIANTS[1]]
    names = {name for times in found.values() for name in times}
    most = sorted(names, key=lambda name: plain.get(name, 0.0) - ours.get(name, 0.0))[:ROWS]
    lines = [
        f"| operator | {' | '.join(found)} | ours more than plain |",
        "|---|" + "---:|" * (len(found) + 1),
    ]
    for name in most:
        each = [times.get(name, 0.0) for times in found.values()]
        shown = " | ".join(f"{ms:.1f}" for ms in (*each, each[1] - each[0]))
        lines.append(f"| `{name}` | {shown} |" if name != PYTHON else f"| {name} | {shown} |")
    sums = [sum(times.values()) for times in found.values()]
    total = " | ".join(f"{ms:.1f}" for ms in (*sums, sums[1] - sums[0]))
    return "\n".join([*lines, f"| the whole step | {total} |"])
