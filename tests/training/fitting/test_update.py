"""One update: the same in parts as whole, clipped, and in fp16 without losing small gradients."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lorkd_deploy.errors import TrainingError
from lorkd_deploy.recipe import TrainSpec
from lorkd_deploy.training.batches.loader import Batch
from lorkd_deploy.training.fitting.objective import Loss
from lorkd_deploy.training.fitting.update import Update


def _batch(counts: tuple[int, ...]) -> Batch:
    rng = np.random.default_rng(0)
    total = sum(counts)
    return Batch(
        step=3,
        images=rng.integers(0, 256, (total, 4, 4, 3), dtype=np.uint8),
        labels=tuple(rng.integers(0, 3, count) for count in counts),
        indices=tuple(np.arange(count) + 100 * task for task, count in enumerate(counts)),
        flips=tuple(np.arange(count) % 2 == 1 for count in counts),
        total=total,
        absent=tuple(task for task, count in enumerate(counts) if not count),
    )


class _Linear(nn.Linear):
    """Mean cross-entropy of a linear model on pixels, its labels those of the batch."""

    def __init__(self, scale: float) -> None:
        super().__init__(48, 3)
        self.scale = scale

    def forward(self, batch: Batch) -> Loss:  # type: ignore[override]
        x = torch.from_numpy(batch.images).flatten(1) / 255
        labels = torch.from_numpy(np.concatenate(batch.labels))
        logits = super().forward(x).float()
        value = nn.functional.cross_entropy(logits, labels) * self.scale
        right = (logits.argmax(1) == labels).float().mean()
        return Loss({"labels": value, "transfer": 0.5 * value}, right)


def _model(scale: float = 1.0) -> _Linear:
    torch.manual_seed(0)
    return _Linear(scale)


def _update(model: nn.Module, **values: Any) -> Update:
    spec = TrainSpec(**values)
    return Update(model, spec, spec.precision)


def _gradients(model: nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def _images(batch: Batch) -> list[tuple[int, bytes]]:
    """Each image with its task."""
    tasks = np.repeat(np.arange(len(batch.counts)), batch.counts).tolist()
    return list(zip(tasks, (image.tobytes() for image in batch.images), strict=True))


@pytest.mark.parametrize("parts", [1, 3, 4, 40])
def test_a_batch_splits_into_mixed_parts_that_lose_nothing(parts: int) -> None:
    batch = _batch((7, 0, 1, 5))
    split = batch.split(parts)
    assert len(split) == min(parts, 13)
    assert sum(len(part.images) for part in split) == 13
    sizes = [len(part.indices[0]) for part in split]
    assert max(sizes) - min(sizes) <= 1, "each part has its share of every task"
    assert {image for part in split for image in _images(part)} == set(_images(batch))
    for part in split:
        assert part.counts == tuple(len(labels) for labels in part.labels)
        for task, indices in enumerate(part.indices):
            places = indices - 100 * task
            np.testing.assert_array_equal(part.labels[task], batch.labels[task][places])
            np.testing.assert_array_equal(part.flips[task], batch.flips[task][places])
            start, first = sum(batch.counts[:task]), sum(part.counts[:task])
            own = part.images[first : first + part.counts[task]]
            np.testing.assert_array_equal(own, batch.images[start + places])


@pytest.mark.parametrize("parts", [2, 3, 13])
def test_gradients_in_parts_are_those_of_the_whole_batch(parts: int) -> None:
    whole, split = _model(), _model()
    batch = _batch((7, 1, 5))
    one = _update(whole).gradients(batch)
    some = _update(split, accumulate=parts).gradients(batch)
    torch.testing.assert_close(_gradients(split), _gradients(whole), rtol=1e-5, atol=1e-7)
    assert some.parts.keys() == one.parts.keys()
    for name, value in one.parts.items():
        torch.testing.assert_close(some.parts[name], value)
        assert not some.parts[name].requires_grad
    assert float(some.accuracy) == pytest.approx(float(one.accuracy))


def test_clipping_bounds_the_step_and_keeps_its_direction() -> None:
    free, bound = _model(), _model()
    before = copy.deepcopy(free.state_dict())
    for model, clip in ((free, None), (bound, 0.01)):
        update = _update(model, optimizer="sgd", momentum=0, weight_decay=0, clip=clip)
        update.gradients(_batch((8, 8)))
        update.apply(1.0)
    long, short = (
        torch.cat([(m.state_dict()[k] - v).flatten() for k, v in before.items()])
        for m in (free, bound)
    )
    assert float(short.norm()) == pytest.approx(0.01, rel=1e-3)
    torch.testing.assert_close(short / short.norm(), long / long.norm(), rtol=1e-4, atol=1e-5)


def test_fp16_keeps_gradients_that_it_could_not_hold_unscaled() -> None:
    tiny = 1e-7  # fp16 ends at 6e-8: unscaled, nearly all of these gradients would be 0
    exact, half = _model(tiny), _model(tiny)
    _update(exact).gradients(_batch((8, 8)))
    update = _update(half, precision="fp16", momentum=0, weight_decay=0, clip=1e9)
    update.gradients(_batch((8, 8)))
    update.apply(0.0)
    wanted, got = _gradients(exact), _gradients(half)
    assert float((got - wanted).norm() / wanted.norm()) < 0.02


def test_fp16_leaves_out_a_step_that_overflows_and_its_scale_is_gone_on_from() -> None:
    model = _model(1e6)
    update = _update(model, precision="fp16")
    before = copy.deepcopy(model.state_dict())
    update.gradients(_batch((8, 8)))
    update.apply(0.1)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    state = update.scaler.state_dict()
    assert state["scale"] < 2.0**16
    other = _update(_model(), precision="fp16")
    other.restore(update.tensors(), state)
    assert other.scaler.state_dict() == state


def test_fp16_that_never_fits_is_an_error() -> None:
    update = _update(_model(float("inf")), precision="fp16")
    with pytest.raises(TrainingError, match="not finite in fp16") as caught:
        for _ in range(64):
            update.gradients(_batch((1,)))
            update.apply(0.1)
    assert "bf16" in (caught.value.fix or "")


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_keeps_the_gradients_within_its_rounding(precision: str) -> None:
    exact, half = _model(), _model()
    batch = _batch((9, 4))
    full = _update(exact).gradients(batch)
    update = _update(half, precision=precision, clip=1e9)
    rounded = update.gradients(batch)
    update.apply(0.0)  # scales the gradients back
    wanted, got = _gradients(exact), _gradients(half)
    assert 0 < float((got - wanted).norm() / wanted.norm()) < 0.02
    assert float(rounded.parts["labels"]) == pytest.approx(float(full.parts["labels"]), rel=0.01)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_restored_optimiser_steps_as_the_one_that_was_saved(optimizer: str) -> None:
    """Weights in channels-last order, whose moments come from a file in the plain one."""

    def begun() -> tuple[nn.Conv2d, Update]:
        torch.manual_seed(0)
        model = nn.Conv2d(3, 4, 2).to(memory_format=torch.channels_last)
        return model, _update(model, optimizer=optimizer)

    def steps(model: nn.Conv2d, update: Update, count: int, seed: int) -> None:
        torch.manual_seed(seed)
        for _ in range(count):
            for p in model.parameters():
                p.grad = torch.empty_like(p).copy_(torch.randn(p.shape))
            update.apply(0.1)

    model, update = begun()
    steps(model, update, 3, seed=1)
    saved = {name: value.clone().contiguous() for name, value in update.tensors().items()}
    again, restored = begun()
    again.load_state_dict(model.state_dict())
    restored.restore(saved, {})
    for one in ((model, update), (again, restored)):
        steps(*one, 2, seed=2)
    torch.testing.assert_close(again.state_dict(), model.state_dict(), rtol=0, atol=0)
