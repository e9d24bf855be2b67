"""What the result documents of benchmarks have in common."""

from __future__ import annotations

import json
import time
from pathlib import Path

from benchmarks.document import Conditions, loads, write


def test_a_document_says_when_where_and_how_busy_it_was(tmp_path: Path) -> None:
    conditions = Conditions()
    document = {"seconds": 1.5, **conditions.now()}
    assert list(document) == ["seconds", "measured", "environment", "load_average"]
    assert time.strptime(document["measured"], "%Y-%m-%d")
    assert document["environment"]["python"]
    before, after = (document["load_average"][when][0] for when in ("before", "after"))
    said = loads(document)
    assert said == f"load average {before:.1f} at the start and {after:.1f} at the end"

    write("trial", document, f"# Trial\n\n{said}.\n", tmp_path / "results")
    kept = tmp_path / "results" / "trial.json"
    assert loads(json.loads(kept.read_text(encoding="utf-8"))) == said
    assert kept.read_text(encoding="utf-8").endswith("}\n")
    assert (tmp_path / "results" / "trial.md").read_text(encoding="utf-8").endswith(f"{said}.\n")
