"""Opening a list of images: the keys of the recipe that all lists share, files that are missing,
and what was read, kept for the next time.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from lorkd_deploy.arrays import I64, U8
from lorkd_deploy.data.files import Paths
from lorkd_deploy.data.index import Index
from lorkd_deploy.data.source import Attribute, TaskData, locate
from lorkd_deploy.errors import BundleError, DataError
from lorkd_deploy.image_files import read_image
from lorkd_deploy.schema import Part
from lorkd_deploy.storage import (
    canonical_json,
    read_tensors,
    sha256_bytes,
    sha256_file,
    write_tensors,
)

VERSION = 1  # of what is kept; another one isn't read
WORTH_KEEPING = 20_000  # images; fewer are read anew as fast
READERS = 16  # folders listed at a time: on a network each waits
NAMED = 10  # missing files that a message names
log = logging.getLogger(__name__)


class Listed(Part):
    """Keys that all lists of images have."""

    root: str | None = Field(
        default=None, description="folder that the paths are relative to; unset: the list's own"
    )
    classes: tuple[str, ...] | None = Field(
        default=None, description="names, in label order; unset: those the training images have"
    )
    label_range: tuple[int, int] | None = Field(
        default=None,
        description="first and last number of this task's classes, in a list that numbers the "
        "classes of several tasks; other rows are left out",
    )
    missing: Literal["refuse", "leave-out"] = Field(
        default="refuse", description="what becomes of files that the list names and aren't there"
    )
    val_share: float = Field(
        default=0.1,
        gt=0,
        lt=1,
        description="share of the training groups that validate, where the list has no val split",
    )

    @model_validator(mode="after")
    def _own_classes(self) -> Listed:
        if self.label_range is None:
            return self
        first, last = self.label_range
        if first >= last:
            raise ValueError(f"label_range [{first}, {last}] holds no two classes")
        if self.classes is not None and len(self.classes) != last - first + 1:
            raise ValueError(
                f"label_range [{first}, {last}] is of {last - first + 1} classes, "
                f"`classes` names {len(self.classes)}"
            )
        if getattr(self, "findings", ()):
            raise ValueError("label_range is for class numbers, not for findings")
        return self

    def folder(self, lists: Sequence[Path], folders: Sequence[Path]) -> Path:
        """The folder that the paths are relative to."""
        return lists[0].parent if self.root is None else locate(self.root, folders)


def open_listed(
    spec: Listed,
    lists: Mapping[str, Path],
    root: Path,
    index: Callable[[], Index],
    read: Callable[[Path], U8] = read_image,
) -> TaskData:
    """The data of the files `lists` (by what each is), which `index` reads.

    Files that aren't there are counted and named now, not met one at a time in a training. What
    was read of a long list is kept in `cache_folder` under the hash of the list and the recipe's
    section, and used again while no folder of images has changed.
    """
    hashes = {name: sha256_file(path) for name, path in lists.items()}
    key = sha256_bytes(canonical_json([VERSION, spec.model_dump(mode="json"), hashes, str(root)]))
    kept = _kept(key, root)
    if kept is None:
        whole = index().with_drawn("val", spec.val_share)
        missing, stamps = _missing(whole.paths)
        present = np.setdiff1d(np.arange(len(whole.paths)), missing, assume_unique=True)
        kept = (whole.part(present) if len(missing) else whole), len(missing)
        if len(missing):
            _report(spec, whole.paths, missing, next(iter(lists.values())))
        elif len(whole.paths) >= WORTH_KEEPING:
            _keep(key, whole, stamps)
    found, left_out = kept
    provenance: dict[str, Any] = {
        "source": getattr(spec, "source", "list"),
        "name": " ".join(path.name for path in lists.values()),
        "sha256": sha256_bytes(canonical_json(hashes)),
    }
    if left_out:
        provenance["left_out"] = {"missing": left_out}
    splits = found.splits(read)
    return TaskData(found.classes, found.kind, **splits, provenance=provenance)


def _report(spec: Listed, paths: Paths, missing: I64, where: Path) -> None:
    named = ", ".join(paths.name(int(i)) for i in missing[:NAMED])
    more = " …" if len(missing) > NAMED else ""
    what = f"{len(missing)} of {len(paths)} files are missing below {paths.root}: {named}{more}"
    if spec.missing == "refuse" or len(missing) == len(paths):
        raise DataError(
            what,
            where=where,
            fix="check `root`, or get the files; `missing: leave-out` goes on without them",
        )
    log.warning("%s: %s, left out", where, what)


def _missing(paths: Paths) -> tuple[I64, dict[str, int]]:
    """Which files aren't there, and when each folder last changed (ns); a folder is listed once."""
    heads: dict[str, int] = {}
    folder = np.empty(len(paths), np.int32)
    for place in range(len(paths)):
        folder[place] = heads.setdefault(paths.name(place).rpartition("/")[0], len(heads))
    with ThreadPoolExecutor(READERS) as pool:
        listed = list(pool.map(lambda head: _files(paths.root / head), heads))
    stamps = {head: stamp for head, (stamp, _) in zip(heads, listed, strict=True)}
    lost = [
        place
        for place in range(len(paths))
        if paths.name(place).rpartition("/")[2] not in listed[folder[place]][1]
    ]
    return np.array(lost, np.int64), stamps


def _files(folder: Path) -> tuple[int, set[str]]:
    try:
        stamp = folder.stat().st_mtime_ns
        with os.scandir(folder) as entries:
            return stamp, {entry.name for entry in entries if entry.is_file()}
    except (FileNotFoundError, NotADirectoryError, ValueError):  # a NUL is in no folder's name
        return 0, set()
    except OSError as exc:
        raise DataError(
            f"the folder can't be listed: {exc.strerror}",
            where=folder,
            fix="check who may read it, and that its server can be reached",
        ) from exc


def cache_folder() -> Path | None:
    """`$LORKD_CACHE`, or `lorkd` in `$XDG_CACHE_HOME` or `~/.cache`; None without a home."""
    if given := os.environ.get("LORKD_CACHE"):
        return Path(given)
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")  # noqa: PTH111
    return None if base.startswith("~") else Path(base) / "lorkd"


def _arrays(index: Index) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    paths = index.paths
    yield from (("text", paths.text), ("starts", paths.starts), ("ends", paths.ends))
    yield from (("split", index.split), ("labels", index.labels))
    if index.groups is not None:
        yield "groups", index.groups
    yield from ((f"attribute/{name}", a.codes) for name, a in index.attributes.items())


def _keep(key: str, index: Index, stamps: dict[str, int]) -> None:
    folder = cache_folder()
    if folder is None:
        return
    values = {name: one.values for name, one in index.attributes.items()}
    meta = {"classes": index.classes, "attributes": values, "folders": stamps}
    try:
        path = folder / "lists" / f"{key}.safetensors"
        write_tensors(path, dict(_arrays(index)), {"index": json.dumps(meta)}, digest=True)
    except OSError as exc:
        log.warning("the list is read anew each time: %s can't be written: %s", folder, exc)


def _kept(key: str, root: Path) -> tuple[Index, int] | None:
    from safetensors import SafetensorError, safe_open

    folder = cache_folder()
    path = folder and folder / "lists" / f"{key}.safetensors"
    if not path or not path.is_file():
        return None
    try:
        with safe_open(path, framework="np") as stream:
            meta = json.loads(stream.metadata()["index"])
        arrays = read_tensors(path)
    except (OSError, SafetensorError, BundleError, KeyError, ValueError) as exc:
        log.warning("%s is damaged and made anew: %s", path, exc)
        return None
    if any(_stamp(root / name) != stamp for name, stamp in meta["folders"].items()):
        return None
    attributes = {
        name: Attribute(tuple(values), arrays[f"attribute/{name}"])
        for name, values in meta["attributes"].items()
    }
    paths = Paths(root, arrays["text"], arrays["starts"], arrays["ends"])
    groups, classes = arrays.get("groups"), tuple(meta["classes"])
    return Index(paths, arrays["split"], arrays["labels"], groups, attributes, classes), 0


def _stamp(folder: Path) -> int:
    try:
        return folder.stat().st_mtime_ns
    except OSError:
        return 0
