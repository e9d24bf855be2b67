"""What is wrong in silence without a trial: the layer is named, whatever the batch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, linear

from lorkd_deploy.errors import ModelError
from lorkd_deploy.experts import add_experts
from lorkd_deploy.experts.probe import check_answers, probe_images
from lorkd_deploy.lowrank.delta import update_matrix


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


class SixTokens(SequenceFirst):
    """Twice as many as the trial has samples."""

    def tokens(self, x: Tensor) -> Tensor:
        return self.patches(x).flatten(2)[:, :, :6]


class Windows(Plain):
    """Four windows of 2 × 2 of each sample in turn, as Swin's, past each kind of layer."""

    def __init__(self) -> None:
        super().__init__()
        self.inside, self.norm = nn.Linear(8, 8), nn.BatchNorm2d(8)
        self.pixel, self.kernel = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, (2, 1))

    def forward(self, x: Tensor) -> Tensor:
        windows = self.windows(self.patches(x))
        windows = self.inside(windows.flatten(2).mT).mT.reshape(windows.shape)
        y = self.kernel(self.pixel(self.norm(windows)).tanh())
        return self.last(self.gathered(y.flatten(1)))

    def windows(self, x: Tensor) -> Tensor:
        return x.view(-1, 8, 2, 2, 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(-1, 8, 2, 2)

    def gathered(self, y: Tensor) -> Tensor:
        return y.view(-1, 4, 16).mean(1).view(-1, 2, 8).mean(1)


class WindowsFirst(Windows):
    """The first window of all samples, then the second."""

    def windows(self, x: Tensor) -> Tensor:
        return x.view(-1, 8, 2, 2, 2, 2).permute(2, 4, 0, 1, 3, 5).reshape(-1, 8, 2, 2)

    def gathered(self, y: Tensor) -> Tensor:
        return y.view(4, -1, 16).mean(0).view(-1, 2, 8).mean(1)


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
        (ThreeTokens, "the rows of its input aren't the samples in turn", "last"),
        (SixTokens, "the rows of its input aren't the samples in turn", "last"),
        (WindowsFirst, "the rows of its input aren't the samples in turn", "inside"),
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


@pytest.mark.parametrize("norm", ["shared", "per_task"])
@pytest.mark.parametrize("counts", [(1, 2, 1), (5, 0, 11), (0, 64, 64)])
def test_windows_have_their_own_samples_task(counts: tuple[int, ...], norm: str) -> None:
    torch.manual_seed(0)
    student = add_experts(Windows(), 3, 2, norm=norm).eval().double()  # type: ignore[arg-type]
    with torch.no_grad():
        for name, value in student.named_parameters():
            if name.endswith((".A", ".B")) or "norm" in name:
                value.normal_()
    assert len(student.layers) == 5
    ids = torch.repeat_interleave(torch.arange(3), torch.tensor(counts))
    ids = ids[torch.randperm(len(ids))]
    x = torch.randn(len(ids), 3, 32, 32).double()
    mixed = student(x, ids)
    mixed.square().sum().backward()
    for task in set(ids.tolist()):
        dense = student.dense(task)
        alone = dense(x[ids == task])
        torch.testing.assert_close(mixed[ids == task], alone)
        alone.square().sum().backward()
        for name in ("inside", "pixel", "kernel"):
            layer, weight = student.module.get_submodule(name), dense.get_submodule(name).weight
            a, _ = layer.factors(task)  # type: ignore[operator]
            wanted = 8.0 * update_matrix(weight.grad, "interleaved") @ a.mT  # α / r = 8
            torch.testing.assert_close(layer.B.grad[task], wanted)  # type: ignore[index, union-attr]


class Unfolds(nn.Module):
    """A norm over patches of all samples, sequence first."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.norm = nn.Conv2d(3, 8, 8, 8), nn.LayerNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.patches(x).flatten(2).permute(2, 0, 1)).mean(0)


def test_a_norm_that_can_not_be_per_task_stays_shared_by_the_advice() -> None:
    x, ids = torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 1, 0])
    with pytest.raises(ModelError, match="its leading dimension isn't the batch") as caught:
        add_experts(Unfolds(), 2, 2, norm="per_task")(x, ids)
    assert "`skip: ['norm']`" in str(caught.value.fix)
    student = add_experts(Unfolds(), 2, 2, norm="per_task", skip=["norm"])
    assert student(x, ids).shape == (4, 8)
    assert ("norm", "left out as asked") in student.skipped
