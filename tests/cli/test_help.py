"""`--help` of every command: an example that works, and nothing heavy imported."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from lorkd_deploy import __version__, cli
from tests.command_line import commands, examples, parse

HELPS = dict(commands())
ISSUE = {
    "lorkd demo",
    "lorkd teacher",
    "lorkd decompose",
    "lorkd compress",
    "lorkd fuse",
    "lorkd export",
    "lorkd extract",
    "lorkd verify",
    "lorkd benchmark",
    "lorkd report",
    "lorkd compare",
    "lorkd pack",
    "lorkd predict",
    "lorkd inspect",
    "lorkd recipe list",
    "lorkd recipe show",
    "lorkd recipe validate",
    "lorkd doctor",
}
HEAVY = {"torch", "onnx", "onnxruntime", "openvino", "jinja2", "numpy", "pydantic", "PIL"}


def test_every_command_is_there() -> None:
    assert set(HELPS) >= ISSUE


@pytest.mark.parametrize("command", sorted(ISSUE))
def test_the_help_has_examples_that_parse(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    lines = examples(HELPS[command])
    assert lines
    for line in lines:
        assert parse(line.partition(" > ")[0]) == command
    assert cli.main([*command.split()[1:], "--help"]) == 0
    shown = re.sub(r"\s+", " ", capsys.readouterr().out)
    for option in ("--json", "--quiet", lines[0]):
        assert option in shown


def test_help_loads_nothing_heavy() -> None:
    """What it costs in seconds is measured by benchmarks/startup.py."""
    code = (
        "import sys\n"
        "from lorkd_deploy.cli import main\n"
        "assert main(['--help']) == 0\n"
        f"print(sorted({HEAVY!r} & set(sys.modules)), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stderr.strip() == "[]"
    assert "decompose" in done.stdout


def test_predict_loads_what_it_uses() -> None:
    """Recipes, sources of data and reports take a third of the time until an answer."""
    code = (
        "import sys\n"
        "from lorkd_deploy.cli.app import command_line\n"
        "command_line('predict')\n"
        "from lorkd_deploy import load_bundle, predict\n"
        "unused = ('cli.verify', 'clinic', 'data', 'recipe', 'datacheck.result')\n"
        "print([name for name in unused if f'lorkd_deploy.{name}' in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


def test_no_arguments_show_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 0
    assert "Examples" in capsys.readouterr().out


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == f"lorkd {__version__}"
