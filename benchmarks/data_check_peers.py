"""What cleanvision and fastdup find of planted leaks, beside `lorkd data check`.

    python -m venv PEERS && PEERS/bin/pip install cleanvision fastdup pillow
    LORKD_DATA=FOLDER:FOLDER python benchmarks/data_check_peers.py --python PEERS/bin/python

They need an environment of their own; one that isn't installed is told in the result. Of each set
all training images and 100 copies of each kind (those of benchmarks/data_check.py) are written as
PNG files; each tool looks for twins by its defaults, and a copy counts as found where the tool puts
it with its original. Beside it: how many of the set's own test images a tool puts with a training
image; on knee X-rays, whose patients are all known, each of these is a false alarm. Writes
benchmarks/results/data_check_peers.json and .md; no image leaves the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

SETS = ("knee_xray", "brain_mri")
RESULTS = Path(__file__).with_name("results")
TOOLS = ("cleanvision", "fastdup")
QUIET = {"SENTRY_OPT_OUT": "1"}  # fastdup reports errors to its maker otherwise
# What each tool is asked in its own environment: pairs of file names, and its version.
ASK = {
    "cleanvision": """
import json, sys
from importlib.metadata import version
from cleanvision import Imagelab
lab = Imagelab(data_path=sys.argv[1])
lab.find_issues({"exact_duplicates": {}, "near_duplicates": {}}, n_jobs=2, verbose=False)
sets = [s for kind in ("exact_duplicates", "near_duplicates") for s in lab.info[kind]["sets"]]
json.dump({"version": version("cleanvision"), "sets": sets}, open(sys.argv[2], "w"))
""",
    "fastdup": """
import json, sys
from importlib.metadata import version
import fastdup
work = fastdup.create(input_dir=sys.argv[1], work_dir=sys.argv[2] + ".work")
work.run(overwrite=True)
found = work.similarity()
pairs = found[["filename_from", "filename_to"]].values.tolist()
json.dump({"version": version("fastdup"), "sets": pairs}, open(sys.argv[2], "w"))
""",
}


def write(name: str, folder: Path) -> None:
    """All training and test images of a set, and copies of some training images, as PNG files."""
    import numpy as np
    from data_check import PLANTED, SEED, archive_of
    from PIL import Image

    from tests.datacheck.planted import KINDS, copied

    with np.load(archive_of(name), allow_pickle=False) as archive:
        train, test = (archive[f"{split}_images"].squeeze() for split in ("train", "test"))
    folder.mkdir()
    for split, images in (("train", train), ("test", test)):
        for number, image in enumerate(images):
            Image.fromarray(image).save(folder / f"{split}-{number}.png")
    chosen = np.random.default_rng(SEED).choice(len(train), PLANTED, replace=False)
    for kind in KINDS:
        for number in chosen:
            Image.fromarray(copied(train[number], kind)).save(folder / f"{kind}-{number}.png")


def asked(tool: str, python: str, folder: Path) -> dict[str, Any]:
    """The tool's answer, or what it said instead; seconds of its process, imports included."""
    out, code = folder.with_suffix(f".{tool}.json"), folder.with_suffix(f".{tool}.py")
    code.write_text(ASK[tool])
    began, before = time.perf_counter(), os.times()
    command, env = [python, str(code), str(folder), str(out)], {**os.environ, **QUIET}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    after = os.times()
    if done.returncode or not out.exists():
        return {"failed": done.stderr.strip().splitlines()[-1:]}
    cpu = after.children_user + after.children_system - before.children_user
    return {
        **json.loads(out.read_text()),
        "wall_s": round(time.perf_counter() - began, 1),
        "cpu_s": round(cpu - before.children_system, 1),
    }


def counted(sets: Iterable[Iterable[str]]) -> dict[str, Any]:
    """Planted copies found of each kind, and test images that are put with a training image."""
    found: dict[str, set[str]] = {}
    leaks = set()
    for one in sets:
        names = [Path(name).stem.rpartition("-") for name in one]
        originals = {number for kind, _, number in names if kind == "train"}
        for kind, _, number in names:
            if kind == "test" and originals:
                leaks.add(number)
            elif kind != "train" and number in originals:
                found.setdefault(kind, set()).add(number)
    return {"planted": {k: len(v) for k, v in found.items()}, "test_images": len(leaks)}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--python", required=True, help="of the environment with both tools")
    parser.add_argument("--sets", nargs="+", default=SETS)
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as work:
        for name in args.sets:
            folder = Path(work) / name
            write(name, folder)
            for tool in TOOLS:
                answer = asked(tool, args.python, folder)
                sets = answer.pop("sets", None)
                rows.append(
                    {
                        "set": name,
                        "tool": tool,
                        **answer,
                        **(counted(sets) if sets is not None else {}),
                    }
                )
                print(rows[-1], file=sys.stderr, flush=True)
    made = datetime.now(timezone.utc).isoformat(timespec="seconds")
    result = {"made": made, "python": sys.version.split()[0], "rows": rows}
    file = RESULTS / "data_check_peers.json"
    file.write_text(json.dumps(result, indent=1) + "\n")
    file.with_suffix(".md").write_text(markdown(result))


def markdown(result: dict[str, Any]) -> str:
    """The table, from the two JSON files alone."""
    ours = json.loads((RESULTS / "data_check.json").read_text())
    kinds = list(ours["sets"][0]["planted_found"])
    lines = ["# What cleanvision and fastdup find of planted leaks", "",
             f"{result['made']}. By `benchmarks/data_check_peers.py`; of 100 copies of each kind. "
             "lorkd's row is that of [data_check.md](data_check.md), whose copies are the same. "
             "Thresholds are each tool's own; lorkd's were chosen on other copies of these sets.",
             "", f"| set | tool | {' | '.join(kinds)} | test images put with a training image | "
             "CPU s |", "|---|---|" + "---|" * (len(kinds) + 2)]  # fmt: skip
    for name in dict.fromkeys(row["set"] for row in result["rows"]):
        (own,) = (row for row in ours["sets"] if row["set"] == name)
        leaks = sum(f["count"] for f in own["findings"] if f["level"] == "leakage"
                    and "test images" in f["says"] and "train" in f["says"])  # fmt: skip
        cells = [str(own["planted_found"][kind]) for kind in kinds]
        lines.append(f"| {name} | lorkd | {' | '.join(cells)} | {leaks} | {own['cpu_s']} |")
        for row in result["rows"]:
            if row["set"] != name:
                continue
            if "planted" not in row:
                said = " ".join(row.get("failed") or ["no pair"])
                lines.append(f"| {name} | {row['tool']} | not run: {said} |")
                continue
            cells = [str(row["planted"].get(kind, 0)) for kind in kinds]
            lines.append(
                f"| {name} | {row['tool']} {row['version']} | {' | '.join(cells)} | "
                f"{row['test_images']} | {row['cpu_s']} |"
            )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
