"""Whether a training waits for its images: the loader's images/s beside the student's own.

    python benchmarks/loader.py [--rounds 5] [--steps 30] [--threads 2]

Seven tasks of random images at network size, 64 px, in memory, and batches of 128 drawn from them
as a training does; the student is ShuffleNetV2 0.5x with experts, a step is forward, backward and
AdamW's update. For each set of augmentations, in turn: the loader alone, as fast as it gives
batches; the student alone, on one batch again and again; and both, as in a training, with the share
of the time in which the loop waited. Writes benchmarks/results/loader.json and loader.md.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lorkd_deploy.data import Split
from lorkd_deploy.experts import ExpertClassifier, add_experts, hold_absent
from lorkd_deploy.machine.environment import environment
from lorkd_deploy.models import build, feature_dim
from lorkd_deploy.preprocess import Preprocess
from lorkd_deploy.recipe import Rotation
from lorkd_deploy.training.batches.loader import Augment, Batch, Images, Loader
from lorkd_deploy.training.batches.sampler import MixedSampler
from lorkd_deploy.training.networks.network import network_input

RESULTS = Path(__file__).parent / "results"
SIZES = (546, 2000, 800, 1080, 2000, 2000, 2000)  # images a task, as of recipes/seven-tasks.yaml
PREPROCESS = Preprocess(size=64, mean=(0.5,) * 3, std=(0.5,) * 3)
BATCH, CLASSES = 128, 4
AUGMENTED = {
    "nothing": Augment(flip=False, shift=0.0, seed=0),
    "flip and shift": Augment(flip=True, shift=0.125, seed=0),
    "flip, shift and rotation": Augment(True, 0.125, 0, (Rotation(kind="rotation"),)),
}


class Student:
    """A student with experts, and its step."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        backbone = build("torchvision:shufflenet_v2_x0_5")
        width = feature_dim(backbone, PREPROCESS.size)
        experts = add_experts(backbone, len(SIZES), rank=16)
        self.network = ExpertClassifier(experts, width, [CLASSES] * len(SIZES))
        self.network.to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=1e-3, foreach=True)
        hold_absent(self.optimizer)

    def step(self, batch: Batch) -> None:
        x = network_input(batch.images, PREPROCESS, self.network)
        logits = self.network(x, batch.route(x.device)).logits
        labels = [torch.from_numpy(own) for own in batch.labels]
        losses = [
            torch.nn.functional.cross_entropy(z, y, reduction="sum")
            for z, y in zip(logits, labels, strict=True)
            if len(y)
        ]
        self.optimizer.zero_grad()
        (torch.stack(losses).sum() / batch.total).backward()
        self.optimizer.step()


def tasks() -> list[Images]:
    rng = np.random.default_rng(0)
    shape = (PREPROCESS.size, PREPROCESS.size, 3)
    return [
        Images(
            Split(
                list(rng.integers(0, 256, (size, *shape), dtype=np.uint8)),
                rng.integers(0, CLASSES, size),
            ),
            PREPROCESS,
        )
        for size in SIZES
    ]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    before, images, student = os.getloadavg()[0], tasks(), Student()
    sampler = MixedSampler(SIZES, BATCH, 2.0, 0, options.steps)
    seen: dict[tuple[str, str], list[float]] = defaultdict(list)
    for turn in range(options.rounds + 1):
        for name, augment in AUGMENTED.items():
            found = of_round(Loader(images, sampler, augment), student, options.steps)
            for what, figure in found.items() if turn else ():  # the first one warms up
                seen[name, what].append(figure)
    figures = {
        "measured": time.strftime("%Y-%m-%d"),
        "protocol": vars(options) | {"batch": BATCH, "images_per_task": SIZES, "pixels": 64},
        "load": [before, os.getloadavg()[0]],
        "environment": environment().model_dump(mode="json"),
        "medians": {
            name: {what: statistics.median(seen[name, what]) for what in found}
            for name in AUGMENTED
        },
    }
    (RESULTS / "loader.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    (RESULTS / "loader.md").write_text(markdown(figures), encoding="utf-8")
    print(markdown(figures))
    return 0


def of_round(loader: Loader, student: Student, steps: int) -> dict[str, float]:
    """Images/s of the loader alone, the student alone and both, and the share of waiting."""
    began = time.perf_counter()
    for batch in loader.batches():
        last = batch
    alone = time.perf_counter() - began
    began = time.perf_counter()
    for _ in range(steps):
        student.step(last)
    own = time.perf_counter() - began
    loader.waiting = 0.0
    began = time.perf_counter()
    for batch in loader.batches():
        student.step(batch)
    both = time.perf_counter() - began
    seen = BATCH * steps
    return {"loader": seen / alone, "student": seen / own, "both": seen / both,
            "waiting": loader.waiting / both}  # fmt: skip


def markdown(figures: dict[str, Any]) -> str:
    """A row a set of augmentations."""
    how, machine, load = figures["protocol"], figures["environment"], figures["load"]
    lines = [
        "# Does a training wait for its images",
        "",
        f"Images/s, medians of {how['rounds']} rounds of {how['steps']} batches of {how['batch']} "
        f"at {how['pixels']} px, {how['threads']} threads for torch; images in memory, at network "
        "size. The student (ShuffleNetV2 0.5x, seven experts of rank 16) runs on one batch when it "
        f"is alone. {machine['cpu']}, {machine['allowed_cpus']} CPUs, Python {machine['python']}, "
        f"torch {machine['packages'].get('torch', torch.__version__)}, {figures['measured']}, load "
        f"{load[0]:.1f} → {load[1]:.1f}. `benchmarks/loader.py`.",
        "",
        "| changed at random | loader alone | student alone | both, a training | waiting |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, row in figures["medians"].items():
        each = " | ".join(f"{row[what]:.0f}" for what in ("loader", "student", "both"))
        lines.append(f"| {name} | {each} | {100 * row['waiting']:.2f} % |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    raise SystemExit(main())
