"""A run from a CSV with patients and attributes: from the recipe to report and card."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from lorkd_deploy.cli import main
from lorkd_deploy.data import open_data
from lorkd_deploy.data.phantom import PhantomData
from lorkd_deploy.datacheck.result import read_check
from lorkd_deploy.profiling.profile import PROFILE, read_profile
from tests.tiny_recipe import tiny_recipe

LEAK = "fundus: 1 of 80 test images are nearly the same picture"


def recipe(folder: Path) -> Path:
    """Drawn images with a CSV of patients, sex and age; a test image mirrors a training image."""
    drawn = open_data(PhantomData(source="phantom", name="fundus", train=48, val=16, test=80))
    rows = ["path,label,split,patient,sex,age"]
    for split in ("train", "val", "test"):
        images, labels = getattr(drawn, split).images, getattr(drawn, split).labels
        for n, label in enumerate(labels):
            Image.fromarray(images[n]).save(folder / f"{split}{n}.png")
            who, sex, age = f"{split}-{n // 2}", "fm"[n // 2 % 2], 30 + n % 60
            rows.append(f"{split}{n}.png,{label},{split},{who},{sex},{age}")
    leaked = Image.open(folder / "train6.png")
    leaked.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(folder / "test4.png")
    (folder / "scans.csv").write_text("\n".join(rows) + "\n")
    data = {"source": "csv", "path": "scans.csv", "group": "patient"}
    data["attributes"] = {"sex": [], "age": [85]}  # type: ignore[assignment]
    departments = [{"name": "eye", "tasks": [{"name": "fundus", "data": data}]}]
    made = tiny_recipe(departments=departments, data_folder=str(folder), preprocess={"size": 32})
    (folder / "recipe.yaml").write_text(yaml.safe_dump(made))
    return folder / "recipe.yaml"


def test_attributes_and_a_leak_go_from_the_recipe_to_report_and_card(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run, file = tmp_path / "run", recipe(tmp_path)
    for command in ("teacher", "decompose"):
        caplog.clear()
        assert main([command, str(file), "--out", str(run), "-q"]) == 0
        assert LEAK in caplog.text
    check = read_check(run)
    assert check is not None and check.leaks == ("fundus",) and check.leaks_only
    assert main(["export", str(run), "--target", "onnx", "-q"]) == 0
    gates = ["--no-teacher", "--assert", "subgroup_gap<100", "--assert", "subgroup_gap>=0"]
    assert main(["benchmark", str(run), *gates, "-q"]) == 0
    (engine,) = read_profile(run / "profile" / PROFILE).engines
    (score,) = engine.scores
    groups = {(g.attribute, g.value, g.images, g.quality is None) for g in score.subgroups}
    assert groups == {
        ("sex", "f", 40, False),
        ("sex", "m", 40, False),
        ("age", "< 85", 75, False),
        ("age", "≥ 85", 5, True),
    }
    (gap,) = score.gaps  # the few of 85 and more tell nothing
    assert gap.attribute == "sex" and 0 < gap.p <= 1
    sexes = [
        g.quality.accuracy.value for g in score.subgroups if g.attribute == "sex" and g.quality
    ]
    assert score.accuracy.value == pytest.approx(np.mean(sexes))
    assert main(["benchmark", str(run), "--no-teacher", "--assert", "subgroup_gap<0", "-q"]) == 3
    assert main(["report", str(run), "-q"]) == 0
    page, card = (run / "report.md").read_text(), (run / "cards/eye/model_card.md").read_text()
    for text in (page, card):
        assert "By subgroup" in text and "too few to tell" in text
        assert "Leakage in the data of fundus" in text
    assert "devices and sites: age, sex" in card
    caplog.clear()
    small = tmp_path / "small"
    assert main(["compress", str(run), "--out", str(small), "--energy", "0.9", "-q"]) == 0
    assert LEAK in caplog.text and read_check(small) == check
    caplog.clear()
    models = [
        "--base",
        str(file),
        "--model",
        f"fundus={file}",
    ]  # no weights: refused after the look
    assert main(["extract", str(file), *models, "--out", str(tmp_path / "other"), "-q"]) == 1
    assert LEAK in caplog.text and not (tmp_path / "other").exists()
