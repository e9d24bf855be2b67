"""Image files that are read on request: their paths as one array, and reads that are tried again.

A million `Path` objects take a gigabyte; a million paths as text take a tenth of that.
"""

from __future__ import annotations

import errno
import logging
import time
from array import array
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lorkd_deploy.arrays import I64, U8
from lorkd_deploy.errors import ImageError
from lorkd_deploy.image_files import Found, read_image
from lorkd_deploy.storage import canonical_json, sha256_bytes

# What a network's file system answers while it is away, and a moment later doesn't.
PASSING = {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.EBUSY, errno.ENOTCONN,
           errno.ECONNRESET, errno.ECONNABORTED, errno.EHOSTDOWN, errno.EHOSTUNREACH,
           errno.ENETDOWN, errno.ENETUNREACH, errno.EREMOTEIO, errno.EINTR}  # fmt: skip
WAITS = (0.5, 2.0, 5.0)  # s before each further try
log = logging.getLogger(__name__)


class Paths(Sequence[Path]):
    """Paths below `root`: one block of UTF-8 text, and where in it each starts and ends `(N,)`."""

    def __init__(self, root: Path, text: U8, starts: I64, ends: I64) -> None:
        self.root, self.text, self.starts, self.ends = root, text, starts, ends

    @classmethod
    def of(cls, root: Path, names: Iterable[str]) -> Paths:
        """The paths that `names` say, relative to `root`."""
        text, ends = bytearray(), array("q", [0])
        for name in names:
            text += name.encode()
            ends.append(len(text))
        bounds = np.array(ends, np.int64)
        return cls(root, np.frombuffer(text, np.uint8), bounds[:-1], bounds[1:])

    def __len__(self) -> int:
        return len(self.ends)

    def name(self, index: int) -> str:
        """The path relative to the root, as it was written."""
        return self.text[self.starts[index] : self.ends[index]].tobytes().decode()

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return Paths(self.root, self.text, self.starts[index], self.ends[index])
        return self.root / self.name(range(len(self))[index])

    def part(self, indices: I64) -> Paths:
        """The paths at `indices`, in that order; the text is shared."""
        return Paths(self.root, self.text, self.starts[indices], self.ends[indices])


def folder_provenance(
    source: str, root: Path, files: Iterable[Path], left_out: Found
) -> dict[str, Any]:
    """What a record says of a folder of images: a hash of its `files`' names and sizes in bytes,
    and how many were left out, which is warned of.
    """
    listing = [[path.relative_to(root).as_posix(), path.stat().st_size] for path in files]
    provenance: dict[str, Any] = {
        "source": source,
        "name": root.resolve().name,
        "listing_sha256": sha256_bytes(canonical_json(listing)),
    }
    if left_out.left_out:
        log.warning("%s: %s", root, left_out.in_words)
        provenance["left_out"] = left_out.counts
    return provenance


class ImageFiles(Sequence[U8]):
    """Files that are read each time they are asked for, in a fixed order.

    A read that fails as those over a network do is tried again; then the file is named.
    """

    def __init__(self, paths: Sequence[Path], read: Callable[[Path], U8] = read_image) -> None:
        self.paths = paths
        self._read = read

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self._patiently(path) for path in self.paths[index]]
        return self._patiently(self.paths[index])

    def _patiently(self, path: Path) -> U8:
        for wait in WAITS:
            try:
                return self._read(path)
            except ImageError as exc:
                if not _passing(exc):
                    raise
                log.warning("%s can't be read now, tried again: %s", path, exc.what)
                time.sleep(wait)
        try:
            return self._read(path)
        except ImageError as exc:
            if not _passing(exc):
                raise
            raise ImageError(
                f"{exc.what} ({len(WAITS) + 1} times, over {sum(WAITS):g} s)",
                where=path,
                fix="check that the folder's server can be reached, then --resume",
            ) from exc


def _passing(exc: ImageError) -> bool:
    return isinstance(exc.__cause__, OSError) and exc.__cause__.errno in PASSING
