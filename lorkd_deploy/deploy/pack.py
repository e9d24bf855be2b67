"""`lorkd pack`: one department delivered alone, as a folder for its device.

    DIR/bundle/    a complete bundle of that department (`bundle/department.py`)
    DIR/export/    its engines, byte for byte as they were exported and proven

Every command of the half without torch works on DIR. The engines name the bundle that they were
exported from; the part names it too (`packed_from`), and `lorkd verify` judges them by the part's
own reference logits, which are the same bytes.
"""

from __future__ import annotations

from pathlib import Path

from lorkd_deploy.bundle.department import department_manifest
from lorkd_deploy.bundle.read import Bundle, load_bundle
from lorkd_deploy.bundle.write import write_derived
from lorkd_deploy.deploy.artifact import (
    ARTIFACT,
    EXPORT_AGAIN,
    Artifact,
    artifact_folders,
    check_files,
    read_artifact,
)
from lorkd_deploy.deploy.graphs.adapters import share_base
from lorkd_deploy.errors import ArtifactError, UsageError
from lorkd_deploy.run import Run, open_run
from lorkd_deploy.schema import Part
from lorkd_deploy.storage import folder_atomic, inside, write_atomic


class Delivery(Part):
    """What was put into `folder`. `engines` are their folders below `folder`/export.

    `bundle_sha256` is the hash of the part, `packed_from` that of the bundle it was taken from;
    `bytes` is everything together.
    """

    folder: Path
    department: str
    tasks: tuple[str, ...]
    bundle_sha256: str
    packed_from: str
    engines: tuple[Artifact, ...]
    bytes: int


def pack(run: str | Path, department: str, out: str | Path) -> Delivery:
    """Write `department`'s bundle and its exported engines into the new folder `out`.

    Nothing of the other departments' experts, logits, classes or names is in it, and not the
    teacher. Engines that weren't exported yet can be on the device. Raises `UsageError` for an
    unknown department or a folder that holds something, `ArtifactError` for an engine that is
    damaged or of another bundle; nothing is written then.
    """
    opened = open_run(run)
    bundle = load_bundle(opened.bundle)
    described = department_manifest(bundle, department)
    folder = Path(out)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(
            "a department is delivered in a folder of its own, and this one holds something",
            where=folder,
            fix="choose a new folder for --out",
        )
    engines = _engines(opened, bundle, department)
    with folder_atomic(folder) as fresh:
        part = write_derived(bundle, fresh / "bundle", described, {})
        for engine in engines:
            place = fresh / "export" / engine.name
            example = (entry.name for entry in engine.example_here)
            for name in (*engine.file_names, *example, ARTIFACT):
                write_atomic(place / name, inside(engine.folder, name).read_bytes())
            if engine.adapters:
                share_base(engine, place, fresh / "export")
            check_files(engine.model_copy(update={"folder": place}))
        size = sum(file.stat().st_size for file in fresh.rglob("*") if file.is_file())
    return Delivery(
        folder=folder,
        department=department,
        tasks=part.manifest.departments[department],
        bundle_sha256=part.sha256,
        packed_from=bundle.sha256,
        engines=tuple(
            engine.model_copy(update={"folder": folder / "export" / engine.name})
            for engine in engines
        ),
        bytes=size,
    )


def _engines(run: Run, bundle: Bundle, department: str) -> list[Artifact]:
    """The department's exported engines, each whole, at its place and of this bundle."""
    found = [read_artifact(place) for place in artifact_folders(run.export / department)]
    for engine in found:
        own = engine.engine in bundle.manifest.departments[department]
        at_home = engine.folder == run.export / engine.name
        if not (own and at_home and engine.bundle_sha256 in bundle.origins):
            raise ArtifactError(
                "this engine is of another bundle or another task than its place says",
                where=engine.folder,
                fix=EXPORT_AGAIN,
            )
        check_files(engine)
    return found
