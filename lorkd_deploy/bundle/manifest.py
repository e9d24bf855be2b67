"""What a bundle's `manifest.json` says: a decomposition, or the teacher in the same form.

    BUNDLE/
      manifest.json
      base.safetensors             W0 and everything else that all tasks share, by torch name
      experts/TASK.safetensors     `LAYER.A`, `LAYER.B`; norm tensors by torch name, `head:*`
      safety/TASK.safetensors      only where the recipe wants it; of the held-out validation images
                                   `held_out.probabilities` (n, K), `held_out.scores` (n,), how
                                   badly each fits its label (`safety/coverage.py`),
                                   `held_out.guard` (n,), the guard's scores; and `guard.*`, what
                                   that compares with (`safety/guard.py`)
      template.onnx                the graph with norms folded, without its weights
      parity/ENGINE.safetensors    logits of the unfused torch model, written before any export:
                                   see `reference.py`

A tensor in `experts/TASK` overrides the one of the same name in `base`; the teacher's bundle has
experts without factors: heads only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from lorkd_deploy.dicom import DicomRules
from lorkd_deploy.errors import DataError
from lorkd_deploy.lowrank.delta import Factorisation, LayerKind, NormKind
from lorkd_deploy.metrics.score import Kind
from lorkd_deploy.preprocess import Preprocess
from lorkd_deploy.safety.calibration import Temperature
from lorkd_deploy.safety.coverage import Coverage
from lorkd_deploy.safety.guard import Guard
from lorkd_deploy.schema import Part
from lorkd_deploy.storage import NAME, canonical_json

if TYPE_CHECKING:  # the recipe and its sources of data: a third of what `predict` would load
    from lorkd_deploy.data import TaskData

SCHEMA = 2  # 2: with a digest of itself
TEACHER = "teacher"  # the engine's name of a teacher bundle
MANIFEST = "manifest.json"
BASE = "base.safetensors"
TEMPLATE = "template.onnx"
FACTORS = (".A", ".B")  # behind the name of a layer: its two factors
HEAD = "head:"  # before the names of a head's tensors: no module's path has a colon
HEAD_TENSORS = (HEAD + "weight", HEAD + "bias")
PROBABILITIES, SCORES, GUARD = (f"held_out.{name}" for name in ("probabilities", "scores", "guard"))
EXPERT = "expert:"  # in `parameters`, in front of a task: how many numbers its factors hold
# Names become folders and files, so one from a foreign manifest must not lead out of its folder.
Name = Annotated[str, Field(pattern=NAME.pattern)]


def expert_file(task: str) -> str:
    """Where a task's own tensors lie, relative to the bundle."""
    return f"experts/{task}.safetensors"


def parity_file(engine: str) -> str:
    """Where an engine's reference logits lie, relative to the bundle."""
    return f"parity/{engine}.safetensors"


def safety_file(task: str) -> str:
    """Where what the safety of a task's answers rests on lies, relative to the bundle."""
    return f"safety/{task}.safetensors"


class FileEntry(Part):
    sha256: str
    bytes: int


class SafetyEntry(Part):
    """What a task's answers come with; None: left out by the recipe, or there was no image for it.

    `file` says whether `safety/TASK.safetensors` belongs to it.
    """

    temperature: Temperature | None = None
    coverage: Coverage | None = None
    guard: Guard | None = None

    @property
    def file(self) -> bool:
        return self.coverage is not None or self.guard is not None


class TaskEntry(Part):
    """One label set. `metrics` is `{"teacher" | "expert": {"accuracy": …, "auc": …}}`.

    `rank` is the expert's largest; `ranks` are those of layers where it has another one, of which
    a layer with 0 has no factors. `model` is the sha256 of the fine-tuned model's file that the
    expert was extracted from. `dicom` is how its DICOM files become 8-bit pixels, by the recipe.
    """

    name: Name
    department: Name
    classes: tuple[str, ...]
    kind: Kind
    data: dict[str, Any]
    rank: int | None = None
    ranks: dict[str, int] = Field(default_factory=dict)
    alpha: float | None = None
    metrics: dict[str, dict[str, float]] = Field(default_factory=dict)
    model: str | None = None
    safety: SafetyEntry = SafetyEntry()
    dicom: DicomRules | None = None

    def rank_of(self, layer: str) -> int | None:
        """The expert's rank on a layer; None for a task without an expert."""
        return self.ranks.get(layer, self.rank)

    def require_own(self, data: TaskData) -> None:
        """Raise `DataError` unless `data` is what the bundle was made with, by its classes and by
        what the manifest records of where the images come from.
        """
        here = {key: data.provenance.get(key) for key in self.data}
        if data.classes != self.classes or canonical_json(here) != canonical_json(self.data):
            raise DataError(
                f"the data of {self.name} that is here is not what the bundle was made with",
                where=f"{data.provenance['source']} {data.provenance['name']}",
                fix="put those images there, or name their folder by LORKD_DATA",
            )

    @property
    def shown_rank(self) -> str | None:
        """The rank for a reader: one number, or from where to where it goes over the layers."""
        if self.rank is None:
            return None
        lowest = min(self.rank, *self.ranks.values()) if self.ranks else self.rank
        return str(self.rank) if lowest == self.rank else f"{lowest} to {self.rank} by layer"


class LayerEntry(Part):
    """A layer with experts: `name + '.weight'` of `shape` gets ΔW = α / rank · view(B @ A)."""

    name: str
    kind: LayerKind
    shape: tuple[int, ...]


class FoldEntry(Part):
    """A BatchNorm directly behind a convolution; its affine may be absent (no `.weight`)."""

    conv: str
    norm: str
    eps: float


class Binding(Part):
    """Which folded tensor fills which initialiser of the template.

    The source is transposed first, then reshaped to `shape` where that is given.
    """

    initializer: str
    source: str
    transpose: bool = False
    shape: tuple[int, ...] | None = None


class GraphEntry(Part):
    """The ONNX template: float32 `(N, 3, size, size)` named `input` → `(N, K)` named `output`, and
    where there is a guard what that looks at, named `features`. `maps` is the class activation map,
    `(N, K, h, w)`, where the recipe asks for it; engines have it only by `lorkd export --explain`.

    `unused` are tensors of the network that have no initialiser: no answer depends on them, or
    they are another one under a second name.
    """

    opset: int
    input: str
    output: str
    features: str | None = None
    maps: str | None = None
    bindings: tuple[Binding, ...]
    unused: tuple[str, ...] = ()


class ParityEntry(Part):
    """The generated parity inputs: rebuilt anywhere from `seed`, checked by `sha256`."""

    inputs: int
    seed: int
    sha256: str


class Manifest(Part):
    """`packed_from`: of a department delivered alone, the hashes of the bundles it was part of.

    Its experts, W0 and graph are theirs byte for byte, so engines that they proved are its own.
    `grown_from`: the same of a bundle to which departments were added, and those it had before.
    `compressed_from`: the same of a bundle whose experts were made smaller, `compression` by what.
    `extracted_from`: of experts that are the difference of fine-tuned models (`TaskEntry.model`)
    from a base, the sha256 of the base's file.
    `resampling_sha256` is of the Pillow that resized its images (`preprocess.resampling_sha256`).
    `network_config` is what an architecture of a model hub needs beside its name to be built again.
    `factorisation` says what shapes A and B have (`delta.factor_shapes`), `norm` whether the norm
    layers are in `base` or, of each task, in `experts/TASK`. `files` are filled in as they are
    written.
    """

    schema_version: int = SCHEMA
    kind: Literal["experts", "teacher"]
    name: str
    architecture: str
    network_config: dict[str, Any] | None = None
    parameters: dict[str, int]
    preprocess: Preprocess
    preprocess_sha256: str
    resampling_sha256: str | None = None
    tasks: tuple[TaskEntry, ...]
    layers: tuple[LayerEntry, ...]
    factorisation: Factorisation = "interleaved"
    norm: NormKind
    folds: tuple[FoldEntry, ...]
    graph: GraphEntry
    parity: ParityEntry
    recipe: dict[str, Any]
    recipe_sha256: str
    versions: dict[str, str]
    created: str
    files: dict[str, FileEntry] = Field(default_factory=dict)
    packed_from: tuple[str, ...] = ()
    compressed_from: tuple[str, ...] = ()
    compression: str | None = None
    grown_from: tuple[str, ...] = ()
    extracted_from: str | None = None

    @property
    def departments(self) -> dict[str, tuple[str, ...]]:
        """Department → its tasks, in the recipe's order."""
        found: dict[str, tuple[str, ...]] = {}
        for task in self.tasks:
            found[task.department] = (*found.get(task.department, ()), task.name)
        return found

    @property
    def needed_files(self) -> set[str]:
        """What has to lie beside the manifest, relative to it."""
        own = {expert_file(task.name) for task in self.tasks}
        safe = {safety_file(task.name) for task in self.tasks if task.safety.file}
        return {BASE, TEMPLATE} | own | safe | {parity_file(engine) for engine in self.engines()}

    def engines(self) -> dict[str, tuple[TaskEntry, ...]]:
        """Engine name → the tasks whose logits it gives, side by side in this order.

        A decomposition has an engine for each task; the teacher is one engine for all tasks.
        """
        if self.kind == "teacher":
            return {TEACHER: self.tasks}
        return {task.name: (task,) for task in self.tasks}


def columns_of(tasks: Sequence[TaskEntry]) -> list[tuple[TaskEntry, slice]]:
    """An engine's `tasks`, each with the columns of its logits."""
    found = []
    start = 0
    for task in tasks:
        found.append((task, slice(start, start + len(task.classes))))
        start += len(task.classes)
    return found
