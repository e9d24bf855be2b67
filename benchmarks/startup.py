"""How long a user waits before `lorkd` says anything: fresh processes, wall clock and CPU time.

    lorkd demo --out DEMO
    python benchmarks/startup.py --run DEMO [--rounds 31]

Each round starts every variant once, in turn: Python that does nothing, `import typer`, and the
commands. Of the run DEMO one department is packed, its engines are checked (`verify`), and one
picture is answered by one of them (`predict`, ONNX Runtime). Writes benchmarks/results/startup.json
and startup.md.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from document import Conditions, loads, write
from PIL import Image

from lorkd_deploy import load_bundle, pack

ROUNDS = 31
LIMITS = {"lorkd --help": 0.25, "lorkd predict": 0.6, "lorkd verify": 2.0}  # s
LORKD = [sys.executable, "-m", "lorkd_deploy"]
VARIANTS = {
    "python, nothing imported": [sys.executable, "-c", "pass"],
    "import typer": [sys.executable, "-c", "import typer"],
    "lorkd --help": [*LORKD, "--help"],
    "lorkd export --help": [*LORKD, "export", "--help"],
    "lorkd --version": [*LORKD, "--version"],
    "lorkd recipe list": [*LORKD, "recipe", "list"],
}


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


def of_department(run: Path, work: Path) -> dict[str, list[str]]:
    """Commands on one department of `run`, packed below `work`."""
    bundle = load_bundle(run / "bundle")
    entry = bundle.manifest.tasks[0]
    packed = work / "department"
    pack(run, entry.department, packed)
    picture = work / "picture.png"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(picture)
    return {
        "lorkd verify": [*LORKD, "verify", str(packed)],
        "lorkd predict": [*LORKD, "predict", str(packed), "--task", entry.name, str(picture)],
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--run", required=True, type=Path, help="a run with engines, as of the demo"
    )
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        return report(VARIANTS | of_department(options.run, Path(work)), options.rounds)


def report(variants: dict[str, list[str]], rounds: int) -> int:
    """Measure `variants`, write what was found; 1 where one is above its limit."""
    measured: dict[str, list[tuple[float, float]]] = {name: [] for name in variants}
    conditions = Conditions()
    for round_ in range(rounds + 1):
        for name, command in variants.items():
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
    bounds = "Bounds: " + ", ".join(f"`{name}` {limit} s" for name, limit in LIMITS.items())
    document = {
        "rounds": rounds,
        "limits_s": LIMITS,
        **conditions.now(),
        "seconds": rows,
    }
    machine = document["environment"]
    lines = [
        "# Start of the command line",
        "",
        f"Fresh processes, {rounds} rounds, variants in turn, warm disk cache. "
        f"Measured {document['measured']} on {machine['cpu']}, "
        f"{machine['allowed_cpus']} CPUs, Python {machine['python']}, {loads(document)} (where it "
        f"is above the number of CPUs, the wall clock holds waiting for others). {bounds}. "
        "`verify` is of one department's engines, `predict` of one picture by ONNX Runtime, "
        "with the engine's start.",
        "",
        "| what | median s | min s | max s | CPU median s |",
        "|---|---:|---:|---:|---:|",
        *(
            f"| `{name}` | {row['wall_median_s']:.3f} | {row['wall_minimum_s']:.3f} "
            f"| {row['wall_maximum_s']:.3f} | {row['cpu_median_s']:.3f} |"
            for name, row in rows.items()
        ),
    ]
    text = "\n".join(lines) + "\n"
    write("startup", document, text)
    print(text)
    return int(any(rows[name]["wall_median_s"] >= limit for name, limit in LIMITS.items()))


if __name__ == "__main__":
    sys.exit(main())
