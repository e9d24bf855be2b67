"""Smaller experts from a run, end to end: sizes, energies, accuracy, and a bundle that verifies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lorkd_deploy import cli, compress, decompose, export, load_bundle, verify
from lorkd_deploy.bundle.manifest import MANIFEST
from lorkd_deploy.errors import BundleError, DataError, UsageError
from lorkd_deploy.lowrank.delta import NormKind
from lorkd_deploy.metrics.score import probabilities, score
from lorkd_deploy.schema import document_bytes
from lorkd_deploy.training.batches.setup import open_setup
from lorkd_deploy.training.networks.evaluate import task_logits
from lorkd_deploy.training.networks.restore import restored
from tests.tiny_recipe import tiny_recipe
from tests.training.untrained import untrained

TASKS = ("cells", "xray", "fundus")


@pytest.fixture(scope="module", params=["shared"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("compress") / "run", request.param)


def made(path: Path, norm: NormKind = "shared", **changes: Any) -> Path:
    """A run at `path`, with other sections of the recipe."""
    experts = {"rank": {"*": 2, "5": 4}, "alpha": 6}
    return untrained(path, tiny_recipe(experts=experts, transfer={"kind": "none"}, **changes), norm)


def deltas(run: Path, task: str) -> np.ndarray:
    """ΔW of all layers of a task, one after another, float64."""
    bundle = load_bundle(run)
    dense = bundle.dense(task)
    names = [f"{layer.name}.weight" for layer in bundle.manifest.layers]
    return np.concatenate([(dense[n] - bundle.base[n].astype(np.float64)).ravel() for n in names])


@pytest.mark.thorough
def test_energy_is_kept_and_the_new_bundle_verifies(run: Path, tmp_path: Path) -> None:
    before = (run / "bundle" / MANIFEST).read_bytes()
    found = compress(run, tmp_path / "small", energy=0.9)
    assert (run / "bundle" / MANIFEST).read_bytes() == before
    old, new = load_bundle(run), load_bundle(tmp_path / "small")
    assert new.manifest.compressed_from == (old.sha256,) == (found.compressed_from,)
    assert new.manifest.compression == "energy 0.9"
    assert new.manifest.factorisation == old.manifest.factorisation
    for name in ("base.safetensors", "template.onnx"):
        assert new.manifest.files[name] == old.manifest.files[name]
    for told in found.tasks:
        whole, kept = deltas(run, told.task), deltas(tmp_path / "small", told.task)
        assert 0.9 <= told.energy < 1
        lost = ((whole - kept) ** 2).sum() / (whole**2).sum()
        assert lost == pytest.approx(1 - told.energy, rel=1e-3)
        entry = new.task(told.task)
        assert {n: entry.rank_of(n) for n in told.ranks} == told.ranks
        assert told.parameters == new.manifest.parameters[f"expert:{told.task}"]
        assert told.parameters < told.parameters_before
        assert told.bytes == new.manifest.files[f"experts/{told.task}.safetensors"].bytes
    export(tmp_path / "small")
    assert all(verdict.passed for verdict in verify(tmp_path / "small"))


@pytest.mark.parametrize("run", ["shared", "per_task"], indirect=True)
def test_reference_and_scores_are_the_smaller_model_s(run: Path, tmp_path: Path) -> None:
    found = compress(run, tmp_path / "small", energy=0.6)
    new, old = load_bundle(tmp_path / "small"), load_bundle(run)
    assert new.manifest.norm == old.manifest.norm
    setup = open_setup(new.recipe)
    for place, told in enumerate(found.tasks):
        logits = new.logits(told.task)
        assert np.abs(logits["inputs"] - old.logits(told.task)["inputs"]).max() > 1e-3
        dense = restored(
            new.manifest, [new.task(told.task)], new.base, {told.task: new.expert(told.task)}
        ).dense(0)
        state = new.dense(told.task)
        for name, value in dense[0].state_dict().items():
            if value.is_floating_point():
                np.testing.assert_allclose(value, state[name], rtol=1e-5, atol=1e-6)

        def measured(images, dense=dense):
            x = torch.from_numpy(setup.recipe.preprocess.normalise(images[np.arange(len(images))]))
            with torch.no_grad():
                return dense[1](dense[0](x)).numpy()

        val, test = setup.val[place], setup.test[place]
        assert told.validation == pytest.approx(score(val.labels, measured(val), "multiclass"))
        assert new.task(told.task).metrics["expert"] == pytest.approx(
            score(test.labels, measured(test), "multiclass")
        )
        rows = logits[f"{told.task}.index"]
        np.testing.assert_allclose(
            logits[f"{told.task}.logits"], measured(test)[rows], rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("budget", ["1.3kB", "100 parameters"])
def test_the_budget_holds_and_what_fits_is_left_alone(
    run: Path, tmp_path: Path, budget: str
) -> None:
    found = compress(run, tmp_path / "small", budget=budget)
    for told in found.tasks:
        size = (tmp_path / f"small/bundle/experts/{told.task}.safetensors").stat().st_size
        assert size <= 1300 if "kB" in budget else told.parameters <= 100
        assert 0 < told.energy < 1
    unchanged = compress(run, tmp_path / "same", budget="1MB")
    for told in unchanged.tasks:
        assert (told.energy, told.ranks) == (1, told.ranks_before)
        name = f"bundle/experts/{told.task}.safetensors"
        assert (tmp_path / "same" / name).read_bytes() == (run / name).read_bytes()


def test_max_drop_holds_on_validation(run: Path, tmp_path: Path) -> None:
    whole = compress(run, tmp_path / "whole", max_drop=0)
    some = compress(run, tmp_path / "some", max_drop=100)
    for strict, loose in zip(whole.tasks, some.tasks, strict=True):
        assert strict.validation["accuracy"] >= strict.validation_before["accuracy"]
        assert loose.parameters == 0
        assert set(loose.ranks.values()) == {0}
    for task in TASKS:  # what is left is W0
        assert not deltas(tmp_path / "some", task).any()


def test_a_compressed_run_can_be_compressed(run: Path, tmp_path: Path) -> None:
    compress(run, tmp_path / "one", energy=0.95)
    compress(tmp_path / "one", tmp_path / "two", energy=0.9)
    hashes = [load_bundle(place).sha256 for place in (run, tmp_path / "one")]
    assert list(load_bundle(tmp_path / "two").manifest.compressed_from) == hashes


def test_decompose_never_replaces_a_compressed_bundle(run: Path, tmp_path: Path) -> None:
    compress(run, tmp_path / "small", energy=0.9)
    made = (tmp_path / "small" / "bundle" / MANIFEST).read_bytes()
    recipe = tmp_path / "recipe.yaml"  # the same, with the same hash
    recipe.write_text(json.dumps(load_bundle(run).manifest.recipe))
    for resume in (False, True):
        with pytest.raises(BundleError, match="was compressed, and training would replace it"):
            decompose(recipe, tmp_path / "small", resume=resume)
    assert (tmp_path / "small" / "bundle" / MANIFEST).read_bytes() == made


def test_wrong_rules_and_places(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for rules, says in (
        ({}, "give one of"),
        ({"energy": 0.9, "max_drop": 1}, "give one of"),
        ({"energy": 1.1}, "at most 1"),
        ({"max_drop": -1}, "at least 0"),
        ({"budget": "many"}, "no budget"),
        ({"budget": "200B"}, "head and norms of cells alone take .* bytes, the budget is 200"),
    ):
        with pytest.raises(UsageError, match=says):
            compress(run, out, **rules)
        assert not out.exists()
    with pytest.raises(BundleError, match="there is a bundle in this folder already"):
        compress(run, run, energy=0.9)


def test_other_images_are_an_error(run: Path, tmp_path: Path) -> None:
    bundle = run / "bundle"
    other = tmp_path / "other" / "bundle"
    other.mkdir(parents=True)
    for file in bundle.rglob("*"):
        if file.is_file():
            place = other / file.relative_to(bundle)
            place.parent.mkdir(exist_ok=True)
            place.write_bytes(file.read_bytes())
    manifest = json.loads((other / MANIFEST).read_text())
    manifest["tasks"][1]["data"]["seed"] = 99
    (other / MANIFEST).write_bytes(document_bytes(manifest))
    with pytest.raises(DataError, match="the data of xray that is here"):
        compress(other, tmp_path / "out", energy=0.9)


@pytest.mark.thorough
def test_the_command(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "small"
    assert cli.main(["compress", str(run), "--out", str(out), "--energy", "0.9", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [task["task"] for task in document["tasks"]] == list(TASKS)
    assert cli.main(["compress", str(run), "--out", str(tmp_path / "b"), "--budget", "1MB"]) == 0
    shown = capsys.readouterr().out
    assert "validation accuracy" in shown
    assert cli.main(["inspect", str(out)]) == 0
    assert "by layer" in capsys.readouterr().out
    assert cli.main(["compress", str(run), "--out", str(tmp_path / "c")]) == 2


@pytest.mark.thorough
def test_smaller_experts_have_their_own_temperature_and_coverage(tmp_path: Path) -> None:
    run = made(tmp_path / "run", safety={"temperature": True, "coverage": True, "guard": True})
    compress(run, tmp_path / "small", energy=0.6)
    compress(run, tmp_path / "same", budget="1MB")
    old, small, same = (load_bundle(tmp_path / name) for name in ("run", "small", "same"))
    setup = open_setup(small.recipe)
    for place, task in enumerate(TASKS):
        before, after = old.task(task).safety, small.task(task).safety
        assert before.temperature and after.temperature and after.coverage
        ratio = after.temperature.value / before.temperature.value
        np.testing.assert_allclose(
            small.expert(task)["head:weight"] * ratio, old.expert(task)["head:weight"], rtol=1e-5
        )
        assert np.array_equal(same.expert(task)["head:bias"], old.expert(task)["head:bias"])
        # What a deployed engine would answer of the held-out images, which chose nothing.
        images = setup.held_out[place]
        assert not set(images.split.images._indices) & set(setup.val[place].split.images._indices)
        model = restored(small.manifest, [small.task(task)], small.base, {task: small.expert(task)})
        probs = probabilities(task_logits(model, images, 0, setup.preprocess), "multiclass")
        expected = 1 - probs[np.arange(len(images)), images.labels]
        np.testing.assert_allclose(small.safety(task)["held_out.scores"], expected, atol=1e-6)
        assert after.coverage.images == len(images) > 4
        assert not np.array_equal(
            small.safety(task)["held_out.scores"], old.safety(task)["held_out.scores"]
        )
    # The guard is fitted to the smaller expert, and every engine judges as torch did.
    for artifact in [*export(tmp_path / "small"), *export(tmp_path / "small", "openvino")]:
        inputs, images = artifact.parity.guard
        assert max(inputs.largest, images.largest) < 1e-3
        assert (images.rows, images.flips) == (10, 0)
    assert all(verdict.passed for verdict in verify(tmp_path / "small"))
