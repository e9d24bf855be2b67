"""`lorkd transfer`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lorkd_deploy.cli.shared.options import Json, Overrides, Quiet
from lorkd_deploy.cli.shared.render import Output


def transfer(
    run: Annotated[
        Path,
        typer.Argument(
            metavar="RUN",
            help="A finished run, or a study, of whose trainings each seed has its own.",
            show_default=False,
        ),
    ],
    data: Annotated[
        str,
        typer.Option(
            metavar="SPEC",
            help="FILE.npz, a folder of images, or a recipe's data: in YAML, "
            "'{source: npz, path: FILE.npz, classes: [a, b]}'.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--out", metavar="TRANSFER", help="Folder to write to; the same one resumes it."
        ),
    ],
    init: Annotated[
        str,
        typer.Option(
            metavar="LIST",
            help="Of expert:TASK, shared (W0 alone), mtl (of a study), teacher, random, and joint: "
            "all tasks of RUN trained again, the new one among them.",
        ),
    ] = "shared,teacher,random",
    fit: Annotated[
        str,
        typer.Option(
            metavar="LIST",
            help="What is learnt: experts (a low-rank expert and its head, the rest frozen), head "
            "(a logistic regression), all. Of a teacher a head, of random weights all, jointly "
            "experts.",
        ),
    ] = "experts,head",
    shots: Annotated[
        str, typer.Option(metavar="LIST", help="Training images per class, or all.")
    ] = "10,all",
    seeds: Annotated[
        int, typer.Option(min=1, help="Trainings of each, from the recipe's seed on.")
    ] = 3,
    overrides: Overrides = [],
    workers: Annotated[
        int, typer.Option(min=1, help="Trainings side by side on this machine, a thread each.")
    ] = 1,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Learn a new data set from an expert, from W0 alone, the teacher, or random weights.

    Says what a department that is added later may expect, from few images and from all. What
    TRANSFER has finished isn't done again: a stopped transfer is resumed by the same call.

    \b
    Examples:
      lorkd transfer runs/small --data new.npz --out transfers/new --init expert:retina,shared
      lorkd transfer studies/small --data new.npz --out transfers/new --init shared,mtl --fit all
      lorkd transfer runs/small --data new.npz --out transfers/new --init shared,joint --workers 2
    """
    from lorkd_deploy.evidence.transfer.page import transfer_page, write_transfer_report
    from lorkd_deploy.evidence.transfer.transfer import transfer as run_transfer

    output = Output(as_json=as_json, quiet=quiet)
    result = run_transfer(
        run,
        data,
        out,
        init=init,
        fit=fit,
        shots=shots,
        seeds=seeds,
        set=overrides,
        workers=workers,
        progress=output.progress(),
    )
    shown = transfer_page(result)
    files = write_transfer_report(out, shown)
    for chapter in shown.chapters:
        output.tables((chapter.starts, chapter.differences), f"{chapter.title}: ")
    for folder, why in result.failed.items():
        output.text(f"{folder} failed: {why}")
    output.text(shown.lead)
    output.text(f"wrote {files.html} and {files.markdown}")
    output.result(result)
