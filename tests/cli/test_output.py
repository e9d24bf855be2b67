"""What is printed, and where: results on stdout, everything else on stderr."""

from __future__ import annotations

import io
import json
import logging
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from lorkd_deploy import cli
from lorkd_deploy.cli.shared import drawing, render
from lorkd_deploy.diagnosis import Check
from lorkd_deploy.recipe import load_recipe, shipped_recipes


def test_json_is_one_document_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["recipe", "list", "--json"]) == 0
    shown = capsys.readouterr()
    listed = json.loads(shown.out)
    assert shown.err == ""
    assert [entry["name"] for entry in listed] == list(shipped_recipes())
    assert listed[0]["departments"] == [d.name for d in load_recipe(listed[0]["name"]).departments]


def test_quiet_prints_nothing_but_json_stays(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["recipe", "validate", "demo", "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")
    assert cli.main(["recipe", "validate", "demo", "-q", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "valid": True,
        "name": "demo",
        "sha256": load_recipe("demo").sha256,
    }


def test_a_recipe_is_shown_with_its_comments_and_can_be_used_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["recipe", "show", "medmnist-small"]) == 0
    mine = tmp_path / "mine.yaml"
    mine.write_text(capsys.readouterr().out, encoding="utf-8")
    assert mine.read_text(encoding="utf-8") == shipped_recipes()["medmnist-small"].read_text(
        encoding="utf-8"
    )
    assert cli.main(["recipe", "validate", str(mine)]) == 0
    assert "4 departments, 4 tasks" in capsys.readouterr().out
    assert cli.main(["recipe", "show", "medmnist-small", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["experts"]["rank"] == 16


def test_a_table_holds_every_value(capsys: pytest.CaptureFixture[str]) -> None:
    output = render.Output(as_json=False, quiet=False)
    output.table("Engines", ("task", "p50 ms", "AUC"), [("a" * 60, 1.23456, None), ("b", 2, True)])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["a" * 60, "1.235", "–"] in lines
    assert ["b", "2", "yes"] in lines


@pytest.mark.parametrize("encoding", ["latin-1", "ascii", "cp1252", "utf-8"])
def test_every_text_can_be_written_in_every_encoding(
    encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also names of files that aren't UTF-8, which Python holds as surrogates."""
    names = ["ΔW – α", "caf\udce9.png"]
    document, shown = io.BytesIO(), io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(document, encoding=encoding))
    render.listen()
    render.Output(as_json=True, quiet=False).result(names[0])
    sys.stdout.flush()
    assert json.loads(document.getvalue().decode(encoding)) == names[0]
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(shown, encoding=encoding))
    render.listen()
    output = render.Output(as_json=False, quiet=False)
    output.table("Verified", ("engine", "parity"), [(name, None) for name in names])
    output.text("passed ✓")
    sys.stdout.flush()
    for part in ("caf\\udce9.png", "Verified", "passed "):
        assert part in shown.getvalue().decode(encoding)


@dataclass(frozen=True)
class Files:
    html: Path
    score: float


def test_results_of_every_kind_become_json(capsys: pytest.CaptureFixture[str]) -> None:
    output = render.Output(as_json=True, quiet=False)
    preprocess = load_recipe("demo").preprocess
    output.result([Files(Path("r.html"), float("nan")), preprocess, {1: (Path("x"), True)}])
    files, model, other = json.loads(capsys.readouterr().out)
    assert files == {"html": "r.html", "score": None}
    assert model == preprocess.model_dump(mode="json")
    assert other == {"1": ["x", True]}
    with pytest.raises(ValueError, match="object"):
        render.plain(object())


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_and_messages_go_to_stderr(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    terminal = Terminal()
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setattr("sys.stderr", terminal)
    render.listen()
    bar = render.Output(as_json=True, quiet=False).progress()
    bar.start("decompose", 10)
    bar.advance(3, loss="0.123", images_per_s="456")
    logging.getLogger("lorkd_deploy.training").warning("the [bold] learning rate")
    drawing.stop_drawing()
    logging.getLogger("lorkd_deploy.training").info("written")
    shown = terminal.getvalue()
    for part in (
        "decompose",
        "3/10",
        "loss 0.123",
        "images per s 456",
        "warning: the [bold] learning rate",
        "written\n",
    ):
        assert part in shown
    assert capsys.readouterr().out == ""


def test_in_80_columns_counts_and_times_of_a_bar_stay_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    terminal = Terminal()
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setattr(drawing, "BRIEF", 0)
    bar = render.Output(as_json=False, quiet=False).progress()
    bar.start("decompose", 624)
    bar.advance(393, labels="0.054", transfer="1.043", accuracy="1.00", images="101/s")
    bar.stop()
    (left,) = shown_by(terminal)
    assert "393/624 0:00:00 left" in left
    assert "labels 0.054" in left
    assert len(left) <= 80


def test_a_brief_bar_leaves_no_line(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    bar = render.Output(as_json=False, quiet=False).progress()
    bar.start("reading scans", 1)
    bar.stop()
    assert shown_by(terminal) == []


def shown_by(terminal: io.StringIO) -> list[str]:
    """The lines that stay, without colours: a cursor that goes up and erases is followed."""
    lines, row = [""], 0
    for part in re.split(r"(\n|\x1b\[1A|\x1b\[2K)", terminal.getvalue()):
        if part in {"\n", "\x1b[1A"}:
            row += 1 if part == "\n" else -1
            lines += [""] * (row == len(lines))
        elif part == "\x1b[2K":
            lines[row] = ""
        else:
            lines[row] += re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "", part)
    return [line.rstrip() for line in lines if line.strip()]


def test_the_doctor_fits_80_columns(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = "1.7.1.116: only builds engines here; it runs on GeForce RTX and RTX PRO GPUs"
    check = Check(name="target trt-rtx", status="limited", found=found, fix="copy it " * 12)
    monkeypatch.setattr("lorkd_deploy.diagnosis.doctor", lambda: [check])
    monkeypatch.setattr(drawing, "PIPE_WIDTH", 80)
    assert cli.main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert any("→ copy it copy it" in line for line in lines)


def test_progress_in_a_log_is_a_line_at_times(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bar = render.Output(as_json=False, quiet=False).progress()
    bar.start("decompose", 10)
    bar.advance(2, loss="0.9")
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(drawing, "LOG_SECONDS", 0)
    bar.advance(loss="0.8")
    bar.advance()
    bar.stop()
    assert capsys.readouterr().err == "decompose 3/10  loss 0.8\ndecompose 4/10\n"


def test_quiet_draws_no_bar_and_keeps_warnings(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr("sys.stderr", terminal)
    render.listen()
    bar = render.Output(as_json=False, quiet=True).progress()
    bar.start("decompose", 10)
    bar.advance()
    bar.stop()
    logging.getLogger("lorkd_deploy").info("not shown")
    logging.getLogger("lorkd_deploy").warning("shown")
    assert terminal.getvalue() == "warning: shown\n"
