"""`lorkd data check` and `split`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lorkd_deploy.cli.shared.options import DicomKeys, Json, Overrides, Quiet, RecipeName, key_value
from lorkd_deploy.cli.shared.render import Output

app = typer.Typer(
    help="Check images before anything is trained on them, and split them.\n\nExamples: "
    "`lorkd data check mine.yaml`, `lorkd data split scans.csv --group patient --out lists.csv`.",
    rich_markup_mode=None,
)


@app.command()
def check(
    recipe: RecipeName,
    out: Annotated[
        Path,
        typer.Option("--out", metavar="PAGE", help="The page, with the worst pairs as pictures."),
    ] = Path("data-check.html"),
    run: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN",
            help="Keep the findings in this run too: its report and cards then say them.",
            show_default=False,
        ),
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="End with exit code 3 where a split leaks.")
    ] = False,
    overrides: Overrides = [],
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Look for leaks and shortcuts in a recipe's images: every image is read once.

    Leaks: pictures that are the same or nearly in two splits, though saved in another format, size
    or brightness, or mirrored; patients in two splits. And twins whose labels disagree, classes
    with hardly any image, labels that size, brightness, border or site alone tell, test images that
    are like no training image.

    \b
    Examples:
      lorkd data check mine.yaml
      lorkd data check mine.yaml --strict --json
    """
    from lorkd_deploy.datacheck.check import check_data
    from lorkd_deploy.datacheck.result import keep_check
    from lorkd_deploy.errors import GateError
    from lorkd_deploy.recipe import load_recipe
    from lorkd_deploy.reporting.data_page import findings_table, write_page

    output = Output(as_json=as_json, quiet=quiet)
    loaded = load_recipe(recipe, overrides)
    found = check_data(loaded, progress=output.progress())
    write_page(found, loaded, out)
    if run is not None:
        keep_check(found, run)
    output.tables([findings_table(found)])
    output.text(f"wrote {out}")
    output.result(found)
    if strict and found.leaks:
        output.warning(
            f"images or patients lie in two splits: {', '.join(found.leaks)}; `lorkd data split` "
            "makes splits that share none"
        )
        raise typer.Exit(GateError.exit_code)


@app.command()
def split(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER-or-CSV",
            help="A CSV that lists images, or a folder CLASS/*.png or CLASS/PATIENT/*.png.",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="CSV", help="The list with its splits.")],
    group: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN", help="Patients, studies or lesions; stay whole.", show_default=False
        ),
    ] = None,
    image: Annotated[str, typer.Option(metavar="COLUMN", help="The images' paths.")] = "path",
    label: Annotated[str, typer.Option(metavar="COLUMN", help="The classes.")] = "label",
    root: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="What the paths are relative to; without it the CSV's folder.",
            show_default=False,
        ),
    ] = None,
    shares: Annotated[
        str, typer.Option(metavar="A,B,C", help="Of train, val and test.")
    ] = "70,10,20",
    size: Annotated[int, typer.Option(min=32, help="At which images are compared, px.")] = 64,
    seed: Annotated[int, typer.Option(min=0, help="Decides which image goes where.")] = 0,
    dicom: DicomKeys = [],
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Split a list of images: classes in proportion, patients whole, near twins together.

    \b
    Examples:
      lorkd data split scans.csv --group patient --out lists.csv
      lorkd data split scans --out lists.csv --shares 80,10,10
      lorkd data split dicoms --out lists.csv --dicom window=[40,400]
    """
    from lorkd_deploy.datacheck.division import split_data
    from lorkd_deploy.errors import UsageError

    output = Output(as_json=as_json, quiet=quiet)
    try:
        train, val, test = (float(share) for share in shares.split(","))
    except ValueError:
        raise UsageError(f"--shares {shares!r} are not three numbers", fix="70,10,20") from None
    made = split_data(
        source,
        out,
        group=group,
        image=image,
        label=label,
        root=root,
        shares=(train, val, test),
        size=size,
        seed=seed,
        dicom=dict(key_value(text, "--dicom") for text in dicom),
        progress=output.progress(),
    )
    counts = ", ".join(f"{name} {count}" for name, count in made.images.items())
    output.text(
        f"wrote {out}: {counts}; {made.groups} groups, {made.twins} images with a twin, which are "
        "together"
    )
    output.result(made)
