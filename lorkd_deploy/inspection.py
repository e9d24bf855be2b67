"""`lorkd inspect`: what a run, a bundle or an engine's folder holds. Needs no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from lorkd_deploy.bundle.manifest import MANIFEST, TaskEntry
from lorkd_deploy.bundle.read import load_bundle
from lorkd_deploy.deploy.artifact import (
    ARTIFACT,
    Artifact,
    artifact_folders,
    check_files,
    read_artifact,
)
from lorkd_deploy.errors import BundleError
from lorkd_deploy.lowrank.delta import Factorisation
from lorkd_deploy.preprocess import Preprocess
from lorkd_deploy.run import open_run
from lorkd_deploy.schema import Part


class BundleContents(Part):
    """A bundle whose hashes are right. `bytes` is by part: base, experts, parity, … and total.

    `sha256` is the manifest's, `files` are the other files' hashes; `versions`, `created` and
    `recipe_sha256` say where it came from; ranks, metrics and data sources stand with the tasks.
    `grown_from` and `packed_from` are hashes of bundles whose files it has byte for byte,
    `extracted_from` that of the base's file where experts are taken from fine-tuned models.
    """

    kind: Literal["experts", "teacher"]
    name: str
    architecture: str
    sha256: str
    created: str
    versions: dict[str, str]
    recipe_sha256: str
    grown_from: tuple[str, ...]
    packed_from: tuple[str, ...]
    extracted_from: str | None
    departments: dict[str, tuple[str, ...]]
    tasks: tuple[TaskEntry, ...]
    parameters: dict[str, int]
    expert_layers: int
    factorisation: Factorisation
    preprocess: Preprocess
    preprocess_sha256: str
    bytes: dict[str, int]
    files: dict[str, str]


# What the manifest says is shown as it is.
OF_THE_MANIFEST = BundleContents.model_fields.keys() - {"sha256", "expert_layers", "bytes", "files"}


class EngineContents(Part):
    """An engine whose files are as they were exported; `record` is its artifact.json."""

    name: str
    bytes: int
    record: Artifact


class Inspection(Part):
    """What lies at `path`. A run has a bundle, a teacher and engines, as far as it has come."""

    path: str
    kind: Literal["run", "bundle", "engine"]
    bundle: BundleContents | None = None
    teacher: BundleContents | None = None
    engines: tuple[EngineContents, ...] = ()


def inspect(path: str | Path) -> Inspection:
    """Look into a run, a bundle or an engine's folder, and check the hashes of what is there.

    Raises `BundleError` or `ArtifactError` where there is none of them, or something is damaged.
    """
    folder = Path(path)
    if (folder / ARTIFACT).is_file():
        return Inspection(path=str(folder), kind="engine", engines=(_engine(folder),))
    if (folder / MANIFEST).is_file():
        return Inspection(path=str(folder), kind="bundle", bundle=_bundle(folder))
    run = open_run(folder)
    bundle, teacher = (
        _bundle(place) if (place / MANIFEST).is_file() else None
        for place in (run.bundle, run.teacher)
    )
    if bundle is None and teacher is None:
        raise BundleError(
            "the run holds nothing yet", where=folder, fix="go on with `lorkd decompose … --resume`"
        )
    return Inspection(
        path=str(folder),
        kind="run",
        bundle=bundle,
        teacher=teacher,
        engines=tuple(_engine(place) for place in artifact_folders(run.export)),
    )


def _bundle(folder: Path) -> BundleContents:
    bundle = load_bundle(folder)
    manifest = bundle.manifest
    sizes = {"manifest": (folder / MANIFEST).stat().st_size}
    for name, entry in manifest.files.items():
        part = name.partition("/")[0].partition(".")[0]
        sizes[part] = sizes.get(part, 0) + entry.bytes
    return BundleContents(
        **{field: getattr(manifest, field) for field in OF_THE_MANIFEST},
        sha256=bundle.sha256,
        expert_layers=len(manifest.layers),
        bytes=sizes | {"total": sum(sizes.values())},
        files={name: entry.sha256 for name, entry in manifest.files.items()},
    )


def _engine(folder: Path) -> EngineContents:
    record = read_artifact(folder)
    check_files(record)
    return EngineContents(name=record.name, bytes=record.bytes, record=record)
