"""What `RUN/profile/profile.json` says: how each engine was measured, where, and what came out.

Times are milliseconds (ms), memory is MiB (2^20 bytes), throughput is images per second. Every
measured call counts: nothing is trimmed. The single calls (int64 nanoseconds, one array for each
engine, batch and round, named by `calls_name`) lie beside it in `calls.safetensors`, and in
`answers.safetensors` each task's test labels (`labels_name`) and the float64 probabilities `(N, K)`
that each engine gave (`answers_name`), in the order of the split.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from lorkd_deploy.errors import LorkdError
from lorkd_deploy.machine.environment import Environment
from lorkd_deploy.metrics.interval import Interval
from lorkd_deploy.schema import Part, read_part

SCHEMA = 2  # 2: with a digest of itself
PROFILE = "profile.json"
CALLS = "calls.safetensors"
ANSWERS = "answers.safetensors"
LEAST_CALLS = {"p99": 100, "p99_9": 1000}  # of fewer a percentile is little but the slowest call


class Spread(Part):
    """One value a round, where each round is a process of its own; never trimmed."""

    median: float
    minimum: float
    maximum: float
    rounds: tuple[float, ...]


class Timing(Part):
    """The runner's call at one batch size, over all rounds together.

    `p50` carries an interval found by resampling rounds; `throughput` is images over the time
    spent in calls, its interval likewise. `peak_mib` is the memory over an empty process up to the
    end of this batch size, smaller ones having run before (median of the rounds). `percentiles`
    are the 0th, 1st, … 100th. `p99` and `p99_9` are None for fewer calls than `LEAST_CALLS`, in
    older profiles too. `interruptions` is how often in each round the kernel gave the
    engine's CPU to something else, `unsettled` in how many rounds the warm-up was given up before
    its median had settled. The `round_` figures are those of each round for itself.
    """

    batch: int
    calls: int
    p50: Interval
    p90: float
    p99: float | None
    p99_9: float | None
    mean: float
    minimum: float
    maximum: float
    throughput: Interval
    peak_mib: float | None
    round_p50: tuple[float, ...]
    round_calls: tuple[int, ...]
    interruptions: tuple[int, ...]
    percentiles: tuple[float, ...]
    unsettled: int
    round_p90: tuple[float, ...]
    round_p99: tuple[float, ...]
    round_throughput: tuple[float, ...]

    @field_validator("p99", "p99_9")
    @classmethod
    def _of_enough_calls(cls, value: float | None, info: ValidationInfo) -> float | None:
        return value if info.data.get("calls", 0) >= LEAST_CALLS[str(info.field_name)] else None


class ColdStart(Part):
    """What passes until an engine answers, ms: the runtime's import, the engine's load, the first
    call at the smallest batch, and all of it from the start of the process.

    Those have the files in the system's page cache, since a process has read them before. The
    `uncached` ones are of a process that had to read them again: the kernel was made to forget
    every file that the process maps or imports, and `forgotten` is the share of their bytes that it
    did forget. None: not measured, or a profile from before it was.
    """

    runtime_import: Spread
    load: Spread
    first_inference: Spread
    process_to_first_answer: Spread
    uncached_load: Spread | None = None
    uncached_first_inference: Spread | None = None
    uncached_process_to_first_answer: Spread | None = None
    forgotten: Spread | None = None


class Stages(Part):
    """One image's way from a file to an answer, ms: medians of each round. `read` decodes the PNG,
    `preprocess` makes it the network's input, `inference` is the runner's call at batch 1,
    `postprocess` turns logits into probabilities and a class; `end_to_end` is all of it.
    """

    read: Spread
    preprocess: Spread
    inference: Spread
    postprocess: Spread
    end_to_end: Spread


class Conditions(Part):
    """What the machine did during one round of one engine, each figure the worst of its parts: a
    batch size each, and the stages (in profiles before 2026-11-26 of the round as a whole).

    `others` is the share of the engine's CPUs that anything else took, `throttled` the share of
    the part in which a container's CPU limit stopped the engine; `mhz` and `celsius` are those of
    the part's end, the `gpu_` ones the first GPU's, and `gpu_slowed` what slowed it then (heat, a
    cap on its power). `slowdowns` is how often a CPU of the machine slowed itself down for heat in
    all parts together. `pace` is the time of a fixed piece of work beside the calls, over the
    median that the benchmark has seen until then. None: the kernel or NVML doesn't tell.
    `attempts` is how often the round was measured: while it was `disturbed` beyond the protocol's
    bounds it was repeated, and the least disturbed kept.
    """

    others: float | None
    throttled: float | None
    mhz: float | None
    celsius: float | None
    disturbed: bool
    attempts: int = 1
    slowdowns: int | None = None
    gpu_mhz: float | None = None
    gpu_celsius: float | None = None
    gpu_slowed: str | None = None
    pace: float | None = None


class Memory(Part):
    """Resident memory, MiB. `empty` is the worker with Python and NumPy before it loads a runtime;
    `loaded` and `peak` (up to the end of the smallest batch's round) are what comes on top of it,
    runtime library, engine and input included. None: the kernel doesn't tell here.

    `gpu` is what the process holds on the GPU after the smallest batch, `allocator` what of that
    the runtime's own allocator says (TensorRT's alone does, and leaves the weights out); `unified`
    is by how much `MemAvailable` of a Jetson fell, CPU and GPU together. `gpu_source` says how
    those were read, or why not.
    """

    empty: Spread | None
    loaded: Spread | None
    peak: Spread | None
    source: str
    gpu: Spread | None = None
    allocator: Spread | None = None
    unified: Spread | None = None
    gpu_source: str | None = None


class Together(Part):
    """Experts of one target and precision on one machine, MiB, each after its first answer.

    `apart` is the sum of their resident memory in a process each, all at once, and `apart_shared`
    the sum of their proportional set sizes, where what they share (libraries, above all) counts
    once: that is what they take of the machine. `one_process` is the resident memory of a single
    process that has opened all of them, `one_engine` that of the same process with the first one
    only, `empty` that before any. None: the kernel doesn't tell. `bytes` is their size on disk.
    """

    target: str
    precision: str
    engines: tuple[str, ...]
    bytes: int
    apart: float | None
    apart_shared: float | None
    one_process: float | None
    one_engine: float | None
    empty: float | None


class Score(Part):
    """One task's whole test split through the engine, intervals by resampling images.

    `sensitivity` and `specificity` are those at `thresholds`: one for the second of two classes,
    else one a class (against the rest) or finding, and the mean over them. `threshold_from` says
    whether the recipe gave the threshold or it was chosen on the validation split through this
    engine (Youden). None: undefined on this split, or a profile from before it was measured.
    """

    task: str
    images: int
    accuracy: Interval
    auc: Interval | None
    majority: float
    balanced_accuracy: Interval | None = None
    sensitivity: Interval | None = None
    specificity: Interval | None = None
    calibration_error: Interval | None = None
    thresholds: tuple[float, ...] = ()
    threshold_from: Literal["recipe", "validation"] | None = None


class EngineProfile(Part):
    """One engine. `engine` is its folder below RUN/export, e.g. `lungs/xray/onnx-fp32`.

    `facts` is what the runtime says that it really did (provider, precision, threads, version).
    `build_seconds` is what its export took, on the machine where it was exported. `best_batch` is
    the batch size with the most images a second, None where none was looked for. `joules` is the
    energy an image at the smallest batch over that of the idle machine, None where no counter can
    be read.
    """

    engine: str
    kind: Literal["expert", "teacher"]
    department: str | None
    tasks: tuple[str, ...]
    target: str
    precision: str
    bytes: int
    facts: dict[str, Any]
    cold_start: ColdStart
    memory: Memory
    timings: tuple[Timing, ...]
    scores: tuple[Score, ...] = ()
    build_seconds: float | None = None
    best_batch: int | None = None
    stages: Stages | None = None
    joules: Spread | None = None
    conditions: tuple[Conditions, ...] = ()

    @property
    def latency(self) -> Timing:
        """The timing at the smallest batch: 1, unless the protocol says otherwise."""
        return min(self.timings, key=lambda timing: timing.batch)


class Flips(Part):
    """Answers of the expert beside the teacher's, one an image (of a multi-label task: a finding).

    `gained` were wrong and are right now, `lost` were right and are wrong now, `moved` went from
    one wrong answer to another. `p` is the exact two-sided p of McNemar's test on gained and lost;
    None for multi-label tasks, whose findings of one image are not independent.
    """

    answers: int
    gained: int
    lost: int
    moved: int
    p: float | None


class Difference(Part):
    """Expert minus teacher on the same test images of one task, intervals by resampling images.

    Each at its own thresholds. None: undefined, or a profile from before it was measured.
    """

    task: str
    accuracy: Interval
    auc: Interval | None
    balanced_accuracy: Interval | None = None
    sensitivity: Interval | None = None
    specificity: Interval | None = None
    calibration_error: Interval | None = None
    flips: Flips | None = None


class BatchRatio(Part):
    """Teacher's p50 over expert's p50 at one batch size, paired by round: 2 is twice as fast.

    A difference is claimed only where the whole interval lies outside 1 ± `Protocol.margin`, and
    only from five rounds on: the interval of five covers 94 %, that of fewer less.
    """

    batch: int
    ratio: Interval
    verdict: Literal["faster", "slower", "no difference shown", "too few rounds"]


class Comparison(Part):
    """An expert beside the teacher's engine of the same target and precision where there is one.

    `memory` is the teacher's peak over the expert's, `size` the same of the files; `throughput` is
    the expert's images a second over the teacher's, paired by round, each at its own best batch.
    """

    engine: str
    teacher: str
    latency: tuple[BatchRatio, ...]
    memory: float | None
    size: float
    scores: tuple[Difference, ...] = ()
    throughput: Interval | None = None


class Assertion(Part):
    """One `--assert` and one expert's engine; `value` is None where it was not measured."""

    text: str
    engine: str
    value: float | None
    passed: bool


class Protocol(Part):
    """How it was measured.

    Each round starts every engine once, in a fresh process, in the order that `order` records:
    drawn with `seed`, each second round the reverse of the one before, so that a drift of the
    machine falls on all alike. At each batch size a round warms up (at least `warmup` images, until
    the median settles), then calls the engine until `iterations` images (at batch 32 a 32nd as
    many calls) and `seconds` are done.
    `cpus` are the logical CPUs that the worker was pinned to (None: pinning isn't possible here).

    A round is repeated, at most `repeats` times, if in one of its parts (`Conditions`) others took
    more than `most_others` of those CPUs, or a CPU limit stopped the engine for more than
    `most_throttled` of the time, or the machine took `most_slower` longer for a fixed piece of work
    than in the median of the benchmark until then.
    `best_batches` are measured beside `batch_sizes`: found before the rounds, up to
    `largest_batch`. `quick` was asked for: shorter than the protocol wants. `uncached`: each round
    starts the engine once more, with its files out of the page cache. `power` names the energy
    counters, or says why there are none; `idle_watts` is what they showed before the rounds.
    `stage_image` is the side, px, of the drawn PNG that the stages start from.
    """

    rounds: int
    seconds: float
    iterations: int
    warmup: int
    threads: int
    cpus: tuple[int, ...] | None
    batch_sizes: tuple[int, ...]
    input_shape: tuple[int, int, int]
    seed: int
    order: tuple[tuple[str, ...], ...]
    margin: float
    clock: str
    repeats: int = 0
    most_others: float | None = None
    most_throttled: float | None = None
    most_slower: float | None = None
    largest_batch: int = 0
    best_batches: dict[str, int] = Field(default_factory=dict)
    stage_image: int | None = None
    quick: bool = False
    uncached: bool = False
    gpu_memory: str | None = None
    power: str | None = None
    idle_watts: float | None = None

    @property
    def stage_passes(self) -> int:
        """How often a round does all stages at least."""
        return max(3, self.iterations // 4)

    @property
    def stage_seconds(self) -> float:
        """How long a round does so at least, seconds."""
        return self.seconds / 4


class Profile(Part):
    """Everything that one `lorkd benchmark` measured. `notes` are for the reader of any report:
    what couldn't be measured here and why, and what may have disturbed the figures.
    """

    schema_version: int = SCHEMA
    created: str
    name: str
    bundle_sha256: str
    preprocess_sha256: str
    protocol: Protocol
    environment: Environment
    engines: tuple[EngineProfile, ...]
    comparisons: tuple[Comparison, ...]
    calls_sha256: str
    answers_sha256: str | None = None
    assertions: tuple[Assertion, ...] = ()
    together: tuple[Together, ...] = ()
    notes: tuple[str, ...] = ()

    def engine(self, name: str) -> EngineProfile:
        """The engine whose `engine` is `name`; raises `KeyError`."""
        return {entry.engine: entry for entry in self.engines}[name]


def calls_name(engine: str, batch: int, number: int) -> str:
    """The name in `calls.safetensors` of one engine's calls in round `number`, from 0."""
    return f"{engine}/batch-{batch}/round-{number}"


def labels_name(task: str) -> str:
    """The name in `answers.safetensors` of a task's test labels."""
    return f"{task}/labels"


def answers_name(task: str, engine: str) -> str:
    """The name in `answers.safetensors` of one engine's probabilities on a task's test split."""
    return f"{task}/probabilities/{engine}"


def read_profile(path: Path) -> Profile:
    """Read `profile.json`; `LorkdError` where it is missing, damaged or of another schema."""
    return read_part(path, Profile, LorkdError, "run `lorkd benchmark` again")
