"""The same report as Markdown: it reads well in a terminal and in a repository."""

from __future__ import annotations

import re

from lorkd_deploy.reporting.page import Page
from lorkd_deploy.reporting.table import Cell, Table
from lorkd_deploy.reporting.words import COMMAND

# What Markdown or HTML would read as more than text; names come from files and may hold anything.
_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|~$&!])")


def plain(text: str) -> str:
    """`text` so that Markdown shows it as it is, on one line; a command stays one."""
    parts = enumerate(COMMAND.split(" ".join(text.split())))
    return "".join(f"`{p}`" if place % 2 else _SPECIAL.sub(r"\\\1", p) for place, p in parts)


def markdown(page: Page) -> str:
    """`page` as GitHub-flavoured Markdown, without curves and images, which are the page's."""
    parts = [
        f"# {plain(page.title)}",
        plain(page.dateline),
        *([plain(page.lead)] if page.lead else []),
        *section(page.verdicts, 2),
        plain(page.about),
        f"**{page.no_device[0]}** {page.no_device[1]}",
    ]
    if page.warnings:
        parts.append("To know when you read these figures:")
        parts.append("\n".join(f"- {plain(text)}" for text in page.warnings))
    if page.predictive:
        parts += section(page.predictive, 2)
    parts += ["## Departments", plain(page.departments_intro)]
    for department in page.departments:
        parts += [f"### {plain(department.name)}", *map(plain, department.about)]
        for table in department.all_tables:
            parts += section(table, 4)
        for figure in department.latency:
            parts += section(figure.data, 4)
    if page.engines:
        parts += ["## Engines"]
        for table in page.engines:
            parts += section(table, 3)
    parts += ["## Proof that each engine equals its model", plain(page.parity_intro)]
    parts += section(page.parity, 3)
    parts += ["## How this was measured", *map(plain, page.protocol)]
    parts += ["### Made again by", "```bash\n" + "\n".join(page.commands) + "\n```"]
    parts += ["### What the words mean", facts(page.glossary)]
    parts += ["### Environment", facts(page.environment)]
    parts += ["### Where this comes from", facts(page.provenance)]
    return "\n\n".join(parts) + "\n"


def section(table: Table, level: int) -> list[str]:
    """A heading, the caption and the table."""
    caption = [plain(table.caption)] if table.caption else []
    return [f"{'#' * level} {plain(table.title)}", *caption, grid(table)]


def grid(table: Table) -> str:
    """The table itself; a cell's small print follows in brackets."""
    lines = [
        "| " + " | ".join(plain(column.title) for column in table.columns) + " |",
        "|" + "|".join("---:" if column.numeric else "---" for column in table.columns) + "|",
    ]
    lines += ["| " + " | ".join(_cell(cell) for cell in row) + " |" for row in table.rows]
    return "\n".join(lines)


def _cell(cell: Cell) -> str:
    return plain(f"{cell.text} ({cell.note})" if cell.note else cell.text)


def facts(pairs: tuple[tuple[str, str], ...]) -> str:
    """Terms and what is said of them, as a list."""
    return "\n".join(f"- {plain(term)}: {plain(text)}" for term, text in pairs)
