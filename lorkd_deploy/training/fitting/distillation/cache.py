"""Arrays that a training computes once and keeps below its run: of the teacher, of every image.

A file's name has the hash of all that it depends on and that of its own bytes, so that neither
another teacher's nor a damaged one is ever learnt from.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lorkd_deploy.storage import canonical_json, sha256_bytes, sha256_file, write_atomic
from lorkd_deploy.training.fitting.job import Job

log = logging.getLogger(__name__)


def cached(
    job: Job, prefix: str, depends: Mapping[str, Any], make: Callable[[], np.ndarray], what: str
) -> Path:
    """The `.npy` file of `what`, whose name begins with `prefix`; made where it isn't there.

    `depends` is all that it depends on, as JSON. Every process calls `make`, and the first one's
    array is written. Other files of that prefix go, unless other jobs share the folder.
    """
    start = f"{prefix}-{sha256_bytes(canonical_json(dict(depends)))[:16]}"
    file = job.processes.first(lambda: _found(job, prefix, start))
    if file is not None:
        log.debug("%s read: cache/%s", what, file.name)
        return file
    made = make()
    file = job.processes.first(lambda: _written(job.cache, start, made))
    log.debug("%s written: cache/%s", what, file.name)
    return file


def facts_of(file: Path) -> dict[str, str]:
    """Which file it is, for the history."""
    return {"file": file.name, "sha256": sha256_file(file)}


def _found(job: Job, prefix: str, start: str) -> Path | None:
    """The file whose name begins with `start`, whole; else None, and the prefix's others go.

    In a folder that is shared they are other jobs', which may be at work: they stay.
    """
    folder, shared = job.cache, job.cache_folder is not None
    for path in sorted(folder.glob(f"{prefix}-{'?' * 16}-{'?' * 16}.npy")):
        if not path.name.startswith(start):
            if shared:
                continue
            log.info("%s is of another teacher or recipe: computed again", path.name)
        elif path.name == _file_name(start, sha256_file(path)):
            return path
        else:
            log.warning("%s is damaged: computed again", path.name)
        path.unlink()
    for unfinished in () if shared else folder.glob(f".{prefix}-*.tmp"):
        unfinished.unlink()  # a killed writer's, of up to gigabytes
    return None


def _written(folder: Path, start: str, made: np.ndarray) -> Path:
    data = io.BytesIO()
    np.save(data, made)
    path = folder / _file_name(start, sha256_bytes(data.getvalue()))
    write_atomic(path, data.getvalue())
    return path


def _file_name(start: str, sha256: str) -> str:
    return f"{start}-{sha256[:16]}.npy"
