"""Make the kernel forget files, so that an engine starts from the disk, and check that it did."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterable
from pathlib import Path


def forget(files: Iterable[Path]) -> float | None:
    """Ask the kernel to drop these files' pages from its cache; → the share of their bytes that
    is no longer in it, None where this system can't be asked.

    It takes no special rights. Pages that another process maps (Python's own, for one) stay, which
    is why the share is returned.
    """
    if not hasattr(os, "posix_fadvise"):
        return None
    total = kept = 0
    for file in files:
        try:
            with file.open("rb") as stream:
                size = os.fstat(stream.fileno()).st_size
                if size:
                    os.fdatasync(stream.fileno())  # a dirty page is never dropped
                    os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                    still = cached(stream.fileno(), size)
                    if still is None:
                        return None
                    total, kept = total + size, kept + min(still, size)
        except OSError:
            continue
    return 1 - kept / total if total else None


def cached(descriptor: int, size: int) -> int | None:
    """How many bytes of an open file are in the page cache, by `mincore`; None: can't be asked."""
    try:
        mincore = ctypes.CDLL(None, use_errno=True).mincore
    except (OSError, AttributeError):
        return None
    pages = -(-size // mmap.PAGESIZE)
    vector = (ctypes.c_ubyte * pages)()
    # Private and writable, for ctypes wants a writable buffer; nothing is written.
    with mmap.mmap(descriptor, size, flags=mmap.MAP_PRIVATE) as mapped:
        view = (ctypes.c_char * size).from_buffer(mapped)
        failed = mincore(ctypes.byref(view), ctypes.c_size_t(size), vector)
        del view
    if failed:
        return None
    return sum(page & 1 for page in bytes(vector)) * mmap.PAGESIZE


def mapped_files(maps: Path = Path("/proc/self/maps")) -> list[str]:
    """Every file that this process maps: libraries, and an engine that is read that way."""
    try:
        lines = maps.read_text().splitlines()
    except OSError:
        return []
    found = (line.split(maxsplit=5)[5] for line in lines if line.count("/"))
    return sorted({path for path in found if path.startswith("/") and "(deleted)" not in path})
