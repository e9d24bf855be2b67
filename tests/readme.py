"""Reads the commands of a page: fenced blocks, with the HTML comment in front of them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
JETSON = README.with_name("JETSON.md")
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


def blocks(page: Path = README) -> list[Block]:
    """Every fenced block, in order; a backslash at a line's end joins it with the next."""
    found = []
    for match in FENCE.finditer(page.read_text(encoding="utf-8")):
        body = match["body"].replace("\\\n", " ")
        lines = (line.removeprefix("$ ").strip() for line in body.splitlines())
        commands = tuple(line for line in lines if line and not line.startswith("#"))
        found.append(Block(match["language"], match["comment"] or "", commands, match["body"]))
    return found


def block(language: str, comment: str) -> tuple[str, ...]:
    """The lines of the one block with this comment."""
    (one,) = (b for b in blocks() if b.language == language and b.comment == comment)
    return one.lines
