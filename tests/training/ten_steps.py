"""Ten steps of a student in float64, by as many processes as it is started with.

`torchrun --nproc-per-node 2 tests/training/ten_steps.py FOLDER [COMMAND…]` writes
`FOLDER/STUDENT/2.safetensors`, then runs a command of lorkd in the same two processes.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce

from lorkd_deploy import cli
from lorkd_deploy.experts import Outputs
from lorkd_deploy.lowrank.delta import NormKind
from lorkd_deploy.recipe import Recipe, parse_recipe
from lorkd_deploy.run import Run
from lorkd_deploy.training.batches.loader import Batch
from lorkd_deploy.training.batches.setup import open_setup
from lorkd_deploy.training.fitting import sharing
from lorkd_deploy.training.fitting.distillation.transfer import softened_divergence
from lorkd_deploy.training.fitting.job import Job
from lorkd_deploy.training.fitting.loop import fit
from lorkd_deploy.training.fitting.objective import Objective
from lorkd_deploy.training.networks.student import build_student
from lorkd_deploy.training.processes import Processes, joined
from tests.tiny_recipe import tiny_recipe

STEPS = 10
STUDENTS: dict[str, tuple[str, NormKind]] = {  # the backbone, and whose its norms are
    "layer_norm": ("without_batch_statistics", "shared"),
    "batch_norm": ("backbone", "shared"),
    "batch_norm_per_task": ("backbone", "per_task"),  # of a bundle of 0.2.0 that is grown
}


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
        "epochs": 3 * STEPS / (48 + 32 + 16),
        "batch_size": 3,
        "temperature": 1,
        "optimizer": "sgd",
        "lr": 0.1,
        "weight_decay": 0.05,
        "shift": 0.1,
    }
    student = {"architecture": f"tests.tiny_backbone:{backbone}"}
    made = tiny_recipe(train=train, student=student, transfer={"kind": "none"})
    made["departments"][0]["tasks"][0]["data"]["val"] = 300  # which both score a part of
    return parse_recipe(made, where="test")


def run(folder: Path) -> None:
    """Train the students, and let the first process write what they have learnt."""
    with joined() as processes:
        for name, student in STUDENTS.items():
            train(folder / name, *student, processes)


def train(folder: Path, backbone: str, norm: NormKind, processes: Processes) -> None:
    """Ten steps of one student."""
    setup = open_setup(recipe(backbone), processes)
    torch.manual_seed(processes.index)  # the first one's weights have to win
    classifier = build_student(setup, norm)
    transfer = PooledTransfer(classifier.heads.head(0).in_features)
    job = Job("decompose", Run(folder, folder / "bundle"), setup)
    objective = Objective(classifier, setup, job.spec, transfer=transfer).double()
    # Images come in float32, and the first figures differ in what rounding leaves of them.
    classifier.register_forward_pre_hook(lambda _, given: (given[0].double(), *given[1:]))
    fitted = fit(job, objective)
    assert fitted.steps == STEPS
    if processes.leads:
        state = {k: v.contiguous() for k, v in objective.state_dict().items()}
        figures = {f"figures/{k}": torch.tensor(v) for k, v in fitted.history[-1].items()}
        save_file(state | figures, folder / f"{processes.count}.safetensors")


class PooledTransfer(nn.Module):
    """Twelve numbers an image, which stand for a teacher's features, projected to `width`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.projection = nn.Linear(12, width)

    def forward(self, batch: Batch, output: Outputs) -> Tensor:
        x = torch.from_numpy(batch.images).permute(0, 3, 1, 2).double() / 127.5 - 1
        pooled = nn.functional.adaptive_avg_pool2d(x, 2).flatten(1)
        return softened_divergence(self.projection(pooled), output.features, 2.0)


if __name__ == "__main__":
    able, synchronised = sharing.ABLE, sharing._synchronised
    sharing.ABLE = {"cpu"}
    sharing._synchronised = Here.around  # torch's own refuses the CPU
    run(Path(sys.argv[1]))
    sharing.ABLE, sharing._synchronised = able, synchronised
    if command := sys.argv[2:]:
        sys.exit(cli.main(command))
