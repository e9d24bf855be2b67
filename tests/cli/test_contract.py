"""Commands, options, JSON keys and exit codes are as before, less what `removals.json` names."""

from __future__ import annotations

import json
from importlib.util import find_spec

import pytest

from lorkd_deploy import cli
from tests.cli.contract import (
    CONTRACT,
    DOCUMENTS,
    ERROR,
    NEEDS_TORCH,
    covers,
    exit_codes,
    key_lines,
    options,
    printed,
    promised,
    removals,
)


def test_commands_options_and_exit_codes_are_as_before() -> None:
    assert {x for x in promised() if " --json > " not in x} - {*options(), *exit_codes()} == set()


@pytest.mark.parametrize("document", DOCUMENTS)
def test_json_has_the_keys_it_had(document: str) -> None:
    if document in NEEDS_TORCH and find_spec("torch") is None:
        pytest.skip("this command needs torch")
    before = {line for line in promised() if line.startswith(f"lorkd {document} --json > ")}
    assert before - set(key_lines(document)) == set()


def test_an_error_is_a_document_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["exprt", "--json"]) == 2
    shown = list(printed(json.loads(capsys.readouterr().out), ERROR))
    assert shown == ERROR


def test_a_removal_has_a_reason_and_is_one() -> None:
    before = CONTRACT.read_text(encoding="utf-8").splitlines()
    for removal, reason in removals().items():
        assert reason.strip(), removal
        assert any(covers(removal, line) for line in before), removal
