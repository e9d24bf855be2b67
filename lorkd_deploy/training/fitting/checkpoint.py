"""Checkpoints that survive a kill: written whole under a new name, two of them at most."""

from __future__ import annotations

import logging
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from lorkd_deploy.errors import BundleError, TrainingError
from lorkd_deploy.schema import document_bytes, read_document
from lorkd_deploy.storage import (
    clear_after_a_kill,
    folder_atomic,
    sha256_file,
    write_atomic,
)

log = logging.getLogger(__name__)
FOLDERS = "step-????????"
AFRESH = "start afresh in another --out"
Tensors = dict[str, torch.Tensor]


@dataclass
class State:
    """Everything a training needs to continue: `step` is the next one to run."""

    step: int
    tensors: Tensors
    facts: dict[str, Any]


class Checkpoints:
    """The checkpoints of one training below `folder`, all of the recipe with hash `recipe`."""

    def __init__(self, folder: Path, recipe: str) -> None:
        self.folder = folder
        self.recipe = recipe

    def save(self, state: State) -> None:
        """Write `state` as `step-NNNNNNNN/`, beside at most one other, which is whole.

        The disk never holds more than two, the unfinished one among them: the older goes before
        this one is written. Those of later steps are of a training that was given up, as this
        one began afresh: the last of them goes once this one is there.
        """
        place = self.folder / f"step-{state.step:08d}"
        before = self._make_room(place)
        with folder_atomic(place) as fresh:
            tensors = {k: v.detach().contiguous().cpu() for k, v in state.tensors.items()}
            _save_tensors(tensors, fresh / "state.safetensors")
            facts = {
                "step": state.step,
                "recipe_sha256": self.recipe,
                "tensors_sha256": sha256_file(fresh / "state.safetensors"),
                "facts": state.facts,
            }
            write_atomic(fresh / "state.json", document_bytes(facts))
        if before is not None and before.name > place.name:
            shutil.rmtree(before, ignore_errors=True)

    def load(self) -> State | None:
        """The newest whole checkpoint, or None; raises where it is of another recipe."""
        clear_after_a_kill(self.folder, FOLDERS)
        for folder in reversed(self._saved()):
            try:
                return self._read(folder)
            except (BundleError, SafetensorError, OSError):
                log.warning("%s is damaged: the one before it is looked at", folder)
        return None

    def __bool__(self) -> bool:
        """Whether there is any, of whatever training."""
        return bool(self._saved())

    def clear(self) -> None:
        """Remove every checkpoint: the training has ended and its bundle is written."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _saved(self) -> list[Path]:
        return sorted(self.folder.glob(FOLDERS))

    def _make_room(self, place: Path) -> Path | None:
        """Remove all but the checkpoint to fall back on until there is one at `place`.

        That is the newest whole one of an earlier step, else of a later.
        """
        clear_after_a_kill(self.folder, FOLDERS)
        ranked = sorted(self._saved(), key=lambda f: (f.name < place.name, f.name), reverse=True)
        kept = next(filter(_is_whole, ranked), ranked[0] if ranked else None)
        for folder in ranked:
            if folder != kept:
                shutil.rmtree(folder, ignore_errors=True)
        return kept

    def _read(self, folder: Path) -> State:
        facts = _whole(folder)
        if facts["recipe_sha256"] != self.recipe:
            raise TrainingError(
                "the checkpoint was made by another recipe than the one given now",
                where=folder,
                fix="use the recipe (and --set values) of the first call, "
                "or start afresh in another --out",
            )
        tensors = load_file(folder / "state.safetensors")
        return State(int(facts["step"]), tensors, facts["facts"])


def _whole(folder: Path) -> dict[str, Any]:
    """What `state.json` says; raises `BundleError` or `OSError` where a part is damaged."""
    facts = read_document(folder / "state.json", BundleError, AFRESH)
    path = folder / "state.safetensors"
    if sha256_file(path) != facts["tensors_sha256"]:
        raise BundleError("the checkpoint's tensors are damaged", where=path)
    return facts


def _is_whole(folder: Path) -> bool:
    try:
        _whole(folder)
    except (BundleError, OSError):
        return False
    return True


def _save_tensors(tensors: Tensors, path: Path) -> None:
    """Write them to the disk, past its cache: soon they may be the only ones there.

    A full disk is the `OSError` that it is, which safetensors hides in its own.
    """
    try:
        save_file(tensors, path)
        with path.open("rb") as stream:
            os.fsync(stream.fileno())
    except SafetensorError as exc:
        if number := re.search(r"os error (\d+)", str(exc)):
            code = int(number[1])
            raise OSError(code, os.strerror(code), str(path)) from exc
        raise


def pack(prefix: str, tensors: Tensors) -> Tensors:
    """Names under `prefix/`, cloned so that tensors which share memory can be stored."""
    return {f"{prefix}/{name}": value.detach().clone() for name, value in tensors.items()}


def unpack(prefix: str, tensors: Tensors) -> Tensors:
    """The tensors stored under `prefix/`, by their own names."""
    start = f"{prefix}/"
    return {k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)}
