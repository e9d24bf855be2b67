"""Step 3: a training step with experts beside the plain student's, eager and compiled.

`benchmarks/knowledge_separation.py` is the measurement; here is what of it is worth the time.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks import knowledge_separation as table
from benchmarks.gpu.given import Given

ROUNDS = 3
EAGER = (*table.COMPILED, "per-sample")
COMPILED = ("per-sample", "separate")


def run(given: Given) -> Iterator[dict[str, Any]]:
    result = table.without_cases(1 if given.rehearsal else ROUNDS, given.device)
    cases = table.cases(given.device, quick=given.rehearsal)
    plan = [(case, EAGER if case.tasks == 10 else (*EAGER, "separate")) for case in cases]
    if given.rehearsal:
        plan = plan[-1:]
    else:
        plan += [(c, COMPILED) for c in cases if c.tasks == 10 and c.balance == "even"]
        _compile_all()
    for case, skip in plan:
        rounds = result["protocol"]["rounds"]
        measured = table.measure(case, rounds, skip, memory=not given.rehearsal)
        result["cases"].append(measured)
        yield result


def _compile_all() -> None:
    """Let a torch that can't isolate compilations make as many as a network has parts."""
    import torch._dynamo

    torch._dynamo.config.recompile_limit = 1000
    torch._dynamo.config.accumulated_recompile_limit = 10000


def lines(result: dict[str, Any]) -> Iterator[str]:
    how = result["protocol"]
    yield f"{how['image']} px, {how['precision']}, medians of {how['rounds']} rounds.\n"
    yield table.table(result)
