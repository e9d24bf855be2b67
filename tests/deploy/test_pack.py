"""A department delivered alone: whole for its device, and nothing of the others in any byte."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lorkd_deploy.bundle.read import load_bundle
from lorkd_deploy.deploy.artifact import find_artifacts
from lorkd_deploy.deploy.example import DATA_SET
from lorkd_deploy.deploy.export import export
from lorkd_deploy.deploy.pack import pack
from lorkd_deploy.deploy.predict import predict
from lorkd_deploy.deploy.verify import verify
from lorkd_deploy.errors import ArtifactError, UsageError
from lorkd_deploy.inspection import inspect
from lorkd_deploy.profiling.benchmark import benchmark
from lorkd_deploy.recipe import parse_recipe
from tests.deploy.made_run import DEPARTMENTS, TASKS, rewrite_record

OWN, OTHERS = DEPARTMENTS["ward"], DEPARTMENTS["clinic"]


def secrets(run: Path) -> Iterator[tuple[str, bytes]]:
    """Whatever only the other department has: names, and the bytes of its tensors."""
    bundle = load_bundle(run)
    yield "department", b"clinic"
    for task in OTHERS:
        yield f"name {task}", task.encode()
        tensors: dict[str, Any] = {f"{task}/{k}": v for k, v in bundle.expert(task).items()}
        tensors |= {f"{task}/logits/{k}": v for k, v in bundle.logits(task).items()}
        tensors |= {f"{task}/dense/{k}": v for k, v in bundle.dense(task).items()}
        tensors |= {f"{task}/fused/{k}": v for k, v in bundle.fuse(task).items()}
        own: set[bytes] = set()
        for mine in OWN:
            for found in (bundle.expert(mine), bundle.logits(mine), bundle.fuse(mine)):
                own |= {value.tobytes() for value in found.values()}
            own |= {v.astype(np.float32).tobytes() for v in bundle.dense(mine).values()}
        for name, value in tensors.items():
            as_stored = value.astype(np.float32) if value.dtype == np.float64 else value
            data = as_stored.tobytes()
            if data not in own:
                yield name, data
                yield f"{name}, the end of it", data[-len(data) // 2 :]


def test_nothing_of_the_others_is_in_any_file(exported: Path, tmp_path: Path) -> None:
    looked_for = list(secrets(exported))
    # What is looked for has to be found where it belongs, or the search would prove nothing.
    whole = b"".join(p.read_bytes() for p in exported.rglob("*") if p.is_file())
    stored = [data for name, data in looked_for if "/dense/" not in name]
    assert len(stored) > 50 and all(data in whole for data in stored)
    made = pack(exported, "ward", tmp_path / "ward")
    files = [p for p in made.folder.rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in files) == made.bytes
    for file in files:
        place = file.relative_to(made.folder).as_posix()
        content = file.read_bytes()
        for name, data in looked_for:
            assert data not in content, f"{name} in {place}"
            assert data not in place.encode(), f"{name} in the name {place}"


def test_an_example_is_delivered_as_it_is_recorded_alone(exported: Path, tmp_path: Path) -> None:
    for engine in find_artifacts(exported):
        (engine.folder / DATA_SET / "input_1.pb").write_bytes(b"somebody's picture")
    made = pack(exported, "ward", tmp_path / "ward")
    for engine in made.engines:
        found = sorted(file.name for file in (engine.folder / DATA_SET).iterdir())
        assert found == ["input_0.pb", "output_0.pb"]


def test_a_part_is_a_whole_bundle(exported: Path, tmp_path: Path) -> None:
    made = pack(exported, "ward", tmp_path / "ward")
    part, whole = load_bundle(made.folder), load_bundle(exported)
    assert (made.bundle_sha256, made.packed_from) == (part.sha256, whole.sha256)
    assert part.manifest.packed_from == (whole.sha256,)
    assert made.tasks == part.manifest.departments["ward"] == OWN
    for name, entry in part.manifest.files.items():
        assert entry == whole.manifest.files[name]
    for task in OWN:
        for name, value in whole.fuse(task).items():
            np.testing.assert_array_equal(part.fuse(task)[name], value)
    recipe = parse_recipe(part.manifest.recipe, where=made.folder)
    assert [t.name for t in recipe.tasks] == list(OWN)
    assert recipe.sha256 == part.manifest.recipe_sha256


@pytest.mark.thorough
def test_every_command_of_the_device_works_on_it(exported: Path, tmp_path: Path) -> None:
    made = pack(exported, "ward", tmp_path / "ward")
    engines = [f"ward/{task}/onnx-fp32" for task in sorted(OWN)]
    assert [e.name for e in made.engines] == engines
    for engine in made.engines:
        at_home = exported / "export" / engine.name
        for file in ("model.onnx", "artifact.json"):
            assert (engine.folder / file).read_bytes() == (at_home / file).read_bytes()
    verdicts = verify(made.folder)
    assert [v.engine for v in verdicts] == engines
    assert all(v.passed for v in verdicts)
    assert inspect(made.folder).engines[0].record == made.engines[0]

    Image.fromarray(np.full((20, 20, 3), 90, np.uint8)).save(tmp_path / "scan.png")
    here, there = (
        predict(run, "lung", [tmp_path / "scan.png"])[0].probabilities
        for run in (made.folder, exported)
    )
    assert here == there

    profile = benchmark(
        made.folder, rounds=1, seconds=0.01, iterations=2, repeats=0, largest_batch=0
    )
    assert sorted(e.engine for e in profile.engines) == engines
    assert any("delivered alone" in note for note in profile.notes)

    again = export(made.folder)
    assert {a.bundle_sha256 for a in again} == {made.bundle_sha256}
    assert all(v.passed for v in verify(made.folder))
    # A part of a part: its engines of both origins are still its own.
    shutil.copytree(
        exported / "export" / "ward" / "lung",
        made.folder / "export" / "ward" / "lung",
        dirs_exist_ok=True,
    )
    twice = pack(made.folder, "ward", tmp_path / "twice")
    assert all(v.passed for v in verify(twice.folder))


@pytest.mark.thorough
def test_the_device_needs_no_torch(exported: Path, tmp_path: Path) -> None:
    made = pack(exported, "clinic", tmp_path / "clinic")
    program = (
        "import sys\n"
        "sys.modules['torch'] = None\n"
        "from lorkd_deploy import cli\n"
        f"folder = {str(made.folder)!r}\n"
        "for command in (['verify', folder], ['export', folder], ['inspect', folder]):\n"
        "    assert cli.main([*command, '--quiet']) == 0, command\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, env=os.environ)


def test_a_department_without_engines_can_be_delivered(run: Path, tmp_path: Path) -> None:
    made = pack(run, "ward", tmp_path / "ward")
    assert made.engines == ()
    assert [a.engine for a in export(made.folder)] == list(OWN)


def test_the_engines_of_another_are_no_obstacle(exported: Path, tmp_path: Path) -> None:
    (exported / "export" / "clinic" / "eye" / "onnx-fp32" / "artifact.json").write_text("{")
    assert len(pack(exported, "ward", tmp_path / "ward").engines) == len(OWN)


def test_what_can_not_be_delivered(exported: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no department is called 'wards'") as caught:
        pack(exported, "wards", tmp_path / "new")
    assert "ward" in str(caught.value.fix)
    with pytest.raises(UsageError, match="every department's knowledge"):
        pack(exported / "teacher", "ward", tmp_path / "new")
    with pytest.raises(UsageError, match="holds something"):
        pack(exported, "ward", exported)
    damaged = exported / "export" / "ward" / "lung" / "onnx-fp32" / "model.onnx"
    good = damaged.read_bytes()
    damaged.write_bytes(good[:-1] + b"x")
    with pytest.raises(ArtifactError, match="has changed"):
        pack(exported, "ward", tmp_path / "new")
    damaged.write_bytes(good)
    rewrite_record(damaged.parent, bundle_sha256="0" * 64)
    with pytest.raises(ArtifactError, match="another bundle"):
        pack(exported, "ward", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_bundle_is_not_taken_for_a_part_of_another(exported: Path, tmp_path: Path) -> None:
    """An engine of the whole is the part's; an engine of a part is not the whole's."""
    made = pack(exported, "ward", tmp_path / "ward")
    (engine,) = export(made.folder, task=["lung"])
    shutil.copytree(engine.folder, exported / "export" / engine.name, dirs_exist_ok=True)
    verdict = {v.engine: v for v in verify(exported)}[engine.name]
    assert not verdict.passed
    assert "another bundle" in verdict.reasons[0]
    assert len(find_artifacts(exported)) == len(TASKS) + 1


def test_the_manifest_of_a_whole_bundle_does_not_change(run: Path) -> None:
    content = json.loads((run / "bundle" / "manifest.json").read_text(encoding="utf-8"))
    assert "packed_from" not in content
