"""`lorkd export`: from the bundle to one engine a task, each proven before it takes its place."""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from lorkd_deploy.bundle.manifest import TEACHER, Manifest
from lorkd_deploy.bundle.read import Bundle, load_bundle
from lorkd_deploy.deploy.artifact import (
    Artifact,
    EngineFile,
    engine_folder,
    engine_tasks,
    environment,
    write_artifact,
)
from lorkd_deploy.deploy.calibration import calibration_images
from lorkd_deploy.deploy.graph import onnx_model
from lorkd_deploy.deploy.parity import Parity, tolerance_of
from lorkd_deploy.deploy.precision import float16, int8
from lorkd_deploy.deploy.reference import Reference
from lorkd_deploy.deploy.sample import require_samples, write_sample
from lorkd_deploy.deploy.triton import require_layout, require_own, write_repository
from lorkd_deploy.errors import GateError, LorkdError, UsageError, unknown_name
from lorkd_deploy.progress import Progress, Silent
from lorkd_deploy.run import open_run
from lorkd_deploy.runtime import (
    ALIASES,
    EngineFiles,
    EngineSpec,
    Exporter,
    Probe,
    RunOptions,
    exporter,
    require_precision,
)
from lorkd_deploy.storage import exclusive, folder_atomic, sha256_bytes, sha256_file

WRONG = "don't deploy it; if the bundle is whole (`lorkd inspect`), report this"
TOO_COARSE = (
    "choose another --precision; what may differ is `parity.tolerance` of the recipe, what int8 is "
    "calibrated on `calibration`"
)


def export(
    run: str | Path,
    target: str = "onnx",
    *,
    precision: str = "fp32",
    options: Mapping[str, Any] | None = None,
    department: Sequence[str] = (),
    task: Sequence[str] = (),
    teacher: bool = False,
    layout: str | None = None,
    sample: Sequence[str] = (),
    out: str | Path | None = None,
    progress: Progress | None = None,
) -> list[Artifact]:
    """Build the engines of the chosen departments and tasks (all, if none is named).

    `options` are the target's own; what they are is in its facts. `teacher` adds the foundation
    model's engine. Engines go to RUN/export, or to `out`. `layout` "triton" makes a model
    repository of them too, in RUN/triton; then `out` is that repository's place, not the engines'.
    `sample` "python" or "cpp" writes a program that runs the engine beside each. Raises
    `GateError` with the figures where an engine differs from the model it came from: it is not
    written, and one that was there before stays. Raises `UsageError` for an unknown name,
    `RuntimeUnavailableError` for what this machine can't build, `LorkdError` for a full disk.
    """
    target = ALIASES.get(target, target)
    builder = exporter(target)
    able = builder.probe()
    require_precision(target, precision, able)
    tolerance_of(precision)
    require_samples(sample, target)
    if layout is not None:
        require_layout(layout, target)
    opened = open_run(run)
    experts = Reference(load_bundle(opened.bundle))
    chosen = [(experts, name) for name in _select(experts.bundle.manifest, department, task)]
    if teacher and experts.bundle.manifest.kind != "teacher":
        chosen.append((Reference(load_bundle(opened.teacher)), TEACHER))
    folder = opened.export if out is None or layout is not None else Path(out)
    repository = opened.triton if out is None else Path(out)
    if layout is not None:
        require_own(repository, [_owner(reference, engine) for reference, engine in chosen])
    job = _Job(target, EngineSpec(precision, dict(options or {})), builder, able, folder)
    shown = progress or Silent()
    shown.start(f"exporting to {target}", len(chosen))
    try:
        with _told_when_full(folder), exclusive(folder, "export"):
            artifacts = []
            for reference, engine in chosen:
                artifacts.append(job.build(reference, engine))
                shown.advance(engine=artifacts[-1].name)
                for language in sample:
                    write_sample(artifacts[-1], language)
            if layout is not None:
                graphs = [reference.bundle.manifest.graph for reference, _ in chosen]
                write_repository(list(zip(artifacts, graphs, strict=True)), repository)
    finally:
        shown.stop()
    return artifacts


@dataclass(frozen=True)
class _Job:
    """One target and what to build for it, to be put below `folder`."""

    target: str
    spec: EngineSpec
    builder: Exporter
    able: Probe
    folder: Path

    def build(self, reference: Reference, engine: str) -> Artifact:
        """Build, prove and record one engine, then put it into its place."""
        bundle = reference.bundle
        tasks = bundle.engine(engine)
        department, _ = _owner(reference, engine)
        place = self.folder / engine_folder(department, engine, self.target, self.spec.precision)
        _clear(place)
        with folder_atomic(place) as fresh:
            started = time.perf_counter()
            model = self._model(bundle, engine)
            written = self._engine(model, fresh)
            seconds = time.perf_counter() - started
            parity, facts = self._proof(reference, engine, fresh, written)
            if parity.status == "failed":
                raise GateError(
                    f"the {self.target} engine of {engine} is not the model it came from:\n    "
                    + "\n    ".join(parity.reasons),
                    where=bundle.path,
                    fix=WRONG if self.spec.precision == "fp32" else TOO_COARSE,
                )
            artifact = Artifact(
                engine=engine,
                department=department,
                tasks=engine_tasks(tasks),
                target=self.target,
                precision=self.spec.precision,
                files=tuple(_file(fresh, name) for name in written.files),
                onnx_sha256=sha256_bytes(model),
                bundle_sha256=bundle.sha256,
                preprocess=bundle.manifest.preprocess,
                preprocess_sha256=bundle.manifest.preprocess_sha256,
                parity=parity,
                facts=facts,
                build_seconds=round(seconds, 4),
                environment=environment(),
            )
            write_artifact(artifact, fresh)
        return artifact.model_copy(update={"folder": place})

    def _model(self, bundle: Bundle, engine: str) -> bytes:
        """The fused model, in the engine's precision where the target takes it from the model."""
        model = onnx_model(bundle, engine)
        if self.spec.precision not in self.able.converted:
            return model
        if self.spec.precision == "fp16":
            return float16(model)
        return int8(model, partial(calibration_images, bundle, engine))

    def _engine(self, model: bytes, fresh: Path) -> EngineFiles:
        """Let the exporter build from `model`, given as a file that isn't kept."""
        source = fresh / ".fused.onnx"
        source.write_bytes(model)
        written = self.builder.export(source, fresh, self.spec)
        source.unlink()
        return written

    def _proof(
        self, reference: Reference, engine: str, fresh: Path, written: EngineFiles
    ) -> tuple[Parity, dict[str, object]]:
        """The engine's parity, and what builder and runtime say that they did."""
        if not self.able.can_run:
            reason = self.able.reason or f"{self.target} can't run on this machine"
            return Parity(status="not run here", reasons=(reason,)), written.facts
        with self.builder.open(fresh, written.files, RunOptions(threads=cpus())) as runner:
            parity = reference.check(engine, runner, self.spec.precision)
            return parity, {**written.facts, **runner.facts}


def _owner(reference: Reference, engine: str) -> tuple[str, str]:
    """(department, engine), as in the artifact's record."""
    return (TEACHER if engine == TEACHER else reference.bundle.task(engine).department, engine)


def cpus() -> int:
    """How many CPUs this process may use: the threads of whatever isn't measured."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _select(manifest: Manifest, department: Sequence[str], task: Sequence[str]) -> list[str]:
    """Engines in the manifest's order that fit both; nothing named means no restriction."""
    names = [entry.name for entry in manifest.tasks]
    for kind, wanted, known in (
        ("department", department, list(manifest.departments)),
        ("task", task, names),
    ):
        for name in wanted:
            if name not in known:
                raise unknown_name(kind, name, known)
    if manifest.kind == "teacher":
        return list(manifest.engines())
    chosen = [
        entry.name
        for entry in manifest.tasks
        if (not department or entry.department in department) and (not task or entry.name in task)
    ]
    if not chosen:
        raise UsageError(
            f"no task of {', '.join(department)} is called {', '.join(task)}",
            fix="name one of both, or a task of that department",
        )
    return chosen


def _file(folder: Path, name: str) -> EngineFile:
    path = folder / name
    return EngineFile(name=name, sha256=sha256_file(path), bytes=path.stat().st_size)


def _clear(place: Path) -> None:
    """Remove what killed exports of this engine left; bring back what one had moved away."""
    for moved in sorted(place.parent.glob(f".{place.name}.*.old")):
        if not place.exists():
            moved.rename(place)
        shutil.rmtree(moved, ignore_errors=True)
    for unfinished in place.parent.glob(f".{place.name}.*.tmp"):
        shutil.rmtree(unfinished, ignore_errors=True)


@contextmanager
def _told_when_full(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        if exc.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise LorkdError(
            "the disk is full; engines that were there before are untouched",
            where=folder,
            fix="free space there (old runs, RUN/checkpoints and RUN/cache are not needed for "
            "export), or choose another disk by --out",
        ) from exc
