"""`lorkd listen`"""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from typing import Annotated

import typer

from lorkd_deploy.cli.shared.options import Json, Precision, Quiet, Run
from lorkd_deploy.cli.shared.render import Output


def listen(
    run: Run,
    out: Annotated[
        Path,
        typer.Option(metavar="DIR", help="The folder for the answers.", show_default=False),
    ],
    department: Annotated[
        str | None,
        typer.Option(
            metavar="D", help="Whose tasks answer; needed where the run has several departments."
        ),
    ] = None,
    bind: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="The address to listen on.")
    ] = "127.0.0.1:11112",
    title: Annotated[
        str, typer.Option("--aet", metavar="AET", help="The AE title that senders must call.")
    ] = "LORKD",
    callers: Annotated[
        list[str],
        typer.Option(
            "--from",
            metavar="AET",
            help="An AE title that may send; may be repeated.",
            show_default="any",
        ),
    ] = [],
    to: Annotated[
        str | None,
        typer.Option(
            metavar="AET@HOST:PORT",
            help="Send each answer (SR) on to this archive.",
            show_default=False,
        ),
    ] = None,
    fhir: Annotated[bool, typer.Option("--fhir", help="Also write each answer as FHIR.")] = False,
    audit: Annotated[
        Path | None,
        typer.Option(
            metavar="LOG", help="Append every answer to this audit log.", show_default=False
        ),
    ] = None,
    target: Annotated[
        str, typer.Option(metavar="TARGET", help="The exported engines' runtime.")
    ] = "onnx",
    precision: Precision = "fp32",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Receive DICOM images (C-STORE) and answer each as a DICOM SR. Not a medical device.

    What was accepted is on the disk and is answered, after a kill too. SIGTERM or Ctrl-C ends it.

    \b
    Examples:
      lorkd listen eye-clinic --out answers
      lorkd listen eye-clinic --out answers --from CT1 --to PACS@127.0.0.1:4242
      lorkd listen eye-clinic --out answers --audit answers.jsonl
    """
    from lorkd_deploy import AuditLog
    from lorkd_deploy import listen as receive

    output = Output(as_json=as_json, quiet=quiet)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    host = bind.rpartition(":")[0]
    done = receive(
        run,
        out,
        department=department,
        bind=bind,
        title=title,
        callers=callers,
        to=to,
        fhir=fhir,
        target=target,
        precision=precision,
        audit=None if audit is None else AuditLog(audit),
        stop=stop,
        ready=lambda port: output.text(f"{title} listens on {host}:{port}; answers go to {out}"),
    )
    output.text(f"{done.answers} answers were written to {out}, {done.unsent} wait to be sent")
    output.result(done)
