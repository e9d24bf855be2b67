"""`lorkd export`"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from lorkd_deploy.cli.shared import parity as proof
from lorkd_deploy.cli.shared.options import Departments, Json, Quiet, Run, Tasks, key_value
from lorkd_deploy.cli.shared.render import MIB, Output


def export(
    run: Run,
    target: Annotated[
        str,
        typer.Option(metavar="TARGET", help="The runtime to build for."),
    ] = "onnx",
    precision: Annotated[
        str,
        typer.Option(
            metavar="P",
            help="The engine's precision, as far as the target supports it, e.g. fp16 or int8; "
            "auto measures them all and takes the fastest.",
        ),
    ] = "fp32",
    max_drop: Annotated[
        float | None,
        typer.Option(
            metavar="POINTS",
            help="How many points of validation accuracy auto may lose against fp32. With int8, "
            "which otherwise may lose any, layers stay in float32 until it holds: takes minutes.",
            show_default="0.5 of auto",
        ),
    ] = None,
    option: Annotated[
        list[str],
        typer.Option(
            metavar="KEY=VALUE",
            help="One of the target's own options; may be repeated. An unknown one lists them all.",
            show_default=False,
        ),
    ] = [],
    providers: Annotated[
        list[str],
        typer.Option(
            metavar="EP",
            help="Execution provider of the onnx target: CPU, CUDA, TensorRT or OpenVINO; may be "
            "repeated, in order of preference. No other provider runs what these can't.",
            show_default="CPU",
        ),
    ] = [],
    department: Departments = [],
    task: Tasks = [],
    teacher: Annotated[
        bool, typer.Option("--teacher", help="Also export the foundation model.")
    ] = False,
    explain: Annotated[
        bool,
        typer.Option(
            "--explain",
            help="Let engines give maps of where they look, for `lorkd predict --explain`.",
        ),
    ] = False,
    layout: Annotated[
        str | None,
        typer.Option(
            metavar="LAYOUT",
            help="Also write a server's model repository: mlserver, triton-python, triton, kserve "
            "or ovms.",
            show_default=False,
        ),
    ] = None,
    sample: Annotated[
        list[str],
        typer.Option(
            metavar="LANGUAGE",
            help="Also write, beside each engine, a program that runs it: python or cpp; may be "
            "repeated.",
            show_default=False,
        ),
    ] = [],
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Where to write the engines; with --layout, where to write its folder.",
            show_default="RUN/export, RUN/LAYOUT",
        ),
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Build one engine per task, each verified against the model it came from.

    Parity figures are written to artifact.json; outside the tolerance nothing is written, and the
    exit code is 3.

    \b
    Examples:
      lorkd export runs/small
      lorkd export runs/small --precision fp16
      lorkd export runs/small --precision auto --max-drop 0.2
      lorkd export runs/small --precision int8 --max-drop 0.5
      lorkd export runs/small --target openvino --precision bf16
      lorkd export runs/small --target openvino --option device=GPU
      lorkd export runs/small --providers CUDA
      lorkd export runs/small --department eye-clinic --teacher
      lorkd export runs/small --task breast --out engines
      lorkd export runs/small --explain
      lorkd export runs/small --layout mlserver
      lorkd export runs/small --layout triton --option raw=true --out models
      lorkd export runs/small --target openvino --sample python --sample cpp
    """
    from lorkd_deploy import export as build
    from lorkd_deploy.deploy.programs.layouts import LAYOUTS
    from lorkd_deploy.run import open_run

    output = Output(as_json=as_json, quiet=quiet)
    artifacts = build(
        run,
        target,
        precision=precision,
        max_drop=max_drop,
        options=dict(map(key_value, option)) | ({"providers": providers} if providers else {}),
        department=department,
        task=task,
        teacher=teacher,
        explain=explain,
        layout=layout,
        sample=sample,
        out=out,
        progress=output.progress(),
    )
    output.table(
        f"Engines in {artifacts[0].folder.parents[len(Path(artifacts[0].name).parts) - 1]}",
        ("engine", "MiB", "build s", *proof.COLUMNS),
        [(a.name, a.bytes / MIB, a.build_seconds, *proof.cells(a.parity)) for a in artifacts],
    )
    if layout is not None:
        repository = out or open_run(run).repository(layout)
        output.text(f"model repository: {repository}")
        output.text(
            f"start the server: {LAYOUTS[layout].start.format(shlex.quote(str(repository)))}"
        )
    for language in sample:
        output.text(f"programs: sample-{language} in each engine's folder")
    proof.show_choices(output, artifacts)
    proof.show_sensitivity(output, artifacts)
    unproven = [a.parity.reasons for a in artifacts if a.parity.status != "passed"]
    for reason in dict.fromkeys(reason for reasons in unproven for reason in reasons):
        output.warning(f"parity was not run, these engines are not verified: {reason}")
    output.text(f"next: lorkd verify {run}")
    output.result([{**a.model_dump(mode="json"), "folder": str(a.folder)} for a in artifacts])
