"""What `lorkd benchmark` shows when it is done."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lorkd_deploy.cli.shared.render import Output

if TYPE_CHECKING:
    from lorkd_deploy.profiling.figures import Figure, Measured
    from lorkd_deploy.profiling.mlperf.profile import ScenarioProfile
    from lorkd_deploy.profiling.profile import EngineProfile, Profile

SCENARIOS = (
    "scenario",
    "engine",
    "MLPerf's metric",
    "value",
    "unit",
    "p99 ms",
    "LoadGen says",
    "conforms",
    "accuracy",
)


def show(output: Output, profile: Profile) -> None:
    """One row per engine at its smallest batch, experts beside their teacher, and the protocol."""
    from lorkd_deploy.profiling.figures import measured

    protocol = profile.protocol
    found = [measured(engine, profile) for engine in profile.engines]
    _engines(output, f"Batch {min(protocol.batch_sizes)}", found)
    _beside(output, [of for of in found if of.comparison])
    _decisions(output, profile.engines)
    output.text(
        f"{protocol.rounds} rounds, each at least {protocol.seconds:g} s and "
        f"{protocol.iterations} images; CPU threads: {protocol.threads}; {profile.environment.cpu}"
    )
    if profile.assertions:
        output.table(
            "Assertions",
            ("engine", "assertion", "measured", "holds"),
            [(entry.engine, entry.text, entry.value, entry.passed) for entry in profile.assertions],
        )
    for note in profile.notes:
        output.text(f"note: {note}")


def _engines(output: Output, title: str, found: Sequence[Measured]) -> None:
    """Speed, memory and size of each engine, and its accuracy where it has a single task."""
    from lorkd_deploy.profiling import figures as f

    brief = [figure for figure in (*f.OF_CALLS, *f.OF_ENGINE) if figure.brief]
    shown = (*brief, f.ACCURACY, f.AUC)
    output.table(
        title,
        ("engine", *(_heading(figure) for figure in shown)),
        [(of.engine.engine, *(figure.value(of) for figure in shown)) for of in found],
    )


def _heading(figure: Figure) -> str:
    return f"{figure.title} {figure.unit}".rstrip()


def _beside(output: Output, found: Sequence[Measured]) -> None:
    """Each expert beside its teacher: speed-up, memory, size, and which answers changed."""
    from lorkd_deploy.profiling import figures as f

    ratios, answers = (f.MEMORY_RATIO, f.SIZE_RATIO), (f.ACCURACY, f.AUC)
    columns = (
        "engine",
        _heading(f.RATIO),
        "95 % interval",
        "verdict",
        *(_heading(figure) for figure in ratios),
        *(f"{figure.title} difference{', points' * (figure.unit == '%')}" for figure in answers),
        "gained",
        "lost",
        "McNemar p",
    )
    rows = []
    for of in found:
        ratio, flips = of.ratio, of.difference.flips if of.difference else None
        rows.append(
            (
                of.engine.engine,
                f.RATIO.value(of),
                f"{ratio.ratio.low:.2f} to {ratio.ratio.high:.2f}" if ratio else None,
                ratio.verdict if ratio else None,
                *(figure.value(of) for figure in ratios),
                *(figure.in_unit(figure.of(of.difference)) for figure in answers),
                *((flips.gained, flips.lost, flips.p) if flips else (None, None, None)),
            )
        )
    if rows:
        output.table("Beside the teacher", columns, rows)


def _decisions(output: Output, engines: Sequence[EngineProfile]) -> None:
    """What each engine's answers are worth beyond accuracy and AUC, one row per task."""
    from lorkd_deploy.profiling import figures as f

    shown = [figure for figure in f.OF_ANSWERS if figure not in (f.ACCURACY, f.AUC)]
    columns = ("engine", "task", "threshold", *(_heading(figure) for figure in shown))
    rows = []
    for engine in engines:
        for score in engine.scores:
            limits = sorted(set(score.thresholds))
            one = limits[0] if len(limits) == 1 else f"{limits[0]:.2g} to {limits[-1]:.2g}"
            values = (figure.in_unit(figure.of(score)) for figure in shown)
            rows.append((engine.engine, score.task, one, *values))
    if rows:
        output.table("Decisions and calibration on the test split", columns, rows)


def show_scenarios(output: Output, profile: ScenarioProfile, asked: Sequence[str]) -> None:
    """One row per scenario and engine, and why those that don't conform to MLPerf's rules don't."""
    rows = [entry for entry in profile.runs if entry.scenario in asked]
    output.table(
        "MLPerf scenarios by LoadGen",
        SCENARIOS,
        [
            (
                entry.scenario,
                entry.engine,
                entry.metric,
                entry.value,
                entry.unit,
                entry.percentiles.get("99"),
                entry.result,
                entry.conforms,
                entry.scores[0].accuracy.value if len(entry.scores) == 1 else None,
            )
            for entry in rows
        ],
    )
    reasons: dict[str, list[str]] = {}
    for entry in rows:
        for why in entry.because:
            reasons.setdefault(why, []).append(f"{entry.scenario} {entry.engine}")
    for why, where in reasons.items():
        output.text(f"does not conform: {why} ({_named(where, len(rows))})")
    for note in profile.notes:
        output.text(f"note: {note}")


def _named(where: list[str], total: int) -> str:
    if len(where) == total and total > 1:
        return "all of them"
    return ", ".join(where)
