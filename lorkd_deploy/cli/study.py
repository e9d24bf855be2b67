"""`lorkd study`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lorkd_deploy.cli.shared.options import Json, Overrides, Quiet, RecipeName
from lorkd_deploy.cli.shared.render import Output

TlsFile = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="For --scheduler tls://…", show_default=False),
]


def study(
    recipe: RecipeName,
    out: Annotated[
        Path,
        typer.Option(
            "--out", metavar="STUDY", help="Folder of the study; the same one resumes it."
        ),
    ],
    methods: Annotated[
        str,
        typer.Option(
            metavar="LIST",
            help="Of foundation, stl, mtl, stl-kd, mtl-kd, kf, experts; each may change values of "
            "the recipe: experts+rank=4.",
        ),
    ] = "foundation,stl,mtl,stl-kd,mtl-kd,kf,experts",
    seeds: Annotated[
        int, typer.Option(min=1, help="Trainings of each method, from the recipe's seed on.")
    ] = 5,
    overrides: Overrides = [],
    workers: Annotated[
        int, typer.Option(min=1, help="Trainings side by side on this machine, a thread each.")
    ] = 1,
    scheduler: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Train on a Dask cluster instead: tls://HOST:8786 with the three files below, or "
            "tcp:// on this machine. Its workers need the folder STUDY.",
            show_default=False,
        ),
    ] = None,
    tls_ca: TlsFile = None,
    tls_cert: TlsFile = None,
    tls_key: TlsFile = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Compare the experts with every other way, over several seeds, on the same images.

    The foundation model itself, one small network per task (stl) or for all (mtl), both distilled
    (-kd), knowledge factorisation (kf), and the experts. What STUDY has finished isn't done again:
    a stopped study is resumed, and one grows by methods and seeds, by the same call.

    \b
    Examples:
      lorkd study medmnist-small --out studies/small --methods mtl,experts --seeds 3
      lorkd study medmnist-small --out studies/ranks --methods experts,experts+rank=4+alpha=4
      lorkd study mine.yaml --out studies/mine --workers 2
    """
    from lorkd_deploy.evidence.pages.page import study_page
    from lorkd_deploy.evidence.pages.report import write_report
    from lorkd_deploy.evidence.study import study as run_study
    from lorkd_deploy.evidence.workers import Cluster

    output = Output(as_json=as_json, quiet=quiet)
    cluster = Cluster(scheduler, tls_ca, tls_cert, tls_key) if scheduler else None
    result = run_study(
        recipe,
        out,
        methods=methods,
        seeds=seeds,
        set=overrides,
        workers=workers,
        cluster=cluster,
        progress=output.progress(),
    )
    shown = study_page(result)
    files = write_report(out, shown)
    output.tables((shown.methods, shown.differences))
    for folder, why in result.failed.items():
        output.text(f"{folder} failed: {why}")
    output.text(shown.lead)
    output.text(f"wrote {files.html} and {files.markdown}")
    output.result(result)
