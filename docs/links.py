"""Where the site has the project's files, and its links between them.

README.md is the site's first page and benchmarks/results are its results. In the project they link
to each other as files do, so that the same text reads well in a checkout; here those links become
the site's.
"""

from __future__ import annotations

import posixpath
import re

MOVED = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "CHANGELOG.md": "changelog.md",
    "CITATION.cff": "CITATION.cff",
    "LICENSE": "LICENSE.txt",
}
RESULTS = "benchmarks/results/"
# `](target)` and `src="target"`; group 2 is the file, group 3 the place in it.
LINK = re.compile(r"""(\]\(|\b(?:src|srcset|href)=")(?!https?:|mailto:|#)([^)"#\s]+)(#[^)"\s]*)?""")


def site_text(markdown: str, here: str) -> str:
    """The text of the page `here` (its name in the site) with the site's links."""
    return LINK.sub(lambda found: found[1] + site_link(found[2], here) + (found[3] or ""), markdown)


def site_link(target: str, here: str) -> str:
    """`target`, as the file behind the page `here` links to it → as that page has to."""
    folder = posixpath.dirname(_project_name(here))
    name = posixpath.normpath(posixpath.join(folder, target))
    return posixpath.relpath(site_name(name), posixpath.dirname(here) or ".")


def site_name(name: str) -> str:
    """A project's file → where the site has it."""
    if name.startswith(RESULTS):
        return "results/" + name.removeprefix(RESULTS)
    return MOVED.get(name, name.removeprefix("docs/"))


def _project_name(site: str) -> str:
    if site.startswith("results/"):
        return RESULTS + site.removeprefix("results/")
    back = {shown: name for name, shown in MOVED.items()}
    return back.get(site, f"docs/{site}")
