"""What every result has in common: when and where it was measured, and its two files.

conditions = Conditions()          # before anything is measured
document = {**conditions.now(), "seconds": …}
write("startup", document, text)   # benchmarks/results/startup.json and .md
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lorkd_deploy.machine.environment import environment

RESULTS = Path(__file__).parent / "results"


class Conditions:
    """The machine, and its load since this was made."""

    def __init__(self) -> None:
        self._before = os.getloadavg()

    def now(self) -> dict[str, Any]:
        """The keys `measured`, `environment` and `load_average` of a document."""
        return {
            "measured": time.strftime("%Y-%m-%d"),
            "environment": environment().model_dump(mode="json"),
            "load_average": {"before": self._before, "after": os.getloadavg()},
        }


def loads(document: Mapping[str, Any]) -> str:
    """The load average of a document in words."""
    before, after = (document["load_average"][when][0] for when in ("before", "after"))
    return f"load average {before:.1f} at the start and {after:.1f} at the end"


def write(name: str, document: Mapping[str, Any], text: str, folder: Path = RESULTS) -> None:
    """Write `document` to `folder`/`name`.json and `text`, which shows it, to `name`.md."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    (folder / f"{name}.md").write_text(text, encoding="utf-8")
