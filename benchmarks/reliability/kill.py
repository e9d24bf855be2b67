"""kill -9 at random moments of the short commands: the former state whole, the next run as ever.

    python benchmarks/reliability/kill.py --count 800

On a run of the tests' tiny network: `export`, `pack`, `report`, `predict` with a CSV and an audit
log. Each trial begins on the same state, is killed at a moment drawn over the time that the command
took undisturbed, and then runs again to its end. Checked are: no file under its final name differs
from before or from the end, nothing unfinished stays, and the result is the same bytes (dates and
times apart). A stopped campaign goes on by the same call.

The trainings are killed in tests/training (at every change of the disk, and by a real kill -9).
"""

from __future__ import annotations

import json
import re
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.reliability.campaign import Campaign, arguments
from benchmarks.reliability.children import Child
from lorkd_deploy.clinic.audit import verify_log
from lorkd_deploy.errors import LorkdError

BATCH = 4
PROTOCOL = (
    "A command is killed by SIGKILL at a moment drawn evenly over its undisturbed time (and a "
    "fifth more), then run again. Fine: nothing half-written under a final name, nothing "
    "unfinished left after the second run, whose results are those of an undisturbed one (dates "
    "and times apart)."
)
# What no two runs have in common: dates, times, and the digest over them.
_VARIES = re.compile(
    rb'"(?:created|digest|build_seconds|time|ms|previous|sha256|measured)": ?[^,}\n]*'
)
IMAGES = 12


class Stage(NamedTuple):
    """A command by the folder of a trial, and the results below it that it writes."""

    command: Callable[[Path], list[str]]
    results: tuple[str, ...]


STAGES = {
    "export": Stage(
        lambda at: ["export", f"{at}/run", "--department", "ward", "--quiet"], ("run/export",)
    ),
    "pack": Stage(
        lambda at: ["pack", f"{at}/run", "--department", "clinic", "--out", f"{at}/delivered",
                    "--quiet"], ("delivered",)),
    "report": Stage(
        lambda at: ["report", f"{at}/run", "--quiet"], ("run/report.html", "run/report.md")
    ),
    "predict": Stage(
        lambda at: ["predict", f"{at}/run", "--task", "eye", f"{at}/pictures", "--csv",
                    f"{at}/eye.csv", "--audit", f"{at}/log.jsonl", "--quiet"],
        ("eye.csv", "log.jsonl")),
}  # fmt: skip


def material(folder: Path) -> Path:
    """The state on which each trial begins."""
    from PIL import Image

    from lorkd_deploy.deploy.export import export
    from tests.deploy.made_run import make_run

    start = folder / "start"
    run = make_run(start / "run", start / "data", images="bundle")
    export(run, department=["clinic"])
    (start / "pictures").mkdir()
    rng = np.random.default_rng(0)
    for number in range(IMAGES):
        pixels = rng.integers(0, 256, (20, 24, 3), np.uint8)
        Image.fromarray(pixels).save(start / "pictures" / f"{number}.png")
    return start


def contents(folder: Path, results: tuple[str, ...]) -> dict[str, bytes]:
    """Every file of the results by name, without what varies."""
    files: dict[str, bytes] = {}
    for name in results:
        place = folder / name
        below = [place] if place.is_file() else [f for f in place.rglob("*") if f.is_file()]
        for file in below:
            data = file.read_bytes().replace(str(folder).encode(), b"")
            text = file.suffix in (".json", ".jsonl", ".html", ".md")
            files[str(file.relative_to(folder))] = _VARIES.sub(b"", data) if text else data
    return files


def trial(stage: Stage, start: Path, at: Path, after: float, wanted: dict[str, bytes]) -> str:
    """What is wrong after a kill and a second run; nothing if all is well."""
    shutil.copytree(start, at)
    before = contents(at, stage.results)
    Child(stage.command(at)).kill_after(after)
    for name, data in contents(at, stage.results).items():
        hidden = any(part.startswith(".") for part in Path(name).parts)
        if not hidden and name != "log.jsonl" and data not in (before.get(name), wanted.get(name)):
            return f"{name} is half-written after the kill"
    if stage.results == ("delivered",) and (at / "delivered").exists():
        shutil.rmtree(at / "delivered")  # it was whole: `pack` never writes over a folder
    again = Child(stage.command(at)).wait()
    if again.code:
        return f"the next run ends with {again.code}: {again.said[-300:]}"
    found = contents(at, stage.results)
    if "log.jsonl" in found:
        return _audited(at / "log.jsonl", found, wanted)
    return _compared(found, wanted)


def _compared(found: dict[str, bytes], wanted: dict[str, bytes]) -> str:
    differ = sorted(n for n in found.keys() | wanted.keys() if found.get(n) != wanted.get(n))
    return f"other than undisturbed: {', '.join(differ)}" if differ else ""


def _audited(log: Path, found: dict[str, bytes], wanted: dict[str, bytes]) -> str:
    """The chain is whole, and has each answer of the second run behind those of the first."""
    try:
        lines = verify_log(log).lines
    except LorkdError as exc:
        return f"the audit log is broken: {exc.what}"
    if not IMAGES <= lines <= 2 * IMAGES:
        return f"the audit log has {lines} lines"
    return _compared({"eye.csv": found["eye.csv"]}, {"eye.csv": wanted["eye.csv"]})


def run(campaign: Campaign, folder: Path, count: int) -> None:
    """`count` kills over all stages, in turn; those that were done are left out."""
    start = material(folder)
    wanted, seconds = {}, {}
    for name, stage in STAGES.items():
        at = shutil.copytree(start, folder / "undisturbed" / name)
        ended = Child(stage.command(at)).wait()
        if ended.code:
            raise LorkdError(f"{name} fails undisturbed: {ended.said[-500:]}")
        wanted[name], seconds[name] = contents(at, stage.results), ended.seconds
    for number, name, rng in campaign.trials(list(STAGES), count, BATCH, "kill -9", PROTOCOL):
        after = 1.2 * seconds[name] * rng.random()
        at = folder / "trial"
        wrong = trial(STAGES[name], start, at, after, wanted[name])
        shutil.rmtree(at)
        fault = {"trial": number, "after": round(after, 3), "what": wrong} if wrong else None
        campaign.add(name, "wrong" if wrong else "fine", fault)


def main() -> int:
    given = arguments(__doc__ or "", 800)
    campaign = Campaign("kill", given.seed, given.results)
    with tempfile.TemporaryDirectory() as name:
        run(campaign, Path(name), given.count)
    print(json.dumps(campaign.counts))
    return bool(campaign.faults)


if __name__ == "__main__":
    sys.exit(main())
