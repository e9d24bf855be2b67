"""How the figures were measured, and on which machine."""

from __future__ import annotations

from lorkd_deploy.machine.environment import Environment
from lorkd_deploy.profiling.planning.protocol import Protocol
from lorkd_deploy.profiling.profile import Profile
from lorkd_deploy.profiling.resampling import LEAST_ROUNDS
from lorkd_deploy.profiling.timing import LEAST_CALLS
from lorkd_deploy.reporting.cells import UNMEASURED, significant
from lorkd_deploy.reporting.facts.sources import Sources
from lorkd_deploy.reporting.words import count, listed


def protocol(profile: Profile | None) -> list[str]:
    """How it was measured, for a sceptical engineer."""
    if profile is None:
        return [f"Latency, throughput and memory: {UNMEASURED}."]
    how = profile.protocol
    shape = " × ".join(map(str, how.input_shape))
    if how.teacher_input_shape is not None:
        own = " × ".join(map(str, how.teacher_input_shape))
        shape += f" (of the foundation model {own})"
    return [
        f"Every engine ran in {count(how.rounds, 'round')}, each in a fresh process of its own, "
        "the rounds of the foundation model and of the experts interleaved: the order was drawn "
        f"with seed {how.seed}, every second round the reverse of the one before, so that a "
        "machine that grows warmer or busier favours none.",
        f"A round warmed up with at least {how.warmup} images, until the median settled, then ran "
        f"for at least {how.iterations} images (not calls) and {how.seconds:g} s, at "
        f"batch {listed(how.batch_sizes)}, input {shape}, float32. {_pinned(how)} "
        f"Each call was timed with {how.clock}; all calls count, none is trimmed.",
        "p50, p90, p99 and p99.9 are percentiles over all calls of all rounds; no p99 is shown "
        f"for fewer than {LEAST_CALLS['p99']} calls, no p99.9 for fewer than "
        f"{LEAST_CALLS['p99_9']:,}. Intervals are 95 % "
        f"bootstrap intervals: of latency by resampling rounds{_covers(how)}, of accuracy by "
        "resampling images. "
        "A speed-up is the foundation model's median over the expert's in the same round; a "
        f"difference is claimed only where the whole interval lies outside 1 ± "
        f"{100 * how.margin:g} %. Sensitivity and specificity are each engine's at its own "
        "threshold, and expected calibration error is that of 15 bins of equal width (Guo et al. "
        "2017).",
        "Memory is resident memory over a process that has Python and NumPy but no engine. Load, "
        "first answer and the time from the start of the process are measured in every round. "
        + _cold(how),
        " ".join(_extras(how)),
        _interrupted(profile),
    ]


def _covers(how: Protocol) -> str:
    """What an interval by rounds really covers where that is less than the 95 % aimed at."""
    if how.rounds > LEAST_ROUNDS:
        return ""
    share = 100 * (1 - 2.0 ** (1 - how.rounds))
    return f" (the lowest round to the highest, {share:.0f} % with {count(how.rounds, 'round')})"


def _extras(how: Protocol) -> list[str]:
    """What else the protocol does: best batches, stages, and rounds measured again."""
    stages_and_bounds = [
        "The stages start from a drawn grey PNG of "
        f"{how.stage_image} × {how.stage_image} px in the system's cache, one image at a time: "
        f"at least {how.stage_passes} passes and {how.stage_seconds:g} s per round, the first "
        "left out, without waiting for the median to settle.",
        f"A round counts as disturbed if during one of its batches or stages {how.bounds}; it was "
        f"repeated at most {how.repeats} times and the least disturbed attempt kept.",
    ]
    if not how.best_batches:
        return stages_and_bounds
    return [
        "Each engine's best batch was searched for before the rounds by doubling the batch up to "
        f"{how.largest_batch} while it gained throughput, and then measured like the others.",
        *stages_and_bounds,
    ]


def _cold(how: Protocol) -> str:
    if not how.uncached:
        return "Files may already be in the system's cache."
    return (
        "By then the files are in the system's cache. After each round the engine is started once "
        "more without them: the kernel was asked to drop them, and then how much of them it did."
    )


def _interrupted(profile: Profile) -> str:
    times = sum(sum(t.interruptions) for engine in profile.engines for t in engine.timings)
    calls = sum(timing.calls for engine in profile.engines for timing in engine.timings)
    return (
        f"In {calls:,} timed calls the system gave an engine's processor to something else "
        f"{times:,} times; those calls count too."
    )


def _pinned(how: Protocol) -> str:
    threads = count(how.threads, "thread")
    if how.cpus is None:
        return f"Engines used {threads}; processes could not be pinned to CPUs here."
    return f"Engines used {threads}, pinned to CPU {listed(how.cpus)}."


def environment(sources: Sources) -> list[tuple[str, str]]:
    """The machine, as far as it bears on the figures, and where that of the scenarios differs."""
    facts = _measured_on(sources.profile) if sources.profile else []
    beside = " (MLPerf scenarios)" if facts else ""
    if sources.scenarios:
        facts += [
            (f"{term}{beside}", text)
            for term, text in _machine(sources.scenarios.environment)
            if (term, text) not in facts
        ]
    return facts or [("Machine", UNMEASURED)]


def _machine(env: Environment) -> list[tuple[str, str]]:
    facts = [
        ("Processor", f"{env.cpu} ({env.architecture})"),
        ("CPUs", _cpus(env)),
        ("Clock", _clock(env)),
        ("Memory", _memory(env)),
        ("Accelerators", ", ".join(env.gpus) or "none used or found"),
        ("System", f"{env.system}, kernel {env.kernel}, Python {env.python}"),
        ("Packages", ", ".join(f"{name} {v}" for name, v in sorted(env.packages.items()))),
    ]
    if env.battery:
        facts.append(("Power", "battery: clocks may have been lowered"))
    if env.load:
        before, after = env.load.before[0], env.load.after[0]
        facts.append(("Load average", f"{before:.2f} before, {after:.2f} after (1 minute)"))
    return facts


def _measured_on(profile: Profile) -> list[tuple[str, str]]:
    """The machine of the benchmark, and what its engines ran in."""
    facts = _machine(profile.environment)
    ran = {f"{e.target} {e.precision}": e.facts for e in profile.engines}
    for target, done in sorted(ran.items()):
        facts.append((f"Engines in {target}", ", ".join(f"{k} {v}" for k, v in done.items())))
    if profile.protocol.power:
        facts.append(("Energy", _energy(profile.protocol)))
    if profile.protocol.gpu_memory:
        facts.append(("GPU memory", profile.protocol.gpu_memory))
    return facts


def _energy(how: Protocol) -> str:
    if how.idle_watts is None:
        return how.power or UNMEASURED
    return f"{how.power}; {significant(how.idle_watts)} W before the rounds, taken off every image"


def _cpus(env: Environment) -> str:
    text = f"{env.logical_cpus} logical"
    if env.physical_cpus:
        text += f", {env.physical_cpus} physical"
    text += f"; {env.allowed_cpus} allowed for this process"
    if env.cpu_limit is not None:
        text += f", limited to {env.cpu_limit:g} CPUs' time"
    return text


def _clock(env: Environment) -> str:
    top = f"up to {env.max_mhz:.0f} MHz" if env.max_mhz else "highest clock unknown"
    return f"{top}, governor {env.governor or 'unknown'}"


def _memory(env: Environment) -> str:
    text = f"{significant(env.memory_mib / 1024)} GiB"
    if env.memory_limit_mib is not None:
        text += f", limited to {significant(env.memory_limit_mib / 1024)} GiB"
    return text
