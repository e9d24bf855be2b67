"""What the check of a large task found, kept so that the next training needn't read its images."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from lorkd_deploy.data import SPLITS, Split, TaskData
from lorkd_deploy.data.files import Paths
from lorkd_deploy.data.listed import READERS, WORTH_KEEPING, cache_folder
from lorkd_deploy.datacheck.findings import LEAKS
from lorkd_deploy.datacheck.pictures import blocks
from lorkd_deploy.datacheck.result import TaskCheck
from lorkd_deploy.errors import LorkdError
from lorkd_deploy.preprocess import Preprocess
from lorkd_deploy.recipe import TaskSpec
from lorkd_deploy.schema import read_part, write_part
from lorkd_deploy.storage import canonical_json

VERSION = 1  # of how twins are found; what another one found isn't read
STATED = 4096  # files that a thread asks the file system about at a time
log = logging.getLogger(__name__)


class Kept:
    """The findings on one task's images, in a file named by a hash of all that they depend on.

    Of files that is their names, sizes and times, so that a changed image is looked at again. Below
    `WORTH_KEEPING` images, and without a home folder, nothing is kept.
    """

    def __init__(self, task: TaskSpec, data: TaskData, preprocess: Preprocess) -> None:
        self._name = task.name
        folder = cache_folder()
        count = sum(len(getattr(data, name)) for name in SPLITS)
        self._file: Path | None = None
        if folder is not None and count >= WORTH_KEEPING:
            self._file = folder / "checks" / f"{_key(task, data, preprocess)}.json"

    def read(self) -> TaskCheck | None:
        """What was found, twins and patients alone; None where nothing is kept."""
        if self._file is None or not self._file.is_file():
            return None
        try:
            kept = read_part(self._file, TaskCheck, LorkdError, "it is made anew")
        except LorkdError as exc:
            log.warning("%s", exc)
            return None
        return kept.model_copy(update={"task": self._name})

    def write(self, check: TaskCheck) -> None:
        """Keep it, without the names of files."""
        if self._file is None:
            return
        found = tuple(one for one in check.findings if one.kind in LEAKS)
        try:
            write_part(self._file, check.model_copy(update={"findings": found, "pairs": ()}))
        except OSError as exc:
            log.warning("the images are looked at anew each time: %s: %s", self._file, exc.strerror)


def _key(task: TaskSpec, data: TaskData, preprocess: Preprocess) -> str:
    found = hashlib.sha256(
        canonical_json([VERSION, data.provenance, preprocess.sha256, task.group_pattern])
    )
    for name in SPLITS:
        split: Split = getattr(data, name)
        found.update(f"{name} {len(split)}\n".encode())
        found.update(split.labels.tobytes())
        if split.groups is not None:
            found.update(split.groups.tobytes())
        paths = getattr(split.images, "paths", None)
        if paths is not None:
            for line in _listing(paths):
                found.update(line)
    return found.hexdigest()


def _listing(paths: Paths) -> Iterator[bytes]:
    """Each file's name, size and time; threads ask, since a network answers slowly."""

    def stated(part: slice) -> bytes:
        lines = []
        for place in range(part.start, part.stop):
            try:
                stat = paths[place].stat()
            except OSError:
                lines.append(f"{paths.name(place)}\n")
            else:
                lines.append(f"{paths.name(place)} {stat.st_size} {stat.st_mtime_ns}\n")
        return "".join(lines).encode()

    with ThreadPoolExecutor(READERS) as pool:
        yield from pool.map(stated, blocks(len(paths), STATED))
