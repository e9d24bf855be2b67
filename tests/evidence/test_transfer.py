"""A new data set, learnt from what a study's trainings know."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_backbone import backbone
from tiny_recipe import tiny_recipe

from benchmarks import transfer_table
from lorkd_deploy import add_experts, cli, teacher
from lorkd_deploy.bundle.manifest import HEAD
from lorkd_deploy.bundle.read import load_bundle
from lorkd_deploy.data import Split
from lorkd_deploy.datacheck import quick
from lorkd_deploy.errors import BundleError, UsageError
from lorkd_deploy.evidence.answers import Answers
from lorkd_deploy.evidence.attempt import Call, Outcome, attempt
from lorkd_deploy.evidence.plan import parse_variants, trainings
from lorkd_deploy.evidence.study import RECORD, StudyRecord
from lorkd_deploy.evidence.train import FOUNDATION, train
from lorkd_deploy.evidence.transfer import train as training
from lorkd_deploy.evidence.transfer.joint import CACHE, new_and_old, prepare, teacher_of_all
from lorkd_deploy.evidence.transfer.page import transfer_page
from lorkd_deploy.evidence.transfer.recipes import joint_recipe, new_recipe
from lorkd_deploy.evidence.transfer.result import TransferResult
from lorkd_deploy.evidence.transfer.starts import (
    Origin,
    Start,
    _shared,
    open_origin,
    parse_starts,
)
from lorkd_deploy.evidence.transfer.train import ANSWERS, Trial, few, setup_of
from lorkd_deploy.evidence.transfer.transfer import RECORD as TRANSFER
from lorkd_deploy.evidence.transfer.transfer import transfer
from lorkd_deploy.progress import Silent
from lorkd_deploy.recipe import parse_recipe
from lorkd_deploy.run import claim
from lorkd_deploy.schema import document_bytes, write_part
from lorkd_deploy.training.batches.setup import open_setup
from lorkd_deploy.training.fitting.job import Job
from tests.datacheck.planted import leaky

NEW = "{source: phantom, name: fundus, train: 24, val: 16, test: 24}"
INITS = "expert:cells,shared,mtl,teacher,random,joint"
TESTS = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One seed of `mtl` and `experts`, and a teacher at 24 px."""
    folder = tmp_path_factory.mktemp("study")
    torch.save(backbone().state_dict(), folder / "foundation.pt")
    raw = tiny_recipe(transfer={"kind": "none"})
    own = {"checkpoint": str(folder / "foundation.pt"), "fit": "heads", "preprocess": {"size": 24}}
    raw |= {"teacher": raw["teacher"] | own, "train": raw["train"] | {"epochs": 1}}
    recipe = parse_recipe(raw, where="test")
    (folder / "recipe.json").write_text(recipe.model_dump_json())
    made = recipe.model_dump(mode="json")
    write_part(folder / RECORD, StudyRecord(recipe=made, recipe_sha256=recipe.sha256))
    teacher(folder / "recipe.json", folder / FOUNDATION)
    for one in trainings(recipe, parse_variants("mtl,experts"), 1, (48, 32, 16)):
        train(one.model_dump(mode="json"), str(folder))
    return folder


@pytest.fixture(scope="module")
def origin(study: Path) -> Origin:
    return open_origin(study)


def test_every_start_learns_by_every_fit(
    study: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("jinja2")
    monkeypatch.setenv("PYTHONPATH", str(TESTS), prepend=os.pathsep)
    out = tmp_path / "transfer"
    asked = ["transfer", str(study), "--data", NEW, "--out", str(out), "--init", INITS]
    asked += ["--fit", "experts,head,all", "--shots", "2,all", "--seeds", "1", "--json"]
    asked += ["--workers", "2"]
    assert cli.main(asked) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["starts"] == [
        *(f"{init}+{fit}" for init in INITS.split(",")[:3] for fit in ("experts", "head", "all")),
        "teacher+head",
        "random+all",
        "joint+experts",
    ]
    assert [(r["shots"], r["images"]) for r in result["results"]] == [(2, 4), (None, 24)]
    assert not result["failed"]
    tasks = {"cells", "xray", "fundus"}
    assert {folder: own.keys() for folder, own in result["others"].items()} == {
        f"shared-experts/shots-{shots}/seed-3": tasks for shots in ("2", "all")
    }
    engines = [engine for own in result["others"].values() for engine in own.values()]
    assert len({engine["before"] for engine in engines}) == 3
    assert all(engine["before"] == engine["after"] for engine in engines)
    page = (out / "transfer.html").read_text()
    assert "The engines that were there" in page and engines[0]["before"][:16] in page
    assert page.count("<h2>The engines that were there</h2>") == 1
    markdown = (out / "transfer.md").read_text().splitlines()
    assert [line for line in markdown if "The engines that" in line] == [
        "## The engines that were there"
    ]
    assert "shared+head" in page and "2 images per class (4 training images)" in page
    assert "Jointly all tasks are trained" in page
    _stands_in_the_table(TransferResult.model_validate(result))
    assert not list(out.rglob("checkpoints/*"))
    kept = {file: file.stat().st_mtime_ns for file in out.rglob(ANSWERS)}
    assert len(kept) == 24
    for name in ("workers._Worker", "transfer.transfer.prepare"):  # nothing is left to do
        monkeypatch.setattr(f"lorkd_deploy.evidence.{name}", None)
    older = json.loads((out / TRANSFER).read_text())
    del older["recipe"]["safety"]  # as one from before a recipe had this key
    (out / TRANSFER).write_bytes(document_bytes(older))
    transfer(study, NEW, out, init="shared,joint", fit="head", shots="2", seeds=1)
    assert {file: file.stat().st_mtime_ns for file in out.rglob(ANSWERS)} == kept
    with pytest.raises(BundleError, match="of other data") as caught:
        transfer(study, NEW.replace("fundus", "cells"), out, seeds=1)
    assert "name: 'fundus', now 'cells'" in caught.value.what
    ends = {
        start: Answers.read(out / start / "shots-all/seed-3" / ANSWERS).features["new"].shape
        for start in ("shared-head", "teacher-head")
    }
    assert ends == {"shared-head": (24, 16), "teacher-head": (24, 16)}


def _stands_in_the_table(result: TransferResult) -> None:
    """Of docs/results.md, where our own transfers stand: every start and its AUC."""
    kept = transfer_table.without_paths(result)
    assert kept.recipe["teacher"]["checkpoint"] == "foundation.pt"
    assert kept.results == result.results
    shown = transfer_table.table(result, "transfer-x").splitlines()
    rows = [[cell.strip(" *`") for cell in row.split("|")[1:-1]] for row in shown if row[:1] == "|"]
    assert [row[0] for row in rows[2:]] == list(result.starts)
    for start, *cells in rows[2:]:
        figures = [of.comparison.figure(start, None, "auc") for of in result.results]
        assert cells[::2] == [f"{figure.estimate.value:.3f}" for figure in figures]
    assert "24 test images, 2 classes, 4 and 24 training images" in " ".join(shown)


def test_one_that_fails_is_told_and_the_others_are_compared(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def here(calls: Sequence[Call], workers: int) -> Iterator[Outcome]:
        assert workers == 3
        return (Outcome.model_validate(attempt(call.model_dump(mode="json"))) for call in calls)

    monkeypatch.setattr("lorkd_deploy.evidence.transfer.transfer.on_this_machine", here)
    found = transfer(
        study, NEW, tmp_path / "t", init="shared,random", fit="head", shots="all", seeds=1,
        set=["train.lr=1e30"], workers=3,
    )  # fmt: skip
    assert found.starts == ("shared+head",)
    assert list(found.failed) == ["random-all/shots-all/seed-3"]
    assert "not finite" in found.failed["random-all/shots-all/seed-3"]


def test_leaks_of_the_new_data_are_looked_for_once_and_told(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def here(calls: Sequence[Call], workers: int) -> Iterator[Outcome]:
        return (Outcome.model_validate(attempt(call.model_dump(mode="json"))) for call in calls)

    monkeypatch.setattr("lorkd_deploy.evidence.transfer.transfer.on_this_machine", here)
    asked = (study, str(leaky(tmp_path / "scans.npz")), tmp_path / "t")
    for _ in range(2):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            found = transfer(*asked, init="shared,random", fit="head", shots="2,all", seeds=1)
        told = [r.getMessage() for r in caplog.records if "too good" in r.getMessage()]
        assert len(told) == 1 and told[0].startswith("new: 1 of 8 test images")
        assert found.check is not None and found.check.leaks == ("new",)
        assert any(
            text.startswith("Leakage in the data of new: 1 of 8")
            for text in transfer_page(found).warnings
        )
        monkeypatch.setattr(quick, "check_task", None)  # it isn't looked for again


def test_everything_again_is_as_the_origin_was_with_the_new_task(
    study: Path, origin: Origin, tmp_path: Path
) -> None:
    """The teacher has its own heads for its tasks, and a fitted one for the new task."""
    known = load_bundle(origin.teacher)
    taught = parse_recipe(
        origin.recipe.model_dump(mode="json") | {"transfer": {"kind": "logits"}}, where="test"
    )
    recipe = joint_recipe(taught, NEW, ("train.epochs=2",))
    assert [task.name for task in recipe.tasks] == ["new", "cells", "xray", "fundus"]
    assert recipe.experts == origin.recipe.experts
    opened, trial = open_setup(recipe), Trial(Start("joint", "experts"), 4, 3)
    setup = setup_of(trial, opened)
    assert [len(data.train) for data in setup.data] == [8, 48, 32, 16]
    assert setup.recipe.train.epochs == 2
    files = []
    for _ in range(2):  # the second time nothing is computed
        prepare(tmp_path, opened, origin.teacher, origin.cache, Silent())
        files.append({f.name: f.stat().st_mtime_ns for f in (tmp_path / CACHE).iterdir()})
    assert files[0] == files[1] and len(files[0]) == 3
    job = Job("decompose", claim(tmp_path / "run", setup.recipe), setup)
    job = replace(job, cache_folder=tmp_path / CACHE)
    given = teacher_of_all(origin.teacher, job)
    heads = given.network.heads
    for number, name in enumerate(("cells", "xray", "fundus"), start=1):
        own = torch.tensor(known.expert(name)[f"{HEAD}weight"])
        assert torch.equal(heads.head(number).weight, own)
    again = teacher_of_all(origin.teacher, job).network.heads.head(0)
    assert torch.equal(heads.head(0).weight, again.weight), "it was fitted: else it is random"
    _, old = new_and_old(setup)
    network, used, _ = training._fit_jointly(trial, origin, job)
    assert used.names == ("new",) and old.names == ("cells", "xray", "fundus")
    assert len(network.backbone.expert_state(0)) > 0


def test_few_images_of_one_seed_are_told_from_anothers_in_a_cache(origin: Origin) -> None:
    opened = open_setup(new_recipe(origin.recipe, NEW, ()))
    start = Start("teacher", "head")
    told = [
        setup_of(Trial(start, shots, seed), opened).data[0].provenance
        for shots, seed in ((2, 3), (2, 4), (4, 3), (None, 3))
    ]
    assert len({json.dumps(one, sort_keys=True) for one in told}) == 4
    assert told[-1] == opened.data[0].provenance


def test_an_expert_on_a_frozen_start_leaves_it_as_it_is(origin: Origin, tmp_path: Path) -> None:
    recipe = new_recipe(origin.recipe, NEW, ())
    trial = Trial(Start("expert:cells", "experts"), 4, 3)
    setup = setup_of(trial, open_setup(recipe))
    job = Job("decompose", claim(tmp_path / "run", setup.recipe), setup)
    student, _, _ = training._fit_student(trial, origin, job)
    wanted = origin.state(trial.start, 3)
    base = student.backbone.base_state()
    for name, value in base.items():
        assert torch.equal(value, wanted[name]), name
    moved = [v for n, v in student.backbone.expert_state(0).items() if n.endswith(".B")]
    assert moved and all(v.abs().max() > 0 for v in moved)


def test_a_w0_that_has_changed_changes_every_engine(origin: Origin) -> None:
    start = Start("shared", "experts")
    base = origin._network(start, 3).backbone.base_state()
    known = origin.engines(start, 3, base)
    assert all(engine.before == engine.after for engine in known.values())
    base["0.weight"] = base["0.weight"] + 1e-6
    changed = origin.engines(start, 3, base)
    assert {task: engine.before for task, engine in changed.items()} == {
        task: engine.before for task, engine in known.items()
    }
    assert not {e.after for e in changed.values()} & {e.after for e in known.values()}


def test_a_start_is_what_it_says(origin: Origin) -> None:
    expert = origin.state(Start("expert:cells", "head"), 3)
    shared = origin.state(Start("shared", "head"), 3)
    mtl = origin.state(Start("mtl", "head"), 3)
    assert expert.keys() == shared.keys() == mtl.keys() == backbone().state_dict().keys()
    network = origin._network(Start("shared", "head"), 3)
    delta = expert["0.weight"] - shared["0.weight"]
    layer = dict(network.backbone.module.named_modules())["0"]
    assert torch.allclose(delta, layer.dense_weight(0) - layer.weight, atol=1e-6)
    assert delta.abs().max() > 0
    assert not torch.equal(mtl["0.weight"], shared["0.weight"])


def test_w0_of_a_bundle_with_norms_per_task_has_their_mean() -> None:
    experts = add_experts(backbone(), 3, 1, norm="per_task")
    for task in range(3):
        experts.expert_state(task)["1.running_var"].fill_(task + 1)
    shared = _shared(experts)
    assert shared.keys() == backbone().state_dict().keys()
    assert torch.equal(shared["1.running_var"], torch.full((8,), 2.0))
    assert torch.equal(shared["0.weight"], experts.base_state()["0.weight"])


@pytest.mark.parametrize("findings", [False, True])
def test_shots_are_of_each_class_and_drawn_by_the_seed(findings: bool) -> None:
    labels = np.arange(60) % 3
    if findings:
        labels = np.eye(3, dtype=np.int64)[labels]
    split = Split(np.arange(60 * 64).reshape(60, 8, 8).astype(np.uint8), labels)
    drawn = few(split, 3, 5, 0)
    shown = drawn.labels.sum(axis=0) if findings else np.bincount(drawn.labels)
    assert shown.tolist() == [5, 5, 5]
    assert [i.tolist() for i in few(split, 3, 5, 0).images[:3]] == [
        i.tolist() for i in drawn.images[:3]
    ]
    assert [i.tolist() for i in few(split, 3, 5, 1).images[:3]] != [
        i.tolist() for i in drawn.images[:3]
    ]
    assert len(few(split, 3, 500, 0)) == 60


def test_a_run_starts_every_seed_alike_and_has_no_mtl(study: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="teacher's bundle"):
        open_origin(study / FOUNDATION / "teacher")
    known = open_origin(study)
    run = Origin(study, known.recipe, load_bundle(study / FOUNDATION / "teacher"), "0" * 64)
    with pytest.raises(UsageError, match="no second network"):
        run.check(Start("mtl", "head"), 3)
    with pytest.raises(BundleError):  # the study has no training of that seed
        known.check(Start("shared", "head"), 4)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"init": "expert:cell"}, "no task is called"),
        ({"init": "w0"}, "no init is called"),
        ({"fit": "probe"}, "no fit is called"),
        ({"shots": "0"}, "no number of images"),
    ],
)
def test_wrong_names_are_told_before_any_work(
    study: Path, tmp_path: Path, given: dict[str, str], said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        transfer(study, NEW, tmp_path / "t", seeds=1, **given)
    assert not (tmp_path / "t").exists()
    assert {s.name for s in parse_starts("teacher,random,shared", "head")} == {
        "teacher+head",
        "random+all",
        "shared+head",
    }


@pytest.mark.parametrize("architecture", ["transformers:Dinov2Model:cls", "open_clip:local-dir"])
def test_a_student_from_a_hubs_folder_is_refused(origin: Origin, architecture: str) -> None:
    student = origin.recipe.student.model_copy(update={"architecture": architecture})
    with pytest.raises(UsageError, match=f"a student of {architecture} is built by its check"):
        new_recipe(origin.recipe.model_copy(update={"student": student}), NEW, ())
