"""What is wrong in silence without a trial: the layer is named, whatever the batch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, linear

from lorkd_deploy.errors import ModelError
from lorkd_deploy.experts import add_experts
from lorkd_deploy.experts.probe import check_answers, probe_images


class Plain(nn.Module):
    """Images `(N, 3, 32, 32)` → features `(N, 8)`."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.last = nn.Conv2d(3, 8, 8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.tokens(x).mean((2, 3)))

    def tokens(self, x: Tensor) -> Tensor:
        return self.patches(x)


class SequenceFirst(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.tokens(x).flatten(2).permute(2, 0, 1)).mean(0)


class ThreeTokens(SequenceFirst):
    """As many as the trial has samples."""

    def tokens(self, x: Tensor) -> Tensor:
        return self.patches(x).flatten(2)[:, :, :3]


class ReadTwice(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return linear(super().forward(x).relu(), self.last.weight)


class ByChance(Plain):
    def tokens(self, x: Tensor) -> Tensor:
        return dropout(self.patches(x))


class BatchStatistics(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.ReLU(), nn.BatchNorm2d(8, track_running_stats=False))

    def tokens(self, x: Tensor) -> Tensor:
        return self.block(self.patches(x))


class Centred(Plain):
    def tokens(self, x: Tensor) -> Tensor:
        y = self.patches(x)
        return y - y.mean(0)


class ByTheBatchSize(Plain):
    def tokens(self, x: Tensor) -> Tensor:
        return self.patches(x) / len(x)


@pytest.mark.parametrize(
    ("kind", "says", "where"),
    [
        (SequenceFirst, "leading dimension isn't the batch", "last"),
        (ThreeTokens, "a row of its input isn't a sample", "last"),
        (ReadTwice, "reads its weight elsewhere too", "last"),
        (ByChance, "depend on chance", "ByChance, before it calls last"),
        (BatchStatistics, "depends on the images beside it", "block.1"),
    ],
)
@pytest.mark.parametrize("batch", [4, 16])  # of 16 tokens
def test_the_first_mixed_batch_shows_it(
    kind: type[nn.Module], says: str, where: str, batch: int
) -> None:
    student = add_experts(kind(), 3, 2)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    for _ in range(2):  # also when it is tried again
        with pytest.raises(ModelError, match=says) as caught:
            student(torch.randn(batch, 3, 32, 32), torch.arange(batch) % 3)
        assert caught.value.where == where
    assert all(torch.equal(before[n], v) for n, v in student.state_dict().items())


@pytest.mark.parametrize("batch", [1, 2, 16])
@pytest.mark.parametrize("norm", ["shared", "per_task"])
def test_a_right_one_is_left_as_it_is(batch: int, norm: str) -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.AdaptiveAvgPool2d(1))
    student = add_experts(net, 3, 2, norm=norm)  # type: ignore[arg-type]
    before = {name: value.clone() for name, value in student.state_dict().items()}
    x, drawn = torch.randn(batch, 3, 8, 8), torch.get_rng_state()
    with torch.autocast("cpu", torch.bfloat16):
        student.eval()(x, torch.arange(batch) % 3)
    assert student.probed and not student.training
    assert torch.equal(drawn, torch.get_rng_state()), "a training draws what it drew without"
    assert all(torch.equal(before[n], v) for n, v in student.state_dict().items())


@pytest.mark.parametrize(
    ("kind", "where"),
    [
        (ByChance, "ByChance, before it calls last"),
        (BatchStatistics, "block.1"),
        (Centred, "Centred, before it calls last"),
        (ByTheBatchSize, "ByTheBatchSize, before it calls last"),
    ],
)
def test_answers_that_are_no_function_of_the_image(kind: type[nn.Module], where: str) -> None:
    module = kind()
    with pytest.raises(ModelError) as caught:
        check_answers(module, probe_images(32))
    assert caught.value.where == where and module.training
    check_answers(Plain(), probe_images(32))


class Unfolds(nn.Module):
    """A norm over patches, as MobileViT's: its rows are no samples."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.norm = nn.Conv2d(3, 8, 8, 8), nn.LayerNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.patches(x).flatten(2).transpose(1, 2)
        return self.norm(y.reshape(-1, 8)).view(y.shape).mean(1)


def test_a_norm_that_can_not_be_per_task_stays_shared_by_the_advice() -> None:
    x, ids = torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 1, 0])
    with pytest.raises(ModelError, match="its leading dimension isn't the batch") as caught:
        add_experts(Unfolds(), 2, 2, norm="per_task")(x, ids)
    assert "`skip: ['norm']`" in str(caught.value.fix)
    student = add_experts(Unfolds(), 2, 2, norm="per_task", skip=["norm"])
    assert student(x, ids).shape == (4, 8)
    assert ("norm", "left out as asked") in student.skipped
