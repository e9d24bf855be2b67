"""The report's sentences: what was found, how it was measured, and what was not."""

from __future__ import annotations

from collections.abc import Sequence

from lorkd_deploy.machine.environment import Environment
from lorkd_deploy.metrics.interval import Interval
from lorkd_deploy.profiling.profile import Profile
from lorkd_deploy.profiling.protocol import Protocol
from lorkd_deploy.profiling.resampling import LEAST_ROUNDS
from lorkd_deploy.profiling.timing import LEAST_CALLS
from lorkd_deploy.reporting.cells import UNMEASURED, MiB, signed, significant
from lorkd_deploy.reporting.shown_engine import chosen
from lorkd_deploy.reporting.sources import Pair, Sources

NO_DEVICE = (
    "Not a medical device.",
    "For research and engineering; not cleared for diagnosis or treatment. No figure here was "
    "measured on your patients.",
)
_SMALL = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def count(number: int, one: str, many: str | None = None) -> str:
    """`one department`, `four departments`, `12 departments`."""
    word = _SMALL[number] if number < len(_SMALL) else str(number)
    return f"{word} {one if number == 1 else many or one + 's'}"


def title(sources: Sources) -> str:
    """The finding in one line; a speed-up only where every interval shows one."""
    departments = count(len(sources.manifest.departments), "department").capitalize()
    pairs = chosen(sources)
    ratios = speed_ups(pairs)
    if (
        ratios
        and len(ratios) == len(pairs)
        and all(p.ratio.verdict == "faster" for p in pairs if p.ratio)
    ):
        span = extent([ratio.value for ratio in ratios], 2)
        return f"{departments}, each on engines {span} times as fast as the foundation model"
    if sources.teachers():
        return f"{departments} beside the foundation model"
    if sources.profile:
        return f"{departments}, measured without the foundation model"
    if sources.scenarios:
        return f"{departments}, measured by MLPerf's scenarios alone"
    return f"{departments}, not benchmarked yet"


def speed_ups(pairs: Sequence[Pair]) -> list[Interval]:
    """Teacher's median over the expert's of every engine where both were measured."""
    return [pair.ratio.ratio for pair in pairs if pair.ratio]


def extent(values: Sequence[float], digits: int = 3) -> str:
    """`4.1 to 4.4`, or one figure where both round to the same."""
    low, high = significant(min(values), digits), significant(max(values), digits)
    return low if low == high else f"{low} to {high}"


def lead(sources: Sources) -> str:
    """What was decomposed into what, in a sentence or two."""
    manifest = sources.manifest
    teacher = _short(sources.teacher.manifest.architecture) if sources.teacher else None
    experts = count(len(manifest.tasks), "expert")
    what = f"The foundation model{f' ({teacher})' if teacher else ''}"
    text = f"{what} was decomposed into one shared {_short(manifest.architecture)} and {experts}"
    ranks = sorted({task.rank for task in manifest.tasks if task.rank})
    if ranks:
        text += f" of rank {ranks[0]}" + (f" to {ranks[-1]}" if len(ranks) > 1 else "")
    text += ", each fused into an engine of its own."
    pairs = [p for p in chosen(sources) if p.expert and p.teacher]
    if pairs:
        own = extent([p.expert.latency.p50.value for p in pairs if p.expert])
        theirs = extent([p.teacher.latency.p50.value for p in pairs if p.teacher])
        which = "Each task's engine below" if _several(sources) else "An engine"
        text += f" {which} answers in {own} ms, the foundation model in {theirs} ms."
    return text


def _short(architecture: str) -> str:
    """`torchvision:resnet50` as a reader calls it."""
    return architecture.rpartition(":")[2]


def tiles(sources: Sources) -> list[tuple[str, str | None, str]]:
    """The four figures of the first screen: title, value (None: not measured) and what it is."""
    pairs = chosen(sources)
    experts = [p.expert for p in sources.pairs() if p.expert]
    teachers = [p.teacher for p in pairs if p.teacher] or sources.teachers()
    sizes = [p.bytes / MiB for p in pairs if p.bytes is not None]
    of_teacher = extent([t.bytes / MiB for t in teachers]) if teachers else None
    ratios = [r.value for r in speed_ups(pairs)]
    return [
        (
            "Departments",
            str(len(sources.manifest.departments)),
            f"{count(len(sources.manifest.tasks), 'task')}, "
            f"{count(len(experts), 'engine')} measured",
        ),
        (
            "Engine size",
            f"{extent(sizes, 2)} MiB" if sizes else None,
            f"foundation model {of_teacher} MiB" if of_teacher else "foundation model unknown",
        ),
        (
            "Speed-up",
            f"{extent(ratios, 2)} ×" if ratios else None,
            _of_all(sources) or "median latency, against the foundation model",
        ),
        _accuracy_tile(pairs),
    ]


def _several(sources: Sources) -> bool:
    """Whether more engines were measured than the first screen shows."""
    return len(sources.pairs()) > len(sources.manifest.tasks)


def _of_all(sources: Sources) -> str:
    """The speed-up of every engine: those that are shown were picked for being fast."""
    ratios = [ratio.value for ratio in speed_ups(sources.pairs())]
    if not _several(sources) or not ratios:
        return ""
    return f"median latency, of the engines below; of all {extent(ratios, 2)} ×"


def _accuracy_tile(pairs: Sequence[Pair]) -> tuple[str, str | None, str]:
    found = [pair.difference for pair in pairs if pair.difference]
    if not found:
        return "Accuracy difference", None, "against the foundation model"
    values = [100 * entry.accuracy.value for entry in found]
    low, high = signed(min(values), 1), signed(max(values), 1)
    text = low if low == high else f"{low} to {high}"
    areas = [entry.auc.value for entry in found if entry.auc]
    under = "points"
    if areas:
        least, most = signed(min(areas), 3), signed(max(areas), 3)
        under += f"; AUC {least if least == most else f'{least} to {most}'}"
    if weak := sorted({pair.task.name for pair in pairs if pair.weak_teacher}):
        under += f"; see the note on {', '.join(weak)}"
    return "Accuracy difference", text, under


def protocol(profile: Profile | None) -> list[str]:
    """How it was measured, for a sceptical engineer."""
    if profile is None:
        return [f"Latency, throughput and memory: {UNMEASURED}."]
    how = profile.protocol
    shape = " × ".join(str(side) for side in how.input_shape)
    return [
        f"Every engine ran in {count(how.rounds, 'round')}, each round in a fresh process of its "
        f"own, the foundation model's and the experts' interleaved: the order was drawn with seed "
        f"{how.seed}, each second round the reverse of the one before, so that a machine that "
        f"grows warmer or busier favours none.",
        f"A round warmed up with at least {how.warmup} images, until the median settled, then ran "
        f"until at least {how.iterations} images (not calls) and {how.seconds:g} s were done, at "
        f"batch {_listed(how.batch_sizes)}, input {shape}, float32. {_pinned(how)} "
        f"Each call was timed with {how.clock}; all calls count, none is trimmed.",
        "p50, p90, p99 and p99.9 are percentiles over all calls of all rounds; no p99 is shown "
        f"of fewer than {LEAST_CALLS['p99']} calls, no p99.9 of fewer than "
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
    """What the protocol does besides: best batch, stages, and rounds measured again."""
    found = []
    if how.best_batches:
        found.append(
            "Each engine's best batch was looked for before the rounds by doubling the batch up to "
            f"{how.largest_batch} while it gained throughput, and then measured like the others."
        )
    return [
        *found,
        "The stages start from a drawn grey PNG of "
        f"{how.stage_image} × {how.stage_image} px on the disk's cache, one image at a time: "
        f"at least {how.stage_passes} passes and {how.stage_seconds:g} s a round, the first "
        "left out, without waiting for the median to settle.",
        f"A round counts as disturbed if during one of its batches or stages {how.bounds}; it was "
        f"repeated at most {how.repeats} times and the least disturbed attempt kept.",
    ]


def _cold(how: Protocol) -> str:
    if not how.uncached:
        return "Files may already be in the system's cache."
    return (
        "The files are in the system's cache then; after each round the engine is started once "
        "more with its files out of it, which the kernel was asked for and then asked about."
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
    return f"Engines used {threads}, pinned to CPU {_listed(how.cpus)}."


def _listed(values: Sequence[int]) -> str:
    shown = [str(value) for value in values]
    return shown[0] if len(shown) == 1 else ", ".join(shown[:-1]) + " and " + shown[-1]


def environment(sources: Sources) -> list[tuple[str, str]]:
    """The machine, as far as it bears on the figures; of the scenarios' what is different."""
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
