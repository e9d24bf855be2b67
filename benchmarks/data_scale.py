"""Time and memory of 1,000 to 1,300,000 images: a list's opening, a training's start, a check.

    LORKD_DATA=FOLDER:FOLDER python benchmarks/data_scale.py --work WORK
    LORKD_DATA=… python benchmarks/data_scale.py --work WORK --only open check --sizes 10000

FOLDER are those of the archives (as for benchmarks/data_check.py). Their images are written to WORK
once: 1,000 at 256 px for lists, where every name is a hard link of one of them, so that a list of
1,300,000 has as many names to be found in its folders; and for the check as many different pictures
as it has images, at the archives' own size, turned by 90° and 180° where the archives have too few.

    open    a list of `path label` lines, nothing kept of it; then again, its index being kept
    tasks   the same list as RadImageNet's 11 tasks, each its own classes (`label_range`)
    train   `decompose` at 224 px until 10 steps of the teacher, of 32 images, are done: the check
            for leaks and the trial of both networks' graphs come before them
    check   `check_data` at 224 px; then what a training takes to find that the check was made

A row that is there isn't measured again, so that a stopped benchmark goes on, unless by `--again`.
Writes benchmarks/results/data_scale.{json,md}, after each row.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from data_check import SETS, archive_of
from PIL import Image

PROTOCOL = (
    "Every row is a process of its own: wall and CPU seconds of its work without the imports, the "
    "peak of its resident memory with them. Names are hard links of 1,000 files of 256 px, or for "
    "the check different pictures of 28 or 64 px; the network sees 224 px."
)
RESULTS = Path(__file__).with_name("results")
FILES = 1000
SIZES = {
    "open": (1_000, 10_000, 100_000, 1_300_000),
    "tasks": (1_300_000,),
    "train": (1_000, 10_000, 100_000, 1_300_000),
    "check": (10_000, 100_000),
}
STEPS = 10
SHARES = (("train", 0.8), ("val", 0.9), ("test", 1.0))


def pictures(most: int | None = None) -> Iterator[tuple[int, Image.Image]]:
    """Number and pixels of the archives' images, or of the first `most` of each of their splits;
    when all have been given, they come again turned, by the same numbers."""
    for turn in (None, Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_180):
        number = 0
        for name in SETS:
            with np.load(archive_of(name), allow_pickle=False) as archive:
                for split in ("train", "val", "test"):
                    for pixels in archive[f"{split}_images"][:most]:
                        image = Image.fromarray(pixels.squeeze())
                        yield number, image if turn is None else image.transpose(turn)
                        number += 1


def linked(work: Path, count: int) -> Path:
    """A folder with `count` names, a thousand a folder, and a list for each split."""
    folder, files = work / f"list-{count}", work / "files"
    if (folder / "test.txt").exists():
        return folder
    if not files.exists():
        made = work / "files.new"
        shutil.rmtree(made, ignore_errors=True)
        made.mkdir(parents=True)
        for number, (_, image) in zip(range(FILES), pictures(most=50), strict=False):
            image.resize((256, 256), Image.Resampling.BICUBIC).save(made / f"{number}.png")
        made.rename(files)
    shutil.rmtree(folder, ignore_errors=True)
    classes = 10 if count == FILES else 165
    lines: dict[str, list[str]] = {split: [] for split, _ in SHARES}
    for place in range(count // FILES):
        (folder / f"{place:04}").mkdir(parents=True)
        for number in range(FILES):
            name = f"{place:04}/scan-{place * FILES + number:07}.png"
            os.link(files / f"{number}.png", folder / name)
            share = ((place * FILES + number) * 0.6180339887) % 1
            split = next(split for split, end in SHARES if share < end)
            lines[split].append(f"{name} {(place * FILES + number) % classes}")
    for split, of_split in lines.items():
        (folder / f"{split}.txt").write_text("\n".join(of_split) + "\n")
    return folder


def lists(folder: Path) -> dict[str, str]:
    """The lists in a folder of `linked`, by split."""
    return {split: str(folder / f"{split}.txt") for split, _ in SHARES}


def different(work: Path, count: int) -> Path:
    """`count` different pictures with a CSV; one that is turned is in its original's split."""
    folder = work / f"check-{count}"
    if (folder / "scans.csv").exists():
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    rows = ["path,label,split"]
    for place, (number, image) in zip(range(count), pictures(), strict=False):
        name = f"{place // 1000:04}/{place}.png"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        image.save(folder / name, compress_level=1)
        split = ("train",) * 7 + ("val",) + ("test",) * 2
        rows.append(f"{name},{number // 10 % 10},{split[number * 7919 % 10]}")
    (folder / "scans.csv").write_text("\n".join(rows) + "\n")
    return folder


def recipe(folder: Path, data: dict[str, str]) -> Path:
    """One task at 224 px."""
    light = "torchvision:shufflenet_v2_x0_5"
    made = {
        "name": "scale",
        "data_folder": str(folder),
        "preprocess": {"size": 224},
        "departments": [{"name": "ward", "tasks": [{"name": "scan", "data": data}]}],
        "teacher": {"architecture": light, "train": {"epochs": 1, "batch_size": 32}},
        "student": {"architecture": light},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(made))
    return folder / "recipe.yaml"


class EnoughError(Exception):
    """As many steps as were wanted."""


class Watch:
    """A progress that notes when each bar starts and ends, and ends the training after `STEPS`."""

    def __init__(self) -> None:
        self.began, self._start = time.perf_counter(), 0.0
        self.marks: dict[str, float] = {}
        self._what, self._done = "", 0

    def start(self, what: str, total: int) -> None:
        self._what, self._done, self._start = what, 0, time.perf_counter()

    def advance(self, steps: int = 1, **shown: str) -> None:
        self._done += steps
        if self._what == "teacher":
            self.marks.setdefault("first step", time.perf_counter() - self.began)
            if self._done >= STEPS:
                raise EnoughError

    def stop(self) -> None:
        self.marks[self._what] = time.perf_counter() - self._start


def opened(folder: Path) -> Callable[[], dict[str, Any]]:
    from lorkd_deploy.data import open_data
    from lorkd_deploy.data.list import ListData

    spec = ListData(source="list", **lists(folder))

    def work() -> dict[str, Any]:
        data = open_data(spec)
        return {"images": [len(data.train), len(data.val), len(data.test)]}

    return work


def of_tasks(folder: Path) -> Callable[[], dict[str, Any]]:
    from lorkd_deploy.data import open_every
    from lorkd_deploy.data.list import ListData
    from lorkd_deploy.recipe import load_recipe

    sections = {}
    for task in load_recipe("radimagenet").tasks:
        assert isinstance(task.data, ListData)
        own = {"root": str(folder), "label_range": task.data.label_range}
        sections[task.name] = ListData.model_validate({"source": "list", **lists(folder), **own})

    def work() -> dict[str, Any]:
        return {"images": [len(data.train) for data in open_every(sections)]}

    return work


def trained(folder: Path) -> Callable[[], dict[str, Any]]:
    from lorkd_deploy.training.decompose import decompose

    path = recipe(folder, {"source": "list", "root": str(folder), **lists(folder)})
    out = folder / "run"
    shutil.rmtree(out, ignore_errors=True)

    def work() -> dict[str, Any]:
        watch = Watch()
        with suppress(EnoughError):
            decompose(path, out, progress=watch)
        shutil.rmtree(out, ignore_errors=True)
        return {"stages": {name: round(value, 1) for name, value in watch.marks.items()}}

    return work


def checked(folder: Path) -> Callable[[], dict[str, Any]]:
    from lorkd_deploy.data import open_data
    from lorkd_deploy.datacheck.check import check_data
    from lorkd_deploy.datacheck.kept import Kept
    from lorkd_deploy.recipe import load_recipe

    loaded = load_recipe(recipe(folder, {"source": "csv", "path": "scans.csv"}))

    def work() -> dict[str, Any]:
        watch = Watch()
        (found,) = check_data(loaded, progress=watch).tasks
        began = time.perf_counter()
        (task,) = loaded.tasks
        kept = Kept(task, open_data(task.data, folder), loaded.preprocess).read()
        return {
            "stages": {name: round(value, 1) for name, value in watch.marks.items()},
            "found": [finding.says for finding in found.findings],
            "kept_s": round(time.perf_counter() - began, 1) if kept else None,
        }

    return work


def measure(part: str, count: int, work: Path) -> None:
    """One row, in a process of its own; prints it as JSON."""
    folder = make(part, count, work)
    parts = {"open": opened, "again": opened, "tasks": of_tasks, "train": trained, "check": checked}
    made = parts[part](folder)
    wall, cpu = time.perf_counter(), time.process_time()
    result = made()
    row = {
        "wall_s": round(time.perf_counter() - wall, 1),
        "cpu_s": round(time.process_time() - cpu, 1),
        "peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        **result,
    }
    print(json.dumps(row))


def rows(work: Path, parts: list[str], sizes: list[int], known: dict[str, Any], *, again: bool
         ) -> Iterator[tuple[str, dict[str, Any]]]:  # fmt: skip
    """Name and figures of each row that is to be measured."""
    for part in parts:
        for count in sizes or SIZES[part]:
            if not again and f"{part} {count}" in known:
                continue
            cache = work / f"cache-{part}-{count}"
            shutil.rmtree(cache, ignore_errors=True)
            make(part, count, work)
            for step in ("open", "again") if part == "open" else (part,):
                yield f"{step} {count}", child(step, count, work, cache)
            shutil.rmtree(cache, ignore_errors=True)


def make(part: str, count: int, work: Path) -> Path:
    """The folder with the files, which are there before a process is measured."""
    return (different if part == "check" else linked)(work, count)


def child(part: str, count: int, work: Path, cache: Path) -> dict[str, Any]:
    command = [sys.executable, __file__, "--work", str(work), "--measure", part, str(count)]
    load = os.getloadavg()[0]
    env = {**os.environ, "LORKD_CACHE": str(cache)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{part} {count}:\n{done.stderr[-3000:]}")
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return {"made": _now(), "load_before": round(load, 1), **row}


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--only", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--sizes", nargs="+", type=int, default=[])
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--measure", nargs=2)
    args = parser.parse_args()
    if args.measure:
        measure(args.measure[0], int(args.measure[1]), args.work)
        return
    file = RESULTS / "data_scale.json"

    def measured() -> dict[str, Any]:
        return json.loads(file.read_text())["rows"] if file.exists() else {}

    for name, row in rows(args.work, args.only, args.sizes, measured(), again=args.again):
        known = {**measured(), name: row}  # another part may be measured beside this one
        print(name, row["wall_s"], row["cpu_s"], row["peak_mib"], file=sys.stderr, flush=True)
        result = {"environment": _environment(), "rows": known}
        file.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
        file.with_suffix(".md").write_text(markdown(result))


def _environment() -> dict[str, Any]:
    from lorkd_deploy._version import __version__
    from lorkd_deploy.machine.processor import usable_cpus

    return {
        "lorkd_deploy": __version__,
        "python": sys.version.split()[0],
        "numpy": np.__version__,
        "cpus": usable_cpus(),
        "protocol": PROTOCOL,
    }


def markdown(result: dict[str, Any]) -> str:
    """The tables, from the JSON alone."""
    env, found = result["environment"], result["rows"]
    lines = ["# Time and memory of 1,000 to 1,300,000 images", "",
             f"lorkd-deploy {env['lorkd_deploy']}, Python {env['python']}, NumPy {env['numpy']}, "
             f"{env['cpus']} CPUs. By `benchmarks/data_scale.py`. {env['protocol']}", "",
             "| what | images | wall s | CPU s | peak MiB | stages (wall s) | date, load before |",
             "|---|---|---|---|---|---|---|"]  # fmt: skip
    names = {
        "open": "open a list",
        "again": "open it again",
        "tasks": "open it as 11 tasks",
        "train": f"training, {STEPS} steps",
        "check": "`data check`",
    }
    order = [f"{part} {n}" for part in names for n in SIZES.get(part, SIZES["open"])]
    for name in sorted(found, key=lambda n: order.index(n) if n in order else len(order)):
        part, count = name.split()
        row = found[name]
        stages = ", ".join(f"{stage} {value}" for stage, value in row.get("stages", {}).items())
        if row.get("kept_s") is not None:
            stages += f"; found again by a training in {row['kept_s']}"
        lines.append(
            f"| {names[part]} | {int(count):,} | {row['wall_s']} | {row['cpu_s']} | "
            f"{row['peak_mib']} | {stages} | {row['made'][:16]}, {row['load_before']} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
