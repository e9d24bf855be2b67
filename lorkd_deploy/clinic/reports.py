"""`lorkd predict --sr DIR --fhir DIR`: answers as files for the archive and the record system."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lorkd_deploy.bundle.read import Bundle, load_bundle
from lorkd_deploy.clinic.answered import Answered, answered
from lorkd_deploy.clinic.fhir import fhir_bundle
from lorkd_deploy.clinic.sr import structured_report
from lorkd_deploy.deploy.answers.classifier import Prediction
from lorkd_deploy.deploy.artifact import Artifact, exported_engine
from lorkd_deploy.dicom import DicomRules
from lorkd_deploy.errors import LorkdError, RuntimeUnavailableError
from lorkd_deploy.run import open_run
from lorkd_deploy.runtime import ALIASES
from lorkd_deploy.storage import write_atomic


def require_packages() -> None:
    """Raise `RuntimeUnavailableError`, before any work, where the extra isn't installed."""
    for module, package in (("highdicom", "highdicom"), ("fhir", "fhir.resources")):
        if find_spec(module) is None:
            raise RuntimeUnavailableError(
                f"{package} is not installed",
                fix="python -m pip install 'lorkd-deploy[dicom]'",
            )


def write_reports(
    run: str | Path,
    predictions: Sequence[Prediction],
    *,
    target: str = "onnx",
    precision: str = "fp32",
    dicom: Mapping[str, Any] | None = None,
    sr: str | Path | None = None,
    fhir: str | Path | None = None,
    bundle: Bundle | None = None,
) -> list[Path]:
    """Write what `predict` gave as DICOM SR into `sr` and as FHIR bundles into `fhir`.

    The files are called by the SR's SOP instance UID; the same image and engine give the same
    again. `bundle` is the run's, where it is read already. Raises `ImageError` for an answer about
    a file that is no DICOM; nothing is written then.
    """
    require_packages()
    opened = open_run(run)
    bundle = bundle or load_bundle(opened.bundle)
    name = ALIASES.get(target, target)
    engines: dict[str, tuple[Artifact, DicomRules]] = {}
    made: list[Answered] = []
    for one in predictions:
        if one.task not in engines:
            artifact = exported_engine(opened, bundle, one.task, name, precision)
            rules = (artifact.task(one.task).dicom or DicomRules()).overridden(dicom or {})
            engines[one.task] = artifact, rules
        made.append(answered(one, *engines[one.task]))
    files: dict[Path, bytes] = {}
    for answer in made:
        stem = answer.uid("sr")
        try:
            if sr is not None:
                files[Path(sr) / f"{stem}.dcm"] = structured_report(answer)
            if fhir is not None:
                files[Path(fhir) / f"{stem}.json"] = fhir_bundle(answer)
        except LorkdError as exc:
            raise type(exc)(exc.what, where=answer.prediction.file, fix=exc.fix) from exc
    for path, data in files.items():
        write_atomic(path, data)
    return list(files)
