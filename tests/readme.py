"""Reads the commands of README and docs: fenced blocks, with the HTML comment before them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
DOCS = ROOT / "docs"
JETSON = DOCS / "how-to" / "jetson.md"
FENCE = re.compile(
    r"^(?:<!-- (?P<comment>[^\n]*?) -->\n)?```(?P<language>\w+)\n(?P<body>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """One fenced block; `comment` is what stands in `<!-- … -->` on the line above it.

    `lines` are its commands, `body` is it as it stands there.
    """

    language: str
    comment: str
    lines: tuple[str, ...]
    body: str


def pages() -> list[Path]:
    """README and the pages of docs/, in the order in which the site has them."""
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    return [README, *(path for name in _leaves(nav) if (path := DOCS / name).is_file())]


def _leaves(nav: Any) -> Iterator[str]:
    if isinstance(nav, str):
        yield nav
        return
    for part in nav.values() if isinstance(nav, dict) else nav:
        yield from _leaves(part)


def blocks(page: Path) -> list[Block]:
    """Every fenced block, in order; a backslash at a line's end joins it with the next.

    In a `console` block the commands are behind a `$`, and what they print stands below them.
    """
    found = []
    for match in FENCE.finditer(page.read_text(encoding="utf-8")):
        lines = match["body"].replace("\\\n", " ").splitlines()
        if match["language"] == "console":
            lines = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
        commands = tuple(line.strip() for line in lines if line.strip() and line[0] != "#")
        found.append(Block(match["language"], match["comment"] or "", commands, match["body"]))
    return found


def every_block() -> list[Block]:
    """The blocks of all pages, in their order."""
    return [block for page in pages() for block in blocks(page)]


def block(language: str, comment: str) -> tuple[str, ...]:
    """The lines of the one block with this comment."""
    (one,) = (b for b in every_block() if b.language == language and b.comment == comment)
    return one.lines
