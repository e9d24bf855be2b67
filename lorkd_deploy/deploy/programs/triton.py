"""A Triton model repository of exported engines: one model per task, loadable as it is.

    REPOSITORY/
      TASK/
        config.pbtxt
        labels.txt          one line per column of the output
        1/                  the engine's folder as it was exported: engine and artifact.json

Triton opens the file that config.pbtxt names and leaves everything else in a version's folder
alone, so the proof stays beside the engine. `BACKENDS` are those that the server itself brings: it
runs no engine of a third party's target. Written after the server's documentation (model
repository, model configuration) and the backends' sources;
`tests/deploy/programs/test_triton.py` checks the configurations against the server's own schema.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from lorkd_deploy._version import __version__
from lorkd_deploy.bundle.manifest import GraphEntry
from lorkd_deploy.deploy.artifact import Artifact
from lorkd_deploy.deploy.programs.served import ServedModel
from lorkd_deploy.deploy.programs.template import fill
from lorkd_deploy.errors import ArtifactError
from lorkd_deploy.runtime import IMAGE, PROBABILITIES

CONFIG = "config.pbtxt"
LABELS = "labels.txt"
VERSION = "1"
# On this machine alone; a model is loaded again when somebody asks for it, not when files change.
START = (
    "tritonserver --model-repository {} --model-control-mode explicit --load-model '*' "
    "--http-address 127.0.0.1 --grpc-address 127.0.0.1 --metrics-address 127.0.0.1"
)
MOST = 32  # images per request, of engines that take any number
UNPINNED = (
    "# This backend has no parameter for f32: a server whose CPU has bf16 computes in that,\n"
    "# which is not what artifact.json is about."
)
GIVES = {
    "logits": "logits: softmax over a multiclass task's columns, sigmoid for each of a\n"
    "# multi-label task",
    "probabilities": "probabilities",
}
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


def files(model: ServedModel) -> dict[str, bytes]:
    """What a model needs beside its engine's own files, by path.

    Raises `ArtifactError` for an engine that Triton can't run.
    """
    text = config(model.artifact, model.bundle.manifest.graph)
    return {CONFIG: text.encode(), LABELS: labels(model.artifact).encode()}


def warn_unpinned(models: Sequence[ServedModel]) -> None:
    """Say once what the server may change of these models' arithmetic."""
    if any(_arithmetic(model.artifact) == UNPINNED for model in models):
        log.warning(
            "Triton's OpenVINO backend can't be told to compute in f32: a server whose CPU has "
            "bf16 uses that, which is not what was proven (the target onnx has no such gap)"
        )


def config(artifact: Artifact, graph: GraphEntry) -> str:
    """The model's `config.pbtxt`; raises `ArtifactError` for an engine that Triton can't run."""
    backend, raw = BACKENDS[artifact.target], artifact.raw
    batch = _most(artifact)
    first = "" if batch else "-1, "
    return fill(
        f"triton/{CONFIG}.in",
        NAME=artifact.engine,
        TARGET=artifact.target,
        PRECISION=artifact.precision,
        VERSION=__version__,
        FOLDER=VERSION,
        CLIENT=artifact.preprocess.to_pixels if raw else artifact.preprocess.in_words,
        ANSWER=GIVES[artifact.output],
        BACKEND=backend.line,
        FILE=artifact.file_names[0],
        BATCH=batch,
        INPUT=IMAGE if raw else graph.input,
        TYPE="TYPE_UINT8" if raw else "TYPE_FP32",
        OUTPUT=PROBABILITIES if raw else graph.output,
        SHAPE=first + ", ".join(map(str, artifact.input_shape)),
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
