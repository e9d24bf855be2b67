"""What the campaign's scripts share: a state that is resumed, results with their protocol."""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lorkd_deploy.machine.environment import environment
from lorkd_deploy.storage import write_atomic

RESULTS = Path(__file__).parents[1] / "results"
QUICK = "/dev/shm" if Path("/dev/shm").is_dir() else None  # where a file costs no disk's time


class Campaign:
    """Counts by part and outcome, and what was missed, in `results/reliability-NAME.json`.

    It is written after every batch, so that the same call goes on where it was stopped: trial `i`
    is a function of seed and `i` alone.
    """

    def __init__(self, name: str, seed: int, folder: Path = RESULTS) -> None:
        self.name, self.seed, self.machine = name, seed, environment()
        self.file = folder / f"reliability-{name}.json"
        self.counts: dict[str, dict[str, int]] = {}
        self.faults: list[dict[str, Any]] = []
        self.figures: dict[str, str] = {}  # what else was measured of a part, in words
        if self.file.exists():
            known = json.loads(self.file.read_text(encoding="utf-8"))
            if known["seed"] == seed:
                self.counts, self.faults = known["counts"], known["faults"]
                self.figures = known.get("figures", {})

    def done(self, part: str) -> int:
        """How many trials of a part there were."""
        return sum(self.counts.get(part, {}).values())

    def add(self, part: str, outcome: str, fault: dict[str, Any] | None = None) -> None:
        """Count one trial; `fault` describes one that should not be."""
        of = self.counts.setdefault(part, {})
        of[outcome] = of.get(outcome, 0) + 1
        if fault is not None:
            self.faults.append({"part": part, "outcome": outcome, **fault})

    def trials(
        self, parts: Sequence[str], count: int, batch: int, title: str, protocol: str
    ) -> Iterator[tuple[int, str, np.random.Generator]]:
        """Number, part and chance of those of `count` trials that weren't done, the parts in turn.

        Each is counted by `add` before the next one is taken; results are written every `batch`.
        """
        for number in range(sum(map(self.done, parts)), count):
            chance = np.random.default_rng([self.seed, number])
            yield number, parts[number % len(parts)], chance
            if number % batch == batch - 1 or number == count - 1:
                self.write(title, protocol)

    def write(self, title: str, protocol: str) -> None:
        """Write counts and faults, as JSON and as a table."""
        machine = self.machine
        document = {
            "seed": self.seed,
            "measured": time.strftime("%Y-%m-%d"),
            "protocol": protocol,
            "counts": self.counts,
            "faults": self.faults,
            **({"figures": self.figures} if self.figures else {}),
            "environment": machine.model_dump(mode="json"),
            "load_average": os.getloadavg(),
        }
        outcomes = sorted({name for of in self.counts.values() for name in of})
        lines = [
            f"# {title}",
            "",
            f"{protocol} Measured {document['measured']} on {machine.cpu}, "
            f"{machine.allowed_cpus} CPUs, Python {machine.python}, seed {self.seed}; versions are "
            f"in `{self.file.name}`. The machine was busy: no times are claimed.",
            "",
            "| part | trials | " + " | ".join(outcomes) + " |",
            "|---|---:|" + "---:|" * len(outcomes),
            *(
                f"| {part} | {sum(of.values())} | "
                + " | ".join(str(of.get(name, 0)) for name in outcomes)
                + " |"
                for part, of in self.counts.items()
            ),
        ]
        told = [f"- {part}: {figure}." for part, figure in self.figures.items()]
        told += [f"- {fault}" for fault in self.faults[:20]]
        lines += [""] * bool(told) + told
        write_atomic(self.file, (json.dumps(document, indent=1) + "\n").encode())
        write_atomic(self.file.with_suffix(".md"), ("\n".join(lines) + "\n").encode())


def parser_of(description: str) -> argparse.ArgumentParser:
    """`--seed` and `--results` of a script."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=RESULTS)
    return parser


def arguments(description: str, count: int) -> argparse.Namespace:
    """These and `--count` (of each part)."""
    parser = parser_of(description)
    parser.add_argument("--count", type=int, default=count)
    return parser.parse_args()
