"""Checkpoints that survive a kill: written whole under a new name, the last two kept."""

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
from lorkd_deploy.storage import canonical_json, folder_atomic, read_json, sha256_file, write_atomic

log = logging.getLogger(__name__)
KEPT = 2
Tensors = dict[str, torch.Tensor]


@dataclass
class State:
    """Everything a training needs to go on: `step` is the next one to run."""

    step: int
    tensors: Tensors
    facts: dict[str, Any]


class Checkpoints:
    """The checkpoints of one training below `folder`, all of the recipe with hash `recipe`."""

    def __init__(self, folder: Path, recipe: str) -> None:
        self.folder = folder
        self.recipe = recipe

    def save(self, state: State) -> None:
        """Write `state` as `step-NNNNNNNN/` and drop all but it and the one before it.

        Those of later steps are of a training that was given up: this one began afresh.
        """
        with folder_atomic(self.folder / f"step-{state.step:08d}") as fresh:
            tensors = {k: v.detach().contiguous().cpu() for k, v in state.tensors.items()}
            _save_tensors(tensors, fresh / "state.safetensors")
            facts = {
                "step": state.step,
                "recipe_sha256": self.recipe,
                "tensors_sha256": sha256_file(fresh / "state.safetensors"),
                "facts": state.facts,
            }
            write_atomic(fresh / "state.json", canonical_json(facts))
        names = [folder.name for folder in self._saved()]
        end = names.index(f"step-{state.step:08d}") + 1
        for name in {*names} - {*names[max(0, end - KEPT) : end]}:
            shutil.rmtree(self.folder / name, ignore_errors=True)

    def load(self) -> State | None:
        """The newest whole checkpoint, or None; raises where it is of another recipe."""
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
        return sorted(self.folder.glob("step-????????"))

    def _read(self, folder: Path) -> State:
        facts = read_json(folder / "state.json")
        if facts["recipe_sha256"] != self.recipe:
            raise TrainingError(
                "the checkpoint was made by another recipe than the one given now",
                where=folder,
                fix="use the recipe (and --set values) of the first call, "
                "or start afresh in another --out",
            )
        path = folder / "state.safetensors"
        if sha256_file(path) != facts["tensors_sha256"]:
            raise BundleError("the checkpoint's tensors are damaged", where=path)
        return State(int(facts["step"]), load_file(path), facts["facts"])


def _save_tensors(tensors: Tensors, path: Path) -> None:
    """Write them; a full disk is the `OSError` that it is, which safetensors hides in its own."""
    try:
        save_file(tensors, path)
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
