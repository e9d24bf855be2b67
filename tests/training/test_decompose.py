"""Teacher and decomposition as a user runs them, on a network that trains in seconds."""

from __future__ import annotations

import errno
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_recipe import tiny_recipe, write_recipe

from lorkd_deploy import cli, decompose, load_bundle, teacher
from lorkd_deploy.cli.shared.render import Output
from lorkd_deploy.cli.shared.training import show
from lorkd_deploy.errors import (
    BundleError,
    LorkdError,
    ModelError,
    TrainingError,
)
from lorkd_deploy.preprocess import Preprocess
from lorkd_deploy.recipe import load_recipe
from lorkd_deploy.run import claim
from lorkd_deploy.storage import sha256_file
from lorkd_deploy.training.bundling import assemble
from lorkd_deploy.training.fitting.checkpoint import Checkpoints
from lorkd_deploy.training.fitting.update import Update
from tests.stopping import KilledError, killed_when

TESTS = Path(__file__).parents[1]
SLOW_MACHINE = 600  # s


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_recipe(tmp_path_factory.mktemp("recipe") / "tiny.yaml")


@pytest.fixture(scope="module")
def taught(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has its teacher."""
    run = tmp_path_factory.mktemp("taught") / "run"
    teacher(recipe, run)
    return run


@pytest.fixture(scope="module")
def decomposed(recipe: Path, taught: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    run = tmp_path_factory.mktemp("decomposed") / "run"
    shutil.copytree(taught, run)
    result = decompose(recipe, run)
    assert [task.task for task in result.tasks] == ["cells", "xray", "fundus"]
    assert all(t.teacher and t.expert and 0 <= t.expert["auc"] <= 1 for t in result.tasks)
    return run


def test_the_bundle_holds_what_was_trained(decomposed: Path) -> None:
    bundle = load_bundle(decomposed)
    manifest = bundle.manifest
    assert manifest.departments == {"ward-a": ("cells", "xray"), "ward-b": ("fundus",)}
    assert [task.rank for task in manifest.tasks] == [2, 2, 3]
    assert bundle.expert("fundus")["0.A"].shape == (3 * 3, 3 * 3)
    assert bundle.expert("cells")["5.B"].shape == (16, 2)
    for task in manifest.tasks:
        own = bundle.expert(task.name)
        assert np.abs(own["5.B"]).max() > 0, "no gradient reached the expert"
        assert own["head:weight"].shape == (len(task.classes), 16)
        assert set(task.metrics) == {"teacher", "expert"}
    assert not (decomposed / "checkpoints" / "decompose").exists()


def test_the_history_says_what_the_training_waited_for_and_learnt_from(decomposed: Path) -> None:
    history = json.loads((decomposed / "history" / "bundle.json").read_text())
    assert history["teacher_features"].keys() == {"cells", "xray", "fundus"}
    for held in history["teacher_features"].values():
        assert held["sha256"] == sha256_file(decomposed / "cache" / held["file"])
    assert 0 <= history["waiting_for_data"] < 1
    assert history["finished"]
    assert [entry["step"] for entry in history["validations"]][-1] == history["steps"]


def test_the_teacher_is_a_bundle_with_one_engine(taught: Path) -> None:
    bundle = load_bundle(taught / "teacher")
    assert list(bundle.manifest.engines()) == ["teacher"]
    classes = sum(len(task.classes) for task in bundle.manifest.tasks)
    fused = bundle.fuse("teacher")
    assert any(array.shape in ((classes, 16), (16, classes)) for array in fused.values())


def test_a_teacher_may_have_an_input_of_its_own(tmp_path: Path) -> None:
    own = {"size": 24, "mean": [0.4, 0.4, 0.4], "interpolation": "bicubic"}
    section = tiny_recipe()["teacher"]
    recipe = write_recipe(tmp_path / "own.yaml", teacher=section | {"preprocess": own})
    short = ["train.epochs=1", "teacher.train.epochs=1"]
    decompose(recipe, tmp_path / "run", set=short)
    taught, experts = (load_bundle(tmp_path / "run" / p).manifest for p in ("teacher", "bundle"))
    assert taught.preprocess == Preprocess.model_validate(own)
    assert experts.preprocess.size == 16
    assert taught.recipe_sha256 == experts.recipe_sha256
    plain = write_recipe(tmp_path / "plain.yaml")
    claim(tmp_path / "other", load_recipe(plain, short))
    shutil.copytree(tmp_path / "run" / "teacher", tmp_path / "other" / "teacher")
    with pytest.raises(ModelError, match="another preprocessing"):
        decompose(plain, tmp_path / "other", set=short)


def test_decompose_alone_makes_the_teacher_first(recipe: Path, tmp_path: Path) -> None:
    result = decompose(recipe, tmp_path / "run", set=["train.epochs=1", "teacher.train.epochs=1"])
    assert all(task.teacher is not None for task in result.tasks)
    assert load_bundle(tmp_path / "run" / "teacher").manifest.kind == "teacher"


@pytest.mark.parametrize("kind", ["logits", "features", "paper", "none"])
def test_other_transfers(recipe: Path, tmp_path: Path, kind: str) -> None:
    short = ["train.epochs=0.5", "teacher.train.epochs=0.5", f"transfer.kind={kind}"]
    result = decompose(recipe, tmp_path / "run", set=short)
    assert (result.tasks[0].teacher is None) == (kind == "none")
    assert result.wasteful_layers == ()


def test_a_rank_that_a_layer_cannot_use_is_listed(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rank 4 on the stem's three channels, as in the papers."""
    short = ["train.epochs=0.2", "transfer.kind=none", "experts.rank=4"]
    result = decompose(recipe, tmp_path / "run", set=short)
    assert result.wasteful_layers == (("0", 3),)
    show(Output(as_json=False, quiet=False), result)
    assert "a rank above the largest that changes the layer: 0 (3)" in capsys.readouterr().out


def test_the_same_seed_gives_the_same_bundle(
    recipe: Path, taught: Path, decomposed: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(taught, run)
    decompose(recipe, run)
    assert _weights(run) == _weights(decomposed)


def test_killed_and_resumed_equals_uninterrupted(
    recipe: Path, taught: Path, decomposed: Path, tmp_path: Path
) -> None:
    """`lorkd decompose` is killed by its number, once a step is saved."""
    run = tmp_path / "run"
    shutil.copytree(taught, run)
    arguments = ["decompose", str(recipe), "--out", str(run)]
    held = subprocess.Popen(
        [sys.executable, "-m", "lorkd_deploy", *arguments],
        env=os.environ | {"PYTHONPATH": str(TESTS), "TINY_HOLD": "12"},
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        saved = _saved(run, "decompose", 12)
        for _ in _until(SLOW_MACHINE):
            if held.poll() is not None or saved.exists():
                break
        assert saved.exists() and held.poll() is None
    finally:
        held.send_signal(signal.SIGKILL)
        held.wait()
    _resumed(arguments, run, decomposed, "bundle")


@pytest.mark.parametrize(
    ("command", "training", "step"),
    [("decompose", "decompose", 2), ("teacher", "teacher", 12), ("decompose", "teacher", 2)],
)  # fmt: skip
def test_stopped_anywhere_and_resumed_equals_uninterrupted(  # noqa: PLR0917
    recipe: Path, taught: Path, decomposed: Path, tmp_path: Path,
    command: str, training: str, step: int,
) -> None:  # fmt: skip
    """`lorkd COMMAND` writes nothing more once the `step` of its `training` is saved."""
    run = tmp_path / "run"
    if training == "decompose":
        shutil.copytree(taught, run)
    arguments = [command, str(recipe), "--out", str(run)]
    saved = _saved(run, training, step)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KilledError):
        killed_when(lambda *_: saved.exists(), patch)
        cli.main([*arguments, "--quiet"])
    made = ("teacher", "bundle") if command == "decompose" else ("teacher",)
    _resumed(arguments, run, decomposed, *made)


def _saved(run: Path, training: str, step: int) -> Path:
    """The last file of a checkpoint."""
    return run / "checkpoints" / training / f"step-{step:08d}" / "state.json"


def _resumed(arguments: list[str], run: Path, whole: Path, *made: str) -> None:
    """Nothing was made; the same command resumes, and makes what `whole` has."""
    assert not (run / made[-1]).exists()
    assert cli.main([*arguments, "--resume", "--quiet"]) == 0
    for name in made:
        assert _weights_of(run / name) == _weights_of(whole / name)


def test_killed_around_the_writing_of_the_bundle_equals_uninterrupted(
    recipe: Path, taught: Path, decomposed: Path, tmp_path: Path
) -> None:
    """Killed at these moments one after the other, and each time it is resumed."""
    run = tmp_path / "run"
    shutil.copytree(taught, run)
    bundle, manifest = run / "bundle", "manifest.json"
    states = itertools.count()

    def of_a_checkpoint(do: str, paths: tuple[Any, ...]) -> bool:
        return do == "unlink" and Path(paths[0]).name.startswith("state.")

    moments: dict[str, Callable[[str, tuple[Any, ...]], bool]] = {
        "the manifest is written": lambda do, p: do == "replace" and Path(p[1]).name == manifest,
        "the bundle is whole": lambda *_: bundle.exists(),
        "half of a checkpoint is left": lambda do, p: of_a_checkpoint(do, p) and next(states) == 1,
    }
    for moment, due in moments.items():
        with pytest.MonkeyPatch.context() as patch:
            killed_when(due, patch)
            with pytest.raises(KilledError):
                decompose(recipe, run, resume=True)
        assert list((run / "checkpoints" / "decompose").iterdir()), moment
        assert bundle.exists() == (moment != "the manifest is written")
    decompose(recipe, run, resume=True)
    assert _weights(run) == _weights(decomposed)
    assert [path.name for path in run.iterdir() if path.suffix in {".tmp", ".old"}] == []
    assert not (run / "checkpoints" / "decompose").exists()


def test_a_bundle_that_could_not_be_written_is_made_from_what_was_trained(
    recipe: Path, taught: Path, decomposed: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = tmp_path / "run"
    shutil.copytree(taught, run)

    def fails(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(assemble, "write_bundle", fails)
        with pytest.raises(OSError, match="No space"):
            decompose(recipe, run)
    assert "what was trained is kept: the same call with --resume" in caplog.text
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Update, "gradients", fails)  # not one step more
        decompose(recipe, run, resume=True)
    assert _weights(run) == _weights(decomposed)


def test_resume_with_a_changed_recipe_is_refused(
    recipe: Path, taught: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(taught, run)
    with pytest.raises(LorkdError, match=r"another recipe"):
        decompose(recipe, run, set=["experts.alpha=7"], resume=True)


def test_a_loss_that_is_not_finite_stops_with_step_and_cause(
    recipe: Path, taught: Path, tmp_path: Path
) -> None:
    path = write_recipe(
        tmp_path / "hot.yaml",
        train={"epochs": 5, "batch_size": 16, "lr": 1e25, "warmup": 0, "checkpoint_minutes": 0},
        transfer={"kind": "none"},
    )
    with pytest.raises(TrainingError, match=r"step \d+: .*not finite") as caught:
        decompose(path, tmp_path / "run")
    assert not (tmp_path / "run" / "bundle").exists()
    history = json.loads((tmp_path / "run" / "history" / "bundle.json").read_text())
    assert not history["finished"] and f"step {history['steps']}:" in str(caught.value)
    found = Checkpoints(tmp_path / "run" / "checkpoints" / "decompose", _recipe_hash(path)).load()
    assert found is not None, "the last checkpoint is whole"
    assert all(value.isfinite().all() for value in found.tensors.values()), (
        "and can be gone on from"
    )


def test_a_folder_that_holds_another_run_is_refused(taught: Path, tmp_path: Path) -> None:
    other = write_recipe(tmp_path / "other.yaml", seed=9)
    before = _weights_of(taught / "teacher")
    with pytest.raises(BundleError):
        teacher(other, taught)
    assert _weights_of(taught / "teacher") == before


def _recipe_hash(path: Path) -> str:
    from lorkd_deploy.recipe import load_recipe

    return load_recipe(path).sha256


def _weights(run: Path) -> dict[str, str]:
    return _weights_of(run / "bundle")


def _weights_of(bundle: Path) -> dict[str, str]:
    files = sorted(bundle.rglob("*.safetensors"))
    return {str(file.relative_to(bundle)): sha256_file(file) for file in files}


def _until(seconds: float) -> Iterator[None]:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        yield
        time.sleep(0.005)
