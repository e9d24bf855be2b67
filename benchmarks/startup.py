"""How long a user waits before `lorkd` says anything: fresh processes, wall clock and CPU time.

    python benchmarks/startup.py

Each round starts every variant once, in turn: Python that does nothing, `import typer`, and the
commands. Writes benchmarks/results/startup.json and startup.md.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from lorkd_deploy.machine.environment import environment

ROUNDS = 31
LIMIT = 0.25  # s, `lorkd --help`
LORKD = [sys.executable, "-m", "lorkd_deploy"]
VARIANTS = {
    "python, nothing imported": [sys.executable, "-c", "pass"],
    "import typer": [sys.executable, "-c", "import typer"],
    "lorkd --help": [*LORKD, "--help"],
    "lorkd export --help": [*LORKD, "export", "--help"],
    "lorkd --version": [*LORKD, "--version"],
    "lorkd recipe list": [*LORKD, "recipe", "list"],
}
RESULTS = Path(__file__).parent / "results"


def measure(command: list[str]) -> tuple[float, float]:
    """Wall clock and CPU time (user and system) of one fresh process, s."""
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return wall, usage.ru_utime + usage.ru_stime


def main() -> int:
    measured: dict[str, list[tuple[float, float]]] = {name: [] for name in VARIANTS}
    before = os.getloadavg()
    for round_ in range(ROUNDS + 1):
        for name, command in VARIANTS.items():
            figures = measure(command)
            if round_:  # the first round fills the disk cache
                measured[name].append(figures)
    rows = {}
    for name, pairs in measured.items():
        wall, cpu = zip(*pairs, strict=True)
        rows[name] = {
            "wall_median_s": round(statistics.median(wall), 4),
            "wall_minimum_s": round(min(wall), 4),
            "wall_maximum_s": round(max(wall), 4),
            "cpu_median_s": round(statistics.median(cpu), 4),
        }
    machine = environment()
    document = {
        "rounds": ROUNDS,
        "limit_s": LIMIT,
        "measured": time.strftime("%Y-%m-%d"),
        "environment": machine.model_dump(mode="json"),
        "load_average": {"before": before, "after": os.getloadavg()},
        "seconds": rows,
    }
    (RESULTS / "startup.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    lines = [
        "# Start of the command line",
        "",
        f"Fresh processes, {ROUNDS} rounds, variants in turn, warm disk cache. "
        f"Measured {document['measured']} on {machine.cpu}, "
        f"{machine.allowed_cpus} CPUs, Python {machine.python}, load average {before[0]:.1f} at "
        f"the start and {os.getloadavg()[0]:.1f} at the end (where it is above the number of CPUs, "
        f"the wall clock holds waiting for others). `lorkd --help` has to stay below {LIMIT} s.",
        "",
        "| what | median s | min s | max s | CPU median s |",
        "|---|---:|---:|---:|---:|",
        *(
            f"| `{name}` | {row['wall_median_s']:.3f} | {row['wall_minimum_s']:.3f} "
            f"| {row['wall_maximum_s']:.3f} | {row['cpu_median_s']:.3f} |"
            for name, row in rows.items()
        ),
    ]
    (RESULTS / "startup.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))
    return 0 if rows["lorkd --help"]["wall_median_s"] < LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())
