"""Kinds of networks that users bring, in all roles: student under itself as teacher, and extracted.

What is said of each, and what is refused, is tested beside the room that says it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import odd_networks
import pytest
import torch
from tiny_recipe import write_recipe
from torch import nn

from lorkd_deploy import decompose, export, extract

KINDS = [
    "flattens_by_view",
    "has_scalars",
    "in_half",
    "computes_weights",
    "recomputes",
    "has_leftovers",
]
STEP = {"epochs": 1, "batch_size": 16, "lr": 0.01, "channels_last": True}
DATA = {"source": "phantom", "name": "xray", "train": 32, "val": 16, "test": 16}


def recipe_of(kind: str, folder: Path, **changes: Any) -> Path:
    """One task, the network as student and as its own teacher."""
    network = {"architecture": f"odd_networks:{kind}"}
    return write_recipe(
        folder / "recipe.yaml",
        departments=[{"name": "ward", "tasks": [{"name": "xray", "data": DATA}]}],
        teacher=network | {"train": STEP},
        student=network,
        experts={"rank": 2, "alpha": 4},
        train=STEP,
        **changes,
    )


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_decomposed_under_itself_as_teacher(kind: str, tmp_path: Path) -> None:
    decompose(recipe_of(kind, tmp_path), tmp_path / "run")
    engines = export(tmp_path / "run", teacher=True)
    assert [engine.parity.status for engine in engines] == ["passed"] * 2


@pytest.mark.parametrize("kind", KINDS)
def test_experts_are_extracted_from_it(kind: str, tmp_path: Path) -> None:
    files = []
    for name in ("base", "tuned"):
        backbone = getattr(odd_networks, kind)().float()
        features = backbone(torch.zeros(2, 3, 16, 16)).shape[1]
        head = nn.Linear(features, 3).state_dict() if name == "tuned" else {}
        files.append(tmp_path / f"{name}.pt")
        torch.save(backbone.state_dict() | {f"fc.{n}": v for n, v in head.items()}, files[-1])
    recipe = recipe_of(kind, tmp_path, transfer={"kind": "none"})
    extract(recipe, files[0], {"xray": files[1]}, tmp_path / "run")
    (engine,) = export(tmp_path / "run")
    assert engine.parity.status == "passed"
