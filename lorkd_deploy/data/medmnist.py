"""The 12 two-dimensional sets of MedMNIST v2 (Yang et al., Scientific Data 2023), in every size.

`medmnist.json` is a copy of what the medmnist package's list says of them: classes, licence and
MD5 sums. The package itself needs torch, and a device without torch has to open and check these
files too; a test compares the copy with the package. Only a download needs the package.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import socket
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from lorkd_deploy.data.npz import read_archive
from lorkd_deploy.data.source import DataSource, TaskData
from lorkd_deploy.errors import DataError, unknown_name

PATIENCE = 30  # s without an answer, after which a download is given up


class MedMnistData(DataSource):
    """One of the 12 two-dimensional MedMNIST v2 sets."""

    source: Literal["medmnist"]
    name: str = Field(description="breastmnist, pneumoniamnist, …")
    size: Literal[28, 64, 128, 224] = 28

    def load(self, folders: Sequence[Path]) -> TaskData:
        """The official file of the set, from the first folder that has it.

        RetinaMNIST's ordinal grades are classes; ChestMNIST's 14 findings are a multi-label task.
        Raises `DataError` for a file whose MD5 isn't the official one, `UsageError` for no such
        set.
        """
        info, name = _described(self)
        expected = info["md5"][str(self.size)]
        found = _find(name, folders)
        if found is None:
            raise _missing(name, folders, "nothing is downloaded here")
        _check_md5(found, expected)
        splits, _ = read_archive(found)
        provenance = {
            "source": self.source,
            "name": name,
            "md5": expected,
            "licence": info["licence"],
        }
        return TaskData(tuple(info["classes"]), info["kind"], **splits, provenance=provenance)

    def fetch(self, folders: Sequence[Path]) -> None:
        """Download the set's file into the last folder, `~/.medmnist`, if no folder has it yet."""
        info, name = _described(self)
        if not folders:
            raise _missing(name, folders, "there is no folder to download it to")
        if _find(name, folders) is None:
            _download(info["python_class"], self.size, name, folders)


def _described(spec: MedMnistData) -> tuple[dict[str, Any], str]:
    """What is known of a set, and the name of its file."""
    sets = known_sets()
    if spec.name not in sets:
        raise unknown_name("two-dimensional MedMNIST set", spec.name, sets)
    return sets[spec.name], spec.name + ("" if spec.size == 28 else f"_{spec.size}") + ".npz"


def _find(name: str, folders: Sequence[Path]) -> Path | None:
    return next((folder / name for folder in folders if (folder / name).exists()), None)


def known_sets() -> dict[str, Any]:
    """Set → python_class, kind, classes, licence and md5 by size."""
    text = Path(__file__).with_suffix(".json").read_text(encoding="utf-8")
    sets: dict[str, Any] = json.loads(text)
    return sets


def _check_md5(path: Path, expected: str) -> None:
    digest = hashlib.md5(usedforsecurity=False)
    try:
        with path.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    except OSError as exc:
        raise DataError(f"the file can't be read: {exc.strerror}", where=path) from exc
    if digest.hexdigest() != expected:
        raise DataError(
            f"this is not the official file: its MD5 is {digest.hexdigest()}, not {expected}",
            where=path,
            fix="delete it and get it again; a file of your own is read by `source: npz`",
        )


def _download(python_class: str, size: int, name: str, folders: Sequence[Path]) -> None:
    """The package writes below a temporary folder, so that a download that is cut off isn't taken
    for the file the next time.
    """
    target = folders[-1]
    try:
        target.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target, prefix=".download-") as fresh:
            _fetch(python_class, size, fresh)
            (Path(fresh) / name).replace(target / name)
            return
    except ImportError as exc:
        reason = f"the medmnist package, which would download it, can't be used: {exc}"
    except (RuntimeError, OSError, ValueError) as exc:
        # The package hides the network's own error behind a page of advice.
        reason = f"the download failed: {exc.__context__ or exc}"
    raise _missing(name, folders, reason)


def _missing(name: str, folders: Sequence[Path], reason: str) -> DataError:
    return DataError(
        f"{name} is in none of the data folders, and {reason}",
        where="looked in " + (", ".join(str(folder) for folder in folders) or "no folder"),
        fix="put the file there (medmnist.com says where it is), name its folder by data_folder "
        "in the recipe or by LORKD_DATA; training downloads it where 'lorkd-deploy[train]' is "
        "installed",
    )


def _fetch(python_class: str, size: int, folder: str) -> None:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(PATIENCE)
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # standard output is the user's
            from medmnist import dataset  # type: ignore[import-untyped]

            getattr(dataset, python_class)(split="val", download=True, root=folder, size=size)
    finally:
        socket.setdefaulttimeout(before)
