"""The teacher's features of every training image: computed once, at the teacher's own size.

The teacher sees each image as it is stored. What augmentation does to it is the student's own
exercise, whose target stays that of the unchanged image; so the teacher runs once per image,
however large it is and however long the student trains.
"""

from __future__ import annotations

import io
import logging
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lorkd_deploy.arrays import F16, F32
from lorkd_deploy.storage import canonical_json, sha256_bytes, sha256_file, write_atomic
from lorkd_deploy.training.batches.loader import Batch, Images
from lorkd_deploy.training.fitting.autocast import autocast, chosen_precision
from lorkd_deploy.training.fitting.job import Job
from lorkd_deploy.training.networks.network import network_input, weights_sha256
from lorkd_deploy.training.networks.restore import Teacher

log = logging.getLogger(__name__)
CHUNK = 128


class TeacherFeatures:
    """Features `(N, F)` of a batch's images, read from one file per task in the job's cache.

    A file's name has the hash of all that it depends on (the teacher's weights, its preprocessing,
    the task's images, precision) and that of its own bytes, so that neither another teacher's nor a
    damaged one is ever learnt from. `facts` are for the history: each task's file and its hash.
    `kind` begins the names, for features of another kind beside the usual ones.
    """

    def __init__(self, teacher: Teacher, job: Job, *, kind: str = "features") -> None:
        self.teacher = teacher.network.to(job.device)
        self.precision = chosen_precision(job.spec.precision, job.device)
        self._sha256 = weights_sha256(self.teacher.backbone)
        self._preprocess = teacher.preprocess
        self._job, self._kind = job, kind
        self.facts: dict[str, dict[str, str]] = {}
        self._held = [self._of_task(number) for number in range(len(job.setup.data))]

    def __call__(self, batch: Batch) -> Tensor:
        """float32 on the job's device, in the batch's order."""
        pairs = zip(self._held, batch.indices, strict=True)
        parts = [held[indices] for held, indices in pairs]
        return torch.from_numpy(np.concatenate(parts)).to(self._job.device).float()

    def of_task(self, number: int) -> F16:
        """Those of all training images of a task, `(n, F)`."""
        return self._held[number]

    def _of_task(self, number: int) -> F16:
        job, name = self._job, self._job.setup.names[number]
        depends = {
            "teacher": self._sha256,
            "preprocess": self._preprocess.sha256,
            "data": job.setup.data[number].provenance,
            "images": len(job.setup.data[number].train),
            "precision": self.precision,
            "device": job.device.type,
        }
        prefix = f"{self._kind}-{name}"
        start = f"{prefix}-{sha256_bytes(canonical_json(depends))[:16]}"
        file = job.processes.first(lambda: self._found(prefix, start))
        if file is None:
            images = Images(job.setup.data[number].train, self._preprocess)
            made = self.of_images(images, f"teacher features of {name}").astype(np.float16)
            file = job.processes.first(lambda: _written(job.cache, start, made))
            log.info("teacher features of %s written: cache/%s", name, file.name)
        else:
            log.info("teacher features of %s read: cache/%s", name, file.name)
        self.facts[name] = {"file": file.name, "sha256": sha256_file(file)}
        held: F16 = np.load(file, mmap_mode="r")
        return held

    def _found(self, prefix: str, start: str) -> Path | None:
        """The file whose name begins with `start`, whole; else None, and the task's others go."""
        folder = self._job.cache
        for path in sorted(folder.glob(f"{prefix}-{'?' * 16}-{'?' * 16}.npy")):
            if not path.name.startswith(start):
                log.info("%s is of another teacher or recipe: computed again", path.name)
            elif path.name == _file_name(start, sha256_file(path)):
                return path
            else:
                log.warning("%s is damaged: computed again", path.name)
            path.unlink()
        for unfinished in folder.glob(f".{prefix}-*.tmp"):
            unfinished.unlink()  # a killed writer's, of up to gigabytes
        return None

    def of_images(self, images: Images, title: str) -> F32:
        """Those of any images that were made by the teacher's preprocessing, `(n, F)`, not kept."""
        job, processes = self._job, self._job.processes
        job.progress.start(title, len(images))
        made = np.zeros((len(images), self.teacher.features), np.float32)
        for start in range(CHUNK * processes.index, len(images), CHUNK * processes.count):
            chosen = np.arange(start, min(start + CHUNK, len(images)))
            x = network_input(images[chosen], self._preprocess, self.teacher)
            with torch.no_grad(), autocast(job.device, self.precision):
                made[chosen] = self.teacher.backbone(x).float().cpu().numpy()
            job.progress.advance(len(chosen))
        job.progress.stop()
        return processes.total_array(made)


def _written(folder: Path, start: str, made: F16) -> Path:
    data = io.BytesIO()
    np.save(data, made)
    path = folder / _file_name(start, sha256_bytes(data.getvalue()))
    write_atomic(path, data.getvalue())
    return path


def _file_name(start: str, sha256: str) -> str:
    return f"{start}-{sha256[:16]}.npy"
