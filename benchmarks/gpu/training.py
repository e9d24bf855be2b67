"""Step 4: `decompose` of the seven tasks, in fp32 and bf16: images/s, and where its time goes."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.given import Given
from lorkd_deploy import decompose, load_recipe
from lorkd_deploy.progress import Silent
from lorkd_deploy.run import claim


class Phases(Silent):
    """Seconds of each bar that a command shows, by its title."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._title, self._began = "", 0.0

    def start(self, what: str, total: int) -> None:
        self._title, self._began = what, time.perf_counter()

    def stop(self) -> None:
        spent = time.perf_counter() - self._began
        self.seconds[self._title] = round(self.seconds.get(self._title, 0.0) + spent, 2)


def run(given: Given) -> Iterator[dict[str, Any]]:
    recipe, changes = given.recipe()
    document: dict[str, Any] = {"recipe": load_recipe(recipe, changes).name, "rows": []}
    for precision in ("fp32",) if given.rehearsal else ("fp32", "bf16"):
        out = given.work / f"run-{precision}"
        asked = [*changes, f"train.precision={precision}"]
        if given.run.exists() and out != given.run:  # the teacher is trained once
            own = claim(out, load_recipe(recipe, asked))
            shutil.copytree(given.run / "teacher", own.teacher, dirs_exist_ok=True)
        if given.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        phases, began = Phases(), time.perf_counter()
        result = decompose(recipe, out, set=asked, progress=phases)
        row = {"precision": precision, "seconds": round(time.perf_counter() - began, 2)}
        document["rows"].append(row | _told(out, load_recipe(recipe, asked).train.batch_size))
        row = document["rows"][-1]
        row["phases"] = phases.seconds
        row["test"] = {task.task: task.expert for task in result.tasks}
        if given.device == "cuda":
            row["peak_mib"] = torch.cuda.max_memory_allocated() >> 20
        yield document


def _told(out: Path, batch: int) -> dict[str, Any]:
    history = json.loads((out / "history" / "bundle.json").read_text("utf-8"))
    images = history["steps"] * batch
    return {
        "steps": history["steps"],
        "training_s": history["seconds"],
        "images_per_s": round(images / max(history["seconds"], 0.1), 1),
        "waiting_for_data": history["waiting_for_data"],
        "trained_in": history["precision"],
    }


def lines(document: dict[str, Any]) -> Iterator[str]:
    yield f"`{document['recipe']}`, from start to bundle.\n"
    yield "| precision | s in all | of it training | images/s | waiting for data | peak, MiB |"
    yield "|---|---|---|---|---|---|"
    for row in document["rows"]:
        yield (
            f"| {row['trained_in']} | {row['seconds']:.1f} | {row['training_s']:.1f} "
            f"| {row['images_per_s']:.0f} | {100 * row['waiting_for_data']:.1f} % "
            f"| {row.get('peak_mib', '–')} |"
        )
    for row in document["rows"]:
        parts = ", ".join(f"{name} {spent:.1f}" for name, spent in row["phases"].items())
        yield f"\nSeconds in {row['precision']}: {parts}."
