"""A Triton model repository of exported engines: one model per task, loadable as it is.

    REPOSITORY/
      TASK/
        config.pbtxt
        labels.txt          one line per column of the output
        1/                  the engine's folder as it was exported: engine and artifact.json

Triton opens the file that config.pbtxt names and leaves everything else in a version's folder
alone, so the proof stays beside the engine. `BACKENDS` are those that the server itself brings: it
runs no engine of a third party's target. Written after the server's documentation (model
repository, model configuration) and the backends' sources; `tests/deploy/test_triton.py` checks
the configurations against the server's own schema.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lorkd_deploy._version import __version__
from lorkd_deploy.bundle.manifest import GraphEntry
from lorkd_deploy.deploy.artifact import ARTIFACT, Artifact, read_artifact
from lorkd_deploy.deploy.programs.template import fill
from lorkd_deploy.errors import ArtifactError, UsageError, unknown_name
from lorkd_deploy.storage import exclusive, folder_atomic, write_atomic

LAYOUT = "triton"
CONFIG = "config.pbtxt"
LABELS = "labels.txt"
VERSION = "1"
MOST = 32  # images per request, of engines that take any number
UNPINNED = (
    "# This backend has no parameter for f32: a server whose CPU has bf16 computes in that,\n"
    "# which is not what artifact.json is about."
)
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Backend:
    """How the server runs a target's engines: the configuration's line, and on what."""

    line: str
    kind: str


BACKENDS = {
    "onnx": Backend('platform: "onnxruntime_onnx"', "KIND_CPU"),
    "openvino": Backend('backend: "openvino"', "KIND_CPU"),
    "trt": Backend('platform: "tensorrt_plan"', "KIND_GPU"),
}


def require_layout(layout: str, target: str) -> None:
    """Raise `UsageError` for an unknown layout, or a target that Triton has no backend for."""
    if layout != LAYOUT:
        raise unknown_name("layout", layout, [LAYOUT])
    if target not in BACKENDS:
        raise UsageError(
            f"Triton has no backend for {target} engines",
            fix=f"--layout {LAYOUT} is for --target {', '.join(BACKENDS)}",
        )


def require_own(repository: Path, engines: Iterable[tuple[str, str]]) -> None:
    """Raise `ArtifactError` where a model has the name of a (department, engine) and isn't it."""
    for department, engine in engines:
        model = repository / engine
        if model.exists() and (owner := _owner(model)) != (department, engine):
            whose = "no export of lorkd" if owner is None else f"that of department {owner[0]}"
            raise ArtifactError(
                f"there is another model called {engine}: {whose}",
                where=model,
                fix="choose another --out: a server takes several --model-repository",
            )


def write_repository(models: Sequence[tuple[Artifact, GraphEntry]], repository: Path) -> None:
    """Put each engine, with the graph it came from, into `repository` as a model of its own.

    What an earlier export wrote for the same task is replaced whole; other models stay. Raises
    `ArtifactError`, before anything is written, where another model has the name of one of these,
    or an engine is one that the server can't run as it is.
    """
    with exclusive(repository, "export"):
        require_own(repository, [(a.department, a.engine) for a, _ in models])
        configs = [config(artifact, graph) for artifact, graph in models]
        for (artifact, _), text in zip(models, configs, strict=True):
            with folder_atomic(repository / artifact.engine) as fresh:
                _copy(artifact, fresh / VERSION)
                write_atomic(fresh / LABELS, labels(artifact).encode())
                write_atomic(fresh / CONFIG, text.encode())
    if any(UNPINNED in text for text in configs):
        log.warning(
            "Triton's OpenVINO backend can't be told to compute in f32: a server whose CPU has "
            "bf16 uses that, which is not what was proven (the target onnx has no such gap)"
        )


def config(artifact: Artifact, graph: GraphEntry) -> str:
    """The model's `config.pbtxt`; raises `ArtifactError` for an engine that Triton can't run."""
    backend, size = BACKENDS[artifact.target], artifact.preprocess.size
    batch = _most(artifact)
    first = "" if batch else "-1, "
    return fill(
        f"triton/{CONFIG}.in",
        NAME=artifact.engine,
        TARGET=artifact.target,
        PRECISION=artifact.precision,
        VERSION=__version__,
        FOLDER=VERSION,
        PREPROCESS=artifact.preprocess.in_words,
        BACKEND=backend.line,
        FILE=artifact.file_names[0],
        BATCH=batch,
        INPUT=graph.input,
        OUTPUT=graph.output,
        SHAPE=f"{first}3, {size}, {size}",
        CLASSES=f"{first}{artifact.tasks[-1].stop}",
        KIND=backend.kind,
        REST=fill(
            f"triton/{artifact.target}.in",
            ARITHMETIC=_arithmetic(artifact),
            RUNTIME=artifact.facts.get("version", "?"),
        ).rstrip(),
    )


def labels(artifact: Artifact) -> str:
    """One line per column; an engine of several tasks says whose class it is."""
    several = len(artifact.tasks) > 1
    named = (
        f"{task.name}: {name}" if several else name
        for task in artifact.tasks
        for name in task.classes
    )
    return "".join(" ".join(name.split()) + "\n" for name in named)


def _most(artifact: Artifact) -> int:
    """Images that Triton may put into one batch; 0 where it leaves batches as they come."""
    if artifact.target != "trt":
        _require_cpu(artifact)
        return 0 if artifact.target == "openvino" else MOST
    options = artifact.facts["options"]
    if options["min_batch"] > 1:
        raise ArtifactError(
            f"the engine takes no fewer than {options['min_batch']} images, and Triton sends one",
            where=artifact.folder,
            fix="export it with --option min_batch=1",
        )
    return int(options["max_batch"])


def _require_cpu(artifact: Artifact) -> None:
    """The configuration would run it on the CPU, which is not what was asked for and proven."""
    if not artifact.on_the_cpu:
        raise ArtifactError(
            f"the engine is for another device than the CPU ({artifact.facts['options']}), and "
            f"Triton's backend for {artifact.target} is set up for that here",
            where=artifact.folder,
            fix="export it without --option device or providers, or use --target trt",
        )


def _arithmetic(artifact: Artifact) -> str:
    """The backend can be told to compute in bf16 and nothing else: the rest has to be said."""
    if artifact.target != "openvino":
        return ""
    if artifact.precision == "bf16":
        return 'parameters { key: "HINT_BF16" value { string_value: "YES" } }'
    return UNPINNED


def _owner(model: Path) -> tuple[str, str] | None:
    """(department, engine) of what an earlier export wrote; None for a model of anyone else."""
    try:
        known = read_artifact(model / VERSION)
    except ArtifactError:
        return None
    return known.department, known.engine


def _copy(artifact: Artifact, version: Path) -> None:
    version.mkdir(parents=True)
    for name in (*artifact.file_names, ARTIFACT):
        shutil.copyfile(artifact.folder / name, version / name)
