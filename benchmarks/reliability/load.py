"""Load: threads that switch experts, memory over all of it, and processes that start at once.

    python benchmarks/reliability/load.py --switches 10000 --target onnx --target openvino

On a run of the tests' tiny network with four tasks. 8 threads share one `Switchboard` whose budget
holds the largest engine alone, so that engines are closed and opened all along. Every answer is
compared, bit for bit, with the asked task's own, which was compared before with the unfused expert
in float64. Memory is judged against a control, as many threads that open as many of the same files
with the runtime alone, each in a process of its own: ours may not grow by more. `--minutes 60`
spreads the switches over an hour, and the control's over another. Before that 64 processes predict
from one run folder at once. Writes results/reliability-load.json and .md, and exits with 1 after a
wrong answer or growth; a target whose switches were done is left out.
"""

from __future__ import annotations

import json
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.reliability.campaign import QUICK, Campaign, parser_of
from benchmarks.reliability.children import Child, apart
from benchmarks.reliability.growth import BARE, LIMIT, ROUNDS, THREADS, Slope, in_rounds
from benchmarks.reliability.stages import material
from lorkd_deploy.deploy import switchboard
from lorkd_deploy.deploy.artifact import find_artifacts, open_engine
from lorkd_deploy.deploy.export import export
from lorkd_deploy.deploy.switchboard import MIB, Switchboard
from lorkd_deploy.errors import LorkdError
from lorkd_deploy.machine.memory import resident
from tests.deploy.made_run import OF_TASK, PREPROCESS, true_logits

PROCESSES = 64
TASKS = tuple(OF_TASK)
PROTOCOL = (
    f"{THREADS} threads switch one Switchboard between four experts, its budget being the largest "
    "engine alone, and compare every answer with the asked expert's own, bit for bit. Memory: the "
    f"slope of resident memory over the engines opened, read {ROUNDS} times while nothing is under "
    "way, garbage collected and free memory given back, the first fifth left out, with intervals "
    "of 95 %. The control is a process whose threads open as many of the same files with the "
    "runtime alone, and get as many answers. "
    f"Ours grows where the interval of the difference is above {LIMIT} KiB per 1,000 engines. "
    f"{PROCESSES} processes predict from one run folder at once."
)


class Load(NamedTuple):
    """What came of it: the answers' outcomes, the engines opened, memory."""

    outcomes: dict[str, int]
    opened: int
    slope: Slope
    peak: float  # MiB
    minutes: float


def _batch() -> Any:
    shape = (3, 3, PREPROCESS.size, PREPROCESS.size)
    return np.random.default_rng(5).normal(size=shape).astype(np.float32)


def _order(count: int) -> list[str]:
    """The task of each switch."""
    return [TASKS[n] for n in np.random.default_rng(count).integers(len(TASKS), size=count)]


def own_answers(run: Path, target: str, batch: Any) -> dict[str, Any]:
    """Each task's logits by its engine alone; raises `LorkdError` where another's come."""
    known = {}
    with Switchboard(run, target) as board:
        for task, department in OF_TASK.items():
            with board.department(department, task) as engine:
                known[task] = engine(batch)
            wanted = true_logits(run, task, batch)
            if not np.allclose(known[task], wanted, atol=1e-4 * max(1, np.abs(wanted).max())):
                raise LorkdError(f"the engine of {task} doesn't answer as its expert")
    return known


def switched(run: Path, target: str, count: int, minutes: float = 0, rounds: int = ROUNDS) -> Load:
    """`count` switches of a `Switchboard`."""
    batch, order = _batch(), _order(count)
    known = own_answers(run, target, batch)
    budget = max(a.bytes for a in find_artifacts(run) if a.target == target) / MIB
    outcomes: Counter[str] = Counter()
    counting, opened, began = threading.Lock(), _Opened(open_engine), time.monotonic()

    def switch(number: int) -> None:
        task = order[number]
        with board.department(OF_TASK[task], task) as engine:
            right = np.array_equal(engine(batch), known[task])
        with counting:
            outcomes["right" if right else "mixed"] += 1

    with (
        patch.object(switchboard, "open_engine", opened),
        Switchboard(run, target, budget=budget) as board,
    ):
        found = in_rounds(switch, count, opened.times, minutes, rounds)
    return _load(outcomes, opened.count, found, began)


def control(run: Path, target: str, count: int, engines: int, minutes: float) -> Load:
    """As many answers with the runtime alone, and as many `engines` opened as ours has opened."""
    batch, order = _batch(), _order(count)
    files = {
        a.engine: a.folder / a.files[0].name for a in find_artifacts(run) if a.target == target
    }
    opened, began = _Opened(BARE[target]()), time.monotonic()
    turn = threading.Lock()
    kept: list[Callable[[Any], Any]] = []

    def switch(number: int) -> None:
        with turn:
            if number * engines // count >= opened.count:
                kept[:] = [opened(str(files[order[number]]))]
            answer = kept[0]
        answer(batch)

    found = in_rounds(switch, count, opened.times, minutes)
    return _load({}, opened.count, found, began)


def _load(outcomes: dict[str, int], opened: int, found: Slope, began: float) -> Load:
    minutes = (time.monotonic() - began) / 60
    return Load(dict(outcomes), opened, found, resident().peak or 0.0, minutes)


class _Opened:
    """What opens engines, and how many it has opened."""

    def __init__(self, opens: Callable[..., Any]) -> None:
        self._opens, self._counting = opens, threading.Lock()
        self.count = 0

    def times(self) -> int:
        return self.count

    def __call__(self, *given: Any) -> Any:
        with self._counting:
            self.count += 1
        return self._opens(*given)


def at_once(campaign: Campaign, start: Path, folder: Path, processes: int = PROCESSES) -> None:
    """As many processes that predict from one run folder, each answer compared with one alone."""

    def begun(name: str) -> Child:
        csv = f"{folder}/{name}.csv"
        command = ["predict", f"{start}/run", "--task", "eye", f"{start}/pictures", "--csv", csv]
        return Child([*command, "--quiet"])

    alone = begun("alone").wait()
    wanted = (folder / "alone.csv").read_bytes()
    many = [begun(str(number)) for number in range(processes)]
    for number, child in enumerate(many):
        ended = child.wait()
        file = folder / f"{number}.csv"
        right = not ended.code and not alone.code and file.read_bytes() == wanted
        fault = None if right else {"code": ended.code, "said": ended.said[-500:]}
        campaign.add(f"{processes} processes at once", "right" if right else "wrong", fault)


def run(campaign: Campaign, start: Path, target: str, switches: int, minutes: float = 0) -> None:
    """The threads' switches for `target` and the control's beside them, unless they were done."""
    part = f"switches, {target}"
    if campaign.done(part) >= switches:
        return
    export(start / "run", target)
    given = (start / "run", target, switches)
    ours = apart(switched, *given, minutes)
    judge(campaign, part, ours, apart(control, *given, ours.opened, minutes))


def judge(campaign: Campaign, part: str, ours: Load, bare: Load) -> None:
    """Count the answers, tell what became of memory, and add as faults what should not be."""
    campaign.counts[part] = ours.outcomes
    if mixed := ours.outcomes.get("mixed"):
        campaign.faults.append({"part": part, "outcome": "mixed", "count": mixed})
    more = ours.slope - bare.slope
    if more.grows:
        campaign.faults.append({"part": part, "outcome": "memory grows", "more": str(more)})
    campaign.figures[part] = (
        f"{ours.opened} engines opened and closed in {ours.minutes:.1f} min, at most "
        f"{ours.peak:.0f} MiB resident; memory's slope per 1,000 engines {ours.slope}, of the "
        f"runtime alone {bare.slope} ({bare.opened} opened), ours beyond that {more}"
    )


def main() -> int:
    parser = parser_of(__doc__ or "")
    parser.add_argument("--switches", type=int, default=10_000)
    parser.add_argument("--target", action="append", default=[], choices=tuple(BARE))
    parser.add_argument("--minutes", type=float, default=0, help="over which they are spread")
    given = parser.parse_args()
    campaign = Campaign("load", given.seed, given.results)
    with tempfile.TemporaryDirectory(dir=QUICK) as name:
        folder = Path(name)
        start = material(folder)
        if not campaign.done(f"{PROCESSES} processes at once"):
            at_once(campaign, start, folder)  # before there are threads, which a fork would lose
        for target in given.target or ["onnx"]:
            run(campaign, start, target, given.switches, given.minutes)
            campaign.write("Load", PROTOCOL)
    print(json.dumps(campaign.figures, indent=1))
    return bool(campaign.faults)


if __name__ == "__main__":
    sys.exit(main())
