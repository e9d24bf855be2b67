"""`STUDY/study.html`, `study.md` and a CSV file per table."""

from __future__ import annotations

from pathlib import Path

from lorkd_deploy.evidence.pages.page import StudyPage
from lorkd_deploy.reporting.files import Written, write_page
from lorkd_deploy.reporting.markdown import facts, plain, section


def write_report(folder: Path, page: StudyPage) -> Written:
    """Write the page, its Markdown and tables to the study's folder; raises as `write_page`."""
    return write_page(folder, "study", page, as_markdown(page))


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
