"""A minimal program with its build file beside an engine: it loads the engine, classifies an image.

    ENGINE'S FOLDER/
      sample-python/  classify.py   requirements.txt
      sample-cpp/     classify.cpp  CMakeLists.txt

The programs need the runtime and nothing of ours (Python's also NumPy and Pillow), so they may be
copied into any project. What they have to know of the model stands in them: tasks, classes and
preprocessing, as in the artifact's record. Templates lie in `templates/`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from lorkd_deploy._version import __version__
from lorkd_deploy.deploy.artifact import Artifact, EngineTask
from lorkd_deploy.deploy.programs.template import fill
from lorkd_deploy.errors import ArtifactError, UsageError, unknown_name
from lorkd_deploy.runtime import PythonSample, exporter, targets
from lorkd_deploy.storage import folder_atomic, write_atomic

CPP = ("openvino",)  # whose wheel ships headers and CMake files


def require_samples(languages: Sequence[str], target: str) -> None:
    """Raise `UsageError` for a language or a target that there is no sample for."""
    for language in languages:
        if language not in _WRITERS:
            raise unknown_name("sample", language, _WRITERS)
        if not _there_is(language, target):
            there_is = "; ".join(
                f"{name}: {', '.join(known for known in targets() if _there_is(name, known))}"
                for name in _WRITERS
            )
            raise UsageError(
                f"there is no {language} sample for the target {target}", fix=f"there is {there_is}"
            )


def write_sample(artifact: Artifact, language: str) -> Path:
    """Write the program to `sample-LANGUAGE` in the engine's folder; → that folder.

    Raises `ArtifactError` for an ONNX engine of other execution providers than the CPU's, and for
    an engine that can't take a single image.
    """
    if artifact.target == "onnx" and not artifact.on_the_cpu:
        raise ArtifactError(
            "the sample runs ONNX engines on the CPU, and this one is for other providers",
            where=artifact.folder,
            fix="export it without --option providers, or without --sample",
        )
    least = artifact.facts.get("options", {}).get("min_batch", 1)
    if least > 1:
        raise ArtifactError(
            f"the engine takes no fewer than {least} images, and the sample classifies one",
            where=artifact.folder,
            fix="export it with --option min_batch=1, or without --sample",
        )
    folder = artifact.folder / f"sample-{language}"
    with folder_atomic(folder) as fresh:
        for name, text in _WRITERS[language](artifact).items():
            write_atomic(fresh / name, text.encode())
    return folder


def _there_is(language: str, target: str) -> bool:
    return target in CPP if language == "cpp" else _runtime(target) is not None


def _runtime(target: str) -> PythonSample | None:
    """How a Python program runs an engine of `target`, as its exporter says."""
    found: PythonSample | None = getattr(exporter(target), "PYTHON_SAMPLE", None)
    return found


def _python(artifact: Artifact) -> dict[str, str]:
    runtime, preprocess = _runtime(artifact.target), artifact.preprocess
    assert runtime is not None, artifact.target  # `require_samples` has asked
    program = fill(
        "python/classify.py.in",
        **_common(artifact),
        NOTICE=_notice(artifact, "\n"),
        STANDARD="import ctypes\n" if "ctypes." in runtime.infer else "",
        IMPORT=runtime.line,
        TASKS="\n".join(_python_task(task) for task in artifact.tasks),
        SHORTER=preprocess.resize_shorter,
        MEAN=preprocess.mean,
        STD=preprocess.std,
        FILTER=preprocess.interpolation.upper(),
        RUN=runtime.infer.strip(),
    )
    return {
        "classify.py": program,
        "requirements.txt": fill(
            "python/requirements.txt.in", RUNTIME=_requirement(artifact, runtime.wheel)
        ),
    }


def _cpp(artifact: Artifact) -> dict[str, str]:
    tasks = "\n".join(_cpp_task(task) for task in artifact.tasks)
    version = artifact.facts.get("version", "")
    words = artifact.preprocess.in_words
    return {
        "classify.cpp": fill(
            "cpp/classify.cpp.in",
            **_common(artifact),
            NOTICE=_notice(artifact, "\n// "),
            TASKS=tasks,
            PREPROCESS=words,
        ),
        "CMakeLists.txt": fill("cpp/CMakeLists.txt.in", RUNTIME=version),
    }


_WRITERS: dict[str, Callable[[Artifact], dict[str, str]]] = {"python": _python, "cpp": _cpp}


def _notice(artifact: Artifact, line: str) -> str:
    """What stands below the first line of a program whose engine isn't proven; `line` begins it."""
    if artifact.parity.status == "passed":
        return ""
    return (
        f"{line}NOT VERIFIED when this was written (parity: {artifact.parity.status}): run `lorkd "
        f"verify`{line}on the device; artifact.json says what has been proven since."
    )


def _common(artifact: Artifact) -> dict[str, object]:
    return {
        "ENGINE": artifact.name,
        "TARGET": artifact.target,
        "PRECISION": artifact.precision,
        "VERSION": __version__,
        "FILE": artifact.file_names[0],
        "SIZE": artifact.preprocess.size,
    }


def _requirement(artifact: Artifact, wheel: str) -> str:
    """The runtime in the version that the engine was proven, or at least built, with."""
    version = artifact.facts.get("version")
    line = wheel if version is None else f"{wheel}=={version}"
    return f"# A Jetson's TensorRT comes with JetPack: {line}" if artifact.target == "trt" else line


def _python_task(task: EngineTask) -> str:
    classes = json.dumps(task.classes, ensure_ascii=False)
    return f'    ("{task.name}", {task.kind == "multiclass"}, {classes}),'


def _cpp_task(task: EngineTask) -> str:
    classes = ", ".join(map(_cpp_text, task.classes))
    exclusive = "true" if task.kind == "multiclass" else "false"
    return f"    {{{_cpp_text(task.name)}, {exclusive}, {{{classes}}}}},"


def _cpp_text(text: str) -> str:
    """A C++ string literal of `text` in UTF-8; what could be read as anything else, in octal."""
    plain = "".join(
        chr(byte) if 32 <= byte < 127 and chr(byte) not in '"\\?' else f"\\{byte:03o}"
        for byte in text.encode()
    )
    return f'"{plain}"'
