"""What the check of a large task found, kept so that the next training needn't read its images."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from lorkd_deploy.data import SPLITS, Split, TaskData
from lorkd_deploy.data.files import Paths
from lorkd_deploy.data.listed import READERS, WORTH_KEEPING, cache_folder
from lorkd_deploy.datacheck.findings import LEAKS
from lorkd_deploy.datacheck.pictures import blocks
from lorkd_deploy.datacheck.result import TaskCheck
from lorkd_deploy.errors import LorkdError
from lorkd_deploy.preprocess import Preprocess
from lorkd_deploy.progress import Progress, bar
from lorkd_deploy.recipe import TaskSpec
from lorkd_deploy.schema import read_part, write_part
from lorkd_deploy.storage import canonical_json

VERSION = 1  # of how twins are found; what another one found isn't read
STATED = 4096  # files that a thread asks the file system about at a time
log = logging.getLogger(__name__)


class Kept:
    """The findings on one task's images, in a file named by a hash of all that they depend on.

    Of files that is their names, sizes and times, so that a changed image is looked at again; they
    are asked for, with a bar, only where something may be read or written. Below `WORTH_KEEPING`
    images, and without a home folder, nothing is kept.
    """

    def __init__(
        self,
        task: TaskSpec,
        data: TaskData,
        preprocess: Preprocess,
        progress: Progress | None = None,
    ) -> None:
        self._name, self._data, self._progress = task.name, data, progress
        self._listing: str | None = None
        self._start: Path | None = None  # of the file's name
        folder = cache_folder()
        if folder is not None and sum(len(getattr(data, name)) for name in SPLITS) >= WORTH_KEEPING:
            self._start = folder / "checks" / _key(task, data, preprocess)

    def read(self) -> TaskCheck | None:
        """What was found, twins and patients alone; None where nothing is kept."""
        start = self._start
        if start is None or not any(start.parent.glob(f"{start.name}-*.json")):
            return None
        file = self._file(start)
        if not file.is_file():
            return None
        try:
            kept = read_part(file, TaskCheck, LorkdError, "it is made anew")
        except LorkdError as exc:
            log.warning("%s", exc)
            return None
        return kept.model_copy(update={"task": self._name})

    def made(self, check: Callable[[], TaskCheck]) -> TaskCheck:
        """What `check` finds; it is kept, without the names of files, under what the files were
        before it looked, since one may change meanwhile.
        """
        if self._start is None:
            return check()
        file = self._file(self._start)
        made = check()
        found = tuple(one for one in made.findings if one.kind in LEAKS)
        try:
            write_part(file, made.model_copy(update={"findings": found, "pairs": ()}))
        except OSError as exc:
            log.warning("the images are looked at anew each time: %s: %s", file, exc.strerror)
        return made

    def _file(self, start: Path) -> Path:
        if self._listing is None:
            images = [getattr(self._data, name).images for name in SPLITS]
            files = [one.paths for one in images if hasattr(one, "paths")]
            what = f"listing the files of {self._name}"
            with bar(self._progress if files else None, what, sum(map(len, files))) as shown:
                self._listing = _listed(files, shown)
        return start.with_name(f"{start.name}-{self._listing}.json")


def _key(task: TaskSpec, data: TaskData, preprocess: Preprocess) -> str:
    """A hash of all that is known without the file system."""
    found = hashlib.sha256(
        canonical_json([VERSION, data.provenance, preprocess.sha256, task.group_pattern])
    )
    for name in SPLITS:
        split: Split = getattr(data, name)
        found.update(f"{name} {len(split)}\n".encode())
        found.update(split.labels.tobytes())
        if split.groups is not None:
            found.update(split.groups.tobytes())
    return found.hexdigest()


def _listed(files: Sequence[Paths], progress: Progress) -> str:
    """A hash of each file's name, size and time; threads ask, since a network answers slowly."""
    found = hashlib.sha256()
    with ThreadPoolExecutor(READERS) as pool:
        for paths in files:
            for lines in pool.map(partial(_stated, paths), blocks(len(paths), STATED)):
                found.update("".join(lines).encode())
                progress.advance(len(lines))
    return found.hexdigest()


def _stated(paths: Paths, part: slice) -> list[str]:
    lines = []
    for place in range(part.start, part.stop):
        try:
            stat = paths[place].stat()
        except OSError:
            lines.append(f"{paths.name(place)}\n")
        else:
            lines.append(f"{paths.name(place)} {stat.st_size} {stat.st_mtime_ns}\n")
    return lines
