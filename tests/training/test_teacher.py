"""The foundation model from a checkpoint, and what is told before hours of its training."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_backbone import backbone
from tiny_recipe import write_recipe
from torch import nn

from lorkd_deploy import decompose, export, load_bundle, teacher
from lorkd_deploy.errors import DataError, LorkdError, ModelError, UsageError
from lorkd_deploy.preprocess import Preprocess
from lorkd_deploy.recipe import load_recipe
from lorkd_deploy.training.batches.setup import open_setup
from lorkd_deploy.training.networks.student import build_student
from lorkd_deploy.training.teacher import build_teacher
from tests import hub


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_recipe(tmp_path_factory.mktemp("recipe") / "tiny.yaml")


def test_what_is_wrong_leaves_no_run_and_the_folder_free(recipe: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(UsageError, match="no torchvision architecture"):
        teacher(recipe, run, set=["teacher.architecture=torchvision:resnt50"])
    missing = "departments.0.tasks.0.data={source: npz, path: nowhere.npz}"
    with pytest.raises(DataError, match="nowhere"):
        decompose(recipe, run, set=[missing])
    assert not run.exists()


@pytest.mark.parametrize("command", [teacher, decompose])
@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ("experts.skip=[head*]", r"no layer that can have experts is called 'head\*'"),
        ("experts.rank={stem*: 2}", r"no layer that can have experts is called 'stem\*'"),
        ("experts.rank=9", "rank 9 of task 0 is above what any layer can use"),
        ("student.architecture=torchvision:resnt18", "no torchvision architecture"),
        ("student.architecture=tiny_backbone:attention", "never calls 'attention.out_proj'"),
        (
            "student.architecture=tiny_backbone:batch_statistics",
            "the images beside it in the batch",
        ),
        (
            "teacher.architecture=tiny_backbone:batch_statistics",
            "the images beside it in the batch",
        ),
        ("student.architecture=tiny_backbone:pools_the_largest", "torch's adaptive_max_pool2d"),
        ("teacher.architecture=tiny_backbone:pools_the_largest", "torch's adaptive_max_pool2d"),
    ],
)
def test_a_wrong_network_is_told_before_a_teacher_is_trained(
    recipe: Path, tmp_path: Path, command: Callable[..., object], wrong: str, says: str
) -> None:
    with pytest.raises(LorkdError, match=says):
        command(recipe, tmp_path / "run", set=[wrong])
    assert not (tmp_path / "run").exists()


@pytest.mark.thorough
def test_importing_a_teacher_with_heads(recipe: Path, tmp_path: Path) -> None:
    """A checkpoint whose backbone is under `net.` and whose heads are `fc0` … `fc2`."""
    torch.manual_seed(1)
    state = {f"net.{k}": v for k, v in backbone().state_dict().items()}
    counts = [len(t.classes) for t in _classes(recipe, tmp_path)]
    for index, count in enumerate(counts):
        head = nn.Linear(16, count)
        state |= {f"fc{index}.{k}": v for k, v in head.state_dict().items()}
    torch.save(state, tmp_path / "foundation.pt")
    prefix = {"net.": "backbone."} | {f"fc{i}.": f"heads.tasks.{i}." for i in range(3)}
    path = write_recipe(
        tmp_path / "import.yaml",
        teacher={
            "architecture": "tiny_backbone:backbone",
            "checkpoint": str(tmp_path / "foundation.pt"),
            "prefix": prefix,
            "fit": "none",
        },
    )
    result = teacher(path, tmp_path / "run")
    assert result.missing_keys == () and result.unexpected_keys == ()
    written = load_bundle(tmp_path / "run" / "teacher")
    np.testing.assert_array_equal(written.base["0.weight"], state["net.0.weight"].numpy())
    np.testing.assert_array_equal(written.expert("fundus")["head:bias"], state["fc2.bias"].numpy())


@pytest.mark.parametrize("lacking", ["0.weight", "1.running_var"])
@pytest.mark.parametrize("fit", ["heads", "none"])
def test_a_frozen_teacher_needs_all_its_weights(fit: str, lacking: str, tmp_path: Path) -> None:
    state = backbone().state_dict()
    del state[lacking]
    torch.save({f"net.{name}": value for name, value in state.items()}, tmp_path / "half.pt")
    path = write_recipe(
        tmp_path / "half.yaml",
        teacher={
            "architecture": "tiny_backbone:backbone",
            "checkpoint": str(tmp_path / "half.pt"),
            "prefix": {"net.": "backbone." if fit == "none" else ""},
            "fit": fit,
        },
    )
    with pytest.raises(ModelError, match=rf"{lacking}' first, which teacher.fit") as caught:
        teacher(path, tmp_path / "run")
    assert "--allow-missing" in str(caught.value.fix)
    result = teacher(path, tmp_path / "run", allow_missing=True)
    assert any(name.endswith(lacking) for name in result.missing_keys)


@pytest.mark.thorough
def test_heads_are_trained_on_a_frozen_backbone(recipe: Path, tmp_path: Path) -> None:
    state = backbone().state_dict()
    torch.save(state | {"extra.weight": torch.zeros(1)}, tmp_path / "foundation.pt")
    path = write_recipe(
        tmp_path / "heads.yaml",
        teacher={
            "architecture": "tiny_backbone:backbone",
            "checkpoint": str(tmp_path / "foundation.pt"),
            "fit": "heads",
            "train": {"epochs": 1, "batch_size": 16},
        },
    )
    result = teacher(path, tmp_path / "run")
    assert result.unexpected_keys == ("extra.weight",)
    written = load_bundle(tmp_path / "run" / "teacher")
    for name, array in written.base.items():
        np.testing.assert_array_equal(array, state[name].numpy(), err_msg=name)
    for task in written.manifest.tasks:
        assert np.abs(written.expert(task.name)["head:weight"]).max() > 0
    history = json.loads((tmp_path / "run" / "history" / "teacher.json").read_text())
    assert history["penalties"].keys() == {"cells", "xray", "fundus"}


def test_a_student_finds_the_features_that_the_heads_were_fitted_to(tmp_path: Path) -> None:
    torch.save(backbone().state_dict(), tmp_path / "foundation.pt")
    path = write_recipe(
        tmp_path / "heads.yaml",
        teacher={
            "architecture": "tiny_backbone:backbone",
            "checkpoint": str(tmp_path / "foundation.pt"),
            "fit": "heads",
            "preprocess": {"size": 24},
        },
    )
    teacher(path, tmp_path / "run", set=["train.epochs=1"])
    cache = tmp_path / "run" / "cache"
    made = {p: p.stat().st_mtime_ns for p in cache.glob("features-*")}
    decompose(path, tmp_path / "run", set=["train.epochs=1"])
    assert made
    assert {p: p.stat().st_mtime_ns for p in cache.glob("features-*")} == made


def test_a_checkpoint_of_another_architecture_is_refused(recipe: Path, tmp_path: Path) -> None:
    torch.save(nn.Linear(3, 3).state_dict(), tmp_path / "other.pt")
    with pytest.raises(ModelError, match="not one of"):
        teacher(recipe, tmp_path / "run", set=[f"teacher.checkpoint={tmp_path / 'other.pt'}"])
    assert not (tmp_path / "run" / "teacher").exists()


def test_a_checkpoint_is_looked_for_where_the_data_is(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the shipped recipes name theirs: by the file alone."""
    (tmp_path / "weights").mkdir()
    monkeypatch.setenv("LORKD_DATA", str(tmp_path / "weights"))
    changes = ["teacher.fit=heads", "student.checkpoint=net.pt"]
    setup = open_setup(load_recipe(recipe, [*changes, "teacher.checkpoint=net.pt"]))
    for build in (build_student, partial(build_teacher, allow_missing=False)):
        with pytest.raises(DataError, match=r"no checkpoint at 'net\.pt'") as caught:
            build(setup)
        assert str(tmp_path / "weights") in str(caught.value.where)
        assert "LORKD_DATA" in str(caught.value.fix)
    state = backbone().state_dict()
    torch.save(state, tmp_path / "weights" / "net.pt")
    model, _ = build_teacher(setup.for_teacher(), allow_missing=False)
    for built in (model.backbone, build_student(setup).backbone.dense(0)):
        assert torch.equal(built.state_dict()["0.weight"], state["0.weight"])


def _classes(recipe: Path, tmp_path: Path) -> list[object]:
    from lorkd_deploy.data import open_data
    from lorkd_deploy.recipe import load_recipe

    return [open_data(task.data) for task in load_recipe(recipe).tasks]


@pytest.mark.slow
def test_a_hubs_folder_is_needed_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """From the folder of a DINOv2, at its own size, to experts and the teacher's own engine."""
    pytest.importorskip("transformers")
    folder = tmp_path / "rad-dino"
    known = hub.dinov2(folder)
    said = {"image_mean": [0.53, 0.53, 0.53], "crop_size": {"height": 42, "width": 42}}
    (folder / "preprocessor_config.json").write_text(json.dumps(said))
    own = {"architecture": "transformers:Dinov2Model:cls", "checkpoint": str(folder)}
    own |= {"fit": "heads", "preprocess": {"size": 42}}
    short = {"epochs": 0.2, "batch_size": 8}
    path, run = write_recipe(tmp_path / "hub.yaml", teacher=own, train=short), tmp_path / "run"
    with pytest.raises(ModelError, match="no heads of the recipe's tasks"):
        teacher(path, tmp_path / "none", set=["teacher.fit=none"])
    result = teacher(path, run)
    assert result.missing_keys == () and result.unexpected_keys == ()
    told = f"teacher.preprocess of the recipe gives {folder} mean [0.5, 0.5, 0.5], where"
    assert [told in text for text in caplog.messages].count(True) == 1
    shutil.rmtree(folder)
    images = open_setup(load_recipe(path)).data[0].train.images
    with torch.no_grad():
        x = torch.from_numpy(Preprocess(size=42)(images[n] for n in range(4)))
        wanted = known(x).last_hidden_state[:, 0].numpy()
    (cache,) = (run / "cache").glob("features-cells-*.npy")
    np.testing.assert_allclose(np.load(cache)[:4], wanted, rtol=2e-3, atol=1e-3)
    decompose(path, run)
    engine = export(run, teacher=True, task=["cells"])[-1]
    assert engine.name == "teacher/onnx-fp32"
    assert engine.parity.status == "passed"
    assert load_bundle(run / "bundle").manifest.network_config is None
