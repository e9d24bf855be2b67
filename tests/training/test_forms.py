"""`lorkd inspect --training` shows the forms that a training takes, not what it might."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_recipe import tiny_recipe, write_recipe

from lorkd_deploy import cli, inspect_training
from lorkd_deploy.errors import ModelError, UsageError
from lorkd_deploy.experts.choice import observed
from lorkd_deploy.recipe import parse_recipe
from lorkd_deploy.run import claim
from lorkd_deploy.training.batches.setup import open_setup
from lorkd_deploy.training.networks.evaluate import network_input
from lorkd_deploy.training.networks.student import build_student

CPU = torch.device("cpu")


def _taken(recipe: dict[str, Any]) -> list[tuple[Any, ...]]:
    """What the layers of the student are asked and take in the first step of its training."""
    setup = open_setup(parse_recipe(recipe, where="test"))
    student = build_student(setup, None).classifier
    batch = setup.loader(setup.recipe.train, 1).at(0).split(setup.recipe.train.accumulate)[0]
    x = network_input(batch.images, setup.recipe.preprocess, CPU)
    with observed() as seen:
        student(x, torch.from_numpy(batch.task))
    return [(choice.width, choice.rows, choice.form) for choice in seen]


@pytest.mark.parametrize(
    ("train", "size", "images", "forms"),
    [
        ({"batch_size": 16}, 16, 16, ("fused", "fused")),
        ({"batch_size": 16}, 8, 16, ("fused", "fused")),
        ({"batch_size": 11, "accumulate": 4}, 8, 3, ("fused", "low_rank")),
        ({"batch_size": 2}, 8, 2, ("fused", "low_rank")),
    ],
)
def test_the_forms_are_those_of_a_training_step(
    tmp_path: Path, train: dict[str, Any], size: int, images: int, forms: tuple[str, ...]
) -> None:
    recipe = tiny_recipe(
        transfer={"kind": "none"}, train=train | {"temperature": 1000}, preprocess={"size": size}
    )
    found = inspect_training(write_recipe(tmp_path / "mine.yaml", **recipe))
    assert (found.images, found.tasks, found.present) == (images, 3, min(3, images))
    assert [(layer.layer, layer.kind, layer.shape) for layer in found.layers] == [
        ("0", "conv2d", (8, 3, 3, 3)),
        ("5", "conv2d", (16, 8, 1, 1)),
    ]
    assert [name for name, _ in found.skipped] == ["3"]
    shown = [(layer.width, layer.rows, layer.form) for layer in found.layers]
    assert shown == _taken(recipe)
    assert tuple(layer.form for layer in found.layers) == forms


def test_a_run_is_shown_by_its_own_recipe_and_the_command_prints_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = parse_recipe(tiny_recipe(), where="test")
    claim(tmp_path / "run", recipe)
    assert cli.main(["inspect", str(tmp_path / "run"), "--training", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads(inspect_training(tmp_path / "run").model_dump_json())
    assert cli.main(["inspect", str(tmp_path / "run"), "--training"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "16 images of 16 px at a time, 3 of 3 tasks present" in shown
    assert "8 × 3 × 3 × 3" in shown and "fused" in shown
    assert "no expert on 3: a grouped convolution" in shown
    with pytest.raises(UsageError, match="can't be overridden"):
        inspect_training(tmp_path / "run", set=["train.batch_size=3"])
    assert cli.main(["inspect", str(tmp_path / "run"), "--set", "seed=1"]) == 2


def test_a_large_recipe_costs_no_memory() -> None:
    small = inspect_training("medmnist", set=["train.batch_size=32"])
    large = inspect_training("medmnist")
    assert (large.images, large.present, large.size) == (1024, 10, 224)
    assert [layer.layer for layer in small.layers] == [layer.layer for layer in large.layers]
    assert {layer.rows // 32 for layer in small.layers} == {
        layer.rows // 1024 for layer in large.layers
    }
    assert {layer.form for found in (small, large) for layer in found.layers} == {
        "fused",
        "low_rank",
    }


def test_a_forward_that_looks_at_values_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "nosy_backbone.py").write_text(
        "import torch\n"
        "class Nosy(torch.nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.a = torch.nn.Conv2d(3, 4, 1)\n"
        "    def forward(self, x):\n"
        "        y = self.a(x)\n"
        "        return y.mean((2, 3)) if float(y.sum()) > 0 else y.amax((2, 3))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    recipe = write_recipe(tmp_path / "mine.yaml", student={"architecture": "nosy_backbone:Nosy"})
    with pytest.raises(ModelError, match="by shapes alone"):
        inspect_training(recipe)
