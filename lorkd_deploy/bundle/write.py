"""Write a bundle: every file hashed into the manifest, the folder in place only when complete."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path

from lorkd_deploy.bundle import manifest as layout
from lorkd_deploy.bundle.manifest import FileEntry, Manifest
from lorkd_deploy.bundle.read import Bundle, load_bundle
from lorkd_deploy.errors import BundleError
from lorkd_deploy.schema import document_bytes
from lorkd_deploy.storage import Tensors, folder_atomic, sha256_bytes, write_atomic, write_tensors


@dataclass(frozen=True)
class Contents:
    """Everything that a bundle holds beside its manifest, as `manifest.py` lays it out.

    `experts` has one entry per task, `logits` one per engine (`reference.reference_tensors`),
    `safety` one per task whose entry says so; `template` is the ONNX graph without its weights.
    """

    base: Tensors
    experts: Mapping[str, Tensors]
    logits: Mapping[str, Tensors]
    template: bytes
    safety: Mapping[str, Tensors] = field(default_factory=dict)


def write_bundle(path: str | Path, described: Manifest, contents: Contents) -> Manifest:
    """Write the bundle folder `path` and give its manifest; replaces an older bundle there.

    `described` is the manifest without its `files`. A failure leaves what was there before.
    Raises `BundleError` where the parts don't belong together, `OSError` for a full disk.
    """
    _belong_together(described, contents)
    with folder_atomic(Path(path)) as folder:
        files = {layout.BASE: contents.base} | own_files(
            contents.experts, contents.logits, contents.safety
        )
        for relative, tensors in files.items():
            write_tensors(folder / relative, tensors)
        write_atomic(folder / layout.TEMPLATE, contents.template)
        names = sorted([*files, layout.TEMPLATE])
        return _write_manifest(folder, described, {name: _entry(folder / name) for name in names})


def write_derived(
    bundle: Bundle, path: Path, described: Manifest, fresh: Mapping[str, Tensors]
) -> Bundle:
    """Write `described` as the bundle `path`: the files `fresh`, all others copied from `bundle`.

    What is copied keeps its hashes, which are checked when the new bundle is read here. A failure
    leaves what was there before.
    """
    with folder_atomic(path) as folder:
        files: dict[str, FileEntry] = {}
        for relative in sorted(described.needed_files):
            if relative in fresh:
                write_tensors(folder / relative, fresh[relative])
                files[relative] = _entry(folder / relative)
            else:
                write_atomic(folder / relative, (bundle.path / relative).read_bytes())
                files[relative] = bundle.manifest.files[relative]
        _write_manifest(folder, described, files)
        load_bundle(folder)
    return load_bundle(path)


def own_files(
    experts: Mapping[str, Tensors], logits: Mapping[str, Tensors], safety: Mapping[str, Tensors]
) -> dict[str, Tensors]:
    """The files of `experts` and `safety`, by task, and of reference `logits`, by engine."""
    files = {layout.expert_file(task): tensors for task, tensors in experts.items()}
    files |= {layout.safety_file(task): tensors for task, tensors in safety.items()}
    return files | {layout.parity_file(engine): tensors for engine, tensors in logits.items()}


def now() -> str:
    """When a bundle was made, for its manifest."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def manifest_json(manifest: Manifest) -> bytes:
    """The bytes of `manifest.json`; fields at their default are left out to keep it small."""
    value = manifest.model_dump(mode="json", exclude_defaults=True)
    return document_bytes(value | {"schema_version": manifest.schema_version})


def _write_manifest(folder: Path, described: Manifest, files: dict[str, FileEntry]) -> Manifest:
    complete = described.model_copy(update={"files": files})
    write_atomic(folder / layout.MANIFEST, manifest_json(complete))
    return complete


def _entry(path: Path) -> FileEntry:
    data = path.read_bytes()
    return FileEntry(sha256=sha256_bytes(data), bytes=len(data))


def _belong_together(manifest: Manifest, contents: Contents) -> None:
    tasks, experts = {task.name for task in manifest.tasks}, set(contents.experts)
    if len(tasks) != len(manifest.tasks) or tasks != experts:
        raise BundleError(
            f"tasks ({', '.join(sorted(tasks))}) and experts ({', '.join(sorted(experts))}) differ"
        )
    safe = {task.name for task in manifest.tasks if task.safety.file}
    if safe != set(contents.safety):
        raise BundleError(f"what is known of {', '.join(sorted(safe))} and its tensors differ")
    engines, logits = set(manifest.engines()), set(contents.logits)
    if engines != logits:
        raise BundleError(
            f"engines ({', '.join(sorted(engines))}) and parity logits "
            f"({', '.join(sorted(logits))}) differ"
        )
