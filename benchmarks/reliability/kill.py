"""kill -9 at random moments: the former state whole, no process left, the next run as if never.

    python benchmarks/reliability/kill.py --short 800 --long 200 --studies 5

On runs of the tests' tiny networks: the short commands (`export` to ONNX and OpenVINO, `pack`,
`report`, `predict` with a CSV and an audit log), the long ones (`benchmark`, `teacher`,
`decompose`, `extract`, `compress`), and studies. Each trial begins on the same state, is killed at
a moment that is drawn over the time that the command took undisturbed, and then runs again to its
end, with `--resume` where it has that. Checked are: no file under its final name differs from
before or from the end, no process is left, and the result is the same bytes (dates and times apart;
OpenVINO's files and a benchmark's figures, which never repeat, by a command that judges them). A
stopped campaign goes on by the same call.

tests/training kills the trainings at every change of the disk.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.reliability.campaign import QUICK, Campaign, parser_of
from benchmarks.reliability.children import Child, adopt_orphans, children, orphans
from benchmarks.reliability.stages import (
    IMAGES,
    LONG,
    SHORT,
    STUDY,
    Stage,
    material,
    trained_material,
)
from lorkd_deploy.clinic.audit import verify_log
from lorkd_deploy.errors import LorkdError

BATCH = 4
PATIENCE = 60  # s in which a process whose parent was killed ends
PROTOCOL = (
    "A command is killed by SIGKILL at a moment drawn evenly over its undisturbed time and a fifth "
    "more (CPU time, or the clock's where it waits for processes of its own), then run again. "
    "Fine: nothing half-written under a final name, no process left behind, nothing unfinished "
    "among the results after the second run, and these are those of an undisturbed one (dates and "
    "times apart)."
)
# What no two runs have in common: dates, times, and the digest over them.
_VARIES = re.compile(
    rb'"(?:created|digest|build_seconds|time|ms|previous|sha256|measured)": ?[^,}\n]*'
)


def contents(folder: Path, results: tuple[str, ...]) -> dict[str, bytes]:
    """Every file of the results by name, without what varies."""
    files: dict[str, bytes] = {}
    for name in results:
        place = folder / name
        below = [place] if place.is_file() else [f for f in place.rglob("*") if f.is_file()]
        for file in below:
            data = file.read_bytes().replace(str(folder).encode(), b"")
            if file.suffix == ".csv":
                data = _without_latency(data)
            text = file.suffix in (".json", ".jsonl", ".html", ".md")
            files[str(file.relative_to(folder))] = _VARIES.sub(b"", data) if text else data
    return files


def _without_latency(table: bytes) -> bytes:
    """A CSV table without its last column, where that is a study's latency; for whole lines."""
    lines = table.splitlines(keepends=True)
    if not lines or not lines[0].rstrip().endswith(b",latency_ms"):
        return table
    return b"".join(line.rpartition(b",")[0] + line[-1:] for line in lines)


def trial(stage: Stage, start: Path, at: Path, after: float, wanted: dict[str, bytes]) -> str:
    """What is wrong after a kill and a second run; nothing if all is well."""
    shutil.copytree(start, at)
    before, known = contents(at, stage.results), children()
    killed = Child(stage.command(at)).kill_after(after, wall=stage.waits)
    if left := orphans(PATIENCE, known):
        return f"{len(left)} processes are left"
    for name, data in contents(at, stage.results).items():
        varies = Path(name).suffix in stage.varies and data != before.get(name)
        if varies and not (name.endswith(".json") and _is_cut(data)):
            continue  # `check` judges it
        # A checkpoint of a training that was killed is what the next run goes on from.
        parts = Path(name).parts
        hidden = any(part.startswith(".") or part == "checkpoints" for part in parts)
        if not hidden and name != "log.jsonl" and data not in (before.get(name), wanted.get(name)):
            return f"{name} is half-written after the kill"
    complete = stage.whole is not None and (at / stage.whole).exists()
    if not complete:
        again = Child([*stage.command(at), *(stage.again if killed.code < 0 else ())]).wait()
        if again.code:
            return f"the next run ends with {again.code}: {again.said[-300:]}"
    return _right(stage, at, wanted)


def _is_cut(document: bytes) -> bool:
    """A whole JSON file ends with the bracket that closes it."""
    return not document.rstrip().endswith((b"}", b"]"))


def _right(stage: Stage, at: Path, wanted: dict[str, bytes]) -> str:
    if stage.check is not None:
        checked = Child(stage.check(at)).wait()
        if checked.code:
            return f"the result is not right: {checked.said[-300:]}"
    found = contents(at, stage.results)
    if "log.jsonl" in found:
        return _audited(at / "log.jsonl", found, wanted)
    return _compared(found, wanted, stage.varies)


def _compared(found: dict[str, bytes], wanted: dict[str, bytes], varies: tuple[str, ...]) -> str:
    differ = sorted(
        name
        for name in found.keys() | wanted.keys()
        if (name in found) != (name in wanted)
        or (Path(name).suffix not in varies and found[name] != wanted[name])
    )
    return f"other than undisturbed: {', '.join(differ)}" if differ else ""


def _audited(log: Path, found: dict[str, bytes], wanted: dict[str, bytes]) -> str:
    """The chain is whole, and has each answer of the second run behind those of the first."""
    try:
        lines = verify_log(log).lines
    except LorkdError as exc:
        return f"the audit log is broken: {exc.what}"
    if not IMAGES <= lines <= 2 * IMAGES:
        return f"the audit log has {lines} lines"
    return _compared({"eye.csv": found["eye.csv"]}, {"eye.csv": wanted["eye.csv"]}, ())


def run(
    campaign: Campaign, start: Path, folder: Path, stages: Mapping[str, Stage], count: int
) -> None:
    """`count` kills over `stages`, in turn; those that were done are left out."""
    if sum(map(campaign.done, stages)) >= count:
        return
    adopt_orphans()
    wanted, times = {}, {}
    for name, stage in stages.items():
        at = shutil.copytree(start, folder / "undisturbed")
        ended = Child(stage.command(at)).wait()
        if ended.code:
            raise LorkdError(f"{name} fails undisturbed: {ended.said[-500:]}")
        wanted[name], times[name] = contents(at, stage.results), ended
        shutil.rmtree(at)
    for number, name, rng in campaign.trials(list(stages), count, BATCH, "kill -9", PROTOCOL):
        whole = times[name].wall if stages[name].waits else times[name].seconds
        after = 1.2 * whole * rng.random()
        at = folder / "trial"
        wrong = trial(stages[name], start, at, after, wanted[name])
        shutil.rmtree(at)
        fault = {"trial": number, "after": round(after, 3), "what": wrong} if wrong else None
        campaign.add(name, "wrong" if wrong else "fine", fault)


def main() -> int:
    parser = parser_of(__doc__ or "")
    parser.add_argument("--short", type=int, default=800)
    parser.add_argument("--long", type=int, default=200)
    parser.add_argument("--studies", type=int, default=5)
    given = parser.parse_args()
    campaign = Campaign("kill", given.seed, given.results)
    with tempfile.TemporaryDirectory(dir=QUICK) as name:
        folder = Path(name)
        start = material(folder)
        run(campaign, start, folder, SHORT, given.short)
        if given.long or given.studies:
            trained_material(start)
            run(campaign, start, folder, LONG, given.long)
            run(campaign, start, folder, STUDY, given.studies)
    print(json.dumps(campaign.counts))
    return bool(campaign.faults)


if __name__ == "__main__":
    sys.exit(main())
