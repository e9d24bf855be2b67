"""`lorkd predict`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lorkd_deploy.cli.shared.options import DicomKeys, Json, Precision, Quiet, Run, key_value
from lorkd_deploy.cli.shared.render import Output

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
            help="Also write the preprocessed images, float32 (N, 3, H, W).",
            show_default=False,
        ),
    ] = None,
    dicom: DicomKeys = [],
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Print class probabilities of images, from an exported engine. Not a medical device.

    \b
    Examples:
      lorkd predict runs/small --task breast scan.png
      lorkd predict runs/small --task breast scans/ --csv breast.csv
      lorkd predict runs/small --task breast scan.dcm --dicom window=[40,400]
    """
    from lorkd_deploy import predict as classify

    output = Output(as_json=as_json, quiet=quiet)
    predictions = classify(
        run,
        task,
        images,
        target=target,
        precision=precision,
        csv=csv,
        save_input=save_input,
        dicom=dict(key_value(text, "--dicom") for text in dicom),
    )
    output.table(
        f"{task}: {len(predictions)} images",
        ("image", "label", "most probable"),
        [(entry.file, entry.label, _ranked(entry.probabilities)) for entry in predictions],
    )
    for file in (csv, save_input):
        if file is not None:
            output.text(f"wrote {file}")
    output.result(predictions)


def _ranked(probabilities: dict[str, float]) -> str:
    ranked = sorted(probabilities.items(), key=lambda item: -item[1])
    shown = ", ".join(f"{name} {value:.3f}" for name, value in ranked[:SHOWN])
    return shown + (", …" if len(ranked) > SHOWN else "")
