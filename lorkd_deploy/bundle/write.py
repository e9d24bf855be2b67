"""Write a bundle: every file hashed into the manifest, the folder in place only when complete."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lorkd_deploy.bundle import manifest as layout
from lorkd_deploy.bundle.manifest import FileEntry, Manifest
from lorkd_deploy.errors import BundleError
from lorkd_deploy.schema import document_bytes
from lorkd_deploy.storage import (
    Tensors,
    folder_atomic,
    sha256_bytes,
    write_atomic,
    write_tensors,
)


@dataclass(frozen=True)
class Contents:
    """Everything that a bundle holds beside its manifest, as `manifest.py` lays it out.

    `experts` has one entry per task, `logits` one per engine (`reference.reference_tensors`);
    `template` is the ONNX graph without its weights.
    """

    base: Tensors
    experts: Mapping[str, Tensors]
    logits: Mapping[str, Tensors]
    template: bytes


def write_bundle(path: str | Path, described: Manifest, contents: Contents) -> Manifest:
    """Write the bundle folder `path` and give its manifest; replaces an older bundle there.

    `described` is the manifest without its `files`. A failure leaves what was there before.
    Raises `BundleError` where the parts don't belong together, `OSError` for a full disk.
    """
    experts, logits = contents.experts, contents.logits
    _belong_together(described, experts, logits)
    with folder_atomic(Path(path)) as folder:
        files: dict[str, Tensors] = {layout.BASE: contents.base}
        files |= {layout.expert_file(task): tensors for task, tensors in experts.items()}
        files |= {layout.parity_file(engine): tensors for engine, tensors in logits.items()}
        for relative, tensors in files.items():
            write_tensors(folder / relative, tensors)
        write_atomic(folder / layout.TEMPLATE, contents.template)
        entries = {name: file_entry(folder / name) for name in sorted([*files, layout.TEMPLATE])}
        complete = described.model_copy(update={"files": entries})
        write_atomic(folder / layout.MANIFEST, manifest_json(complete))
    return complete


def manifest_json(manifest: Manifest) -> bytes:
    """The bytes of `manifest.json`; fields at their default are left out to keep it small."""
    value = manifest.model_dump(mode="json", exclude_defaults=True)
    return document_bytes(value | {"schema_version": manifest.schema_version})


def file_entry(path: Path) -> FileEntry:
    """Hash and size of a file, as the manifest lists it."""
    data = path.read_bytes()
    return FileEntry(sha256=sha256_bytes(data), bytes=len(data))


def _belong_together(
    manifest: Manifest, experts: Mapping[str, Tensors], logits: Mapping[str, Tensors]
) -> None:
    tasks = {task.name for task in manifest.tasks}
    if len(tasks) != len(manifest.tasks) or tasks != set(experts):
        raise BundleError(
            f"tasks ({', '.join(sorted(tasks))}) and experts ({', '.join(sorted(experts))}) differ"
        )
    if set(logits) != set(manifest.engines()):
        raise BundleError(
            f"engines ({', '.join(sorted(manifest.engines()))}) and parity logits "
            f"({', '.join(sorted(logits))}) differ"
        )
