"""`lorkd predict`: class probabilities of image files from an exported engine."""

from __future__ import annotations

import io
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lorkd_deploy.arrays import Batch
from lorkd_deploy.bundle.read import Bundle
from lorkd_deploy.deploy.answers.answering import Recorder
from lorkd_deploy.deploy.answers.classifier import Classifier, Prediction
from lorkd_deploy.deploy.artifact import EngineTask
from lorkd_deploy.errors import UsageError
from lorkd_deploy.image_files import IN_WORDS, SUFFIXES, Found, image_files, require_utf8
from lorkd_deploy.storage import write_atomic

log = logging.getLogger(__name__)


def predict(
    run: str | Path,
    task: str,
    images: Sequence[str | Path],
    *,
    target: str = "onnx",
    precision: str = "fp32",
    csv: str | Path | None = None,
    save_input: str | Path | None = None,
    dicom: Mapping[str, Any] | None = None,
    guard: bool = True,
    coverage: float | None = None,
    audit: Recorder | None = None,
    explain: str | Path | None = None,
    bundle: Bundle | None = None,
) -> list[Prediction]:
    """Classify image files, and those in folders (all levels, sorted), by a task's engine.

    `csv` writes the answers to a file, `save_input` what the engine was given as `.npy`, float32
    `(N, 3, S, S)`, or, exported with `raw`, uint8 `(N, S, S, 3)`. Where the bundle has a `guard`, a
    picture that isn't of the task's kind is answered `outside`. With a `coverage`, such as 0.95,
    each answer has the classes that it leaves, and an image with several or none is referred to a
    person. `audit`, an `AuditLog`, keeps every answer. `explain` is a folder for pictures of where
    the most probable class was seen, at each image's own size, by an engine that was exported with
    `explain`. `dicom` overrides keys of the task's rules for DICOM files (`DicomRules`), `bundle`
    is the run's, where it is read already.
    Other files in folders are left out and counted in the log. Raises `UsageError`
    for an unknown task or no image, `ImageError` for an image that can't be used,
    `ArtifactError` for an engine that is missing, damaged or of another bundle; nothing is
    written then.
    """
    inputs: list[Batch] = []
    answers: list[Prediction] = []
    with Classifier(
        run,
        task,
        target=target,
        precision=precision,
        dicom=dicom,
        guard=guard,
        coverage=coverage,
        bundle=bundle,
    ) as classifier:
        files = _files([Path(path) for path in images])
        began = time.perf_counter()
        for batch, found in classifier.batches(files, Path(explain) if explain else None):
            answers += found
            if audit is not None:
                classifier.record(audit, found, 1e3 * (time.perf_counter() - began) / len(found))
                began = time.perf_counter()
            if save_input is not None:
                inputs.append(batch)
    if any(answer.dicom for answer in answers) and not classifier.rules.modality:
        log.warning(
            "task %s names no modality: it answers DICOM files of any; "
            "write data.dicom.modality in its recipe",
            task,
        )
    if save_input is not None:
        stream = io.BytesIO()
        np.save(stream, np.concatenate(inputs), allow_pickle=False)
        write_atomic(Path(save_input), stream.getvalue())
    if csv is not None:
        write_atomic(Path(csv), _table(answers, classifier.task))
    return answers


def _files(given: Sequence[Path]) -> list[Path]:
    """The images named, and those below folders in the order of their paths."""
    files: list[Path] = []
    left_out = Found()
    for path in given:
        if not path.is_dir():
            require_utf8(path)
            files.append(path)
            continue
        found = image_files(path, (*SUFFIXES, ".npy"), dicom=True)
        files += found.files
        left_out.leave_out_too(found)
    if left_out.left_out:
        log.warning("%s", left_out.in_words)
    if not files:
        raise UsageError(
            "there is no image to classify",
            where=", ".join(str(path) for path in given) or None,
            fix=f"give {IN_WORDS} files, DICOM files, NumPy .npy files, or a folder of them",
        )
    return files


def _table(answers: Sequence[Prediction], task: EngineTask) -> bytes:
    """The answers as CSV: one row per image, one column per class."""
    import csv

    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["file", "task", "label", *(f"p({name})" for name in task.classes)])
    for answer in answers:
        row = [f"{p:.8g}" for p in answer.probabilities.values()]  # none of a picture outside
        row += [""] * (len(task.classes) - len(row))
        writer.writerow([answer.file, answer.task, answer.label, *row])
    return text.getvalue().encode()
