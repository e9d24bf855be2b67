"""`experts.rank: auto`: bundles whose experts fit a budget, and are what compress would make."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_recipe import tiny_recipe, write_recipe

from lorkd_deploy import cli, compress, decompose, export, load_bundle, verify
from lorkd_deploy.errors import UsageError
from lorkd_deploy.recipe import parse_recipe
from lorkd_deploy.training.batches.setup import open_setup
from lorkd_deploy.training.networks.student import build_student
from lorkd_deploy.training.ranks.auto_rank import truncate_to_budget
from tests.stopping import Interrupted

BUDGET = 1900  # bytes: head and header take 0.5 to 0.7 kB of it
AUTO = {"rank": "auto", "budget": f"{BUDGET}B", "highest_rank": 4, "alpha": 6}
WARD_A, WARD_B = tiny_recipe()["departments"]


def recipe_of(path: Path, *departments: Any, **experts: Any) -> Path:
    return write_recipe(
        path,
        departments=[*departments] or [WARD_A, WARD_B],
        experts=AUTO | experts,
        transfer={"kind": "none"},
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run in which `fundus` has a rank of its own."""
    folder = tmp_path_factory.mktemp("auto")
    result = decompose(recipe_of(folder / "auto.yaml"), folder / "run")
    assert [task.task for task in result.truncated] == ["cells", "xray"]
    assert result.wasteful_layers == ()
    history = json.loads((folder / "run" / "history" / "bundle.json").read_text())
    assert history["truncated"] == [t.model_dump(mode="json") for t in result.truncated]
    for told in result.truncated:
        assert set(told.ranks_before.values()) == {4}
        assert 0 < told.energy < 1
    return folder / "run"


def expert_bytes(run: Path) -> dict[str, bytes]:
    return {file.stem: file.read_bytes() for file in (run / "bundle" / "experts").iterdir()}


def test_every_expert_is_within_the_budget_and_the_engines_verify(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files, bundle = expert_bytes(run), load_bundle(run)
    assert len(files["cells"]) <= BUDGET and len(files["xray"]) <= BUDGET
    entry = bundle.task("fundus")
    assert (entry.rank, entry.ranks) == (3, {}), "a task's own rank stands"
    for task in ("cells", "xray"):
        shapes = {n: v.shape for n, v in bundle.expert(task).items() if n.endswith(".A")}
        assert shapes
        for name, shape in shapes.items():
            layer = name.removesuffix(".A")
            assert shape[0] == (bundle.task(task).rank_of(layer) or 0) * (3 if layer == "0" else 1)
    export(run)
    assert all(verdict.passed for verdict in verify(run))
    assert cli.main(["inspect", str(run)]) == 0
    shown = capsys.readouterr().out
    assert f"cells has rank {bundle.task('cells').rank} but on" in shown


def test_it_is_what_compress_makes_of_the_same_training(tmp_path: Path) -> None:
    auto = recipe_of(tmp_path / "auto.yaml", WARD_A)
    told = decompose(auto, tmp_path / "auto").truncated
    set_ = ["experts.rank=4", "experts.budget=null", "experts.highest_rank=16"]
    decompose(auto, tmp_path / "whole", set=set_)
    found = compress(tmp_path / "whole", tmp_path / "small", budget=AUTO["budget"])
    assert expert_bytes(tmp_path / "auto") == expert_bytes(tmp_path / "small")
    assert told == found.tasks
    one, other = load_bundle(tmp_path / "auto"), load_bundle(tmp_path / "small")
    for task in ("cells", "xray"):
        assert one.task(task) == other.task(task)  # with the scores on the test split
        for name, logits in one.logits(task).items():
            np.testing.assert_allclose(logits, other.logits(task)[name], rtol=1e-5, atol=1e-6)


def test_who_needs_less_gets_less_and_the_network_stays_what_it_was() -> None:
    recipe = tiny_recipe(experts=AUTO | {"budget": "1MB"}, transfer={"kind": "none"})
    setup = open_setup(parse_recipe(recipe, where="test"))
    torch.manual_seed(0)
    model = build_student(setup).eval()
    for _, layer in model.backbone._experts():
        torch.nn.init.normal_(layer.B.data, std=0.3)
        for task, pair in enumerate([1, 4, 3]):  # cells uses one of its four, fundus has three
            used = pair * layer.factors(1)[0].shape[0] // 4
            layer.B.data[task, :, used:] = 0
    x, tasks = torch.randn(6, 3, 16, 16), torch.tensor([0, 1, 2, 0, 1, 2])
    with torch.no_grad():
        before = model(x, tasks)
        told = truncate_to_budget(setup, model)
        after = model(x, tasks)
    assert told[0].ranks == {"0": 1, "5": 1}
    assert told[1].ranks == {"0": 3, "5": 4}  # of the first layer's four, three can change it
    assert model.backbone.ranks_of(2) == {"0": 3, "5": 3}
    assert [task.energy for task in told] == pytest.approx([1, 1])
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)


def test_stopped_and_resumed_gets_the_same_experts(run: Path, tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path / "auto.yaml")
    with pytest.raises(KeyboardInterrupt):
        decompose(recipe, tmp_path / "run", progress=Interrupted(8))
    decompose(recipe, tmp_path / "run", resume=True)
    assert expert_bytes(tmp_path / "run") == expert_bytes(run)


def test_a_department_more_is_within_its_budget_too(run: Path, tmp_path: Path) -> None:
    data = {"source": "phantom", "name": "tissue", "train": 48, "val": 16, "test": 24}
    ward_c = {"name": "ward-c", "tasks": [{"name": "tissue", "data": data}]}
    recipe = recipe_of(tmp_path / "grown.yaml", WARD_A, WARD_B, ward_c, budget="100 parameters")
    grown = tmp_path / "grown"
    result = decompose(recipe, grown, from_run=run, add_department=["ward-c"])
    assert [task.task for task in result.truncated] == ["tissue"]
    before, after = expert_bytes(run), expert_bytes(grown)
    assert {name: after[name] for name in before} == before
    assert 0 < load_bundle(grown).manifest.parameters["expert:tissue"] <= 100
    export(grown, task=["tissue"])
    assert all(verdict.passed for verdict in verify(grown))


def test_a_budget_that_heads_and_norms_exceed_is_told_before_any_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = recipe_of(tmp_path / "auto.yaml")
    too_little = ["experts.budget=200B", "transfer.kind=features"]
    with pytest.raises(UsageError, match="the head and norms of cells alone take") as caught:
        decompose(recipe, tmp_path / "run", set=too_little)
    assert not (tmp_path / "run").exists(), "no teacher was trained"
    smallest = str(caught.value.fix).split("at least ")[1].split(",")[0]
    assert cli.main(["decompose", str(recipe), "--out", str(tmp_path / "run"),
                     "--set", f"experts.budget={smallest}", "--set", "train.epochs=0.4",
                     "--json"]) == 0  # fmt: skip
    told = json.loads(capsys.readouterr().out)["truncated"]
    assert any(task["bytes"] <= int(smallest[:-1]) for task in told)
    assert any(not any(task["ranks"].values()) for task in told)  # W0 alone, and said so
