"""Which engines of a run are measured: those asked for, whole, of this bundle, able to run here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lorkd_deploy.bundle.manifest import TEACHER, Manifest
from lorkd_deploy.bundle.read import Bundle
from lorkd_deploy.deploy.artifact import Artifact, check_files, find_artifacts
from lorkd_deploy.errors import ArtifactError, RuntimeUnavailableError, unknown_name
from lorkd_deploy.runtime import ALIASES, Probe, exporter


@dataclass(frozen=True)
class EngineFilter:
    """Names of departments, tasks and targets; where there are none, all. `teacher`: its too."""

    departments: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    teacher: bool = True


def is_teacher(engine: Artifact) -> bool:
    """Whether this is the foundation model and no expert."""
    return engine.engine == TEACHER


def select_engines(
    run: Path, bundle: Bundle, wanted: EngineFilter
) -> tuple[list[Artifact], list[str]]:
    """Engines below RUN/export in the recipe's order, the teacher's last; and one sentence for each
    thing that was left out (what this machine can't run, the teacher of a department delivered
    alone), and for engines that were never proven to be the model that they came from.

    Raises `ArtifactError` where there is none, one is damaged or of another bundle, or the teacher
    is missing; `UsageError` for a name that doesn't exist; `RuntimeUnavailableError` for a target
    that was asked for and can't run here.
    """
    _check_names(bundle.manifest, wanted)
    targets = {ALIASES.get(name, name) for name in wanted.targets}
    found = [a for a in find_artifacts(run) if not targets or a.target in targets]
    experts = [
        artifact
        for artifact in _in_order(found, bundle.manifest)
        if (not wanted.departments or artifact.department in wanted.departments)
        and (not wanted.tasks or artifact.engine in wanted.tasks)
    ]
    if not experts:
        raise _nothing(run, wanted)
    alone = bool(bundle.manifest.packed_from)  # `lorkd pack` never takes the teacher along
    wants_teacher = wanted.teacher and not alone
    teachers = [artifact for artifact in found if is_teacher(artifact)] if wants_teacher else []
    if wants_teacher and not teachers:
        raise _no_teacher(run, sorted({expert.target for expert in experts}))
    engines, left_out = _able([*experts, *teachers], asked=bool(targets))
    if wanted.teacher and alone:
        left_out.append("the department was delivered alone: no foundation model is beside it")
    for engine in engines:
        _check_belongs(engine, bundle)
        check_files(engine)
    return engines, [*left_out, *_unproven(engines)]


def teacher_for(expert: Artifact, engines: Iterable[Artifact]) -> Artifact | None:
    """The teacher's engine that is most like the expert's: target and precision, else target."""
    return min(
        (engine for engine in engines if is_teacher(engine)),
        key=lambda t: (t.target != expert.target, t.precision != expert.precision, t.name),
        default=None,
    )


def _check_names(manifest: Manifest, wanted: EngineFilter) -> None:
    for kind, names, known in (
        ("department", wanted.departments, list(manifest.departments)),
        ("task", wanted.tasks, [entry.name for entry in manifest.tasks]),
    ):
        for name in names:
            if name not in known:
                raise unknown_name(kind, name, known)
    for name in wanted.targets:
        exporter(name)  # raises for an unknown one, imports no other


def _in_order(found: Sequence[Artifact], manifest: Manifest) -> list[Artifact]:
    place = {entry.name: index for index, entry in enumerate(manifest.tasks)}
    experts = [artifact for artifact in found if not is_teacher(artifact)]
    return sorted(experts, key=lambda a: (place.get(a.engine, len(place)), a.name))


def _able(engines: Sequence[Artifact], *, asked: bool) -> tuple[list[Artifact], list[str]]:
    """Those whose runtime can run here; the others are left out, or an error if `asked` for."""
    probes: dict[str, Probe] = {e.target: exporter(e.target).probe() for e in engines}
    unable = {target: probe for target, probe in probes.items() if not probe.can_run}
    able = [engine for engine in engines if engine.target not in unable]
    left_out = [
        f"not measured, since {target} can't run on this machine ({probe.reason}): "
        + ", ".join(engine.name for engine in engines if engine.target == target)
        for target, probe in unable.items()
    ]
    if unable and (asked or not able):
        target, probe = next(iter(unable.items()))
        raise RuntimeUnavailableError(
            f"{target} can't run engines on this machine: {probe.reason}", fix=probe.fix
        )
    return able, left_out


def _unproven(engines: Sequence[Artifact]) -> Iterator[str]:
    for status, what in (("failed", "failed verification"), ("not run here", "was not verified")):
        names = [engine.name for engine in engines if engine.parity.status == status]
        if names:
            yield (
                f"{what}, and may not be the model it came from: {', '.join(names)} (run `lorkd "
                "verify` on this device)"
            )


def _check_belongs(engine: Artifact, bundle: Bundle) -> None:
    # The teacher comes from a bundle of its own: it is known by the preprocessing of its recipe.
    stale, wanted = engine.bundle_sha256 not in bundle.origins, bundle.manifest.preprocess
    if is_teacher(engine):
        stale, wanted = False, bundle.recipe.teacher.preprocess or wanted
    if stale or not engine.preprocess.sha256 == engine.preprocess_sha256 == wanted.sha256:
        what = "was exported from another bundle" if stale else "has another preprocessing"
        raise ArtifactError(
            f"the engine {engine.name} {what} than the one of this run",
            where=engine.folder,
            fix="run `lorkd export` again",
        )


def _nothing(run: Path, wanted: EngineFilter) -> ArtifactError:
    chosen = [
        f"--{option} {name}"
        for option, names in (
            ("department", wanted.departments),
            ("task", wanted.tasks),
            ("target", wanted.targets),
        )
        for name in names
    ]
    of = f" for {' '.join(chosen)}" if chosen else ""
    return ArtifactError(
        f"no expert has been exported{of}",
        where=run / "export",
        fix=" ".join([f"`lorkd export {run}", *chosen]) + "` makes the engines; "
        "add --teacher for the foundation model",
    )


def _no_teacher(run: Path, targets: Sequence[str]) -> ArtifactError:
    return ArtifactError(
        "the foundation model has not been exported, so there is nothing to compare with",
        where=run / "export" / TEACHER,
        fix=f"`lorkd export {run} --teacher --target {targets[0]}`, or measure the experts alone: "
        "--no-teacher (teacher=False)",
    )
