"""`lorkd predict`: class probabilities of image files from an exported engine."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from lorkd_deploy.arrays import F32, U8
from lorkd_deploy.bundle.read import load_bundle
from lorkd_deploy.deploy.artifact import (
    NOT_VERIFIED,
    EngineTask,
    exported_engine,
    open_engine,
)
from lorkd_deploy.errors import ArtifactError, ImageError, UsageError
from lorkd_deploy.image_files import (
    IN_WORDS,
    SUFFIXES,
    Found,
    image_files,
    read_image,
    require_utf8,
)
from lorkd_deploy.machine.processor import usable_cpus
from lorkd_deploy.metrics import score as metrics
from lorkd_deploy.preprocess import Preprocess
from lorkd_deploy.run import open_run
from lorkd_deploy.runtime import ALIASES, RunOptions
from lorkd_deploy.schema import Part
from lorkd_deploy.storage import write_atomic

BATCH = 32
log = logging.getLogger(__name__)


class Prediction(Part):
    """What an engine says of one image file.

    `probabilities` has every class in the bundle's order: they sum to 1, or, of a multi-label
    task, are one yes or no each. `label` is the most probable class; of a multi-label task all
    with at least 0.5, joined by a comma.
    """

    file: str
    task: str
    probabilities: dict[str, float]
    label: str


def predict(
    run: str | Path,
    task: str,
    images: Sequence[str | Path],
    *,
    target: str = "onnx",
    precision: str = "fp32",
    csv: str | Path | None = None,
    save_input: str | Path | None = None,
) -> list[Prediction]:
    """Classify image files, and those in folders (all levels, sorted), by a task's engine.

    `csv` writes the answers to a file, `save_input` the network's input as `.npy`, float32
    `(N, 3, S, S)`. Other files in folders are left out and counted in the log. Raises `UsageError`
    for an unknown task or no image, `ImageError` for an image that can't be used,
    `ArtifactError` for an engine that is missing, damaged or of another bundle; nothing is
    written then.
    """
    opened = open_run(run)
    bundle = load_bundle(opened.bundle)
    artifact = exported_engine(opened, bundle, task, ALIASES.get(target, target), precision)
    if artifact.parity.status != "passed":
        log.warning(NOT_VERIFIED, opened.path)
    files = _files([Path(path) for path in images])
    described = artifact.task(task)
    inputs: list[F32] = []
    answers: list[Prediction] = []
    with open_engine(artifact, RunOptions(threads=usable_cpus())) as runner:
        for start in range(0, len(files), BATCH):
            chunk = files[start : start + BATCH]
            batch = artifact.preprocess.normalise(
                np.stack([_read(file, artifact.preprocess) for file in chunk])
            )
            logits = runner(batch)[:, described.start : described.stop]
            answers += _predictions(chunk, described, logits)
            if save_input is not None:
                inputs.append(batch)
    if save_input is not None:
        stream = io.BytesIO()
        np.save(stream, np.concatenate(inputs), allow_pickle=False)
        write_atomic(Path(save_input), stream.getvalue())
    if csv is not None:
        write_atomic(Path(csv), _table(answers, described))
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
        found = image_files(path, (*SUFFIXES, ".npy"))
        files += found.files
        for why, paths in found.left_out.items():
            left_out.leave_out(why, *paths)
    if left_out.left_out:
        log.warning("%s", left_out.in_words)
    if not files:
        raise UsageError(
            "there is no image to classify",
            where=", ".join(str(path) for path in given) or None,
            fix=f"give {IN_WORDS} files, NumPy .npy files, or a folder of them",
        )
    return files


def _read(file: Path, preprocess: Preprocess) -> U8:
    """One image at network size; every fault names the file."""
    try:
        return preprocess.geometry(read_image(file))
    except ImageError as exc:
        raise ImageError(exc.what, where=file, fix=exc.fix) from exc


def _predictions(files: Sequence[Path], task: EngineTask, logits: F32) -> Iterator[Prediction]:
    if not np.isfinite(logits).all():
        raise ArtifactError(
            "the engine gives logits that are not finite", fix="run `lorkd verify` on this device"
        )
    for file, row in zip(files, metrics.probabilities(logits, task.kind), strict=True):
        by_class = dict(zip(task.classes, row.tolist(), strict=True))
        if task.kind == "multilabel":
            label = ", ".join(name for name, p in by_class.items() if p >= 0.5)
        else:
            label = task.classes[int(row.argmax())]
        yield Prediction(file=str(file), task=task.name, probabilities=by_class, label=label)


def _table(answers: Sequence[Prediction], task: EngineTask) -> bytes:
    """The answers as CSV: one row per image, one column per class."""
    import csv

    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["file", "task", "label", *(f"p({name})" for name in task.classes)])
    for answer in answers:
        row = [f"{p:.8g}" for p in answer.probabilities.values()]
        writer.writerow([answer.file, answer.task, answer.label, *row])
    return text.getvalue().encode()
