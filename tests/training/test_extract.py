"""Experts of fine-tuned models: exact where their rank is enough, honest where it is not."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_backbone
import torch
import yaml
from safetensors.torch import save_file
from tiny_recipe import tiny_recipe

from lorkd_deploy import (
    add_experts,
    cli,
    compress,
    decompose,
    export,
    extract,
    inspect,
    load_bundle,
    verify,
)
from lorkd_deploy.bundle.parity_inputs import known_inputs
from lorkd_deploy.cli.shared.render import plain
from lorkd_deploy.errors import BundleError, ModelError, UsageError
from lorkd_deploy.lowrank.delta import update_matrix
from lorkd_deploy.recipe import load_recipe
from lorkd_deploy.run import claim
from lorkd_deploy.storage import sha256_file

CLASSES = {"cells": 5, "xray": 3, "fundus": 2}
RANKS = {"cells": 2, "xray": 2, "fundus": 3}
State = dict[str, torch.Tensor]


def random_state(seed: int, network: str = "backbone") -> State:
    """A backbone's state with norm statistics far from (0, 1)."""
    torch.manual_seed(seed)
    state = getattr(tiny_backbone, network)().state_dict()
    for name, value in state.items():
        if name.endswith("running_var"):
            value.uniform_(0.5, 2)
        elif value.is_floating_point():
            value.normal_(0, 0.4)
    return state


def low_rank(shape: torch.Size, rank: int, factorisation: str) -> torch.Tensor:
    """A change of a weight whose matrix form has `rank`."""
    matrix = update_matrix(torch.empty(shape), factorisation)
    inner = rank * (shape[2] if factorisation == "interleaved" and len(shape) > 2 else 1)
    product = torch.randn(len(matrix), inner) @ torch.randn(inner, matrix.shape[1])
    return 0.1 * product.reshape(shape)


class Hospital:
    """Files of a base and of three fine-tuned models, and a recipe.

    In the models everything differs from the base, the layers `bound` by a change of `rank`, or
    of that of the recipe's experts (-1), or of any (None).
    """

    def __init__(
        self, folder: Path, rank: int | None = None, network: str = "backbone", **experts: Any
    ) -> None:
        self.folder = folder
        self.network = network
        self.recipe = folder / "recipe.yaml"
        spec = {"rank": 2, "alpha": 6} | experts
        raw = tiny_recipe(experts=spec, transfer={"kind": "none"}, preprocess={"size": 32},
                          student={"architecture": f"tiny_backbone:{network}"})  # fmt: skip
        self.recipe.write_text(yaml.safe_dump(raw))
        self.base = random_state(0, network)
        self.base_file = folder / "base.safetensors"
        save_file(self.base, self.base_file)
        layers = add_experts(getattr(tiny_backbone, network)(), 1, 1).layers
        self.bound = [f"{layer.name}.weight" for layer in layers]
        self.states = {}
        self.files = {}
        for seed, (task, classes) in enumerate(CLASSES.items(), start=1):
            state = random_state(seed, network)
            for name in self.bound:
                delta = 0.3 * torch.randn(self.base[name].shape)
                if rank is not None:
                    wanted = RANKS[task] if rank == -1 else rank
                    factorisation = experts.get("factorisation", "interleaved")
                    delta = low_rank(delta.shape, wanted, factorisation)
                state[name] = self.base[name] + delta
            features = 16 if network == "backbone" else 24
            head = {"weight": torch.randn(classes, features), "bias": torch.randn(classes)}
            self.states[task] = state | {f"head:{n}": v for n, v in head.items()}
            self.write(task, state | {f"fc.{n}": v for n, v in head.items()})

    def write(self, task: str, state: State) -> None:
        self.files[task] = self.folder / f"{task}.pt"
        torch.save({"state_dict": state}, self.files[task])

    def extract(self, out: str = "run", **options: Any) -> Any:
        return extract(self.recipe, self.base_file, self.files, self.folder / out, **options)

    def logits(self, task: str, images: np.ndarray) -> np.ndarray:
        """What a fine-tuned model itself answers."""
        state = self.states[task]
        head = {n.removeprefix("head:"): v for n, v in state.items() if n.startswith("head:")}
        network = getattr(tiny_backbone, self.network)().eval()
        network.load_state_dict({n: v for n, v in state.items() if not n.startswith("head:")})
        x = torch.from_numpy(load_recipe(self.recipe).preprocess.normalise(images))
        with torch.no_grad():
            return (network(x) @ head["weight"].T + head["bias"]).numpy()


@pytest.mark.parametrize(
    "experts",
    [
        {},
        {"factorisation": "separable"},
        {"network": "transformer"},  # with a class token, positions and biases
    ],
)
def test_models_of_the_experts_rank_are_met_exactly(tmp_path: Path, experts: Any) -> None:
    hospital = Hospital(tmp_path, rank=-1, **experts)
    found = hospital.extract()
    bundle = load_bundle(found.bundle)
    images = known_inputs(bundle)
    for task in found.tasks:
        wanted = hospital.logits(task.task, images)
        got = bundle.logits(task.task)["inputs"]
        assert np.ptp(wanted) > 0.1
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4)
        dense = bundle.dense(task.task)
        for name, value in hospital.states[task.task].items():
            if value.is_floating_point():
                np.testing.assert_allclose(dense[name], value, rtol=1e-4, atol=1e-5)
        assert task.error < 1e-5
        assert task.energy == pytest.approx(1)
        assert {layer.rank for layer in task.layers} == {RANKS[task.task]}
        assert (task.validation, task.test) == (task.validation_fine_tuned, task.test_fine_tuned)
        assert bundle.task(task.task).metrics == {"expert": task.test}
        kept = {kept.tensor for kept in task.kept}
        assert kept == {n for n in hospital.base if n not in hospital.bound and "batches" not in n}
        assert task.model == bundle.task(task.task).model == sha256_file(hospital.files[task.task])
    assert bundle.manifest.extracted_from == found.base == sha256_file(hospital.base_file)
    for name in hospital.bound:
        assert np.array_equal(bundle.base[name], hospital.base[name])


@pytest.fixture(scope="module")
def extracted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Hospital, Any]:
    """Models of a higher rank than their experts, whose run is never changed."""
    hospital = Hospital(tmp_path_factory.mktemp("extracted"))
    return hospital, hospital.extract()


def test_what_a_low_rank_loses_is_told_by_layer(extracted: tuple[Hospital, Any]) -> None:
    hospital, found = extracted
    bundle = load_bundle(found.bundle)
    for task in found.tasks:
        lost = whole = 0.0
        dense = bundle.dense(task.task)
        for layer in task.layers:
            name = f"{layer.layer}.weight"
            w0 = hospital.base[name].double().numpy()
            model = hospital.states[task.task][name].double().numpy()
            norm = np.linalg.norm
            assert layer.error == pytest.approx(norm(model - dense[name]) / norm(model - w0))
            assert layer.energy == pytest.approx(1 - layer.error**2)
            assert layer.change == pytest.approx(norm(model - w0) / norm(w0))
            assert layer.error < 1
            assert layer.error > 0.05 or (layer.rank == 3 and layer.layer == "0"), "3 channels"
            # No matrix of that rank is nearer (Eckart & Young 1936).
            sigma = np.linalg.svd(update_matrix(model - w0, "interleaved"), compute_uv=False)
            inner = layer.rank * w0.shape[2]
            best = np.sqrt((sigma[inner:] ** 2).sum() / (sigma**2).sum())
            assert layer.error == pytest.approx(best, rel=1e-4, abs=1e-6)
            lost += norm(model - dense[name]) ** 2
            whole += norm(model - w0) ** 2
        assert task.error == pytest.approx(np.sqrt(lost / whole))
        assert task.parameters == bundle.manifest.parameters[f"expert:{task.task}"]
    history = json.loads((hospital.folder / "run" / "history" / "bundle.json").read_text())
    assert history["extracted"]["tasks"][1]["layers"][0]["error"] == found.tasks[1].layers[0].error


def test_the_run_goes_on_as_any_other(extracted: tuple[Hospital, Any], tmp_path: Path) -> None:
    hospital, found = extracted
    export(found.run)
    assert all(verdict.passed for verdict in verify(found.run))
    smaller = compress(found.run, tmp_path / "small", energy=0.5)
    assert all(task.parameters < task.parameters_before for task in smaller.tasks)
    export(tmp_path / "small")
    assert all(verdict.passed for verdict in verify(tmp_path / "small"))
    seen = inspect(tmp_path / "small").bundle
    assert seen is not None and seen.extracted_from == sha256_file(hospital.base_file)


def test_ranks_by_layer_and_layers_that_were_frozen(tmp_path: Path) -> None:
    hospital = Hospital(tmp_path)
    hospital.write(
        "cells", hospital.states["cells"] | {n: hospital.base[n] for n in hospital.bound}
    )
    found = hospital.extract(set=["experts.rank={'*': 1, '0': 3}"])
    cells, xray, fundus = ({la.layer: la for la in task.layers} for task in found.tasks)
    assert [cells[n].rank for n in "05"] == [0, 0]
    assert [cells[n].error for n in "05"] == [0, 0]
    assert [xray[n].rank for n in "05"] == [3, 1]
    assert xray["0"].error < 1e-5, "rank 3 on 3 channels is all there is"
    assert [fundus[n].rank for n in "05"] == [3, 3]
    assert found.tasks[0].parameters == 0
    assert load_bundle(found.bundle).task("xray").rank_of("5") == 1


def test_a_model_of_another_base_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    hospital = Hospital(tmp_path)
    other = {n: v for n, v in hospital.states["xray"].items() if n not in hospital.bound}
    hospital.write("xray", other | {n: random_state(9)[n] for n in hospital.bound})
    with caplog.at_level(logging.INFO):
        hospital.extract()
    warnings = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert [w for w in warnings if "xray" in w and "was it fine-tuned from it" in w]
    assert not [w for w in warnings if "cells" in w]
    said = [r.getMessage() for r in caplog.records if "can't be an expert" in r.getMessage()]
    assert len(said) == 3
    # 15 tensors: four of each norm, two of the depthwise convolution, the bias of a bound one
    assert "and 7 more (0.9 kB)" in said[0]


Change = Callable[[State], State]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda s: {n: v for n, v in s.items() if n != "5.weight"}, "1 missing: 5.weight"),
        (lambda s: s | {"0.weight": torch.zeros(9, 3, 3, 3)}, r"0.weight \(9, 3, 3, 3\), wanted"),
        (lambda s: {f"net.{n}": v for n, v in s.items()}, r"unknown: net.0.weight \(8, 3, 3, 3\)"),
        (lambda s: s | {"3.bias": torch.full((8,), torch.nan)}, "not finite: 3.bias"),
        (lambda s: {n: v for n, v in s.items() if n[:2] != "fc"}, "checkpoint has nothing; wanted"),
        (lambda s: s | {"fc2.weight": torch.zeros(2, 2)}, r"fc2.weight \(2, 2\); wanted one head"),
        (lambda s: s | {"fc.weight": torch.zeros(7, 16)}, "images have 3 classes"),
        (lambda s: s | {"fc.bias": torch.zeros(7)}, "images have 3 classes"),
        (lambda s: s | {"fc.weight": torch.zeros(3, 16, 1, 1)}, r"fc.weight \(3, 16, 1, 1\)"),
    ],
)
def test_checkpoints_that_do_not_fit(tmp_path: Path, change: Change, says: str) -> None:
    hospital = Hospital(tmp_path)
    good = torch.load(hospital.files["xray"], weights_only=True)["state_dict"]
    hospital.write("xray", change(good))
    with pytest.raises(ModelError, match=says) as caught:
        hospital.extract()
    assert "xray.pt" in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_names_are_mapped_and_a_head_needs_no_bias(
    extracted: tuple[Hospital, Any], tmp_path: Path
) -> None:
    _, wanted = extracted
    hospital = Hospital(tmp_path)
    for task, state in hospital.states.items():
        prefixed = {f"module.{n}": v for n, v in state.items()}
        if task == "xray":
            del prefixed["module.head:bias"]
        hospital.write(task, prefixed)
    found = hospital.extract("mapped", set=["student.prefix={module.: ''}"])
    for one, other in zip(wanted.tasks, found.tasks, strict=True):
        assert one.layers == other.layers
    assert not load_bundle(found.bundle).expert("xray")["head:bias"].any()


def test_wrong_names_and_places(tmp_path: Path) -> None:
    hospital = Hospital(tmp_path)
    files = dict(hospital.files)
    hospital.files = files | {"cell": files["cells"]}
    with pytest.raises(UsageError, match="did you mean 'cells'"):
        hospital.extract()
    hospital.files = {"cells": files["cells"]}
    with pytest.raises(UsageError, match="no model for xray, fundus"):
        hospital.extract()
    hospital.files = files | {"cells": tmp_path / "nothing.pt"}
    with pytest.raises(ModelError, match="does not exist"):
        hospital.extract()
    hospital.files = files
    with pytest.raises(UsageError, match="auto, which is for decompose"):
        hospital.extract(set=["experts.rank=auto", "experts.budget=1kB"])
    for folder in ("transformers:Dinov2Model", "open_clip:local-dir:mean"):
        with pytest.raises(UsageError, match=f"models of {folder} can't be extracted"):
            hospital.extract(set=[f"student.architecture={folder}"])
    save_file({**hospital.base, "0.weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(ModelError, match="not of the recipe's student") as caught:
        extract(hospital.recipe, tmp_path / "other.safetensors", files, tmp_path / "run")
    assert "other.safetensors" in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_folder_that_holds_another_run(extracted: tuple[Hospital, Any], tmp_path: Path) -> None:
    hospital, found = extracted
    with pytest.raises(BundleError, match="there is a bundle in this folder already"):
        hospital.extract()
    claim(tmp_path / "other", load_recipe(hospital.recipe, ["experts.rank=1"]))
    with pytest.raises(BundleError, match="a run of another recipe"):
        extract(hospital.recipe, hospital.base_file, hospital.files, tmp_path / "other")
    with pytest.raises(BundleError, match="was extracted, and training would replace it"):
        decompose(hospital.recipe, found.run)
    assert load_bundle(found.bundle).manifest.extracted_from == found.base


def test_the_command(
    extracted: tuple[Hospital, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hospital, found = extracted
    document = json.loads(json.dumps(plain(found), allow_nan=False))
    assert [task["task"] for task in document["tasks"]] == list(CLASSES)
    models = [w for t, f in hospital.files.items() for w in ("--model", f"{t}={f}")]
    words = ["extract", str(hospital.recipe), "--base", str(hospital.base_file)]
    assert cli.main([*words, *models, "--out", str(tmp_path / "b"), "--set", "experts.rank=1"]) == 0
    shown = capsys.readouterr().out
    assert "Relative error" in shown
    assert "fine-tuned" in shown
    for wrong in (models[:-2], [*models, "--model", "cells"], [*models, *models[:2]]):
        assert cli.main([*words, *wrong, "--out", str(tmp_path / "c")]) == 2
