"""A department more: what was there stays byte for byte, and the old engines stay proven."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_recipe import tiny_recipe, write_recipe

from lorkd_deploy import decompose, export, inspect, load_bundle, teacher, verify
from lorkd_deploy.errors import BundleError, ModelError, UsageError
from lorkd_deploy.storage import sha256_file
from tests.stopping import Interrupted
from tests.training.untrained import untrained

Grow = Callable[..., Path]
TISSUE = {
    "name": "ward-c",
    "tasks": [
        {
            "name": "tissue",
            "rank": 3,
            "data": {"source": "phantom", "name": "tissue", "train": 48, "val": 16, "test": 24},
        }
    ],
}
WARD_A, WARD_B = tiny_recipe()["departments"]
SHORT = {"epochs": 2, "batch_size": 16, "lr": 0.01, "checkpoint_minutes": 0}


def recipe_of(path: Path, *departments: Any, **changes: Any) -> Path:
    return write_recipe(path, departments=[*departments], train=SHORT, **changes)


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher of ward-a and ward-b; it has never seen ward-c."""
    folder = tmp_path_factory.mktemp("taught")
    recipe = recipe_of(folder / "both.yaml", WARD_A, WARD_B, teacher={
        "architecture": "tiny_backbone:backbone", "train": SHORT})  # fmt: skip
    teacher(recipe, folder / "run")
    return folder / "run" / "teacher"


@pytest.fixture(scope="module", params=["shared", "per_task"])
def finished(
    request: pytest.FixtureRequest, taught: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path]:
    """The norm, and a run with ward-a alone, its engines and the teacher."""
    folder = tmp_path_factory.mktemp(f"finished-{request.param}")
    alone = {"departments": [WARD_A], "train": SHORT, "transfer": {"kind": "none"}}
    if request.param == "shared":
        decompose(write_recipe(folder / "a.yaml", **alone), folder / "run")
    else:  # as 0.2.0 may have left it
        untrained(folder / "run", tiny_recipe(**alone), request.param)
    shutil.copytree(taught, folder / "run" / "teacher")
    export(folder / "run")
    return request.param, folder / "run"


@pytest.fixture
def grow(finished: tuple[str, Path], tmp_path: Path) -> Grow:
    """Add departments to the finished run; gives the new run."""
    _, run = finished

    def grown(*departments: Any, names: list[str], **options: Any) -> Path:
        changes = {k: options.pop(k) for k in ("transfer", "preprocess") if k in options}
        recipe = recipe_of(tmp_path / "grown.yaml", *departments, **changes)
        out: Path = options.pop("out", tmp_path / "grown")
        options = {"from_run": run, "add_department": names} | options
        result = decompose(recipe, out, **options)
        kept = {n: e.sha256 for n, e in load_bundle(options["from_run"]).manifest.files.items()}
        assert result.kept == kept
        return out

    return grown


def files_of(bundle: Path) -> dict[str, str]:
    return {
        file.relative_to(bundle).as_posix(): sha256_file(file)
        for file in sorted(bundle.rglob("*"))
        if file.is_file() and file.name != "manifest.json"
    }


def test_everything_but_the_new_department_stays_byte_for_byte(
    finished: tuple[str, Path], grow: Grow
) -> None:
    norm, old = finished
    out = grow(WARD_A, TISSUE, names=["ward-c"])
    before, after = files_of(old / "bundle"), files_of(out / "bundle")
    assert {name: after.get(name) for name in before} == before
    assert set(after) - set(before) == {"experts/tissue.safetensors", "parity/tissue.safetensors"}
    assert files_of(out / "teacher") == files_of(old / "teacher")
    grown, was = load_bundle(out), load_bundle(old)
    assert [task.name for task in grown.manifest.tasks] == ["cells", "xray", "tissue"]
    assert grown.manifest.tasks[:2] == was.manifest.tasks
    assert grown.manifest.grown_from == (was.sha256,)
    seen = inspect(out).bundle
    assert seen is not None and seen.grown_from == (was.sha256,)
    own = grown.expert("tissue")
    assert own["5.A"].shape == (3, 8)
    assert np.abs(own["5.B"]).max() > 0, "no gradient reached the expert"
    assert ("1.running_mean" in own) == (norm == "per_task")
    assert grown.manifest.norm == was.manifest.norm == norm
    assert set(grown.manifest.tasks[2].metrics) == {"expert"}, "the teacher doesn't know the task"

    # The engines that were proven before are this bundle's too, and the new one is proven.
    shutil.copytree(old / "export", out / "export")
    export(out, task=["tissue"])
    verdicts = {verdict.engine: verdict.passed for verdict in verify(out)}
    assert verdicts == dict.fromkeys(
        ("ward-a/cells/onnx-fp32", "ward-a/xray/onnx-fp32", "ward-c/tissue/onnx-fp32"), True
    )
    export(out, department=["ward-a"])
    assert all(verdict.passed for verdict in verify(out))


def test_a_grown_bundle_can_grow_again(finished: tuple[str, Path], grow: Grow) -> None:
    first = grow(WARD_A, WARD_B, names=["ward-b"], transfer={"kind": "logits"})
    assert set(load_bundle(first).task("fundus").metrics) == {"expert", "teacher"}
    second = grow(
        TISSUE, WARD_A, WARD_B, names=["ward-c"], from_run=first / "bundle",
        out=first.with_name("second"), transfer={"kind": "none"},
    )  # fmt: skip
    bundle = load_bundle(second)
    assert [task.name for task in bundle.manifest.tasks] == ["tissue", "cells", "xray", "fundus"]
    old = load_bundle(finished[1])
    assert bundle.manifest.grown_from == (old.sha256, load_bundle(first).sha256)
    assert {old.sha256, load_bundle(first).sha256} < bundle.origins
    before = files_of(first / "bundle")
    with pytest.raises(BundleError, match="was grown, and training would replace it"):
        decompose(first.with_name("grown.yaml"), second)
    assert {n: h for n, h in files_of(second / "bundle").items() if n in before} == before


def test_stopped_and_resumed_equals_uninterrupted(
    finished: tuple[str, Path], grow: Grow, tmp_path: Path
) -> None:
    whole = grow(WARD_A, TISSUE, names=["ward-c"])
    stopped = tmp_path / "stopped"
    with pytest.raises(KeyboardInterrupt):
        grow(WARD_A, TISSUE, names=["ward-c"], out=stopped, progress=Interrupted(4))
    assert not (stopped / "bundle").exists()
    grow(WARD_A, TISSUE, names=["ward-c"], out=stopped, resume=True)
    assert files_of(stopped / "bundle") == files_of(whole / "bundle")
    history = json.loads((stopped / "history" / "bundle.json").read_text())
    assert history["steps"] == json.loads((whole / "history" / "bundle.json").read_text())["steps"]


@pytest.mark.parametrize("finished", ["shared"], indirect=True)
def test_a_teacher_without_logits_of_the_new_task(
    grow: Grow, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "lorkd_deploy"):
        grow(WARD_A, TISSUE, names=["ward-c"], transfer={"kind": "logits"})
    assert "no logits for tissue: the new experts learn from labels alone" in caplog.text


@pytest.mark.parametrize("finished", ["shared"], indirect=True)
def test_without_a_teacher_labels_alone(
    finished: tuple[str, Path], grow: Grow, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    copied = shutil.copytree(finished[1] / "bundle", tmp_path / "copied")
    with caplog.at_level(logging.WARNING, "lorkd_deploy"):
        out = grow(WARD_A, TISSUE, names=["ward-c"], from_run=copied)
    assert "has no teacher: the new experts learn from labels alone" in caplog.text
    assert not (out / "teacher").exists()


@pytest.mark.parametrize("finished", ["shared"], indirect=True)
@pytest.mark.parametrize(
    ("departments", "names", "changes", "says"),
    [
        ([WARD_A, TISSUE], ["ward-d"], {}, "'ward-d'"),
        ([WARD_A, TISSUE], ["ward-a"], {}, "ward-a is in the bundle already"),
        ([WARD_A, TISSUE], ["ward-a"], {}, "ward-c is in neither"),
        ([TISSUE], ["ward-c"], {}, "ward-a has cells, xray, in the recipe it is missing"),
        ([WARD_A, TISSUE], ["ward-c"], {"preprocess": {"size": 20}}, "preprocess is another"),
        ([WARD_A, TISSUE], [], {}, "takes both"),
        ([WARD_A, TISSUE], ["ward-c"], {"from_run": None}, "takes both"),
        (
            [{"name": "ward-a", "tasks": [*WARD_A["tasks"][:1], TISSUE["tasks"][0] |
                {"name": "xray"}]}, TISSUE],
            ["ward-c"], {}, "task xray has other data",
        ),
    ],
)  # fmt: skip
def test_a_recipe_that_differs_in_more_than_the_department(  # noqa: PLR0917
    grow: Grow, tmp_path: Path, departments: Any, names: Any, changes: Any, says: str
) -> None:
    with pytest.raises(UsageError) as caught:
        grow(*departments, names=names, **changes)
    assert says in str(caught.value)
    assert not (tmp_path / "grown").exists()


@pytest.mark.parametrize("finished", ["shared"], indirect=True)
def test_a_backbone_that_is_not_the_one_decomposed(
    grow: Grow, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import tiny_backbone

    plain = tiny_backbone.backbone
    monkeypatch.setattr(tiny_backbone, "backbone", lambda: plain()[:5].append(plain()[-2:]))
    with pytest.raises(ModelError, match="not the network that was decomposed"):
        grow(WARD_A, TISSUE, names=["ward-c"], transfer={"kind": "none"})
