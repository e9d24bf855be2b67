"""A recipe that trains in a second: two departments, three tasks of drawn images at 16 px."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml


def tiny_recipe(**changes: Any) -> dict[str, Any]:
    """The recipe as a mapping; `changes` replace whole sections."""

    def task(name: str, phantom: str, train: int) -> dict[str, Any]:
        data = {"source": "phantom", "name": phantom, "train": train, "val": 16, "test": 24}
        return {"name": name, "data": data}

    short = {"epochs": 3, "batch_size": 16, "lr": 0.01, "checkpoint_minutes": 0}
    recipe: dict[str, Any] = {
        "name": "tiny",
        "seed": 3,
        "departments": [
            {"name": "ward-a", "tasks": [task("cells", "cells", 48), task("xray", "xray", 32)]},
            {"name": "ward-b", "tasks": [task("fundus", "fundus", 16) | {"rank": 3}]},
        ],
        "preprocess": {"size": 16},
        "teacher": {"architecture": "tiny_backbone:backbone", "train": short},
        "student": {"architecture": "tiny_backbone:backbone"},
        "experts": {"rank": 2, "alpha": 6},
        "train": short,
        "parity": {"inputs": 6, "test_images": 10},
        "benchmark": {
            "rounds": 2,
            "seconds": 0.02,
            "iterations": 5,
            "warmup": 1,
            "repeats": 0,
            "largest_batch": 0,
        },
    }
    return recipe | changes


def write_recipe(path: Path, **changes: Any) -> Path:
    """The tiny recipe as a file."""
    path.write_text(yaml.safe_dump(tiny_recipe(**changes)), encoding="utf-8")
    return path
