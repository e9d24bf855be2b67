from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from lorkd_deploy.errors import BundleError, LorkdError
from lorkd_deploy.recipe import load_recipe
from lorkd_deploy.run import RunRecord, claim, claimed, open_run, refuse_other_bundle
from lorkd_deploy.schema import document_bytes, write_part
from tests.tiny_bundle import make_bundle


def entries(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_new_folder_is_claimed_by_its_recipe(tmp_path: Path) -> None:
    recipe = load_recipe("demo")
    run = claim(tmp_path / "a" / "run", recipe)
    content = json.loads((run.path / "run.json").read_text())
    assert content["recipe_sha256"] == recipe.sha256
    assert content["recipe"] == recipe.model_dump(mode="json")
    assert run.bundle == tmp_path / "a" / "run" / "bundle"
    assert [p.name for p in (run.teacher, run.export, run.profile)] == [
        "teacher",
        "export",
        "profile",
    ]
    before = (run.path / "run.json").stat().st_mtime_ns
    assert claim(str(run.path), recipe) == run
    assert (run.path / "run.json").stat().st_mtime_ns == before
    assert open_run(run.path) == run


def test_a_folder_with_hidden_files_only_is_new(tmp_path: Path) -> None:
    (tmp_path / ".gitignore").write_text("*")
    assert claim(tmp_path, load_recipe("demo")).path == tmp_path


def test_another_recipe_is_refused_and_the_difference_shown(tmp_path: Path) -> None:
    claim(tmp_path, load_recipe("demo"))
    changed = load_recipe("demo", ["train.epochs=77", "departments.0.tasks.0.rank=3"])
    with pytest.raises(BundleError, match="run of another recipe") as caught:
        claim(tmp_path, changed)
    assert "departments[0].tasks[0].rank: None, now 3" in caught.value.what
    assert "train.epochs: " in caught.value.what
    assert ", now 77.0" in caught.value.what
    assert entries(tmp_path) == ["run.json"]
    with pytest.raises(BundleError, match="another recipe"):
        claim(tmp_path, load_recipe("medmnist-small"))


def test_a_run_from_before_a_key_was_there_is_the_same(tmp_path: Path) -> None:
    recipe = load_recipe("demo")
    kept = recipe.model_dump(mode="json")
    del kept["safety"]
    record = RunRecord(recipe=kept, recipe_sha256="0" * 64)
    write_part(tmp_path / "run.json", record)
    assert claim(tmp_path, recipe).path == tmp_path
    with pytest.raises(BundleError, match="another recipe") as caught:
        claim(tmp_path, load_recipe("demo", ["safety.guard=true"]))
    assert caught.value.what.endswith("it differs in:\n    safety.guard: False, now True")
    write_part(tmp_path / "run.json", record.model_copy(update={"recipe": kept | {"gone": 1}}))
    with pytest.raises(BundleError, match="another recipe"):
        claim(tmp_path, recipe)


def test_a_run_from_when_recipes_said_whose_the_norms_are(tmp_path: Path) -> None:
    recipe = load_recipe("demo")
    kept = recipe.model_dump(mode="json")
    assert "norm" not in kept["experts"]
    kept["experts"]["norm"] = "shared"
    record = RunRecord(recipe=kept, recipe_sha256="0" * 64)
    write_part(tmp_path / "run.json", record)
    run = claim(tmp_path, recipe)
    assert run.recipe_sha256 == "0" * 64, "its checkpoints bear that"
    kept["experts"]["norm"] = "per_task"
    write_part(tmp_path / "run.json", record.model_copy(update={"recipe": kept}))
    with pytest.raises(BundleError, match="another recipe") as caught:
        claim(tmp_path, recipe)
    assert "experts.norm: 'per_task', now None" in caught.value.what


def test_a_failure_before_anything_was_made_leaves_no_run(tmp_path: Path) -> None:
    recipe, run = load_recipe("demo"), tmp_path / "run"
    for _ in range(2):
        with pytest.raises(ValueError, match="no data"), claimed(run, recipe, "train"):
            raise ValueError("no data")
        assert not run.exists()
    run.mkdir()
    with pytest.raises(ValueError, match="no data"), claimed(run, recipe, "train"):
        raise ValueError("no data")
    assert entries(run) == []


def test_a_failure_keeps_what_was_made(tmp_path: Path) -> None:
    recipe = load_recipe("demo")
    with pytest.raises(ValueError, match="later"), claimed(tmp_path, recipe, "train") as run:
        run.teacher.mkdir()
        raise ValueError("later")
    assert {"run.json", "teacher"} <= set(entries(tmp_path))
    run.teacher.rmdir()
    with pytest.raises(ValueError, match="again"), claimed(tmp_path, recipe, "train"):
        raise ValueError("again")
    assert "run.json" in entries(tmp_path), "it was there before"


def test_two_trainings_in_one_run(tmp_path: Path) -> None:
    recipe = load_recipe("demo")
    with (
        claimed(tmp_path, recipe, "train"),
        pytest.raises(LorkdError, match="wanted to decompose"),
        claimed(tmp_path, recipe, "decompose"),
    ):
        pass


def test_foreign_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.doc").write_text("years of work")
    with pytest.raises(BundleError, match=r"thesis\.doc"):
        claim(tmp_path, load_recipe("demo"))
    assert entries(tmp_path) == ["thesis.doc"]
    with pytest.raises(BundleError, match="a folder is needed"):
        claim(tmp_path / "thesis.doc", load_recipe("demo"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "not valid JSON"),
        (b"[]", "no digest"),
        (b'{"schema_version": 1}', "no digest"),
        (document_bytes({"schema_version": 2}), "not valid at recipe"),
        (document_bytes({"schema_version": 9}), "schema 9"),
    ],
)
def test_a_damaged_run_json(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(BundleError, match=message):
        claim(tmp_path, load_recipe("demo"))
    with pytest.raises(BundleError, match=message):
        open_run(tmp_path)


def test_what_may_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "run"
    claim(path, load_recipe("demo"))
    make_bundle(path / "bundle")
    assert open_run(path / "bundle").path == path
    monkeypatch.chdir(path / "bundle")
    assert open_run(".").path == path
    # Copied to a device without run.json, or the bundle alone.
    (path / "run.json").unlink()
    assert open_run(path).bundle == path / "bundle"
    alone = shutil.copytree(path / "bundle", tmp_path / "eye")
    run = open_run(alone)
    assert (run.path, run.bundle, run.export) == (alone, alone, alone / "export")


def test_what_may_not(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no run and no bundle"):
        open_run(tmp_path)
    with pytest.raises(BundleError, match="does not exist"):
        open_run(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("keys", "made"),
    [
        ({}, "trained"),
        ({"compressed_from": ["0"]}, "compressed"),
        ({"extracted_from": "0"}, "extracted"),
        ({"extracted_from": "0", "compressed_from": ["1"]}, "compressed"),
        ({"grown_from": ["0"]}, "grown"),
        ({"compressed_from": ["0"], "grown_from": ["1"]}, "grown"),
    ],
)
def test_training_replaces_only_what_the_same_training_made(
    tmp_path: Path, keys: dict[str, object], made: str
) -> None:
    run = claim(tmp_path / "run", load_recipe("demo"))
    for doing in ("trained", "grown"):
        refuse_other_bundle(run, doing)  # there is none yet
    manifest = make_bundle(run.bundle) / "manifest.json"
    manifest.write_bytes(document_bytes(json.loads(manifest.read_text()) | keys))
    for doing in ("trained", "grown"):
        if doing == made:
            refuse_other_bundle(run, doing)
        else:
            with pytest.raises(BundleError, match=f"was {made}, and training would replace it"):
                refuse_other_bundle(run, doing)
    manifest.write_text("{")
    refuse_other_bundle(run, "trained")
