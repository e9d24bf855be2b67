"""A run in two seconds whose student has random weights, experts and norms: nothing is trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lorkd_deploy.bundle.manifest import MANIFEST
from lorkd_deploy.lowrank.delta import NormKind
from lorkd_deploy.recipe import parse_recipe
from lorkd_deploy.run import claim
from lorkd_deploy.schema import document_bytes
from lorkd_deploy.training.batches.setup import open_setup
from lorkd_deploy.training.bundling.assemble import write_experts
from lorkd_deploy.training.bundling.trial import tried
from lorkd_deploy.training.fitting.history import Fitted
from lorkd_deploy.training.networks.student import build_student


def untrained(path: Path, raw: dict[str, Any], norm: NormKind = "shared") -> Path:
    """The run `path` of the recipe `raw`; with norms per task as 0.2.0 wrote it."""
    recipe = parse_recipe(raw, where="test")
    claim(path, recipe)
    setup = open_setup(recipe)
    torch.manual_seed(0)
    model = build_student(setup, norm)
    for name, tensor in model.state_dict(keep_vars=True).items():
        if name.endswith("running_var"):
            nn.init.uniform_(tensor.data, 0.5, 2)
        elif tensor.is_floating_point() and not name.endswith(".A"):
            nn.init.normal_(tensor.data, std=0.4)
    for task in range(len(setup.names)):  # what is beyond a task's own rank is zero, as in training
        for layer in (m for m in model.modules() if hasattr(m, "alpha")):
            layer.B.data[task, :, layer.factors(task)[1].shape[1] :] = 0
    fitted = Fitted(steps=0, seconds=0.0, waiting=0.0, history=[])
    template = tried(setup, *model.dense(0), guard=recipe.safety.guard)
    write_experts(claim(path, setup.recipe), setup, model, fitted, template)
    manifest = path / "bundle" / MANIFEST
    kept = json.loads(manifest.read_text())
    assert kept["norm"] == norm
    kept["recipe"]["experts"]["norm"] = norm  # a key of recipes then
    manifest.write_bytes(document_bytes(kept))
    return path
