"""`lorkd verify`: everything that was exported, checked again from the bundle alone."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

from lorkd_deploy.bundle.manifest import TEACHER
from lorkd_deploy.bundle.read import load_bundle
from lorkd_deploy.deploy.artifact import (
    Artifact,
    artifact_folders,
    check_files,
    engine_tasks,
    open_engine,
    read_artifact,
    write_artifact,
)
from lorkd_deploy.deploy.drilldown import Drilled
from lorkd_deploy.deploy.drilldown import drill_down as drill
from lorkd_deploy.deploy.graphs.source_model import Remade, remade
from lorkd_deploy.deploy.proof.chain import stages
from lorkd_deploy.deploy.proof.parity import Parity, not_run_here
from lorkd_deploy.deploy.proof.reference import Reference
from lorkd_deploy.errors import ArtifactError, LorkdError, with_fix
from lorkd_deploy.machine.processor import usable_cpus
from lorkd_deploy.progress import Progress, bar
from lorkd_deploy.run import SIGNATURE, Run, open_run
from lorkd_deploy.runtime import RunOptions, exporter
from lorkd_deploy.schema import Part


class Verification(Part):
    """The verdict on one engine; `engine` is its folder below RUN/export.

    `reasons` says why it did not pass, and what to do where that is known. `parity` is None where
    it came to no run, for a fault of the files. `onnx_not_here` says why the ONNX model that it was
    built from could not be made again and compared with the record's pin; None where it was.
    `resampling` says what it means where Pillow here resizes pictures otherwise than where the
    bundle was made; None where it doesn't. `drilled` is what the search for the first node that
    differs found, if it was asked for and the engine could be run.
    """

    engine: str
    passed: bool
    reasons: tuple[str, ...] = ()
    parity: Parity | None = None
    onnx_not_here: str | None = None
    resampling: str | None = None
    drilled: Drilled | None = None


def verify(
    run: str | Path, *, drill_down: bool = False, progress: Progress | None = None
) -> list[Verification]:
    """Check every engine below RUN/export: hashes, place, origin, preprocessing and parity.

    The ONNX model that each was built from is made again, and has to be the one that its record
    pins; where it can't be made or compared on this machine, `onnx_not_here` says why.

    `drill_down` looks for the first node of each engine whose output differs from the fused model.

    An engine that can't be run on this machine has not passed. Where parity was run and its verdict
    is another than the record's, the record gets it, with the figures and with what ran here: one
    whose proof was left to this device is proven, one that fails here no longer says `passed`. In
    a signed run the records stay as they were signed.
    Raises `BundleError` where there is no run, `ArtifactError` where nothing was exported.
    """
    opened = open_run(run)
    folders = artifact_folders(opened.export)
    if not folders:
        raise ArtifactError(
            "nothing was exported yet", where=opened.export, fix=f"lorkd export {opened.path}"
        )
    sources = _Sources(opened)
    with bar(progress, "verifying", len(folders)) as shown:
        verdicts = []
        for folder in folders:
            verdicts.append(_verify(folder, sources, drill_down=drill_down))
            shown.advance(engine=verdicts[-1].engine)
    return verdicts


class _Sources:
    """The run's bundles; opening one checks all its hashes, and fails each of its engines."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.signed = (run.path / SIGNATURE).exists()

    @cached_property
    def experts(self) -> Reference:
        return Reference(load_bundle(self.run.bundle))

    @cached_property
    def teacher(self) -> Reference:
        alone = self.run.bundle == self.run.path and self.experts.bundle.manifest.kind == TEACHER
        return self.experts if alone else Reference(load_bundle(self.run.teacher))

    def of(self, artifact: Artifact) -> Reference:
        """The reference of the bundle that an engine says it comes from."""
        return self.teacher if artifact.engine == TEACHER else self.experts


def _verify(folder: Path, sources: _Sources, *, drill_down: bool) -> Verification:
    name = folder.relative_to(sources.run.export).as_posix()
    try:
        artifact = read_artifact(folder)
        reference = sources.of(artifact)
        faults = _contradictions(artifact, name, reference)
        check_files(artifact)
        if faults:
            return Verification(engine=name, passed=False, reasons=tuple(faults))
        made = remade(artifact, reference.bundle)
        if made.fault is not None:
            return Verification(engine=name, passed=False, reasons=(made.fault,))
        parity, facts = _parity(artifact, reference, made)
        ran = parity.status != "not run here"
        drilled = drill(artifact, reference) if drill_down and ran else None
    except LorkdError as exc:
        return Verification(engine=name, passed=False, reasons=(with_fix(exc.what, exc.fix),))
    if ran and parity.status != artifact.parity.status and not sources.signed:
        proven = {"parity": parity, "facts": artifact.facts | facts}
        write_artifact(artifact.model_copy(update=proven), folder)
    reasons = (
        parity.reasons
        if parity.status == "failed"
        else tuple(f"parity was not run: {reason}" for reason in parity.reasons)
    )
    return Verification(
        engine=name,
        passed=parity.status == "passed",
        reasons=reasons,
        parity=parity,
        onnx_not_here=made.not_here,
        resampling=reference.bundle.resized_otherwise,
        drilled=drilled,
    )


def _parity(
    artifact: Artifact, reference: Reference, made: Remade
) -> tuple[Parity, dict[str, Any]]:
    """The engine's parity, and what the runtime says that it did."""
    probe = exporter(artifact.target).probe()
    if not probe.can_run:
        return not_run_here(artifact.target, probe), {}
    own = artifact.files[0].sha256
    chain = stages(made.fused, made.source, artifact.precision, own)
    with open_engine(artifact, RunOptions(threads=usable_cpus())) as runner:
        parity = reference.check(
            artifact.engine, runner, artifact.precision, chain, raw=artifact.raw
        )
        facts = runner.facts
    between = artifact.precision in probe.converted and (
        artifact.raw or artifact.onnx_sha256 != own
    )
    if made.source is None and between and parity.links_not_here is None:
        missing = f"the {artifact.precision} ONNX model: {made.not_here}"
        return parity.model_copy(update={"links_not_here": missing}), facts
    return parity, facts


def _contradictions(artifact: Artifact, name: str, reference: Reference) -> list[str]:
    """Where the record disagrees with its place or with the bundle it names."""
    bundle = reference.bundle
    faults = []
    if artifact.name != name:
        faults.append(f"this is the engine {artifact.name}, moved to another's place")
    if artifact.bundle_sha256 not in bundle.origins:
        faults.append("it was exported from another bundle than the one that is here")
    known = bundle.manifest.preprocess_sha256
    if not artifact.preprocess.sha256 == artifact.preprocess_sha256 == known:
        faults.append("its preprocessing is not the bundle's")
    entries = bundle.manifest.engines().get(artifact.engine)
    if entries is None or engine_tasks(entries) != artifact.tasks:
        faults.append("its tasks or classes are not the bundle's")
    elif artifact.engine != TEACHER and entries[0].department != artifact.department:
        faults.append("its department is not the bundle's")
    return faults
