"""`report(run)` writes RUN/report.html, RUN/report.md, RUN/report-csv and the model cards."""

from __future__ import annotations

from pathlib import Path

from lorkd_deploy.profiling.compare import compare
from lorkd_deploy.reporting.cards import model_card
from lorkd_deploy.reporting.facts.sources import read_sources
from lorkd_deploy.reporting.files import write_page
from lorkd_deploy.reporting.markdown import markdown
from lorkd_deploy.reporting.page import page
from lorkd_deploy.run import open_run
from lorkd_deploy.schema import Part
from lorkd_deploy.storage import inside


class ReportFiles(Part):
    """What `report` wrote: a model card for each department, in the recipe's order, and a CSV file
    for each table and plot, in the page's order."""

    html: Path
    markdown: Path
    model_cards: tuple[Path, ...]
    tables: tuple[Path, ...] = ()


def report(
    run: str | Path, *, images: bool = False, against: str | Path | None = None
) -> ReportFiles:
    """Write the report of RUN: `report.html`, `report.md`, `report-csv/TABLE.csv` and
    `cards/DEPARTMENT/model_card.md`.

    `images` embeds up to eight test images per task, with both models' answers: off by default,
    since they may be patients' images and the page is made to be shared. `against` is another run,
    or its `profile.json`: the page then has what changed from it to RUN, as `compare` finds it.
    Only the bundle has to be there; the report says what was not measured. Everything is put
    together before anything is written. Raises `BundleError`, `ArtifactError` or `LorkdError` for
    files that are missing, damaged or of another bundle, or where nothing of `against` can be
    compared, `LorkdError` where RUN can't be written, `RuntimeUnavailableError` where jinja2 is
    missing.
    """
    opened = open_run(run)
    folder, sources = opened.path, read_sources(opened)
    changed = compare(against, run) if against is not None else None
    content = page(sources, images=images, changed=changed)
    cards = {
        inside(folder, f"cards/{name}/model_card.md"): model_card(sources, name)
        for name in sources.manifest.departments
    }
    files = write_page(folder, "report", content, markdown(content), cards)
    return ReportFiles(
        html=files.html,
        markdown=files.markdown,
        model_cards=tuple(cards),
        tables=files.tables,
    )
