"""How long a training takes on this machine, and the largest that fits into the time there is."""

from __future__ import annotations

import time
from dataclasses import dataclass
from math import ceil

import torch
from torch import nn

from lorkd_deploy import models
from lorkd_deploy.experts import add_experts
from lorkd_deploy.progress import Progress, bar
from lorkd_deploy.recipe.networks import ExpertSpec
from lorkd_deploy.training.processes import best_device

SIZES = (224, 160, 128, 96, 64)  # px, of the network's input
MEASURED_AT = SIZES[-1]
BATCH = 32  # images of a measured step
STEPS = 3  # that are measured, behind one that isn't
BESIDE = 90  # s for all else: the graph's export, the tests before a training, its scores
SHARES = (1, 0.66, 0.4, 0.25, 0.15)  # of the epochs that one would like to have


@dataclass(frozen=True)
class Networks:
    """Architectures that suit this machine: large on a GPU, small on a CPU."""

    teacher: str
    student: str


@dataclass(frozen=True)
class Pace:
    """Seconds that an image takes in a training step of teacher and student, at 64 px."""

    teacher: float
    student: float

    def seconds(self, plan: Plan, images: int) -> float:
        """What teacher, its features and student take with `images` training images."""
        forward = self.teacher / 3  # of a step's forward and backward
        passes = plan.teacher_epochs * self.teacher + forward + plan.epochs * self.student
        return BESIDE + images * passes * (plan.size / MEASURED_AT) ** 2


@dataclass(frozen=True)
class Plan:
    """What is proposed: the network's input in px, epochs, and images of a batch."""

    size: int
    epochs: int
    teacher_epochs: int
    batch: int


def networks() -> Networks:
    """Those for this machine."""
    if best_device().type == "cuda":
        return Networks("torchvision:resnet50", "torchvision:shufflenet_v2_x1_0")
    return Networks("torchvision:resnet18", "torchvision:shufflenet_v2_x0_5")


def measured(chosen: Networks, tasks: int, progress: Progress | None = None) -> Pace:
    """A few steps of both networks on random images, on the device that a training would use."""
    device, spec = best_device(), ExpertSpec()
    with bar(progress, "measuring this machine", 2) as shown:
        teacher = _step(models.build(chosen.teacher), None, device)
        shown.advance()
        student = models.build(chosen.student)
        experts = add_experts(student, tasks, spec.trained_rank, spec.alpha)
        own = torch.arange(BATCH, device=device) % tasks
        found = Pace(teacher, _step(experts, own, device))
        shown.advance()
    return found


def _step(network: nn.Module, task: torch.Tensor | None, device: torch.device) -> float:
    """Seconds an image of a step, the least of those measured: what disturbs only adds."""
    network = network.to(device).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(network.parameters())
    images = torch.randn(BATCH, 3, MEASURED_AT, MEASURED_AT, device=device)
    images = images.contiguous(memory_format=torch.channels_last)
    took = []
    for _ in range(1 + STEPS):
        began = time.perf_counter()
        optimizer.zero_grad()
        answer = network(images) if task is None else network(images, task)
        answer.square().mean().backward()
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        took.append(time.perf_counter() - began)
    return min(took[1:]) / BATCH


def fitting(pace: Pace, images: int, side: int, seconds: float) -> Plan:
    """The largest images, up to their own `side`, at which the training fits into `seconds`.

    Few images get more epochs, for enough steps. Where not even 64 px fit, there are fewer epochs;
    where nothing fits, the shortest training is proposed.
    """
    batch = 128 if images >= 8000 else 64 if images >= 2000 else 32
    wanted = max(24, min(100, ceil(600 * batch / images)))
    wanted_of_teacher = max(6, min(30, ceil(250 * batch / images)))
    sizes = [size for size in SIZES if size <= side] or [MEASURED_AT]
    plan = Plan(sizes[-1], 1, 1, batch)
    for share in SHARES:
        for size in sizes:
            epochs, own = ceil(share * wanted), ceil(share * wanted_of_teacher)
            plan = Plan(size, epochs, own, batch)
            if pace.seconds(plan, images) <= seconds:
                return plan
    return plan
