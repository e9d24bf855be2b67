"""Ten steps of a student in float64, by as many processes as it is started with.

`torchrun --nproc-per-node 2 tests/training/ten_steps.py FOLDER` writes `FOLDER/2.safetensors`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce

from lorkd_deploy.progress import Silent
from lorkd_deploy.recipe import Recipe, parse_recipe
from lorkd_deploy.training.batches.loader import Batch
from lorkd_deploy.training.batches.setup import Setup, open_setup
from lorkd_deploy.training.fitting import batch_statistics
from lorkd_deploy.training.fitting.checkpoint import Checkpoints
from lorkd_deploy.training.fitting.loop import Loss, fit
from lorkd_deploy.training.fitting.losses import batch_accuracy, label_loss, transfer_loss
from lorkd_deploy.training.fitting.processes import Processes, joined
from lorkd_deploy.training.networks.evaluate import network_input, scores
from lorkd_deploy.training.networks.student import Student, build_student
from tests.tiny_recipe import tiny_recipe

STEPS = 10


class Here(nn.SyncBatchNorm):
    """What torch's does on GPUs, on any device: statistics over all processes' samples."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        over = [0, 2, 3]
        count = all_reduce(torch.tensor(float(x.numel() // x.shape[1])).double())
        mean = all_reduce(x.sum(over)) / count
        square = all_reduce((x - mean.view(1, -1, 1, 1)).square().sum(over))
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(square / (count - 1), self.momentum)
        scale = self.weight / (square / count + self.eps).sqrt()
        return (x - mean.view(1, -1, 1, 1)) * scale.view(1, -1, 1, 1) + self.bias.view(1, -1, 1, 1)

    @classmethod
    def around(cls, norm: nn.Module) -> Here:
        """The layer `norm`, sharing its tensors."""
        made = cls(norm.num_features)
        made._parameters, made._buffers = norm._parameters, norm._buffers
        return made


def recipe(backbone: str = "without_batch_statistics") -> Recipe:
    """Three images a step of three tasks, so that one is often absent, here or altogether."""
    train = {
        "epochs": 1,
        "batch_size": 3,
        "temperature": 1,
        "lr": 0.1,
        "weight_decay": 0.05,
        "shift": 0.1,
    }
    student = {"architecture": f"tests.tiny_backbone:{backbone}"}
    experts = {"rank": 2, "alpha": 6, "norm": "per_task"}
    made = tiny_recipe(train=train, student=student, experts=experts, transfer={"kind": "none"})
    made["departments"][0]["tasks"][0]["data"]["val"] = 300  # which both score a part of
    return parse_recipe(made, where="test")


def run(folder: Path) -> None:
    """Train both students, and let the first process write what they have learnt."""
    with joined() as processes:
        for backbone in ("without_batch_statistics", "backbone"):
            train(folder / backbone, backbone, processes)


def train(folder: Path, backbone: str, processes: Processes) -> None:
    """Ten steps of one student."""
    setup = open_setup(recipe(backbone), processes)
    torch.manual_seed(processes.index)  # the first one's weights have to win
    student = build_student(setup, None)
    student.projection = nn.Linear(12, student.classifier.heads.head(0).in_features)
    student.double()
    # Images come in float32, and the first figures differ in what rounding leaves of them.
    student.classifier.register_forward_pre_hook(lambda _, given: (given[0].double(), *given[1:]))

    def validate() -> dict[str, float]:
        found = scores(student.classifier, setup.val, setup.kinds, setup.recipe.preprocess,
                       processes)  # fmt: skip
        each = zip(setup.names, found, strict=True)
        return {"score": 1.0} | {f"{task}/{k}": v for task, of in each for k, v in of.items()}

    fitted = fit(
        student,
        setup.loader(setup.recipe.train, STEPS),
        setup.recipe.train,
        objective=_objective(student, setup),
        validate=validate,
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
        figures = {f"figures/{k}": torch.tensor(v) for k, v in fitted.history[-1].items()}
        folder.mkdir(exist_ok=True)
        save_file(state | figures, folder / f"{processes.count}.safetensors")


def _objective(student: Student, setup: Setup) -> Callable[[Batch], Loss]:
    def objective(batch: Batch) -> Loss:
        x = network_input(batch.images, setup.recipe.preprocess, torch.device("cpu")).double()
        output = student.classifier(x, batch.route(x.device))
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
    batch_statistics.ABLE = {"cpu"}
    batch_statistics._synchronised = Here.around  # torch's own refuses the CPU
    run(Path(sys.argv[1]))
