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

from lorkd_deploy.errors import LorkdError
from lorkd_deploy.machine.environment import Environment
from lorkd_deploy.metrics.interval import Interval
from lorkd_deploy.profiling.colocation import Colocation
from lorkd_deploy.profiling.conditions import Conditions
from lorkd_deploy.profiling.planning.protocol import Protocol
from lorkd_deploy.profiling.resampling import Spread
from lorkd_deploy.profiling.timing import Timing
from lorkd_deploy.schema import Part, read_part

SCHEMA = 2  # 2: with a digest of itself
PROFILE = "profile.json"
CALLS = "calls.safetensors"
ANSWERS = "answers.safetensors"
Verdict = Literal["faster", "slower", "no difference shown", "too few rounds"]


class ColdStart(Part):
    """What passes until an engine answers, ms: the runtime's import, the engine's load, the first
    call at the smallest batch, and all of it from the start of the process.

    Those have the files in the system's page cache, since a process has read them before. The
    `uncached` ones are of a process that had to read them again: the kernel was made to forget
    every file that the process maps or imports, and `forgotten` is the share of their bytes that it
    did forget. None: not measured.
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
    gpu: Spread | None
    allocator: Spread | None
    unified: Spread | None
    gpu_source: str | None


class Quality(Part):
    """Figures of the answers on one test split, intervals by resampling images; those beyond
    accuracy are None where they are undefined on it. Each has a row in `figures`."""

    accuracy: Interval
    auc: Interval | None
    balanced_accuracy: Interval | None
    sensitivity: Interval | None
    specificity: Interval | None
    calibration_error: Interval | None


class Subgroup(Part):
    """The test images that share a value of an attribute; `quality` is None where they are fewer
    than 30: too few to tell."""

    attribute: str
    value: str
    images: int
    quality: Quality | None


class Gap(Part):
    """The two values of an attribute that are farthest apart in accuracy: by how much (0 … 1), and
    how often chance makes a gap as large in any of the task's attributes."""

    attribute: str
    best: str
    worst: str
    accuracy: float
    p: float


class Score(Quality):
    """One task's whole test split through the engine.

    `sensitivity` and `specificity` are those at `thresholds`: one for the second of two classes,
    else one per class (against the rest) or finding, and the mean over them. `threshold_from` says
    whether the recipe gave the threshold or it was chosen on the validation split through this
    engine (Youden). `majority` is the accuracy of always answering the commonest class.
    `subgroups` and `gaps` are those of the attributes that the data has.
    """

    task: str
    images: int
    majority: float
    thresholds: tuple[float, ...]
    threshold_from: Literal["recipe", "validation"]
    subgroups: tuple[Subgroup, ...] = ()
    gaps: tuple[Gap, ...] = ()

    @property
    def skilled(self) -> bool:
        """Whether it is more accurate than always giving the commonest class."""
        return self.accuracy.value > self.majority


class Layer(Part):
    """One layer as its runtime runs it: name and kind there, what it computes in, and the median
    of its calls at the smallest batch, ms, under the runtime's own profiler, which slows it."""

    name: str
    kind: str
    precision: str
    ms: float


class EngineProfile(Part):
    """One engine. `engine` is its folder below RUN/export, e.g. `lungs/xray/onnx-fp32`.

    `facts` is what the runtime says that it really did (provider, precision, threads, version).
    `build_seconds` is what its export took, on the machine where it was exported. `best_batch` is
    the batch size with the most images a second, None where none was looked for. `joules` is the
    energy per image at the smallest batch over that of the idle machine, None where no counter can
    be read. `layers` are in the order in which they run; none where the runtime doesn't tell.
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
    scores: tuple[Score, ...]
    build_seconds: float | None
    best_batch: int | None
    stages: Stages
    joules: Spread | None
    conditions: tuple[Conditions, ...]
    layers: tuple[Layer, ...] = ()

    @property
    def latency(self) -> Timing:
        """The timing at the smallest batch: 1, unless the protocol says otherwise."""
        return min(self.timings, key=lambda timing: timing.batch)

    def score(self, task: str | None) -> Score | None:
        """Its score on one task's test split; None where that was not measured."""
        return next((score for score in self.scores if score.task == task), None)


class Flips(Part):
    """Answers of the expert beside the teacher's, one per image (per finding, if multi-label).

    `gained` were wrong and are right now, `lost` were right and are wrong now, `moved` went from
    one wrong answer to another. `p` is the exact two-sided p of McNemar's test on gained and lost;
    None for multi-label tasks, whose findings of one image are not independent.
    """

    answers: int
    gained: int
    lost: int
    moved: int
    p: float | None


class Difference(Quality):
    """Expert minus teacher on the same test images of one task, each at its own thresholds."""

    task: str
    flips: Flips


class BatchRatio(Part):
    """Teacher's p50 over expert's p50 at one batch size, paired by round: 2 is twice as fast.

    A difference is claimed only where the whole interval lies outside 1 ± `Protocol.margin`, and
    only from five rounds on: the interval of five covers 94 %, that of fewer less.
    """

    batch: int
    ratio: Interval
    verdict: Verdict


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
    scores: tuple[Difference, ...]
    throughput: Interval | None

    @property
    def ratio(self) -> BatchRatio | None:
        """The teacher's median latency over the expert's, at the smallest batch that both have."""
        return min(self.latency, key=lambda entry: entry.batch, default=None)

    def difference(self, task: str | None) -> Difference | None:
        """Expert minus teacher on one task's test split; None where that was not measured."""
        return next((entry for entry in self.scores if entry.task == task), None)


class Assertion(Part):
    """One `--assert` and one expert's engine; `value` is None where it was not measured."""

    text: str
    engine: str
    value: float | None
    passed: bool


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
    answers_sha256: str
    assertions: tuple[Assertion, ...]
    together: tuple[Colocation, ...]
    notes: tuple[str, ...]

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
