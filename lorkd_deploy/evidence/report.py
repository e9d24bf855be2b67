"""`STUDY/study.html`, `study.md` and a CSV file per table, from the result alone."""

from __future__ import annotations

from pathlib import Path

from lorkd_deploy.evidence.page import StudyPage, study_page
from lorkd_deploy.evidence.result import read_result
from lorkd_deploy.reporting.html import document
from lorkd_deploy.reporting.markdown import facts, plain, section
from lorkd_deploy.storage import inside, write_atomic


def write_report(study: Path) -> tuple[Path, Path]:
    """Write the page and its Markdown; raises what `document` and `read_result` raise."""
    page = study_page(read_result(study))
    html, markdown = study / "study.html", study / "study.md"
    texts = {html: document("study.html", page, page.figures), markdown: as_markdown(page)}
    texts |= {inside(study, f"study-csv/{table.key}.csv"): table.csv() for table in page.tables}
    for file, text in texts.items():
        write_atomic(file, text.encode())
    return html, markdown


def as_markdown(page: StudyPage) -> str:
    """The page without its plots, whose values are in its tables."""
    parts = [f"# {plain(page.title)}", plain(page.dateline), plain(page.lead)]
    if page.warnings:
        parts.append("\n".join(f"- {plain(text)}" for text in page.warnings))
    parts += section(page.methods, 2)
    parts += ["## Differences over all tasks", plain(page.differences_intro)]
    parts += section(page.differences, 3)
    parts.append("## Task by task")
    for table in page.tasks:
        parts += section(table, 3)
    parts += section(page.forest.data, 3)
    parts += ["## Disentanglement", plain(page.mig_intro)]
    for table in page.mig:
        parts += section(table, 3)
    parts += ["## How this was done", *map(plain, page.protocol), facts(page.provenance)]
    return "\n\n".join(parts) + "\n"
