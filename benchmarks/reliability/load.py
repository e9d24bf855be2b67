"""Load: threads that switch experts, memory over all of it, and processes that start at once.

    python benchmarks/reliability/load.py --switches 10000 --target onnx

On a run of the tests' tiny network with four tasks. 8 threads share one `Switchboard` whose budget
holds the largest engine alone, so that engines are closed and opened all along. Every answer is
compared, bit for bit, with the asked task's own, which was compared before with the unfused expert
in float64. The process's resident memory is read all along; its slope is that of a line through the
means of blocks, the first fifth left out, with Student's interval of 95 %. Before that 64 processes
predict from one run folder at once. Writes results/reliability-load.json and .md; a target whose
switches were done is left out.
"""

from __future__ import annotations

import itertools
import json
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.reliability.campaign import QUICK, Campaign, parser_of
from benchmarks.reliability.children import Child
from benchmarks.reliability.stages import material
from lorkd_deploy.deploy import switchboard
from lorkd_deploy.deploy.artifact import find_artifacts, open_engine
from lorkd_deploy.deploy.export import export
from lorkd_deploy.deploy.switchboard import MIB, Switchboard
from lorkd_deploy.errors import LorkdError
from lorkd_deploy.machine.memory import resident
from tests.deploy.made_run import OF_TASK, PREPROCESS, true_logits

THREADS, PROCESSES, BLOCKS = 8, 64, 20
T95 = 2.145  # Student's, for the 16 blocks of the last four fifths: 14 degrees of freedom
PROTOCOL = (
    f"{THREADS} threads switch one Switchboard between four experts, its budget being the largest "
    "engine alone, and compare every answer with the asked expert's own, bit for bit. Memory: the "
    "slope of the process's resident memory over the last four fifths, with an interval of 95 %. "
    f"{PROCESSES} processes predict from one run folder at once."
)


def slope(done: Any, mib: Any) -> tuple[float, float, float]:
    """Line through the means of blocks of `mib` over `done` switches: KiB per 1,000, and its
    interval of 95 %; the first fifth of the blocks is left out.
    """
    blocks = np.array_split(np.arange(len(done)), BLOCKS)[BLOCKS // 5 :]
    x = np.array([np.mean(done[block]) for block in blocks]) / 1000
    y = np.array([np.mean(mib[block]) for block in blocks]) * 1024
    away = x - x.mean()
    found = float(away @ y / (away @ away))
    rest = y - y.mean() - found * away
    error = float(np.sqrt(rest @ rest / (len(x) - 2) / (away @ away)))
    return found, found - T95 * error, found + T95 * error


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


def switched(run: Path, target: str, count: int) -> tuple[Counter[str], dict[str, float]]:
    """Outcomes of `count` switches, and the figures of memory."""
    size = PREPROCESS.size
    batch = np.random.default_rng(5).normal(size=(3, 3, size, size)).astype(np.float32)
    known = own_answers(run, target, batch)
    budget = max(a.bytes for a in find_artifacts(run) if a.target == target) / MIB
    outcomes: Counter[str] = Counter()
    numbers, turn = itertools.count(), threading.Lock()
    samples: list[tuple[int, float]] = []
    every = max(1, count // 400)

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        while (number := next(numbers)) < count:
            task = list(OF_TASK)[rng.integers(len(OF_TASK))]
            with board.department(OF_TASK[task], task) as engine:
                right = np.array_equal(engine(batch), known[task])
            with turn:
                outcomes["right" if right else "mixed"] += 1
                if number % every == 0:
                    samples.append((number, resident().now or 0.0))

    began, opened = time.monotonic(), _Opened()
    with (
        patch.object(switchboard, "open_engine", opened),
        Switchboard(run, target, budget=budget) as board,
        ThreadPoolExecutor(THREADS) as pool,
    ):
        list(pool.map(work, range(THREADS)))
    done, mib = np.array(sorted(samples)).T
    found = dict(zip(("KiB", "low", "high"), slope(done, mib), strict=True))
    minutes = (time.monotonic() - began) / 60
    return outcomes, found | {"minutes": minutes, "opened": opened.count, "MiB": float(mib[-1])}


class _Opened:
    """`open_engine`, counted."""

    count = 0

    def __call__(self, *given: Any) -> Any:
        self.count += 1
        return open_engine(*given)


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


def run(campaign: Campaign, start: Path, folder: Path, target: str, switches: int) -> None:
    """The threads' switches for `target`, unless they were done."""
    part = f"switches, {target}"
    if campaign.done(part) >= switches:
        return
    export(start / "run", target)
    outcomes, figures = switched(start / "run", target, switches)
    campaign.counts[part] = dict(outcomes)
    if outcomes["mixed"]:
        campaign.faults.append({"part": part, "outcome": "mixed", "count": outcomes["mixed"]})
    campaign.figures[part] = (
        f"{figures['opened']} engines were opened and closed in {figures['minutes']:.1f} min; "
        f"resident memory at the end {figures['MiB']:.0f} MiB, slope {figures['KiB']:+.1f} KiB per "
        f"1,000 switches (95 %: {figures['low']:+.1f} to {figures['high']:+.1f})"
    )


def main() -> int:
    parser = parser_of(__doc__ or "")
    parser.add_argument("--switches", type=int, default=10_000)
    parser.add_argument("--target", action="append", default=[])
    given = parser.parse_args()
    campaign = Campaign("load", given.seed, given.results)
    with tempfile.TemporaryDirectory(dir=QUICK) as name:
        folder = Path(name)
        start = material(folder)
        if not campaign.done(f"{PROCESSES} processes at once"):
            at_once(campaign, start, folder)  # before there are threads, which a fork would lose
        for target in given.target or ["onnx"]:
            run(campaign, start, folder, target, given.switches)
            campaign.write("Load", PROTOCOL)
    print(json.dumps(campaign.figures, indent=1))
    return bool(campaign.faults)


if __name__ == "__main__":
    sys.exit(main())
