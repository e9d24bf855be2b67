"""Files written whole or not at all, hashed, and kept inside their folder."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import glob
import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from lorkd_deploy.errors import BundleError, LorkdError

Tensors = Mapping[str, npt.NDArray[Any]]
LOCK = ".lock"
# Of what becomes a folder or a file: departments, tasks.
NAME = re.compile(r"^[a-z0-9][a-z0-9_-]{0,62}$")
_DIGEST = re.compile(rb'"digest":"([0-9a-f]{64})"')  # in a header: quotes in its values have a \
ZEROS = b"0" * 64  # in the place of a file's digest, while it is computed


def sha256_bytes(data: bytes) -> str:
    """Hex SHA-256 of `data`."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's content, read in blocks."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def canonical_json(value: Any) -> bytes:
    """JSON with sorted keys, so that equal values give equal bytes and equal hashes."""
    text = json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False)
    return text.encode() + b"\n"


def with_digest(blank: bytes, place: re.Match[bytes] | None) -> bytes:
    """`blank` with its SHA-256 in place of the 64 zeros that are the first group of `place`."""
    assert place is not None
    return blank[: place.start(1)] + sha256_bytes(blank).encode() + blank[place.end(1) :]


def as_written(data: bytes, digest: re.Match[bytes]) -> bool:
    """Whether `data` is what `with_digest` gave; `digest` is the one that was found in it."""
    blank = data[: digest.start(1)] + ZEROS + data[digest.end(1) :]
    return sha256_bytes(blank) == digest[1].decode()


def write_atomic(path: Path, data: bytes) -> None:
    """Write `data` to a temporary name beside `path`, flush it to disk, then rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with temporary.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except BaseException as exc:
        temporary.unlink(missing_ok=True)
        if isinstance(exc, OSError) and exc.filename is None:
            exc.filename = str(path)  # a full disk names no file by itself
        raise


@contextlib.contextmanager
def folder_atomic(path: Path) -> Iterator[Path]:
    """Yield an empty folder beside `path` that takes its place only if the block succeeds.

    A block that raises, or a process that is killed, leaves the previous `path` whole. Only one
    writer may be at work (`exclusive`): whatever a killed one left is cleared away first.
    """
    path = path.absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    clear_after_a_kill(path.parent, glob.escape(path.name))
    token = uuid.uuid4().hex[:8]
    fresh = path.with_name(f".{path.name}.{token}.tmp")
    fresh.mkdir()
    try:
        yield fresh
        if not _exchanged(fresh, path):
            old = path.with_name(f".{path.name}.{token}.old")
            if path.exists():
                path.rename(old)
            fresh.rename(path)
            shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _exchanged(fresh: Path, path: Path) -> bool:
    """Let two folders change places in one step; False where that can't be done.

    Two renames would leave a moment in which there is nothing at `path`. Needs Linux's
    `renameat2`, which some network file systems lack.
    """
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None or not path.is_dir():
        return False
    here, exchange = ctypes.c_int(-100), ctypes.c_uint(2)  # AT_FDCWD, RENAME_EXCHANGE
    done: int = rename(here, os.fsencode(fresh), here, os.fsencode(path), exchange)
    return done == 0


def clear_after_a_kill(parent: Path, pattern: str) -> None:
    """Put right what a killed `folder_atomic` left below `parent`, for folders named `pattern`.

    What it had moved away comes back, and what it had not finished is removed.
    """
    for moved in parent.glob(f".{pattern}.????????.old"):
        path = parent / moved.name[1 : -len(".????????.old")]
        if not path.exists():
            moved.rename(path)
        shutil.rmtree(moved, ignore_errors=True)
    for unfinished in parent.glob(f".{pattern}.????????.tmp"):
        if unfinished.is_dir():
            shutil.rmtree(unfinished, ignore_errors=True)


@contextlib.contextmanager
def exclusive(folder: Path, doing: str) -> Iterator[None]:
    """Hold `folder` for one writer at a time; a second one gets an error instead of waiting."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            if exc.errno not in (errno.EAGAIN, errno.EACCES):
                raise  # no other process: the file system can't lock
            raise LorkdError(
                f"another process is writing here while this one wanted to {doing}",
                where=folder,
                fix="wait until it has ended, or choose another --out",
            ) from None
        yield


def carry_over(folder: Path, place: Path) -> None:
    """Put the same files at another place, as hard links where that is possible.

    Only for files that are replaced whole and never edited, as those of a run are. What others are
    still writing there, which begins with a dot, is left out.
    """
    hidden = shutil.ignore_patterns(".*")
    with folder_atomic(place) as fresh:
        shutil.copytree(
            folder, fresh, ignore=hidden, copy_function=link_or_copy, dirs_exist_ok=True
        )


def link_or_copy(file: str | Path, place: str | Path) -> None:
    """Put a file at another place too, as a hard link where that is possible."""
    try:
        os.link(file, place)
    except OSError:  # another disk, or a file system without links
        shutil.copyfile(file, place)


def inside(folder: Path, relative: str) -> Path:
    """`folder / relative`, refusing anything that would leave `folder` (`..`, absolute, links)."""
    pure = PurePosixPath(relative)
    candidate = folder / pure
    leaves = pure.is_absolute() or ".." in pure.parts or not pure.parts
    leaves = leaves or "\\" in relative or "\0" in relative
    if leaves or not candidate.resolve().is_relative_to(folder.resolve()):
        raise BundleError(
            f"the path {relative!r} leaves its folder",
            where=folder,
            fix="don't use this file: get a fresh copy from where it was made",
        )
    return candidate


def write_tensors(
    path: Path, tensors: Tensors, metadata: dict[str, str] | None = None, *, digest: bool = False
) -> None:
    """Write arrays as safetensors, atomically; equal arrays give equal bytes.

    With two or more metadata entries they don't: safetensors writes those in any order. `digest`
    puts the SHA-256 of the bytes, with 64 zeros in its place, among them: for a file that no
    manifest has the hash of.
    """
    write_atomic(path, tensor_bytes(tensors, metadata, digest=digest))


def tensor_bytes(
    tensors: Tensors, metadata: dict[str, str] | None = None, *, digest: bool = False
) -> bytes:
    """The bytes that `write_tensors` writes."""
    from safetensors.numpy import save

    # Not `ascontiguousarray`, which gives a tensor without dimensions one.
    ordered = {name: np.asarray(tensors[name], order="C") for name in sorted(tensors)}
    if not digest:
        plain: bytes = save(ordered, metadata)
        return plain
    blank: bytes = save(ordered, {**(metadata or {}), "digest": ZEROS.decode()})
    return with_digest(blank, _digest(blank))


def _digest(data: bytes) -> re.Match[bytes] | None:
    """The digest in a safetensors file's header, if it has one."""
    return _DIGEST.search(data, 8, min(len(data), 8 + int.from_bytes(data[:8], "little")))


def read_tensors(path: Path) -> dict[str, npt.NDArray[Any]]:
    """Every array of a safetensors file, whose digest is checked where it has one.

    Raises `BundleError` where it is missing or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        data = path.read_bytes()
        found = _digest(data)
        if found is not None and not as_written(data, found):
            raise BundleError(f"{path.name} has changed since it was written", where=path)
        return load(data)
    except FileNotFoundError:
        raise BundleError(f"{path.name} is missing", where=path) from None
    except (SafetensorError, ValueError, KeyError) as exc:
        raise BundleError(
            f"{path.name} is no readable safetensors file: {exc}", where=path
        ) from exc
