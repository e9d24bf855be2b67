"""`lorkd export`: from the bundle to one engine a task, each proven before it takes its place."""

from __future__ import annotations

import errno
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
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
from lorkd_deploy.deploy.auto import fastest
from lorkd_deploy.deploy.candidates import AUTO, MAX_DROP
from lorkd_deploy.deploy.chain import Stage, stages
from lorkd_deploy.deploy.graph import onnx_model
from lorkd_deploy.deploy.origin import given_model
from lorkd_deploy.deploy.parity import Parity, ParityError, not_run_here
from lorkd_deploy.deploy.programs.samples import require_samples, write_sample
from lorkd_deploy.deploy.programs.triton import require_layout, require_own, write_repository
from lorkd_deploy.deploy.reference import Reference
from lorkd_deploy.deploy.validation import validation_splits
from lorkd_deploy.errors import (
    LorkdError,
    RuntimeUnavailableError,
    UsageError,
    unknown_name,
)
from lorkd_deploy.machine.processor import usable_cpus
from lorkd_deploy.precisions.table import BASELINE, PRECISIONS, precision_of
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
    max_drop: float | None = None,
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

    `precision` is one of `precisions/table.py`, or `auto`: each engine is then built in all that
    the target can do here, and the fastest is kept whose accuracy on the validation images is at
    most `max_drop` points (0.5) below that of fp32; the record holds the table. `options` are the
    target's own; what they are is in its facts. `teacher` adds the foundation model's engine.
    Engines go to RUN/export, or to `out`. `layout` "triton" makes a model repository of them too,
    in RUN/triton; then `out` is that repository's place, not the engines'. `sample` "python" or
    "cpp" writes a program that runs the engine beside each. Raises `DataError` where `auto` has no
    validation images, `ParityError` with the figures where an engine differs from the model it came
    from: it is not written, and one that was there before stays. Raises `UsageError` for an unknown
    name, `RuntimeUnavailableError` for what this machine can't build, `LorkdError` for a full disk.
    """
    target = ALIASES.get(target, target)
    builder = exporter(target)
    able = builder.probe()
    _check_precision(target, precision, able, max_drop)
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
    spec = EngineSpec(precision, dict(options or {}))
    job = _Job(target, spec, builder, able, folder, MAX_DROP if max_drop is None else max_drop)
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
    max_drop: float = MAX_DROP

    def build(self, reference: Reference, engine: str) -> Artifact:
        """Build, prove and record one engine, then put it into its place."""
        place = self._place(reference.bundle, engine)
        _clear(place)
        if self.spec.precision == AUTO:
            return self._fastest(reference, engine, place)
        with folder_atomic(place) as fresh:
            artifact = self.make(reference, engine, fresh)
            if artifact.parity.status == "failed":
                raise ParityError(
                    f"the {self.target} engine of {engine} is not the model it came from:\n    "
                    + "\n    ".join(artifact.parity.reasons),
                    artifact.parity,
                    where=reference.bundle.path,
                    fix=WRONG if self.spec.precision == BASELINE else TOO_COARSE,
                )
            write_artifact(artifact, fresh)
        return artifact.model_copy(update={"folder": place})

    def _fastest(self, reference: Reference, engine: str, place: Path) -> Artifact:
        """Build every candidate beside `place`, and put the one that is taken into its own."""
        splits = validation_splits(reference.bundle, engine)

        def make(precision: str, folder: Path) -> Artifact:
            spec = replace(self.spec, precision=precision)
            return replace(self, spec=spec).make(reference, engine, folder)

        precisions = [name for name in PRECISIONS if name in self.able.precisions]
        work = place.with_name(f".{place.name}.{uuid.uuid4().hex[:8]}.tmp")
        work.mkdir(parents=True)
        try:
            artifact = fastest(
                make,
                precisions,
                reference.bundle,
                engine=engine,
                splits=splits,
                work=work,
                max_drop=self.max_drop,
            )
            taken = self.folder / artifact.name
            _clear(taken)
            with folder_atomic(taken) as fresh:
                for file in artifact.folder.iterdir():
                    file.rename(fresh / file.name)
                write_artifact(artifact, fresh)
        finally:
            shutil.rmtree(work, ignore_errors=True)
        return artifact.model_copy(update={"folder": taken})

    def make(self, reference: Reference, engine: str, fresh: Path) -> Artifact:
        """Build one engine into `fresh` and prove it; whether it passed, its parity says."""
        bundle = reference.bundle
        tasks = bundle.engine(engine)
        started = time.perf_counter()
        fused = onnx_model(bundle, engine)
        model = given_model(fused, bundle, engine, self.spec.precision, self.able)
        written = self._engine(model, fresh)
        seconds = time.perf_counter() - started
        files = tuple(_file(fresh, name) for name in written.files)
        chain = stages(fused, model, self.spec.precision, files[0].sha256)
        parity, facts = self._proof(reference, engine, fresh, written, chain)
        return Artifact(
            engine=engine,
            department=TEACHER if engine == TEACHER else tasks[0].department,
            tasks=engine_tasks(tasks),
            target=self.target,
            precision=self.spec.precision,
            files=files,
            onnx_sha256=sha256_bytes(model),
            bundle_sha256=bundle.sha256,
            preprocess=bundle.manifest.preprocess,
            preprocess_sha256=bundle.manifest.preprocess_sha256,
            parity=parity,
            facts=facts,
            build_seconds=round(seconds, 4),
            environment=environment(),
        )

    def _place(self, bundle: Bundle, engine: str) -> Path:
        department = TEACHER if engine == TEACHER else bundle.task(engine).department
        return self.folder / engine_folder(department, engine, self.target, self.spec.precision)

    def _engine(self, model: bytes, fresh: Path) -> EngineFiles:
        """Let the exporter build from `model`, given as a file that isn't kept."""
        source = fresh / ".fused.onnx"
        source.write_bytes(model)
        written = self.builder.export(source, fresh, self.spec)
        source.unlink()
        return written

    def _proof(
        self,
        reference: Reference,
        engine: str,
        fresh: Path,
        written: EngineFiles,
        chain: Sequence[Stage],
    ) -> tuple[Parity, dict[str, object]]:
        """The engine's parity, and what builder and runtime say that they did."""
        if not self.able.can_run:
            return not_run_here(self.target, self.able), written.facts
        with self.builder.open(fresh, written.files, RunOptions(threads=usable_cpus())) as runner:
            parity = reference.check(engine, runner, self.spec.precision, chain)
            return parity, {**written.facts, **runner.facts}


def _owner(reference: Reference, engine: str) -> tuple[str, str]:
    """(department, engine), as in the artifact's record."""
    return (TEACHER if engine == TEACHER else reference.bundle.task(engine).department, engine)


def _check_precision(target: str, precision: str, able: Probe, max_drop: float | None) -> None:
    """Raise, before anything is built, where `precision` or `max_drop` can't be meant so."""
    if precision != AUTO:
        require_precision(target, precision, able)
        precision_of(precision)
        if max_drop is not None:
            raise UsageError("max_drop is for precision auto", fix=f"--precision {AUTO}")
        return
    if max_drop is not None and not 0 <= max_drop <= 100:
        raise UsageError(f"max_drop is {max_drop:g}; it is in points, 0 to 100")
    require_precision(target, BASELINE, able)
    if not able.can_run:
        raise RuntimeUnavailableError(
            f"precision auto measures, and {target} can't run here: {able.reason}",
            fix=f"choose a precision: {', '.join(able.precisions)}; or export on the device",
        )


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
