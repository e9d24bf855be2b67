"""Ten steps of a student in float64, by as many processes as it is started with.

`torchrun --nproc-per-node 2 tests/training/ten_steps.py FOLDER` writes `FOLDER/2.safetensors`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from lorkd_deploy.progress import Silent
from lorkd_deploy.recipe import Recipe, parse_recipe
from lorkd_deploy.training.checkpoint import Checkpoints
from lorkd_deploy.training.decompose import Student, build_student
from lorkd_deploy.training.distributed import joined
from lorkd_deploy.training.evaluate import network_input
from lorkd_deploy.training.loader import Batch
from lorkd_deploy.training.loop import Loss, fit
from lorkd_deploy.training.losses import batch_accuracy, label_loss, transfer_loss
from lorkd_deploy.training.setup import Setup, open_setup
from lorkd_deploy.training.teacher import batch_task
from tests.tiny_recipe import tiny_recipe

STEPS = 10


def recipe() -> Recipe:
    """Three images a step of three tasks, so that one is often absent, here or altogether."""
    train = {
        "epochs": 1,
        "batch_size": 3,
        "temperature": 1,
        "lr": 0.1,
        "weight_decay": 0.05,
        "shift": 0.1,
    }
    student = {"architecture": "tests.tiny_backbone:without_batch_statistics"}
    experts = {"rank": 2, "alpha": 6, "norm": "per_task"}
    made = tiny_recipe(train=train, student=student, experts=experts, transfer={"kind": "none"})
    return parse_recipe(made, where="test")


def run(folder: Path) -> None:
    """Train, and let the first process write what has been learnt."""
    with joined() as processes:
        setup = open_setup(recipe(), processes)
        torch.manual_seed(processes.index)  # the first one's weights have to win
        student = build_student(setup, None)
        student.projection = nn.Linear(12, 8)
        student.double()
        scores = count()
        fitted = fit(
            student,
            setup.loader(setup.recipe.train, STEPS),
            setup.recipe.train,
            objective=_objective(student, setup),
            validate=lambda: {"score": float(next(scores))},  # the last state is the best
            checkpoints=Checkpoints(folder / "checkpoints", "recipe"),
            steps=STEPS,
            validate_steps=STEPS,
            seed=1,
            resume=False,
            progress=Silent(),
            what="decompose",
            processes=processes,
        )
        if processes.leads:
            state = {k: v.contiguous() for k, v in student.state_dict().items()}
            losses = {f"loss/{k}": torch.tensor(v) for k, v in fitted.history[-1].items()}
            save_file(state | losses, folder / f"{processes.count}.safetensors")


def _objective(student: Student, setup: Setup) -> Callable[[Batch], Loss]:
    def objective(batch: Batch) -> Loss:
        x = network_input(batch.images, setup.recipe.preprocess, torch.device("cpu")).double()
        output = student.classifier(x, batch_task(batch, x.device))
        labels = [torch.from_numpy(part) for part in batch.labels]
        parts = {
            "labels": label_loss(output.logits, labels, setup.kinds),
            "transfer": transfer_loss(student.projection(_teacher(x)), output.features, 2.0),
        }
        return Loss(parts, batch_accuracy(output.logits, labels, setup.kinds))

    return objective


def _teacher(x: Tensor) -> Tensor:
    """Twelve numbers an image, which stand for a teacher's features."""
    return nn.functional.adaptive_avg_pool2d(x, 2).flatten(1)


if __name__ == "__main__":
    run(Path(sys.argv[1]))
