"""mkdocs' hooks: pages that lie elsewhere in the project, pages that are generated, and links."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "exporters")]  # mkdocs runs this as a file

from docs.generated import commands_page, recipes_page  # noqa: E402
from docs.links import MOVED, RESULTS, site_name, site_text  # noqa: E402

WIDE = ("index.md", "results.md", "results/")  # their tables take the contents' place
SHOWN = {".md", ".png", ".svg", ".json"}


def on_files(files: Files, config: Any) -> Files:
    """Add what isn't below docs/."""
    outside = [ROOT / name for name in MOVED]
    outside += [path for path in sorted((ROOT / RESULTS).rglob("*")) if path.suffix in SHOWN]
    for path in outside:
        name = path.relative_to(ROOT).as_posix()
        files.append(File.generated(config, site_name(name), abs_src_path=str(path)))
    for name, page in (("commands", commands_page), ("recipes", recipes_page)):
        files.append(File.generated(config, f"reference/{name}.md", content=page()))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links as the site has them, and room for wide tables."""
    if page.file.src_uri.startswith(WIDE):
        page.meta["hide"] = ["toc"]
    return site_text(markdown, page.file.src_uri)
