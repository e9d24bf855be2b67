"""A file that is read back says so when a single bit of it has changed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from lorkd_deploy.bundle.read import load_bundle
from lorkd_deploy.deploy.artifact import ARTIFACT, artifact_folders, read_artifact
from lorkd_deploy.errors import ArtifactError, BundleError, LorkdError
from lorkd_deploy.profiling.mlperf.profile import LOADGEN, ScenarioProfile, read_scenarios
from lorkd_deploy.profiling.profile import PROFILE, read_profile
from lorkd_deploy.recipe import load_recipe
from lorkd_deploy.run import RUN, claim, open_run
from lorkd_deploy.schema import Part, document_bytes, read_document, read_part, write_part
from tests.reporting.run_folder import TASKS, build_run
from tests.tiny_bundle import make_bundle

AGAIN = "write it again"


class Note(Part):
    schema_version: int = 3
    name: str
    counts: tuple[int, ...] = ()


NOTE = Note(name="émail", counts=(1, 20, 3))


def refused(path: Path, what: str) -> LorkdError:
    with pytest.raises(ArtifactError, match=what) as caught:
        read_part(path, Note, ArtifactError, AGAIN)
    assert caught.value.where == str(path)
    return caught.value


@pytest.fixture
def file(tmp_path: Path) -> Path:
    write_part(tmp_path / "note.json", NOTE)
    return tmp_path / "note.json"


def test_what_is_written_is_read(file: Path) -> None:
    assert read_part(file, Note, ArtifactError, AGAIN) == NOTE
    assert read_document(file, ArtifactError, AGAIN) == json.loads(NOTE.model_dump_json())
    # A digest that is there already, as after an edit by hand, is replaced.
    edited = json.loads(file.read_text()) | {"name": "other"}
    file.write_bytes(document_bytes(edited))
    assert read_part(file, Note, ArtifactError, AGAIN).name == "other"


def test_every_flipped_bit_is_found(file: Path) -> None:
    whole = file.read_bytes()
    for place in range(len(whole)):
        for bit in range(8):
            flipped = bytearray(whole)
            flipped[place] ^= 1 << bit
            file.write_bytes(flipped)
            assert refused(file, r"^note\.json ").fix == AGAIN


@pytest.mark.thorough
def test_every_byte_of_a_manifest_counts(tmp_path: Path) -> None:
    file = make_bundle(tmp_path / "bundle") / "manifest.json"
    whole = file.read_bytes()
    for place in range(len(whole)):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << place % 8
        file.write_bytes(flipped)
        with pytest.raises(BundleError, match=r"^manifest\.json"):
            load_bundle(tmp_path / "bundle")


def written(folder: Path) -> dict[str, tuple[Path, Callable[[Path], object]]]:
    """A file of each kind that is read back, below `folder`, and how it is read."""
    run = build_run(folder / "run", tasks=TASKS[:1])
    artifact = next(iter(artifact_folders(run / "export")))
    claim(folder / "claimed", load_recipe("demo"))
    profile = read_profile(run / "profile" / PROFILE)
    scenarios = ScenarioProfile(
        bundle_sha256="0" * 64,
        preprocess_sha256="1" * 64,
        environment=profile.environment,
        runs=(),
    )
    write_part(folder / LOADGEN, scenarios)
    return {
        "artifact": (artifact / ARTIFACT, lambda file: read_artifact(file.parent)),
        "profile": (run / "profile" / PROFILE, read_profile),
        "scenarios": (folder / LOADGEN, read_scenarios),
        "run": (folder / "claimed" / RUN, lambda file: open_run(file.parent)),
    }


@pytest.mark.parametrize("kind", ["artifact", "profile", "scenarios", "run"])
def test_a_flipped_bit_of_any_other_file_is_found(tmp_path: Path, kind: str) -> None:
    file, read = written(tmp_path)[kind]
    read(file)
    whole = file.read_bytes()
    for place in range(0, len(whole), max(1, len(whole) // 200)):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << place % 8
        file.write_bytes(flipped)
        with pytest.raises(LorkdError, match=rf"^{file.name} ") as caught:
            read(file)
        assert caught.value.fix
    file.write_bytes(whole)
    read(file)


def test_a_digest_that_is_missing_changed_or_there_twice(file: Path) -> None:
    whole = file.read_text()
    value = json.loads(whole)
    line = f' "digest": "{value["digest"]}",\n'
    for text, what in (
        (whole.replace(line, ""), "no digest of itself: an older lorkd-deploy wrote it"),
        (whole.replace(value["digest"], value["digest"].upper()), "no digest"),
        (json.dumps(value), "no digest"),
        (whole.replace(value["digest"], "0" * 64), "has changed since"),
        (whole.replace(line, 2 * line), "has changed since"),
        (whole.replace(line, line + line.replace(value["digest"], "0" * 64)), "has changed since"),
        ("{\n" + line.replace(",", "") + "}", "has changed since"),
        ('{"deeper":\n{\n' + line.replace(",", "") + "}}", "has changed since"),
        ("", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("[1]", "no digest"),
    ):
        file.write_text(text)
        assert refused(file, what).fix == AGAIN
    file.write_bytes(b"\xff" + whole.encode())
    refused(file, "not valid JSON")
    file.unlink()
    refused(file, "is missing")


def test_a_schema_that_this_version_does_not_read(file: Path) -> None:
    value = NOTE.model_dump(mode="json")
    for version, what, fix in (
        (4, "has schema 4, this version reads 3", "upgrade"),
        (2, "has schema 2, this version reads 3", AGAIN),
        ("3", "no schema_version", AGAIN),
    ):
        file.write_bytes(document_bytes(value | {"schema_version": version, "later": 1}))
        assert fix in str(refused(file, what).fix)
    file.write_bytes(document_bytes(value | {"counts": ["one", "two"]}))
    refused(file, r"not valid at counts\.0: .* \(2 faults in all\)")
    file.write_bytes(document_bytes(value | {"later": 1}))
    refused(file, "not valid at later: Extra inputs")
