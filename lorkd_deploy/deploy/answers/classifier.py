"""A task's engine, open, and what it says of image files: the way of `predict` and of `listen`."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lorkd_deploy.arrays import U8, Batch
from lorkd_deploy.bundle.read import Bundle, load_bundle
from lorkd_deploy.deploy.answers.answering import Answer, Answering, Recorder
from lorkd_deploy.deploy.answers.overlay import overlay, png
from lorkd_deploy.deploy.artifact import NOT_VERIFIED, EngineTask, exported_engine, open_engine
from lorkd_deploy.dicom import DicomHeader, DicomRules, is_dicom
from lorkd_deploy.dicom.pixels import read_dicom
from lorkd_deploy.errors import ImageError
from lorkd_deploy.image_files import SUFFIXES, read_image
from lorkd_deploy.machine.processor import usable_cpus
from lorkd_deploy.preprocess import Preprocess
from lorkd_deploy.run import open_run
from lorkd_deploy.runtime import ALIASES, Closing, RunOptions
from lorkd_deploy.storage import sha256_file, write_atomic

BATCH = 32
log = logging.getLogger(__name__)


class Prediction(Answer):
    """What an engine says of one image file; the fields of an answer are those of `Answer`.

    `dicom` is what of a DICOM file's header may be recorded, `frame` the frame that was looked at,
    from 1. `overlay` is the picture of where the most probable class was seen, if it was asked for;
    there is none of an image that is outside.
    """

    file: str
    task: str
    overlay: str | None = None
    dicom: DicomHeader | None = None
    frame: int | None = None


@dataclass(frozen=True, eq=False)
class Prepared:
    """An image at network size, uint8 `(S, S, 3)`, and where it comes from; `stored` is it as it
    was read, `(H, W)` or `(H, W, 3)`, where that was asked for: it can be hundreds of times larger.
    """

    file: Path
    pixels: U8
    dicom: DicomHeader | None = None
    frame: int | None = None
    stored: U8 | None = None


class Classifier(Closing):
    """The engine of a run's `task`, open until the `with` block ends.

    `dicom` overrides keys of the rules by which the recipe has this task's DICOM files become
    pixels; `guard` and `coverage` are those of `Answering`; `bundle` is the run's, where it is read
    already: that takes a hash of each of its files. Raises `UsageError` for an unknown task
    or key, or a coverage that can't be promised, `ArtifactError` for an engine that is missing,
    damaged or of another bundle.
    """

    def __init__(
        self,
        run: str | Path,
        task: str,
        *,
        target: str = "onnx",
        precision: str = "fp32",
        dicom: Mapping[str, Any] | None = None,
        guard: bool = True,
        coverage: float | None = None,
        bundle: Bundle | None = None,
    ) -> None:
        opened = open_run(run)
        bundle = bundle or load_bundle(opened.bundle)
        self.artifact = exported_engine(
            opened, bundle, task, ALIASES.get(target, target), precision
        )
        if self.artifact.parity.status != "passed":
            log.warning(NOT_VERIFIED, opened.path)
        if (otherwise := bundle.resized_otherwise) is not None:
            log.warning(otherwise)
        self.task: EngineTask = self.artifact.task(task)
        self.rules = (self.task.dicom or DicomRules()).overridden(dicom or {})
        self._answering = Answering(
            bundle, self.task, guard=guard, coverage=coverage, raw=self.artifact.raw
        )
        self._runner = open_engine(self.artifact, RunOptions(threads=usable_cpus()))

    def close(self) -> None:
        """Close the engine."""
        self._runner.close()

    @property
    def guarded(self) -> bool:
        """Whether a guard looks at every picture first."""
        return self._answering.guard is not None

    @property
    def preprocess(self) -> Preprocess:
        """The way of 8-bit pixels to the network's input."""
        return self.artifact.preprocess

    def prepare(self, file: Path, *, stored: bool = False) -> Prepared:
        """Read one file, and keep it as it is `stored` if asked for.

        Raises `ImageError`, which names it, for one that can't be used.
        """
        header = frame = None
        try:
            if file.suffix.lower() not in (*SUFFIXES, ".npy") and is_dicom(file):
                image = read_dicom(file, self.rules)
                read, header, frame = image.pixels, image.header, image.frame
            else:
                read = read_image(file)
            pixels = self.preprocess.geometry(read)
        except ImageError as exc:
            raise ImageError(exc.what, where=file, fix=exc.fix) from exc
        except MemoryError as exc:  # of one picture, which a listener sets aside
            raise ImageError(
                "there is not enough memory for the image",
                where=file,
                fix="end other programs, or make the image smaller",
            ) from exc
        return Prepared(file, pixels, header, frame, read if stored else None)

    def batches(
        self, files: Sequence[Path], explain: Path | None = None
    ) -> Iterator[tuple[Batch, list[Prediction]]]:
        """What the engine is given and the answers, for a few files at a time.

        `explain` is the folder for pictures of where the network looked, called by the file's place
        and name.
        """
        for start in range(0, len(files), BATCH):
            chosen = files[start : start + BATCH]
            images = [self.prepare(file, stored=explain is not None) for file in chosen]
            batch = self.artifact.batch(np.stack([image.pixels for image in images]))
            if explain is None:
                yield batch, self.answers(images, batch)
            else:
                yield batch, self._explained(images, batch, explain, start)

    def answers(self, images: Sequence[Prepared], batch: Batch) -> list[Prediction]:
        """What the engine says of `images`, which it is given as `batch`."""
        found = self._answering(self._runner, batch)
        return [self._of(image, answer) for image, answer in zip(images, found, strict=True)]

    def record(self, audit: Recorder, answers: Sequence[Prediction], ms: float) -> None:
        """Append `answers` to an audit log, each with the hash of its file; it took `ms` each."""
        for answer in answers:
            audit.answered(
                self.artifact,
                answer,
                image=sha256_file(Path(answer.file)),
                task=self.task.name,
                guarded=self.guarded,
                ms=ms,
            )

    def _explained(
        self, images: Sequence[Prepared], batch: Batch, folder: Path, start: int
    ) -> list[Prediction]:
        """The same, each with the picture that is written into `folder`."""
        found = []
        answers = self._answering.explained(self._runner, batch)
        for place, (image, (answer, activation)) in enumerate(zip(images, answers, strict=True)):
            prediction = self._of(image, answer)
            if activation is not None:
                assert image.stored is not None  # `batches` has asked for it
                file = folder / f"{start + place + 1:04}-{image.file.stem}.png"
                write_atomic(file, png(overlay(image.stored, activation, self.preprocess)))
                prediction = prediction.model_copy(update={"overlay": str(file)})
            found.append(prediction)
        return found

    def _of(self, image: Prepared, answer: Answer) -> Prediction:
        return Prediction(
            **dict(answer),
            file=str(image.file),
            task=self.task.name,
            dicom=image.dicom,
            frame=image.frame,
        )
