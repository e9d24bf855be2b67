"""The teacher's features of every training image, computed once where the augmentation allows.

An unmoved image has two forms, as it is and mirrored. Moved or changed images (`train.shift`,
`train.augment`) have too many: there the teacher runs in every step.
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lorkd_deploy.storage import (
    canonical_json,
    read_tensors,
    sha256_bytes,
    sha256_file,
    tensor_bytes,
    write_atomic,
)
from lorkd_deploy.training.batches.loader import Batch
from lorkd_deploy.training.fitting.autocast import autocast, chosen_precision
from lorkd_deploy.training.fitting.job import Job
from lorkd_deploy.training.networks.network import network_input
from lorkd_deploy.training.networks.restore import Teacher

log = logging.getLogger(__name__)
F32 = npt.NDArray[np.float32]
CHUNK = 256
IN_MEMORY = 4 << 30  # bytes of features that are held


class TeacherFeatures:
    """Features `(N, F)` float32 of a batch's images, from memory or from the teacher itself.

    The cache lies in `RUN/cache`. Its name has the hash of all it depends on (teacher, images'
    preprocessing, precision) and that of its own bytes, so that neither another teacher's nor a
    damaged one is ever learnt from. `facts` are for the history: whether they are cached, the
    file's hash, or why not.
    """

    def __init__(self, teacher: Teacher, job: Job) -> None:
        self.teacher = teacher.network.to(job.device)
        self._sha256 = teacher.sha256
        self._setup = job.setup
        self._progress = job.progress
        self._folder = job.run.path / "cache"
        self._precision = chosen_precision(job.setup.recipe.train.precision, job.device)
        self._held: list[F32] | None = None
        self.facts: dict[str, str | bool] = {"cached": False}
        if reason := self._reason_against():
            self.facts["because"] = reason
            log.info("teacher features are computed in every step: %s", reason)
        else:
            self._held = self._cached()

    def __call__(self, batch: Batch, x: Tensor) -> Tensor:
        """`batch` and its network input `x` → features on the device, without gradient."""
        if self._held is None:
            return self._compute(x)
        parts = [
            held[flips.astype(np.int64), indices]
            for held, indices, flips in zip(self._held, batch.indices, batch.flips, strict=True)
        ]
        return torch.from_numpy(np.concatenate(parts)).to(self._setup.processes.device)

    def _reason_against(self) -> str | None:
        """Why features are not held, or None."""
        spec = self._setup.recipe.train
        images = sum(len(task) for task in self._setup.train)
        forms = 2 if spec.flip else 1
        if spec.shift:
            return "train.shift moves the images"
        if spec.augment:
            names = ", ".join(transform.kind for transform in spec.augment)
            return f"train.augment changes the images ({names})"
        if images * forms * self.teacher.features * 4 > IN_MEMORY:
            return "they don't fit in memory"
        if spec.epochs <= forms:
            return "the training is too short to use them twice"
        return None

    def _cached(self) -> list[F32]:
        recipe, processes = self._setup.recipe, self._setup.processes
        depends = {
            "teacher": self._sha256,
            "preprocess": recipe.preprocess.sha256,
            "tasks": self._setup.names,
            "data": [task.provenance for task in self._setup.data],
            "flip": recipe.train.flip,
            "precision": self._precision,
            "device": processes.device.type,
        }
        start = f"teacher-features-{sha256_bytes(canonical_json(depends))[:16]}"
        held = processes.first(lambda: self._read(start))
        if held is not None:
            return held
        made = self._make()
        processes.first(lambda: self._write(start, made))
        return made

    def _write(self, start: str, made: list[F32]) -> None:
        data = tensor_bytes(dict(zip(self._setup.names, made, strict=True)))
        sha256 = sha256_bytes(data)
        path = self._folder / _file_name(start, sha256)
        write_atomic(path, data)
        self._note(path, sha256, "written")

    def _read(self, start: str) -> list[F32] | None:
        """The cache whose name begins with `start`; else None, and there is room for it."""
        for path in self._folder.glob("teacher-features-*.safetensors"):
            if not path.name.startswith(start):
                log.info("%s is of another teacher or recipe: computed again", path.name)
            elif path.name == _file_name(start, sha256 := sha256_file(path)):
                self._note(path, sha256, "read")
                found = read_tensors(path)
                return [found[name] for name in self._setup.names]
            else:
                log.warning("%s is damaged: computed again", path.name)
            path.unlink()
        for unfinished in self._folder.glob(".teacher-features-*.tmp"):
            unfinished.unlink()  # a killed writer's, of up to gigabytes
        return None

    def _note(self, path: Path, sha256: str, done: str) -> None:
        self.facts |= {"cached": True, "file": path.name, "sha256": sha256}
        log.info("teacher features %s: cache/%s, sha256 %s", done, path.name, sha256)

    def _make(self) -> list[F32]:
        forms = 2 if self._setup.recipe.train.flip else 1
        tasks = self._setup.train
        self._progress.start("teacher features", forms * sum(len(task) for task in tasks))
        processes = self._setup.processes
        made = []
        for images in tasks:
            held = np.zeros((forms, len(images), self.teacher.features), np.float32)
            for form in range(forms):
                for start in range(CHUNK * processes.index, len(images), CHUNK * processes.count):
                    rows = np.arange(start, min(start + CHUNK, len(images)))
                    shown = images[rows]
                    if form:
                        shown = np.ascontiguousarray(shown[:, :, ::-1])
                    x = network_input(
                        shown, self._setup.recipe.preprocess, self._setup.processes.device
                    )
                    held[form, rows] = self._compute(x).cpu().numpy()
                    self._progress.advance(len(rows))
            made.append(processes.total_array(held))
        self._progress.stop()
        return made

    @torch.no_grad()
    def _compute(self, x: Tensor) -> Tensor:
        with autocast(self._setup.processes.device, self._precision):
            features: Tensor = self.teacher.backbone(x)
        return features.float()


def _file_name(start: str, sha256: str) -> str:
    return f"{start}-{sha256[:16]}.safetensors"
