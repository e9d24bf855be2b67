"""Experts in a training loop of your own: any module, any optimizer.

    python examples/own_loop.py

Two tasks on images that the package draws: the pattern of a tissue, and whether the vessels of a
fundus wind. Nothing is downloaded or written; 300 steps take a minute or two on two cores. Needs
the extra `train`.
"""

from __future__ import annotations

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional

from lorkd_deploy import add_experts, hold_absent
from lorkd_deploy.data import Split, open_data
from lorkd_deploy.data.phantom import PhantomData

SIZE, IMAGES, BATCH = 32, 256, 32  # px, per task, per step


def main(steps: int = 300) -> list[float]:
    """Train, and give each task's accuracy on its test images."""
    torch.manual_seed(0)
    tasks = [
        open_data(PhantomData(source="phantom", name=name, train=IMAGES, val=8, test=128))
        for name in ("tissue", "fundus")
    ]
    train = [tensors(task.train) for task in tasks]
    backbone = torchvision.models.shufflenet_v2_x0_5()
    backbone.fc = nn.Identity()  # images (N, 3, S, S) → features (N, 1024)
    student = add_experts(backbone, tasks=len(tasks), rank=4, alpha=4)
    heads = nn.ModuleList(nn.Linear(1024, len(task.classes)) for task in tasks)
    optimizer = torch.optim.AdamW([*student.parameters(), *heads.parameters()], lr=0.004)
    hold_absent(optimizer)  # a task that a batch lacks keeps its expert as it is

    for step in range(steps):
        ids = torch.randint(len(tasks), (BATCH,))  # each image's task: a mixed batch in one pass
        places = torch.randint(IMAGES, (BATCH,))
        chosen = list(zip(ids.tolist(), places.tolist(), strict=True))
        images = torch.stack([train[task][0][place] for task, place in chosen])
        labels = torch.stack([train[task][1][place] for task, place in chosen])
        features = student(images, task=ids)
        loss = sum(
            functional.cross_entropy(
                heads[t](features[ids == t]), labels[ids == t], reduction="sum"
            )
            for t in ids.unique().tolist()
        )
        optimizer.zero_grad()
        (loss / BATCH).backward()
        optimizer.step()
        if step % 50 == 49:
            print(f"step {step + 1}: loss {loss.item():.3f}")

    student.eval()
    scores = []
    for number, task in enumerate(tasks):
        images, labels = tensors(task.test)
        dense = student.dense(number)  # W0 + ΔW as a plain network: what an engine is made of
        with torch.no_grad():
            answers = heads[number](dense(images)).argmax(1)
            assert torch.allclose(dense(images), student(images, task=number), atol=1e-3)
        scores.append((answers == labels).float().mean().item())
        print(f"{task.provenance['name']}: accuracy {scores[-1]:.2f} of the plain network")
    return scores


def tensors(split: Split) -> tuple[Tensor, Tensor]:
    """Images (N, 3, S, S) from -1 to 1, and labels (N,)."""
    images = torch.stack([torch.as_tensor(image) for image in split.images]).float()
    images = images.reshape(*images.shape[:3], -1).permute(0, 3, 1, 2)  # grey ones lack the axis
    images = functional.interpolate(images, SIZE, mode="area").expand(-1, 3, -1, -1)
    return images / 127.5 - 1, torch.as_tensor(split.labels)


if __name__ == "__main__":
    main()
