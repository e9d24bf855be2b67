"""The campaign's commands as the page on proof names them."""

from __future__ import annotations

import shlex
import sys
from importlib import import_module
from pathlib import Path

import pytest

from tests.readme import DOCS, blocks

pytest.importorskip("hypothesis")
SCRIPTS = "python benchmarks/reliability/"
PROOF = DOCS / "concepts" / "proof.md"
NAMED = [line for block in blocks(PROOF) for line in block.lines if line.startswith(SCRIPTS)]


class BegunError(Exception):
    """The options were understood."""


@pytest.mark.parametrize("line", NAMED)
def test_its_options_are_the_scripts(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def begin(*_: object) -> None:
        raise BegunError

    _, script, *options = shlex.split(line)
    module = import_module(f"benchmarks.reliability.{Path(script).stem}")
    monkeypatch.setattr(module, "Campaign", begin)
    monkeypatch.setattr(sys, "argv", [script, *options])
    with pytest.raises(BegunError):
        module.main()


def test_every_script_is_named() -> None:
    scripts = Path(import_module("benchmarks.reliability.campaign").__file__ or "").parent
    runs = {file.name for file in scripts.glob("*.py") if "__main__" in file.read_text()}
    assert runs == {Path(shlex.split(line)[1]).name for line in NAMED}
