"""Build one engine: the ONNX model it comes from, the target's own build, its proof, its record."""

from __future__ import annotations

import glob
import shutil
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lorkd_deploy.deploy.artifact import (
    Artifact,
    EngineFile,
    engine_folder,
    engine_tasks,
    environment,
    write_artifact,
)
from lorkd_deploy.deploy.candidates import AUTO, MAX_DROP
from lorkd_deploy.deploy.example import example_files, write_example
from lorkd_deploy.deploy.graphs.adapters import share_base
from lorkd_deploy.deploy.graphs.graph import onnx_model
from lorkd_deploy.deploy.graphs.raw import raw_model
from lorkd_deploy.deploy.graphs.source_model import source_model
from lorkd_deploy.deploy.precision.auto import fastest_engine
from lorkd_deploy.deploy.precision.sensitivity import sensitivity
from lorkd_deploy.deploy.precision.validation import validation_splits
from lorkd_deploy.deploy.proof.chain import Stage, stages
from lorkd_deploy.deploy.proof.parity import Parity, ParityError, not_run_here
from lorkd_deploy.deploy.proof.reference import Reference
from lorkd_deploy.machine.processor import usable_cpus
from lorkd_deploy.precisions.table import BASELINE, PRECISIONS
from lorkd_deploy.runtime import EngineFiles, EngineSpec, Exporter, Probe, RunOptions
from lorkd_deploy.storage import clear_after_a_kill, folder_atomic, sha256_bytes, sha256_file

WRONG = "don't deploy it; if the bundle is whole (`lorkd inspect`), report this"
TOO_COARSE = (
    "choose another --precision; what may differ is `parity.tolerance` of the recipe, what int8 is "
    "calibrated on `calibration`"
)


@dataclass(frozen=True)
class EngineBuild:
    """What to build and for which target, as `probe` says of it; engines go below `folder`.

    `max_drop` are the points of accuracy that precision auto, or one engine in int8, may lose.
    """

    target: str
    spec: EngineSpec
    exporter: Exporter
    probe: Probe
    folder: Path
    max_drop: float | None = None
    explain: bool = False

    def build(self, reference: Reference, engine: str) -> Artifact:
        """Build, prove and record one engine, then put it into its place.

        Raises `ParityError` where it isn't the model it came from; what was there before stays.
        """
        department = reference.bundle.department(engine)
        spec, name = self.spec, engine_folder(department, engine, self.target, self.spec.precision)
        place = self.folder / name
        if spec.precision == AUTO:
            return self._fastest(reference, engine, place)
        with folder_atomic(place) as fresh:
            artifact = self.make(reference, engine, fresh)
            if artifact.parity.status == "failed":
                raise ParityError(
                    f"the {self.target} engine of {engine} is not the model it came from:\n    "
                    + "\n    ".join(artifact.parity.reasons),
                    artifact.parity,
                    where=reference.bundle.path,
                    fix=WRONG if spec.precision == BASELINE else TOO_COARSE,
                )
            if artifact.adapters:
                share_base(artifact, fresh, self.folder)
            write_artifact(artifact, fresh)
        return artifact.model_copy(update={"folder": place})

    def _fastest(self, reference: Reference, engine: str, place: Path) -> Artifact:
        """Build every candidate beside `place`, and put the one that is taken into its own."""
        splits = validation_splits(reference.bundle, engine)

        def make(precision: str, folder: Path) -> Artifact:
            spec = replace(self.spec, precision=precision)
            return replace(self, spec=spec, max_drop=None).make(reference, engine, folder)

        precisions = [name for name in PRECISIONS if name in self.probe.precisions]
        clear_after_a_kill(place.parent, glob.escape(place.name))
        work = place.with_name(f".{place.name}.{uuid.uuid4().hex[:8]}.tmp")
        work.mkdir(parents=True)
        try:
            artifact = fastest_engine(
                make,
                precisions,
                reference.bundle,
                splits=splits,
                work=work,
                max_drop=MAX_DROP if self.max_drop is None else self.max_drop,
            )
            taken = self.folder / artifact.name
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
        started = time.perf_counter()
        fused = onnx_model(bundle, engine, explain=self.explain)
        found = None
        if self.max_drop is not None:
            found = sensitivity(fused, bundle, engine, self.probe, self.max_drop)
        source = source_model(
            fused,
            bundle,
            engine,
            self.spec.precision,
            self.probe,
            left=found.nodes_left if found else (),
            adapters=self.spec.adapters,
        )
        model = raw_model(source, bundle, engine) if self.spec.raw else source
        written = self._engine(model, fresh)
        seconds = time.perf_counter() - started
        files = tuple(_file(fresh, name) for name in written.files)
        chain = stages(fused, source, self.spec.precision, files[0].sha256)
        parity, facts = self._proof(reference, engine, fresh, written, chain)
        return Artifact(
            engine=engine,
            department=bundle.department(engine),
            tasks=engine_tasks(bundle.engine(engine)),
            target=self.target,
            precision=self.spec.precision,
            files=files,
            onnx_sha256=sha256_bytes(model),
            bundle_sha256=bundle.sha256,
            preprocess=bundle.manifest.preprocess,
            preprocess_sha256=bundle.manifest.preprocess_sha256,
            parity=parity,
            facts=facts,
            input_dtype="uint8" if self.spec.raw else "float32",
            output="probabilities" if self.spec.raw else "logits",
            explain=self.explain,
            sensitivity=found,
            example=tuple(_file(fresh, name) for name in example_files(fresh)),
            build_seconds=round(seconds, 4),
            environment=environment(),
        )

    def _engine(self, model: bytes, fresh: Path) -> EngineFiles:
        """Let the exporter build from `model`, given as a file that isn't kept."""
        source = fresh / ".fused.onnx"
        source.write_bytes(model)
        written = self.exporter.export(source, fresh, self.spec)
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
        if not self.probe.can_run:
            return not_run_here(self.target, self.probe), written.facts
        with self.exporter.open(fresh, written.files, RunOptions(threads=usable_cpus())) as runner:
            raw = self.spec.raw
            parity = reference.check(engine, runner, self.spec.precision, chain, raw=raw)
            if written.files[0].endswith(".onnx"):
                write_example(fresh, reference.bundle, runner, raw=raw)
            return parity, {**written.facts, **runner.facts}


def _file(folder: Path, name: str) -> EngineFile:
    path = folder / name
    return EngineFile(name=name, sha256=sha256_file(path), bytes=path.stat().st_size)
