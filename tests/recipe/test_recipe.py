"""Recipes: what is shipped, what is refused, and that every fault is told at once."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic import BaseModel

from lorkd_deploy.errors import RecipeError, UsageError
from lorkd_deploy.recipe import (
    ExpertSpec,
    Recipe,
    TrainSpec,
    TransferSpec,
    load_recipe,
    overridden,
    parse_recipe,
    shipped_recipes,
)

SMALLEST = """\
name: smallest
departments:
  - name: lab
    tasks:
      - name: cells
        data: {source: phantom, name: cells}
preprocess: {size: 64}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(SMALLEST, encoding="utf-8")
    return path


def test_ships_the_recipes_that_the_readme_names() -> None:
    assert set(shipped_recipes()) >= {"demo", "medmnist-small", "medmnist", "paper-setting"}


def test_the_recipes_of_real_tasks_train_by_the_defaults() -> None:
    for name in ("medmnist-small", "medmnist", "radimagenet", "med-mt"):
        recipe, train = load_recipe(name), TrainSpec()
        assert recipe.experts == ExpertSpec(), name
        assert recipe.transfer == TransferSpec(), name
        for key in ("epochs", "batch_size", "optimizer", "lr", "weight_decay", "schedule"):
            assert getattr(recipe.train, key) == getattr(train, key), f"{name}: {key}"


@pytest.mark.parametrize("name", sorted(shipped_recipes()))
def test_a_shipped_recipe_is_valid_and_commented(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.description
    assert shipped_recipes()[name].read_text(encoding="utf-8").count("# ") >= 5


def test_the_papers_recipe_has_the_papers_settings() -> None:
    recipe = load_recipe("paper-setting")
    assert recipe.tasks == load_recipe("medmnist").tasks
    assert [task.data.name for task in recipe.tasks if task.data.source == "medmnist"] == [
        "pathmnist",
        "octmnist",
        "organcmnist",
        "organamnist",
        "organsmnist",
        "bloodmnist",
        "breastmnist",
        "tissuemnist",
        "dermamnist",
        "pneumoniamnist",
    ]
    assert (recipe.teacher.architecture, recipe.student.architecture) == (
        "torchvision:resnet50",
        "torchvision:shufflenet_v2_x1_0",
    )
    assert (recipe.experts.rank, recipe.experts.alpha) == (4, 16)
    assert (recipe.transfer.kind, recipe.transfer.tau) == ("paper", 10)
    train = recipe.train
    assert (train.optimizer, train.lr, train.momentum, train.weight_decay) == (
        "sgd",
        0.05,
        0.9,
        1e-4,
    )
    assert (train.epochs, train.batch_size, train.schedule) == (100, 1024, "cosine")
    assert recipe.preprocess.size == 224


def test_the_small_recipe_has_four_departments_at_64_px() -> None:
    recipe = load_recipe("medmnist-small")
    assert [d.name for d in recipe.departments] == [
        "breast-clinic",
        "chest-radiology",
        "eye-clinic",
        "haematology",
    ]
    blood = recipe.departments[3].tasks[0].data
    assert blood.source == "npz"
    assert blood.classes is not None
    assert len(blood.classes) == 8
    assert recipe.preprocess.size == 64


def _keys(annotation: Any) -> Iterator[str]:
    """The keys of every section in a type."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        for key, field in annotation.model_fields.items():
            yield key
            yield from _keys(field.annotation)
    for part in get_args(annotation):
        yield from _keys(part)


def test_the_small_recipe_names_every_key() -> None:
    text = shipped_recipes()["medmnist-small"].read_text(encoding="utf-8")
    unnamed = {key for key in _keys(Recipe) if not re.search(rf"\b{key}\b", text)}
    assert not unnamed


def test_the_small_recipe_tells_what_a_key_is_that_is_left_out() -> None:
    text = shipped_recipes()["medmnist-small"].read_text(encoding="utf-8")
    written, count = re.subn(r"^((?:  )?)# (\w+: )", r"\1\2", text, flags=re.MULTILINE)
    assert count >= 20
    assert parse_recipe(yaml.safe_load(written), where="test") == load_recipe("medmnist-small")


def test_five_faults_are_told_at_once_with_their_places(file: Path) -> None:
    raw = yaml.safe_load(SMALLEST)
    raw["departments"][0]["name"] = "Lab 1"
    raw["departments"][0]["tasks"][0]["data"]["trian"] = 10
    raw["preprocess"]["size"] = 1
    raw["experts"] = {"rank": "four"}
    raw["train"] = {"optimizer": "adam"}
    file.write_text(yaml.safe_dump(raw), encoding="utf-8")
    with pytest.raises(RecipeError) as caught:
        load_recipe(file)
    message = caught.value.what
    assert "5 faults" in message
    for place in (
        "departments[0].name: a name has lower-case letters",
        "departments[0].tasks[0].data.trian: unknown key",
        "preprocess.size: ",
        "experts.rank: ",
        "train.optimizer: ",
    ):
        assert place in message
    assert caught.value.where == str(file)


@pytest.mark.parametrize(
    ("key", "where"),
    [
        ("trainn", "trainn: unknown key"),
        ("train.epoch", "train.epoch: unknown key"),
        ("departments.0.task", "departments[0].task: unknown key"),
        ("benchmark.round", "benchmark.round: unknown key"),
    ],
)
def test_an_unknown_key_is_a_fault(file: Path, key: str, where: str) -> None:
    with pytest.raises(RecipeError, match="one fault") as caught:
        load_recipe(file, [f"{key}=1"])
    assert where in caught.value.what


def test_an_unknown_source_of_data_lists_the_known_ones(file: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(file, ["departments.0.tasks.0.data.source=wsi"])
    assert "departments[0].tasks[0].data" in caught.value.what
    assert (
        "'csv', 'dicom', 'image-folder', 'list', 'medmnist', 'npz' or 'phantom'"
        in caught.value.what
    )


def test_names_are_unique_and_plain(file: Path) -> None:
    twice = [yaml.safe_load(SMALLEST)["departments"][0]] * 2
    with pytest.raises(RecipeError, match="department named twice: lab"):
        parse_recipe({**yaml.safe_load(SMALLEST), "departments": twice}, where="here")
    for name in ("teacher", "../up", "A", ""):
        with pytest.raises(RecipeError, match=r"departments\[0\].tasks\[0\].name"):
            load_recipe(file, [f"departments.0.tasks.0.name={name!r}"])


def test_set_overrides_values_of_every_form(file: Path) -> None:
    recipe = load_recipe(
        file,
        [
            "train.epochs=3",
            "train.flip=false",
            "benchmark.batch_sizes=[1, 4]",
            "departments.0.tasks.0.rank=2",
            "teacher.prefix={'module.': ''}",
            "teacher.checkpoint=weights=v2.safetensors",
            "student.checkpoint=null",
        ],
    )
    assert recipe.train.epochs == 3
    assert recipe.train.flip is False
    assert recipe.benchmark.batch_sizes == (1, 4)
    assert recipe.tasks[0].rank == 2
    assert recipe.teacher.prefix == {"module.": ""}
    assert recipe.teacher.checkpoint == "weights=v2.safetensors"
    assert recipe.student.checkpoint is None


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("train.epochs", "not of the form key.path=value"),
        ("=3", "not of the form key.path=value"),
        ("train.epochs=[1", "not valid YAML"),
        ("name.x.y=1", "nothing at 'x'"),
        ("departments.7.name=x", "nothing at '7'"),
        ("departments.x=1", "nothing at 'x'"),
        ("train.epochs=0", "train.epochs: "),
    ],
)
def test_a_wrong_override_is_explained(file: Path, override: str, says: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(file, [override])
    assert says in caught.value.what


def test_an_override_changes_the_hash_and_an_equal_one_does_not(file: Path) -> None:
    plain = load_recipe(file).sha256
    assert load_recipe(file, ["seed=0"]).sha256 == plain
    assert load_recipe(file, ["seed=1"]).sha256 != plain


def test_the_resolved_recipe_is_the_same_recipe() -> None:
    recipe = load_recipe("medmnist-small")
    again = Recipe.model_validate(recipe.model_dump(mode="json"))
    assert again == recipe
    assert again.sha256 == recipe.sha256


def test_an_unknown_name_gets_the_nearest() -> None:
    with pytest.raises(UsageError) as caught:
        load_recipe("medmnist-smal")
    assert caught.value.fix is not None
    assert "'medmnist-small'" in caught.value.fix


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"name: [unclosed", "not valid YAML"),
        (b"\xff\xfe\x00", "not valid YAML"),
        (b"- a list", "not a mapping"),
        (b"", "not a mapping"),
        (b"{}", "departments: Field required"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused(file: Path, content: bytes, says: str) -> None:
    file.write_bytes(content)
    with pytest.raises(RecipeError) as caught:
        load_recipe(file)
    assert says in caught.value.what


def test_a_threshold_is_a_probability_and_part_of_the_recipe(file: Path) -> None:
    before = load_recipe(file)
    set_now = load_recipe(file, ["departments.0.tasks.0.threshold=0.3"])
    assert set_now.tasks[0].threshold == 0.3
    assert set_now.sha256 != before.sha256
    assert parse_recipe(set_now.model_dump(mode="json"), where="") == set_now
    with pytest.raises(RecipeError, match="threshold"):
        load_recipe(file, ["departments.0.tasks.0.threshold=1.5"])


def test_tolerances_are_those_of_known_precisions() -> None:
    first = parse_recipe(yaml.safe_load(SMALLEST), where="here")
    given = {"tolerance": {"int8": {"logits": 0.3}}}
    other = parse_recipe(yaml.safe_load(SMALLEST) | {"parity": given}, where="here")
    assert other.sha256 != first.sha256
    assert other.parity.tolerance["int8"].flips is None
    with pytest.raises(RecipeError, match=r"tolerance"):
        wrong = {"tolerance": {"fp7": {}}}
        parse_recipe(yaml.safe_load(SMALLEST) | {"parity": wrong}, where="here")


def test_a_recipe_names_no_targets(file: Path) -> None:
    with pytest.raises(RecipeError, match=r"export\.targets: unknown key"):
        load_recipe(file, ["export.targets=[trt]"])


def test_norms_are_shared_and_a_recipe_that_says_so_is_the_same(file: Path) -> None:
    plain = load_recipe(file)
    assert load_recipe(file, ["experts.norm=shared"]).sha256 == plain.sha256
    for change in (load_recipe, lambda _, changes: overridden(plain, changes)):
        with pytest.raises(RecipeError, match=r"experts: norm: per_task is no more.*leave the key"):
            change(file, ["experts.norm=per_task"])
        with pytest.raises(RecipeError, match=r"experts\.norm: unknown key"):
            change(file, ["experts.norm=each"])


def test_ranks_by_layer_and_factorisation(file: Path) -> None:
    raw = yaml.safe_load(SMALLEST)
    file.write_text(yaml.safe_dump(raw), encoding="utf-8")
    plain = load_recipe(file)
    raw["experts"] = {"rank": {"*": 4, "stage4.*": 8}, "factorisation": "separable"}
    raw["departments"][0]["tasks"][0]["rank"] = {"*": 2, "fc": 0}
    file.write_text(yaml.safe_dump(raw), encoding="utf-8")
    recipe = load_recipe(file)
    assert recipe.experts.rank == {"*": 4, "stage4.*": 8}
    assert recipe.tasks[0].rank == {"*": 2, "fc": 0}
    assert recipe.sha256 != plain.sha256
    assert recipe.experts.trained_rank == recipe.experts.rank
    for wrong in ("0", "{'*': -1}", "four"):
        with pytest.raises(RecipeError, match=r"one fault.*\n.*experts\.rank: a rank is a number"):
            load_recipe(file, [f"experts.rank={wrong}"])


def test_auto_ranks_and_their_budget_go_together(file: Path) -> None:
    plain = load_recipe(file)
    recipe = load_recipe(file, ["experts.rank=auto", "experts.budget=40000 parameters"])
    assert recipe.experts.trained_rank == 16
    assert recipe.sha256 != plain.sha256
    assert parse_recipe(recipe.model_dump(mode="json"), where="") == recipe
    by_layer = ["experts.highest_rank={'*': 8, fc: 0}", "experts.rank=auto", "experts.budget=1MB"]
    assert load_recipe(file, by_layer).experts.trained_rank == {"*": 8, "fc": 0}
    for wrong, says in (
        (["experts.rank=auto"], "rank: auto needs a budget for each task"),
        (["experts.budget=1MB"], "budget is for rank: auto, the rank here is 16"),
        (["experts.highest_rank=8"], "highest_rank is for rank: auto"),
        (["experts.rank=auto", "experts.budget=much"], "'much' is no budget"),
        (["departments.0.tasks.0.rank=auto"], r"tasks\[0\].rank: a rank is a number"),
    ):
        with pytest.raises(RecipeError, match=f"one fault[^£]*{says}"):
            load_recipe(file, wrong)
