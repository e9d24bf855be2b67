"""Checkpoints: two at most, whole or not at all, of one recipe."""

from __future__ import annotations

import errno
from itertools import count
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from lorkd_deploy.errors import TrainingError
from lorkd_deploy.recipe import load_recipe
from lorkd_deploy.run import RUN, RunRecord, claim
from lorkd_deploy.schema import write_part
from lorkd_deploy.storage import canonical_json, sha256_bytes
from lorkd_deploy.training.batches.setup import Setup
from lorkd_deploy.training.fitting import checkpoint
from lorkd_deploy.training.fitting.checkpoint import Checkpoints, State, pack, unpack
from lorkd_deploy.training.fitting.job import Job
from tests.stopping import KilledError, killed_when


def _state(step: int) -> State:
    return State(step, {"model/w": torch.full((3,), float(step))}, {"history": [step]})


def test_the_last_two_are_kept_and_the_newest_is_read(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, "recipe")
    for step in (10, 20, 30):
        checkpoints.save(_state(step))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000020", "step-00000030"]
    found = checkpoints.load()
    assert found is not None
    assert found.step == 30
    assert found.facts == {"history": [30]}
    assert found.tensors["model/w"].tolist() == [30.0] * 3


@pytest.mark.parametrize("damage", ["truncated", "flipped", "no facts", "facts flipped"])
def test_a_damaged_one_is_passed_over(tmp_path: Path, damage: str) -> None:
    checkpoints = Checkpoints(tmp_path, "recipe")
    for step in (10, 20):
        checkpoints.save(_state(step))
    file = tmp_path / "step-00000020" / "state.safetensors"
    data = bytearray(file.read_bytes())
    if damage == "truncated":
        file.write_bytes(data[:-4])
    elif damage == "flipped":
        data[-1] ^= 1
        file.write_bytes(data)
    elif damage == "facts flipped":
        facts = file.parent / "state.json"
        facts.write_bytes(facts.read_bytes().replace(b"20", b"21"))
    else:
        (file.parent / "state.json").unlink()
    found = checkpoints.load()
    assert found is not None
    assert found.step == 10


def test_what_a_killed_writer_left_is_no_checkpoint(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, "recipe")
    (tmp_path / ".step-00000040.abcdef01.tmp").mkdir()
    assert checkpoints.load() is None
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("before", [[], [10], [10, 20], [20, 30], [30], [40, 50]])
def test_killed_at_any_change_of_the_disk_a_whole_one_and_two_at_most_are_left(
    tmp_path: Path, before: list[int]
) -> None:
    """Step 30 is saved; it may be there already, and later ones, of a training given up."""
    for moment in count():
        folder = tmp_path / str(moment)
        folder.mkdir()
        checkpoints = Checkpoints(folder, "recipe")
        for step in before:
            checkpoints.save(_state(step))
        with pytest.MonkeyPatch.context() as patch:
            looked = _killed_before(moment, folder, patch)
            try:
                checkpoints.save(_state(30))
                break
            except KilledError:
                pass
        found = checkpoints.load()
        assert (found is not None) or not before
        assert found is None or found.step in {*before, 30}
        checkpoints.save(_state(60))
        assert [p.name for p in folder.iterdir() if p.name.startswith(".")] == []
        assert sorted(p.name for p in folder.iterdir())[-1] == "step-00000060"
        assert len(list(folder.iterdir())) == 1 + (found is not None)
    assert moment > 3, "nothing was changed"
    assert max(*looked, len(list(folder.iterdir()))) <= 2


def _killed_before(moment: int, folder: Path, patch: pytest.MonkeyPatch) -> list[int]:
    """Killed before the `moment`th change.

    → how many checkpoints, finished or not, lay in `folder` at each change.
    """
    looked: list[int] = []

    def due(*_: object) -> bool:
        looked.append(len(list(folder.iterdir())))
        return len(looked) > moment

    killed_when(due, patch)
    return looked


def test_one_that_is_damaged_does_not_drive_out_a_whole_one(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, "recipe")
    for step in (10, 20):
        checkpoints.save(_state(step))
    (tmp_path / "step-00000020" / "state.safetensors").write_bytes(b"")
    checkpoints.save(_state(30))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000010", "step-00000030"]


def test_a_training_that_begins_afresh_is_not_outlived_by_the_one_before(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, "recipe")
    assert not checkpoints
    for step in (400, 500, 10):
        checkpoints.save(_state(step))
    assert checkpoints
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000010"]
    checkpoints.save(_state(20))
    found = checkpoints.load()
    assert found is not None
    assert found.step == 20


def test_a_full_disk_is_one_and_the_checkpoint_before_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = Checkpoints(tmp_path, "recipe")
    checkpoints.save(_state(10))

    def full(*_: object) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(OSError, match="No space") as caught:
        checkpoints.save(_state(20))
    assert caught.value.errno == errno.ENOSPC
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000010"]


def test_another_recipes_checkpoint_is_refused(tmp_path: Path) -> None:
    Checkpoints(tmp_path, "one").save(_state(10))
    with pytest.raises(TrainingError, match="another recipe"):
        Checkpoints(tmp_path, "other").load()


def test_a_training_from_before_a_key_was_there_is_continued(tmp_path: Path) -> None:
    recipe = load_recipe("demo")
    kept = recipe.model_dump(mode="json")
    del kept["safety"]
    sha256 = sha256_bytes(canonical_json(kept))
    assert sha256 != recipe.sha256
    write_part(tmp_path / RUN, RunRecord(recipe=kept, recipe_sha256=sha256))
    Checkpoints(tmp_path / "checkpoints" / "decompose", sha256).save(_state(10))
    job = Job("decompose", claim(tmp_path, recipe), Setup(recipe, ()))
    found = job.checkpoints.load()
    assert found is not None
    assert found.step == 10
    job.checkpoints.save(_state(20))
    assert Checkpoints(job.checkpoints.folder, sha256).load().step == 20  # type: ignore[union-attr]


def test_tensors_that_share_memory_are_stored_apart() -> None:
    shared = torch.zeros(4)
    packed = pack("model", {"a": shared, "b": shared})
    assert packed["model/a"].data_ptr() != packed["model/b"].data_ptr()
    assert set(unpack("model", packed)) == {"a", "b"}
