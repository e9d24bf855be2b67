"""`lorkd predict`"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lorkd_deploy.cli.shared.options import DicomKeys, Json, Precision, Quiet, Run, key_value
from lorkd_deploy.cli.shared.render import Output

if TYPE_CHECKING:
    from lorkd_deploy import AuditLog
    from lorkd_deploy.deploy.answers.classifier import Prediction

SHOWN = 3  # classes per image; --json and --csv have them all


def predict(
    run: Run,
    images: Annotated[
        list[Path],
        typer.Argument(
            metavar="IMAGE-OR-FOLDER...",
            help="PNG, JPEG, BMP, TIFF, WebP, DICOM or NumPy .npy files, or folders of them.",
            show_default=False,
        ),
    ],
    task: Annotated[str, typer.Option(metavar="T", help="The task to answer.", show_default=False)],
    target: Annotated[
        str, typer.Option(metavar="TARGET", help="The exported engine's runtime.")
    ] = "onnx",
    precision: Precision = "fp32",
    csv: Annotated[
        Path | None,
        typer.Option(metavar="F", help="Also write the probabilities here.", show_default=False),
    ] = None,
    save_input: Annotated[
        Path | None,
        typer.Option(
            metavar="F.npy",
            help="Also write what the engine is given: preprocessed, float32 (N, 3, H, W), or the "
            "images, uint8 (N, H, W, 3), if it was exported with raw.",
            show_default=False,
        ),
    ] = None,
    guard: Annotated[
        bool,
        typer.Option(
            "--guard/--no-guard",
            help="Answer `outside` to pictures that aren't of the task's kind, where the bundle "
            "has a guard.",
        ),
    ] = True,
    coverage: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            help="Give the classes that hold the right one this often, e.g. 0.95, and refer to a "
            "person where they aren't one.",
            show_default=False,
        ),
    ] = None,
    audit: Annotated[
        Path | None,
        typer.Option(
            metavar="LOG", help="Append every answer to this audit log.", show_default=False
        ),
    ] = None,
    explain: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Also write pictures of where the most probable class was seen, by engines that "
            "were exported with --explain.",
            show_default=False,
        ),
    ] = None,
    dicom: DicomKeys = [],
    sr: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Also write each answer as a DICOM SR here.", show_default=False
        ),
    ] = None,
    fhir: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Also write each answer as a FHIR bundle here.", show_default=False
        ),
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Print class probabilities of images, from an exported engine. Not a medical device.

    \b
    Examples:
      lorkd predict runs/small --task breast scan.png
      lorkd predict runs/small --task breast scans/ --csv breast.csv
      lorkd predict runs/small --task breast scans/ --coverage 0.95 --audit answers.jsonl
      lorkd predict runs/small --task breast scans/ --explain maps
      lorkd predict runs/small --task breast scan.dcm --dicom window=[40,400] --sr reports
    """
    # What isn't asked for isn't loaded: a user waits for one answer.
    from lorkd_deploy import load_bundle
    from lorkd_deploy import predict as classify
    from lorkd_deploy.run import open_run

    output = Output(as_json=as_json, quiet=quiet)
    rules = dict(key_value(text, "--dicom") for text in dicom)
    if sr or fhir:
        from lorkd_deploy.clinic.reports import require_packages

        require_packages()
    # Once, for answers and reports: it takes a hash of every file.
    bundle = load_bundle(open_run(run).bundle)
    predictions = classify(
        run,
        task,
        images,
        target=target,
        precision=precision,
        csv=csv,
        save_input=save_input,
        dicom=rules,
        guard=guard,
        coverage=coverage,
        audit=None if audit is None else _log(audit),
        explain=explain,
        bundle=bundle,
    )
    reports = []
    if sr or fhir:
        from lorkd_deploy import write_reports

        reports = write_reports(
            run,
            predictions,
            target=target,
            precision=precision,
            dicom=rules,
            sr=sr,
            fhir=fhir,
            bundle=bundle,
        )
    _show(output, task, predictions)
    for file in (csv, save_input):
        if file is not None:
            output.text(f"wrote {file}")
    if explain is not None:
        drawn = sum(entry.overlay is not None for entry in predictions)
        output.text(f"wrote {drawn} pictures to {explain}")
    if reports:
        output.text(f"wrote {len(reports)} reports")
    output.result(predictions)


def _log(file: Path) -> AuditLog:
    from lorkd_deploy import AuditLog

    return AuditLog(file)


def _show(output: Output, task: str, predictions: list[Prediction]) -> None:
    output.table(
        f"{task}: {len(predictions)} images",
        ("image", "label", "most probable"),
        [(entry.file, entry.label, _said(entry)) for entry in predictions],
    )


def _said(entry: Prediction) -> str:
    if entry.outcome == "outside":
        return f"not of this kind: guard {entry.guard:.2f}, above 1"
    if entry.possible is None:
        return _ranked(entry.probabilities)
    return f"{', '.join(entry.possible) or 'none'} possible; {_ranked(entry.probabilities)}"


def _ranked(probabilities: dict[str, float]) -> str:
    ranked = sorted(probabilities.items(), key=lambda item: -item[1])
    shown = ", ".join(f"{name} {value:.3f}" for name, value in ranked[:SHOWN])
    return shown + (", …" if len(ranked) > SHOWN else "")
