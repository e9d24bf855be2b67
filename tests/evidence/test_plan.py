"""A study's trainings, from what the command line says."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks import ablation
from lorkd_deploy.errors import RecipeError, UsageError
from lorkd_deploy.evidence.methods.table import METHODS
from lorkd_deploy.evidence.plan import parse_variants, trainings
from lorkd_deploy.recipe import load_recipe, parse_recipe
from tests.evidence.pages.test_report import made

IMAGES = (546, 4708, 1080, 11959)


def test_all_methods_by_name() -> None:
    variants = parse_variants("foundation,stl, mtl,stl-kd,mtl-kd,kf,experts")
    assert [variant.method.name for variant in variants] == list(METHODS)
    assert all(variant.overrides == () for variant in variants)


def test_a_change_finds_its_section() -> None:
    (variant,) = parse_variants("experts+rank=4+tau=3+train.lr=0.1+seed=4")
    assert variant.method.name == "experts"
    assert variant.overrides == (
        "experts.rank=4", "transfer.tau=3", "train.lr=0.1", "seed=4",
    )  # fmt: skip


def test_values_may_hold_commas_and_plus_signs() -> None:
    variants = parse_variants('mtl,experts+rank={"*": 4, "stage4.*": 8}+lr=4e+0,mtl-kd')
    assert [variant.method.name for variant in variants] == ["mtl", "experts", "mtl-kd"]
    assert variants[1].overrides == ('experts.rank={"*": 4, "stage4.*": 8}', "train.lr=4e+0")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("mtl-dk", "no method is called"),
        ("experts+rnak=4", "no key is called 'rnak'"),
        ("mtl,mtl", "named twice: mtl"),
        (" ", "no method is named"),
    ],
)
def test_what_is_wrong_is_told(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        parse_variants(text)


def test_every_training_has_a_folder_and_a_recipe_of_its_own() -> None:
    recipe = load_recipe("medmnist-small", ["seed=3"])
    variants = parse_variants("foundation,stl,mtl,experts,experts+rank=4")
    found = list(trainings(recipe, variants, 2, IMAGES))
    assert len(found) == 2 * (4 + 1 + 1 + 1)
    assert len({training.folder for training in found}) == len(found)
    assert {training.seed for training in found} == {3, 4}
    assert [training.seed for training in found] == sorted(training.seed for training in found)
    by_folder = {training.folder: training for training in found}
    assert by_folder["stl/seed-3/retina"].task == "retina"
    changed = by_folder["experts_rank_4/seed-4"]
    assert changed.recipe["experts"]["rank"] == 4
    for training in found:
        own = parse_recipe(training.recipe, where=training.folder)
        assert own.seed == training.seed


def test_a_value_that_no_recipe_can_have_is_told_before_anything_is_trained() -> None:
    with pytest.raises(RecipeError, match=r"train\.lr"):
        list(trainings(load_recipe("demo"), parse_variants("mtl+lr=-1"), 1, (10, 10, 10)))


def test_the_ablation_leaves_out_what_is_the_default() -> None:
    recipe = load_recipe(ablation.RECIPE)
    variants = parse_variants(ablation.METHODS)
    found = {t.variant: t.recipe for t in trainings(recipe, variants, 1, (100,) * 7)}
    default = found.pop(ablation.DEFAULT)
    assert default == recipe.model_dump(mode="json")
    assert list(found) == list(ablation.LEFT_OUT.values())
    for name, changed in found.items():
        differ = {
            f"{section}.{key}"
            for section in ("experts", "transfer", "train")
            for key, value in changed[section].items()
            if value != default[section][key]
        }
        asked = {change.partition("=")[0] for change in name.split("+")[1:]} or {"rank"}
        assert {key.rpartition(".")[2] for key in differ} == asked, name


def part_of_ablation(*variants: str) -> dict[str, Any]:
    """As if one call had measured `variants`."""
    result = made(1).model_copy(update={"variants": variants})
    return {
        "measured": "2026-11-28",
        "result": result.model_dump(mode="json"),
        "validation": {name: [0.87] for name in variants},
        "environment": {"cpu": "a CPU"},
    }


def test_the_ablation_shows_what_was_measured_while_it_was_offered() -> None:
    (gone,) = ablation.GONE.values()
    assert gone not in ablation.METHODS
    value = made(1).comparison.figure(gone, None, "auc").estimate.value
    shown = ablation.markdown([part_of_ablation("experts", gone)])
    assert f"| shared norms: one per task | 0.870 | {value:.3f} |" in shown


def test_the_ablation_is_made_in_parts() -> None:
    (gone,) = ablation.GONE.values()
    first = part_of_ablation("experts", "mtl-kd", gone)
    parts = ablation.merged([first], part_of_ablation("experts", "mtl-kd"))
    measured = [list(part["result"]["variants"]) for part in parts]
    assert measured == [["experts", gone], ["experts", "mtl-kd"]]
    rows = [line.split(" |")[0] for line in ablation.markdown(parts).splitlines()]
    told = [row for row in rows if row.startswith(("| nothing", "| shared", "| the experts"))]
    default = "| nothing (2026-11-28, a CPU, 1 seeds; "
    assert [row.startswith(default) for row in told] == [True, False, True, False]
    assert told[1::2] == ["| shared norms: one per task", "| the experts, at the same cost"]
    again = ablation.merged(parts, part_of_ablation("experts", gone))
    assert len(again) == 2
