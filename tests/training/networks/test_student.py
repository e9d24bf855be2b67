"""Other students and teachers than the recipes', end to end: trained, decomposed, proven.

More networks, with the proof of `benchmarks/students.py`, are in `test_student_networks.py`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny_recipe import write_recipe

from lorkd_deploy import decompose, export, load_bundle
from lorkd_deploy.errors import ModelError, UsageError

STEP = {"epochs": 0.2, "batch_size": 16, "lr": 0.01}
VIT, RESNET = "tiny_backbone:transformer", "torchvision:resnet18"


@pytest.mark.parametrize(
    ("student", "teacher", "layers"),
    [(VIT, RESNET, 9), (RESNET, VIT, 20)],
)
@pytest.mark.slow
def test_a_transformer_and_a_resnet_in_both_roles(
    student: str, teacher: str, layers: int, tmp_path: Path
) -> None:
    recipe = write_recipe(
        tmp_path / "recipe.yaml",
        preprocess={"size": 32},
        teacher={"architecture": teacher, "train": STEP},
        student={"architecture": student},
        experts={"rank": 2, "alpha": 6},
        train=STEP,
    )
    result = decompose(recipe, tmp_path / "run")
    bundle = load_bundle(tmp_path / "run")
    assert len(bundle.manifest.layers) == layers
    assert bool(bundle.manifest.folds) == (student == RESNET)
    for task in bundle.manifest.tasks:
        own = bundle.expert(task.name)
        still = [f"{e.name}.B" for e in bundle.manifest.layers if not np.any(own[f"{e.name}.B"])]
        assert not still, f"no gradient reached these experts of {task.name}"
    if student == VIT:
        assert [why.partition(" ")[0] for _, why in result.skipped_layers] == ["VisionTransformer"]
    engines = export(tmp_path / "run", teacher=True)
    assert [engine.parity.status for engine in engines] == ["passed"] * 4


@pytest.mark.thorough
def test_layers_that_a_forward_reads_are_left_out_by_the_recipe(tmp_path: Path) -> None:
    def skipping(*patterns: str) -> Path:
        return write_recipe(
            tmp_path / "recipe.yaml",
            student={"architecture": "tiny_backbone:attention"},
            experts={"rank": 2, "skip": [*patterns]},
            transfer={"kind": "none"},
            train=STEP,
        )

    with pytest.raises(ModelError, match=r"never calls 'attention\.out_proj'") as caught:
        decompose(skipping(), tmp_path / "run")
    assert "experts" in str(caught.value.fix)
    with pytest.raises(UsageError, match="'atention"):
        decompose(skipping("atention.*"), tmp_path / "run")
    result = decompose(skipping("attention.*"), tmp_path / "run")
    assert ("attention.out_proj", "left out as asked") in result.skipped_layers
    assert [e.name for e in load_bundle(tmp_path / "run").manifest.layers] == ["patches"]
    assert all(engine.parity.status == "passed" for engine in export(tmp_path / "run"))


@pytest.mark.thorough
def test_separable_factors_with_ranks_by_layer(tmp_path: Path) -> None:
    recipe = write_recipe(
        tmp_path / "recipe.yaml",
        experts={"rank": {"*": 2, "0": 3}, "alpha": 6, "factorisation": "separable"},
        transfer={"kind": "none"},
        train=STEP,
    )
    decompose(recipe, tmp_path / "run")
    bundle = load_bundle(tmp_path / "run")
    assert bundle.manifest.factorisation == "separable"
    own = bundle.expert("cells")
    assert own["0.A"].shape == (3, 3 * 3 * 3) and own["0.B"].shape == (8, 3)
    assert own["5.A"].shape == (2, 8) and np.any(own["5.B"])
    assert all(engine.parity.status == "passed" for engine in export(tmp_path / "run"))
