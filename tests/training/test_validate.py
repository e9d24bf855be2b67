"""All that can be known of a recipe before anything is trained."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_recipe import write_recipe

from lorkd_deploy import cli, validate
from lorkd_deploy.errors import ModelError


@pytest.mark.slow
def test_a_recipe_that_can_be_trained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = write_recipe(tmp_path / "tiny.yaml")
    assert cli.main(["recipe", "validate", str(recipe), "--deep", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["valid"] and found["images"] == {"cells": 48, "xray": 32, "fundus": 16}
    assert found["unused"] == {"student": [], "teacher": []}
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.yaml"], "nothing is written"


@pytest.mark.parametrize("role", ["student", "teacher"])
def test_a_network_that_can_not_be_exported(role: str, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "tiny.yaml")
    with pytest.raises(ModelError, match="torch's adaptive_max_pool2d"):
        validate(recipe, set=[f"{role}.architecture=tiny_backbone:pools_the_largest"])
