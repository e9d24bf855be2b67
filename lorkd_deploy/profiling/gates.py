"""Assertions over what was measured: `p90_ms<8` holds for every expert's engine, or fails."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from lorkd_deploy.errors import UsageError
from lorkd_deploy.metrics.interval import Interval
from lorkd_deploy.profiling.profile import (
    Assertion,
    Comparison,
    Difference,
    EngineProfile,
    Score,
    Spread,
)

ROUNDS = 10  # of a benchmark that is to decide something, unless it is told otherwise
MIB = 1 << 20
_FORM = re.compile(r"\s*(\w+)\s*(<=|>=|<|>)\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*")
_HOLDS: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


@dataclass(frozen=True)
class Measured:
    """One expert's engine beside its teacher, on one of its tasks; what wasn't measured is None."""

    engine: EngineProfile
    beside: Comparison | None
    score: Score | None
    difference: Difference | None


def _value(interval: Interval | None, factor: float = 1) -> float | None:
    return None if interval is None else factor * interval.value


def _median(spread: Spread | None) -> float | None:
    return None if spread is None else spread.median


# Metric → its value at the smallest batch. Drops are points (per cent of the images).
METRICS: dict[str, Callable[[Measured], float | None]] = {
    "p50_ms": lambda m: m.engine.latency.p50.value,
    "p90_ms": lambda m: m.engine.latency.p90,
    "p99_ms": lambda m: m.engine.latency.p99,
    "p99_9_ms": lambda m: m.engine.latency.p99_9,
    "mean_ms": lambda m: m.engine.latency.mean,
    "images_per_s": lambda m: m.engine.latency.throughput.value,
    "load_ms": lambda m: m.engine.cold_start.load.median,
    "start_ms": lambda m: m.engine.cold_start.process_to_first_answer.median,
    "end_to_end_ms": lambda m: m.engine.stages.end_to_end.median if m.engine.stages else None,
    "uncached_start_ms": lambda m: _median(m.engine.cold_start.uncached_process_to_first_answer),
    "joules": lambda m: _median(m.engine.joules),
    "loaded_mib": lambda m: _median(m.engine.memory.loaded),
    "gpu_mib": lambda m: _median(m.engine.memory.gpu),
    "peak_mib": lambda m: _median(m.engine.memory.peak),
    "size_mib": lambda m: m.engine.bytes / MIB,
    "accuracy": lambda m: _value(m.score.accuracy if m.score else None, 100),
    "auc": lambda m: _value(m.score.auc if m.score else None),
    "balanced_accuracy": lambda m: _value(m.score.balanced_accuracy if m.score else None, 100),
    "sensitivity": lambda m: _value(m.score.sensitivity if m.score else None, 100),
    "specificity": lambda m: _value(m.score.specificity if m.score else None, 100),
    "calibration_error": lambda m: _value(m.score.calibration_error if m.score else None, 100),
    "accuracy_drop": lambda m: _value(m.difference.accuracy if m.difference else None, -100),
    "auc_drop": lambda m: _value(m.difference.auc if m.difference else None, -1),
    "ratio_vs_teacher": lambda m: (
        min(m.beside.latency, key=lambda ratio: ratio.batch).ratio.value if m.beside else None
    ),
    "memory_vs_teacher": lambda m: m.beside.memory if m.beside else None,
    "size_vs_teacher": lambda m: m.beside.size if m.beside else None,
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
    if metric not in METRICS:
        raise UsageError(
            f"the assertion {text!r} names no metric", fix=f"metrics are {', '.join(METRICS)}"
        )
    return Gate(text.strip(), metric, relation, float(bound))


def check(
    gates: Sequence[Gate], engines: Sequence[EngineProfile], comparisons: Sequence[Comparison]
) -> Iterator[Assertion]:
    """Every gate for every expert's engine, in this order; the teacher's are not judged."""
    for gate in gates:
        for measured in _measured(engines, comparisons):
            value = METRICS[gate.metric](measured)
            yield Assertion(
                text=gate.text,
                engine=measured.engine.engine,
                value=value,
                passed=gate.holds(value),
            )


def _measured(
    engines: Sequence[EngineProfile], comparisons: Sequence[Comparison]
) -> Iterator[Measured]:
    beside = {entry.engine: entry for entry in comparisons}
    for engine in engines:
        if engine.kind == "expert":
            pair = beside.get(engine.engine)
            yield Measured(
                engine,
                pair,
                engine.scores[0] if engine.scores else None,
                pair.scores[0] if pair and pair.scores else None,
            )
