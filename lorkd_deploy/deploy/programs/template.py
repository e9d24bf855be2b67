"""Text files with slots: `@NAME@` in a file of `templates/` is filled in, nothing else changes.

Not jinja2: an edge device has only the base install.
"""

from __future__ import annotations

import re
from importlib import resources

_SLOT = re.compile(r"@([A-Z]+)@")


def fill(template: str, **slots: object) -> str:
    """The file `templates/TEMPLATE` with its slots filled; raises `KeyError` for one left out."""
    file = resources.files("lorkd_deploy.deploy.programs") / "templates" / template
    return _SLOT.sub(lambda slot: str(slots[slot[1]]), file.read_text(encoding="utf-8"))
