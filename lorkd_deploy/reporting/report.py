"""`report(run)` writes RUN/report.html, RUN/report.md, RUN/report-csv and the model cards."""

from __future__ import annotations

import tempfile
from pathlib import Path

from lorkd_deploy.errors import LorkdError
from lorkd_deploy.reporting.cards import model_card
from lorkd_deploy.reporting.html import html
from lorkd_deploy.reporting.markdown import markdown
from lorkd_deploy.reporting.page import page
from lorkd_deploy.reporting.sources import read_sources
from lorkd_deploy.run import open_run
from lorkd_deploy.schema import Part
from lorkd_deploy.storage import inside, write_atomic

TABLES = "report-csv"


class ReportFiles(Part):
    """What `report` wrote: a model card for each department, in the recipe's order, and a CSV file
    for each table and plot, in the page's order."""

    html: Path
    markdown: Path
    model_cards: tuple[Path, ...]
    tables: tuple[Path, ...] = ()


def report(run: str | Path, *, images: bool = False) -> ReportFiles:
    """Write the report of RUN: `report.html`, `report.md`, `report-csv/TABLE.csv` and
    `cards/DEPARTMENT/model_card.md`.

    `images` embeds up to eight test images per task, with both models' answers: off by default,
    since they may be patients' images and the page is made to be shared. Only the bundle has to be
    there; the report says what was not measured. Everything is put together before anything is
    written. Raises `BundleError`, `ArtifactError` or `LorkdError` for files that are
    missing, damaged or of another bundle, `LorkdError` where RUN can't be written,
    `RuntimeUnavailableError` where jinja2 or plotly is missing.
    """
    opened = open_run(run)
    folder, sources = opened.path, read_sources(opened)
    content = page(sources, images=images)
    cards = {
        inside(folder, f"cards/{name}/model_card.md"): model_card(sources, name)
        for name in sources.manifest.departments
    }
    tables = {
        inside(folder, f"{TABLES}/{table.key}.csv"): table.csv() for table in content.all_tables
    }
    files = ReportFiles(
        html=folder / "report.html",
        markdown=folder / "report.md",
        model_cards=tuple(cards),
        tables=tuple(tables),
    )
    texts = {files.html: html(content), files.markdown: markdown(content), **cards, **tables}
    try:
        _write(texts)
        for file in (folder / TABLES).glob("*.csv"):
            if file not in tables:
                file.unlink()  # of an earlier report, of what is measured no more
    except OSError as exc:
        raise LorkdError(
            f"the report can't be written: {exc.strerror}",
            where=exc.filename,
            fix="check who owns the run's folder, what is in the way there and what room its disk "
            "has, or copy the run to where you may write",
        ) from exc
    return files


def _write(texts: dict[Path, str]) -> None:
    """Write every file; none where one of their folders can't be written to."""
    for folder in sorted({file.parent for file in texts}):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".writable-"):
            pass
    for file, text in texts.items():
        write_atomic(file, text.encode())
