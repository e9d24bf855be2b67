"""Assertions over what was measured: `p90_ms<8` holds for every expert's engine, or fails."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from lorkd_deploy.errors import UsageError
from lorkd_deploy.profiling.figures import FIGURES, measured
from lorkd_deploy.profiling.profile import Assertion, Profile

ROUNDS = 10  # of a benchmark that is to decide something, unless told otherwise
_FORM = re.compile(r"\s*(\w+)\s*(<=|>=|<|>)\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*")
_HOLDS: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


@dataclass(frozen=True)
class Gate:
    """`metric relation bound`, as `text` says it."""

    text: str
    metric: str
    relation: str
    bound: float

    def holds(self, value: float | None) -> bool:
        """Whether `value` is as asked; what wasn't measured is not."""
        return value is not None and _HOLDS[self.relation](value, self.bound)


def parse_gates(texts: Iterable[str]) -> tuple[Gate, ...]:
    """`METRIC<NUMBER` (or `<=`, `>`, `>=`), each; raises `UsageError` that lists the metrics."""
    return tuple(_parse(text) for text in texts)


def _parse(text: str) -> Gate:
    found = _FORM.fullmatch(text)
    if not found:
        raise UsageError(
            f"the assertion {text!r} is not of the form METRIC<NUMBER",
            fix="for example 'p90_ms<8' or 'ratio_vs_teacher>=5', in quotes; relations are <, <=, "
            "> and >=",
        )
    metric, relation, bound = found.groups()
    if metric not in FIGURES:
        raise UsageError(
            f"the assertion {text!r} names no metric", fix=f"metrics are {', '.join(FIGURES)}"
        )
    return Gate(text.strip(), metric, relation, float(bound))


def check(gates: Sequence[Gate], profile: Profile) -> Iterator[Assertion]:
    """Every gate for every expert's engine, in this order; the teacher's are not judged."""
    experts = [engine for engine in profile.engines if engine.kind == "expert"]
    for gate in gates:
        for engine in experts:
            value = FIGURES[gate.metric].value(measured(engine, profile))
            yield Assertion(
                text=gate.text, engine=engine.engine, value=value, passed=gate.holds(value)
            )
