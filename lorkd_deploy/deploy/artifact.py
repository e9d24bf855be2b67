"""One engine on disk: its files, what it came from and how it was proven, in `artifact.json`.

EXPORT/DEPARTMENT/TASK/TARGET-PRECISION/      an expert's engine
EXPORT/teacher/TARGET-PRECISION/              the foundation model's
  artifact.json  model.onnx …
"""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from lorkd_deploy.arrays import U8, Batch
from lorkd_deploy.bundle.manifest import TEACHER, TaskEntry, columns_of
from lorkd_deploy.bundle.read import Bundle
from lorkd_deploy.deploy.candidates import Choice
from lorkd_deploy.deploy.proof.parity import Parity
from lorkd_deploy.dicom import DicomRules
from lorkd_deploy.errors import ArtifactError, BundleError
from lorkd_deploy.machine.packages import software
from lorkd_deploy.machine.processor import cpu_model
from lorkd_deploy.metrics.score import Kind
from lorkd_deploy.precisions.sensitivity import Sensitivity
from lorkd_deploy.preprocess import Preprocess
from lorkd_deploy.run import Run, open_run
from lorkd_deploy.runtime import Runner, RunOptions, exporter
from lorkd_deploy.schema import Part, read_part, write_part
from lorkd_deploy.storage import inside, sha256_file

SCHEMA = 3  # 2: `choice`; 3: with a digest of itself
ARTIFACT = "artifact.json"
EXPORT_AGAIN = "run `lorkd export` again"
NOT_VERIFIED = "this engine is not verified: run `lorkd verify %s` on this device"


class EngineFile(Part):
    name: str
    sha256: str
    bytes: int


class EngineTask(Part):
    """One task of an engine; its logits are columns `start` up to `stop` of the output."""

    name: str
    kind: Kind
    classes: tuple[str, ...]
    start: int
    stop: int
    dicom: DicomRules | None = None


class Artifact(Part):
    """What `artifact.json` says. `folder`, where it was read, is not part of it.

    `engine` is the engine's name in the bundle: a task, or `teacher`, which is then the
    department's name too. `files` has the engine first. `facts` is what the runtime says that it
    did: version, provider, threads. `explain`: it gives maps of where it looks beside its logits.
    `choice` is the table of `--precision auto`, if it chose; `sensitivity` what int8 costs layer by
    layer, and which of them stay in float32, where `max_drop` was given. `example` are the files of
    an input and its outputs (`example.py`), which the engine doesn't need: a copy may lack them.
    `input_dtype` and `output` are `uint8` and `probabilities` of an engine that was exported with
    the option `raw`: it takes images at network size, RGB, channels last.
    """

    schema_version: int = SCHEMA
    engine: str
    department: str
    tasks: tuple[EngineTask, ...]
    target: str
    precision: str
    files: tuple[EngineFile, ...] = Field(min_length=1)
    onnx_sha256: str
    bundle_sha256: str
    preprocess: Preprocess
    preprocess_sha256: str
    parity: Parity
    facts: dict[str, Any]
    build_seconds: float
    environment: dict[str, str]
    input_dtype: Literal["float32", "uint8"] = "float32"
    output: Literal["logits", "probabilities"] = "logits"
    explain: bool = False
    choice: Choice | None = None
    sensitivity: Sensitivity | None = None
    example: tuple[EngineFile, ...] = ()
    folder: Path = Field(default=Path(), exclude=True)

    @property
    def name(self) -> str:
        """Its folder below RUN/export, e.g. `lungs/xray/onnx-fp32`."""
        return engine_folder(self.department, self.engine, self.target, self.precision)

    @property
    def on_the_cpu(self) -> bool:
        """Whether it was exported for the CPU alone, as far as its target's options say."""
        options = self.facts.get("options", {})
        chosen = (options.get("device", "CPU"), options.get("providers", ["CPU"]))
        return chosen == ("CPU", ["CPU"])

    @property
    def adapters(self) -> bool:
        """Whether it is a base that every task of its bundle shares, and an adapter."""
        return bool(self.facts.get("options", {}).get("adapters", False))

    @property
    def raw(self) -> bool:
        """Whether it takes images as they are, and gives probabilities."""
        return self.input_dtype == "uint8"

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """The shape of one image: `(3, H, W)`, of one that takes images as they are `(H, W, 3)`."""
        size = self.preprocess.size
        return (size, size, 3) if self.raw else (3, size, size)

    def batch(self, images: U8) -> Batch:
        """What it takes of images at network size, uint8 `(N, S, S, 3)`."""
        return self.preprocess.batch(images, raw=self.raw)

    @property
    def bytes(self) -> int:
        """Size of everything that the engine needs to run."""
        return sum(file.bytes for file in self.files)

    @property
    def file_names(self) -> tuple[str, ...]:
        """Names of the engine's files, the engine first."""
        return tuple(file.name for file in self.files)

    @property
    def example_here(self) -> tuple[EngineFile, ...]:
        """The example's files, of those that are there."""
        return tuple(entry for entry in self.example if (self.folder / entry.name).exists())

    @property
    def nodes_left(self) -> tuple[str, ...]:
        """Nodes of the graph that stay in float32 though the engine is in int8."""
        return self.sensitivity.nodes_left if self.sensitivity else ()

    def task(self, name: str) -> EngineTask:
        """One of its tasks; raises `KeyError`."""
        return {task.name: task for task in self.tasks}[name]


def engine_folder(department: str, engine: str, target: str, precision: str) -> str:
    """Where an engine lies below RUN/export."""
    place = TEACHER if engine == TEACHER else f"{department}/{engine}"
    return f"{place}/{target}-{precision}"


def engine_tasks(entries: tuple[TaskEntry, ...]) -> tuple[EngineTask, ...]:
    """The tasks of an engine with the columns of their logits."""
    return tuple(
        EngineTask(
            name=entry.name,
            kind=entry.kind,
            classes=entry.classes,
            start=columns.start,
            stop=columns.stop,
            dicom=entry.dicom,
        )
        for entry, columns in columns_of(entries)
    )


def write_artifact(artifact: Artifact, folder: Path) -> Artifact:
    """Write `folder/artifact.json`; gives the artifact that lies there."""
    write_part(folder / ARTIFACT, artifact)
    return artifact.model_copy(update={"folder": folder})


def read_artifact(folder: Path) -> Artifact:
    """Read `folder/artifact.json`; the engine's files are not looked at.

    Raises `ArtifactError` where it is missing, damaged or of another schema.
    """
    artifact = read_part(folder / ARTIFACT, Artifact, ArtifactError, EXPORT_AGAIN)
    return artifact.model_copy(update={"folder": folder})


def artifact_folders(export: Path) -> list[Path]:
    """Every folder below `export` that holds an engine's record, sorted."""
    found = [*export.glob(f"*/*/{ARTIFACT}"), *export.glob(f"*/*/*/{ARTIFACT}")]
    folders = [file.parent for file in found]
    # A name with a dot in front is an export that was killed on its way.
    return sorted(f for f in folders if not f.name.startswith("."))


def find_artifacts(run: str | Path, out: str | Path | None = None) -> list[Artifact]:
    """Every engine below RUN/export (`out`, if given), sorted by folder.

    Raises `ArtifactError` for a damaged record, `BundleError` where there is no run.
    """
    export = open_run(run).export if out is None else Path(out)
    return [read_artifact(folder) for folder in artifact_folders(export)]


def exported_engine(run: Run, bundle: Bundle, task: str, target: str, precision: str) -> Artifact:
    """A task's engine below RUN/export, at its place and of this `bundle`; files aren't looked at.

    Raises `UsageError` for an unknown task, `ArtifactError` for an engine that is missing, has a
    damaged record or is of another bundle.
    """
    entry = bundle.task(task)
    name = engine_folder(entry.department, entry.name, target, precision)
    folder = run.export / name
    if not (folder / ARTIFACT).exists():
        beside = sorted(f.parent.name for f in folder.parent.glob(f"[!.]*/{ARTIFACT}"))
        raise ArtifactError(
            f"task {task} has no engine {target}-{precision}",
            where=folder,
            fix=f"exported: {', '.join(beside)}"
            if beside
            else f"lorkd export {run.path} --task {task} --target {target}",
        )
    artifact = read_artifact(folder)
    same = artifact.name == name and artifact.bundle_sha256 in bundle.origins
    if not same or artifact.preprocess.sha256 != bundle.manifest.preprocess_sha256:
        raise ArtifactError(
            "this engine belongs to another task, bundle or preprocessing",
            where=folder,
            fix=EXPORT_AGAIN,
        )
    return artifact


def check_files(artifact: Artifact) -> None:
    """Raise `ArtifactError` where a file of the engine is missing or not as it was written; of the
    example's, where one that is there isn't."""
    for entry in (*artifact.files, *artifact.example_here):
        try:
            file = inside(artifact.folder, entry.name)
        except BundleError as exc:
            raise ArtifactError(exc.what, where=exc.where, fix=exc.fix) from exc
        if not file.is_file():
            raise ArtifactError(f"{entry.name} is missing", where=artifact.folder, fix=EXPORT_AGAIN)
        if file.stat().st_size != entry.bytes or sha256_file(file) != entry.sha256:
            raise ArtifactError(
                f"{entry.name} has changed since it was exported",
                where=artifact.folder,
                fix=EXPORT_AGAIN,
            )


def open_engine(artifact: Artifact, options: RunOptions | None = None) -> Runner:
    """Check the files and open the engine.

    Raises `ArtifactError` for a damaged one, `RuntimeUnavailableError` where its runtime can't
    run here.
    """
    check_files(artifact)
    runtime = exporter(artifact.target)
    return runtime.open(artifact.folder, artifact.file_names, options or RunOptions())


def environment() -> dict[str, str]:
    """The machine and the packages that built an engine, without a name or path of it.

    Of the packages those that are installed, whatever the engine needed.
    """
    return {
        "architecture": platform.machine(),
        "processor": cpu_model(),
        "system": platform.system(),
        **software(),
    }
