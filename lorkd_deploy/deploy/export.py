"""`lorkd export`: from the bundle to one engine per task, each proven before it takes its place."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lorkd_deploy.bundle.manifest import TEACHER, Manifest
from lorkd_deploy.bundle.read import load_bundle
from lorkd_deploy.bundle.size import check_template
from lorkd_deploy.deploy.artifact import Artifact
from lorkd_deploy.deploy.build import EngineBuild
from lorkd_deploy.deploy.candidates import AUTO
from lorkd_deploy.deploy.graphs.adapters import require_adapters
from lorkd_deploy.deploy.graphs.graph import require_maps
from lorkd_deploy.deploy.programs.layouts import (
    LAYOUTS,
    require_layout,
    require_own,
    write_repository,
)
from lorkd_deploy.deploy.programs.samples import require_samples, write_sample
from lorkd_deploy.deploy.programs.served import ServedModel
from lorkd_deploy.deploy.proof.reference import Reference
from lorkd_deploy.errors import LorkdError, RuntimeUnavailableError, UsageError, unknown_name
from lorkd_deploy.precisions.table import BASELINE, INT8, precision_of
from lorkd_deploy.progress import Progress, bar
from lorkd_deploy.run import Run, open_run
from lorkd_deploy.runtime import ALIASES, EngineSpec, Probe, exporter, require_precision
from lorkd_deploy.storage import exclusive


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
    explain: bool = False,
    layout: str | None = None,
    sample: Sequence[str] = (),
    out: str | Path | None = None,
    progress: Progress | None = None,
) -> list[Artifact]:
    """Build the engines of the chosen departments and tasks (all, if none is named).

    `precision` is one of `precisions/table.py`, or `auto`: each engine is then built in all that
    the target can do here, and the fastest is kept whose accuracy on the validation images is at
    most `max_drop` points (0.5) below that of fp32; the record holds the table. With int8,
    `max_drop` leaves as many layers in float32 as that takes, which it tries for minutes; without
    it all are quantised. `options` are the target's own; what they are is in its facts. Of these
    `raw` gives engines that take uint8 images and give probabilities. `teacher`
    adds the foundation model's engine. `explain` gives each engine a second output, the maps of
    where it looks.
    Engines go to RUN/export, or to `out`. `layout` "mlserver", "triton-python", "triton",
    "kserve" or "ovms" makes a server's model repository of them too, in RUN/LAYOUT; then `out` is
    that repository's place, not the engines'. `sample` "python" or "cpp" writes a program that runs
    the engine beside each.

    Raises `DataError` where `auto` or `max_drop` has no validation images, `ParityError` with the
    figures where an engine differs from the model it came from: it is not written, and one that was
    there before stays. `GateError` where `max_drop` can't be kept, `UsageError` for an unknown
    name, `RuntimeUnavailableError` for what this machine can't build, `LorkdError` for a full disk.
    """
    target = ALIASES.get(target, target)
    builder = exporter(target)
    probe = builder.probe()
    _check_precision(target, precision, probe, max_drop)
    require_samples(sample, target)
    if layout is not None:
        require_layout(layout, target)
    opened = open_run(run)
    chosen = _chosen(opened, department, task, teacher=teacher)
    folder = opened.export if out is None or layout is not None else Path(out)
    if layout is not None:
        repository = opened.repository(layout) if out is None else Path(out)
        names = [(reference.bundle.department(engine), engine) for reference, engine in chosen]
        require_own(layout, repository, names)
    spec = EngineSpec(precision, dict(options or {}))
    if spec.raw:
        _require_raw(spec, sample)
    if spec.adapters:
        _require_adapters(chosen, precision, sample, layout)
    if explain:
        for reference, _ in chosen:
            require_maps(reference.bundle)
    build = EngineBuild(target, spec, builder, probe, folder, max_drop, explain).build
    with (
        bar(progress, f"exporting to {target}", len(chosen)) as shown,
        _full_disk_explained(folder),
        exclusive(folder, "export"),
    ):
        artifacts = []
        for reference, engine in chosen:
            artifacts.append(build(reference, engine))
            shown.advance(engine=artifacts[-1].name)
            for language in sample:
                write_sample(artifacts[-1], language)
        if layout is not None:
            bundles = [reference.bundle for reference, _ in chosen]
            models = [ServedModel(*pair) for pair in zip(artifacts, bundles, strict=True)]
            write_repository(layout, models, repository)
    return artifacts


def _check_precision(target: str, precision: str, probe: Probe, max_drop: float | None) -> None:
    """Raise, before anything is built, where `precision` or `max_drop` can't be meant so."""
    if max_drop is not None and not 0 <= max_drop <= 100:
        raise UsageError(f"max_drop is {max_drop:g}; it is in points, 0 to 100")
    if precision != AUTO:
        require_precision(target, precision, probe)
        precision_of(precision)
        if max_drop is not None and (precision != INT8 or INT8 not in probe.converted):
            raise UsageError(
                f"max_drop is for precisions {AUTO} and {INT8}", fix=f"--precision {AUTO}"
            )
        return
    require_precision(target, BASELINE, probe)
    if not probe.can_run:
        raise RuntimeUnavailableError(
            f"precision auto measures, and {target} can't run here: {probe.reason}",
            fix=f"choose a precision: {', '.join(probe.precisions)}; or export on the device",
        )


def _require_raw(spec: EngineSpec, sample: Sequence[str]) -> None:
    """Raise `UsageError`, before anything is built, for what takes no images as they are."""
    without = "or export without --option raw=true"
    if spec.adapters:
        raise UsageError(
            "raw and adapters exclude each other: one base is for all tasks, and what raw puts "
            "behind the logits is each task's own",
            fix="leave one of the two options out",
        )
    if spec.precision == AUTO:
        raise UsageError(
            f"precision {AUTO} compares engines that give logits, and raw is for probabilities",
            fix=f"choose a precision ({AUTO} says which, exported without raw), {without}",
        )
    if sample:
        raise UsageError(
            "samples preprocess by themselves, and an engine with raw does so too",
            fix=f"leave --sample out, {without}",
        )


def _require_adapters(
    chosen: Sequence[tuple[Reference, str]],
    precision: str,
    sample: Sequence[str],
    layout: str | None,
) -> None:
    """Raise `UsageError`, before anything is built, for what can't be had as base and adapter."""
    if precision != BASELINE:
        raise UsageError(
            f"adapters are {BASELINE}, {precision} was asked for",
            fix=f"--precision {BASELINE}, or export without --option adapters=true",
        )
    for reference, _ in chosen:
        require_adapters(reference.bundle)
    if sample:
        raise UsageError("samples are for fused engines", fix="leave --sample or the adapters out")
    if layout is not None and not LAYOUTS[layout].adapters:
        raise UsageError(
            f"--layout {layout}: that server opens one file, and knows no adapters",
            fix="--layout mlserver, or export without --option adapters=true",
        )


def _chosen(
    run: Run, department: Sequence[str], task: Sequence[str], *, teacher: bool
) -> list[tuple[Reference, str]]:
    """The engines to build, each with the reference of the bundle that it is in."""
    experts = Reference(load_bundle(run.bundle))
    chosen = [(experts, name) for name in _select(experts.bundle.manifest, department, task)]
    if teacher and experts.bundle.manifest.kind != TEACHER:
        chosen.append((Reference(load_bundle(run.teacher)), TEACHER))
    for bundle in {id(one): one.bundle for one, _ in chosen}.values():
        check_template(bundle.template(), where=bundle.path)  # before the first engine is built
    return chosen


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
    if manifest.kind == TEACHER:
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


@contextmanager
def _full_disk_explained(folder: Path) -> Iterator[None]:
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
