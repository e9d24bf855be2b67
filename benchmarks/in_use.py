"""Calibration, coverage, and what the maps are worth, on a run's own tasks.

    python benchmarks/in_use.py RUN [--images 64]

RUN is a finished decomposition with `safety.temperature` and `safety.coverage` whose images are
here. Calibration error, Brier score, coverage and referrals are those that its bundle recorded when
it was made: of the unfused model, on the whole test split, temperature fitted on one half of the
validation images, quantiles on the other. Maps are computed here, in torch, on `--images` images
spread evenly over each test split: the area above half the largest, deletion and insertion
(`safety/explanation.py`), and the latter two again by pixels in random order, which a map has to
beat. Where RUN/teacher is and has maps, the foundation model's beside them, and the difference
paired by image; `--images 0` leaves maps out. Intervals are 95 %.
Writes benchmarks/results/in_use.json and .md.
"""

from __future__ import annotations

import argparse
import json
import pathlib
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from typing import Any

import numpy as np
import torch

from lorkd_deploy import load_bundle, models
from lorkd_deploy.bundle.manifest import HEAD, TaskEntry
from lorkd_deploy.bundle.read import Bundle
from lorkd_deploy.errors import ModelError
from lorkd_deploy.machine.environment import environment
from lorkd_deploy.metrics.interval import of_mean
from lorkd_deploy.run import open_run
from lorkd_deploy.safety.explanation import area
from lorkd_deploy.safety.held_out import halves
from lorkd_deploy.training.networks.explained import Explained
from lorkd_deploy.training.networks.restore import restored

RESULTS = pathlib.Path(__file__).parent / "results"
COLUMNS = ("area", "deletion", "insertion", "deletion, random", "insertion, random")


def interval(values: Any) -> dict[str, float] | None:
    """The mean of what is a number, with its interval."""
    kept = values[~np.isnan(values)]
    return of_mean(kept).model_dump() if len(kept) else None


def experts(bundle: Bundle) -> Callable[[int], Explained]:
    """The networks of a decomposition's tasks by their place."""
    known = bundle.manifest
    own = {task.name: bundle.expert(task.name) for task in known.tasks}
    model = restored(known, known.tasks, bundle.base, own)
    return lambda place: Explained(*model.dense(place), known.preprocess)


def foundation(bundle: Bundle, names: list[str]) -> Callable[[int], Explained]:
    """The teacher's, by the place of the task in the decomposition."""
    known = bundle.manifest
    backbone = models.build(known.architecture, known.network_config).eval()
    backbone.load_state_dict({k: torch.tensor(v) for k, v in bundle.base.items()}, strict=False)

    def made(place: int) -> Explained:
        state = {
            name.removeprefix(HEAD): torch.tensor(value)
            for name, value in bundle.expert(names[place]).items()
        }
        head = torch.nn.Linear(*state["weight"].shape[::-1])
        head.load_state_dict(state)
        return Explained(backbone, head, known.preprocess)

    return made


def figures(one: Explained, pictures: list[Any], kind: Any) -> Any:
    """`COLUMNS` of each image, `(n, 5)`."""
    images = np.stack([one.preprocess.geometry(picture) for picture in pictures])
    parts = np.array_split(images, -(-len(images) // 16))
    logits = np.concatenate([one.logits(part) for part in parts])
    maps = one.maps(images)
    side = one.preprocess.size
    areas = [area(of[row.argmax()], side) for of, row in zip(maps, logits, strict=True)]
    shuffled = np.random.default_rng(0).random((*maps.shape[:2], side, side)).astype(np.float32)
    own, random = (one.faithful(images, by, logits, kind) for by in (maps, shuffled))
    return np.column_stack([areas, own, random]), maps.shape[2:]


def of_task(
    place: int, entry: TaskEntry, bundle: Bundle, networks: dict[str, Any], count: int
) -> dict[str, Any]:
    data = bundle.data(entry.name)
    rows = np.unique(np.linspace(0, len(data.test) - 1, min(count, len(data.test))).astype(int))
    pictures = [data.test.images[int(row)] for row in rows]
    found: dict[str, Any] = {"images": len(rows), "test": len(data.test)}
    selecting, held_out = halves(data.val.labels, data.val.groups, bundle.recipe.seed)
    found |= {"selection": len(selecting), "held_out": len(held_out)}
    found["safety"] = entry.safety.model_dump(mode="json", exclude={"guard"})
    values = {}
    for name, made in networks.items():
        try:
            values[name], grid = figures(made(place), pictures, entry.kind)
        except ModelError as exc:
            found[name] = exc.what
            continue
        found[name] = {c: interval(values[name][:, k]) for k, c in enumerate(COLUMNS)}
        found[name]["map"] = list(map(int, grid))
    if len(values) == 2:
        paired = values["expert"] - values["foundation model"]
        found["expert minus foundation model"] = {
            column: interval(paired[:, k]) for k, column in enumerate(COLUMNS[:3])
        }
    return found


def measure(run: pathlib.Path, count: int) -> dict[str, Any]:
    opened = open_run(run)
    bundle = load_bundle(opened.bundle)
    networks: dict[str, Any] = {"expert": experts(bundle)} if count else {}
    if count and opened.teacher.exists():
        names = [task.name for task in bundle.manifest.tasks]
        networks["foundation model"] = foundation(load_bundle(opened.teacher), names)
    tasks = {}
    for place, entry in enumerate(bundle.manifest.tasks):
        tasks[entry.name] = of_task(place, entry, bundle, networks, count)
        print(entry.name, flush=True)
    return {
        "bundle": bundle.sha256,
        "made": bundle.manifest.created,
        "architecture": bundle.manifest.architecture,
        "size": bundle.manifest.preprocess.size,
        "tasks": tasks,
        "versions": bundle.manifest.versions,
        "environment": environment().model_dump(mode="json"),
        "measured": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def cell(found: dict[str, float] | None) -> str:
    if found is None:
        return "–"
    return f"{found['value']:.3f} ({found['low']:.3f} to {found['high']:.3f})"


def markdown(found: dict[str, Any]) -> Iterator[str]:
    yield "# In use: calibration, coverage and maps"
    yield ""
    yield (
        f"{found['architecture']} at {found['size']} px, {len(found['tasks'])} tasks; bundle made "
        f"{found['made']}, written {found['measured']}. The protocol stands in "
        "`benchmarks/in_use.py`; brackets are 95 % intervals."
    )
    yield "\n## Calibration, on the test split\n"
    yield "| task | images | T | ECE before | after | Brier before | after |\n" + "|---" * 7 + "|"
    for name, task in found["tasks"].items():
        if known := task["safety"].get("temperature"):
            before, after = known["before"], known["after"]
            pair = [
                cell(side[key])
                for key in ("calibration_error", "brier")
                for side in (before, after)
            ]
            yield f"| {name} | {task['test']} | {known['value']:.2f} | {' | '.join(pair)} |"
    yield "\n## Coverage and referrals, on the test split\n"
    yield "| task | held out | asked for | found | referred |\n" + "|---" * 5 + "|"
    for name, task in found["tasks"].items():
        for part in (task["safety"].get("coverage") or {"tested": ()})["tested"]:
            share = f"{part['coverage']:.0%}"
            cells = f"{cell(part['found'])} | {cell(part['referred'])}"
            yield f"| {name} | {task['held_out']} | {share} | {cells} |"
    if not any(task["images"] for task in found["tasks"].values()):
        yield "\nMaps were not measured in this run of the script (`--images 0`)."
        return
    yield "\n## Maps of the most probable class\n"
    yield "| task | model | images | map | " + " | ".join(COLUMNS) + " |\n" + "|---" * 9 + "|"
    for name, task in found["tasks"].items():
        for model in ("foundation model", "expert", "expert minus foundation model"):
            known = task.get(model)
            if isinstance(known, str):
                yield f"| {name} | {model} | {known} |" + " |" * 6
            elif known is not None:
                grid = "×".join(map(str, known.get("map", ()))) or "–"
                cells = [cell(known.get(column)) for column in COLUMNS]
                yield f"| {name} | {model} | {task['images']} | {grid} | {' | '.join(cells)} |"
    yield (
        "\nA map is worth something where its deletion is below, and its insertion above, those of "
        "a random order."
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("run", type=pathlib.Path)
    parser.add_argument("--images", type=int, default=64)
    given = parser.parse_args()
    found = measure(given.run, given.images)
    text = json.dumps(found, indent=1, sort_keys=True)
    (RESULTS / "in_use.json").write_text(text + "\n", encoding="utf-8")
    (RESULTS / "in_use.md").write_text("\n".join([*markdown(found), ""]), encoding="utf-8")


if __name__ == "__main__":
    main()
