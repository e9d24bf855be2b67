"""docs/formats.md and the JSON schemas say what the code writes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from docs.schemas import FILES, FOLDER, schema
from tests.readme import ROOT, blocks
from tests.tiny_bundle import make_bundle


@pytest.mark.parametrize("name", FILES)
def test_a_schema_is_current(name: str) -> None:
    written = (FOLDER / f"{name}.json").read_text(encoding="utf-8")
    assert written == schema(name), "`python docs/schemas.py` writes them again"


def test_no_schema_is_left_over() -> None:
    assert {path.stem for path in FOLDER.iterdir()} == set(FILES)


def test_a_digest_is_checked_as_the_page_says(tmp_path: Path) -> None:
    manifest = make_bundle(tmp_path / "bundle") / "manifest.json"
    (example,) = (b for b in blocks(ROOT / "docs" / "formats.md") if b.language == "python")
    for damaged, says in ((False, "True"), (True, "False")):
        if damaged:
            content = bytearray(manifest.read_bytes())
            content[-5] ^= 1
            manifest.write_bytes(bytes(content))
        command = [sys.executable, "-c", example.body, str(manifest)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == says
