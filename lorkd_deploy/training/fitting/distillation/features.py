"""The teacher's features of every training image: computed once, at the teacher's own size.

The teacher sees each image as it is stored. What augmentation does to it is the student's own
exercise, whose target stays that of the unchanged image; so the teacher runs once per image,
however large it is and however long the student trains.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lorkd_deploy.arrays import F16, F32
from lorkd_deploy.training.batches.loader import Batch, Images
from lorkd_deploy.training.fitting.autocast import autocast, chosen_precision
from lorkd_deploy.training.fitting.distillation.cache import cached, facts_of
from lorkd_deploy.training.fitting.job import Job
from lorkd_deploy.training.networks.network import network_input, weights_sha256
from lorkd_deploy.training.networks.restore import Teacher

CHUNK = 128


class TeacherFeatures:
    """Features `(N, F)` of a batch's images, read from one file per task in the job's cache.

    A file depends on the teacher's weights, its preprocessing, the task's images, and precision.
    `facts` are for the history: each task's file and its hash.
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
        known = torch.from_numpy(np.concatenate(parts))
        return known.to(self._job.device, non_blocking=True).float()

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

        def make() -> F16:
            images = Images(job.setup.data[number].train, self._preprocess, hold=False)
            return self.of_images(images, f"teacher features of {name}").astype(np.float16)

        file = cached(job, f"{self._kind}-{name}", depends, make, f"teacher features of {name}")
        self.facts[name] = facts_of(file)
        held: F16 = np.load(file, mmap_mode="r")
        return held

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
