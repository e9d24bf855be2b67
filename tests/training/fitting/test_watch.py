"""Losses that are read every so many steps, as on a GPU: the same training, the same faults."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_recipe import tiny_recipe

from lorkd_deploy.errors import TrainingError
from lorkd_deploy.progress import Silent
from lorkd_deploy.recipe import parse_recipe
from lorkd_deploy.run import Run
from lorkd_deploy.training.batches.setup import open_setup
from lorkd_deploy.training.fitting import watch
from lorkd_deploy.training.fitting.history import Fitted
from lorkd_deploy.training.fitting.job import Job
from lorkd_deploy.training.fitting.objective import Loss, Objective
from lorkd_deploy.training.fitting.student import fit_student
from lorkd_deploy.training.networks.student import build_student

EVERY = 4


class Shown(Silent):
    """The losses that were shown, step by step."""

    def __init__(self) -> None:
        self.losses: list[str] = []

    def advance(self, steps: int = 1, **shown: str) -> None:
        if shown:
            self.losses.append(shown["labels"])


def _fit(folder: Path, **options: Any) -> tuple[dict[str, torch.Tensor], Fitted]:
    recipe = tiny_recipe(transfer={"kind": "none"})
    recipe["train"] |= {"epochs": 1.5, "validate_every": 1, "checkpoint_minutes": 60}
    setup = open_setup(parse_recipe(recipe, where="test"))
    torch.manual_seed(0)
    student = build_student(setup)
    fitted = fit_student(
        Job("decompose", Run(folder, folder / "bundle"), setup, **options), student, None
    )
    return student.state_dict(), fitted


def test_it_is_the_same_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown, known_shown = Shown(), Shown()
    known, told = _fit(tmp_path / "each", progress=known_shown)
    monkeypatch.setattr(watch, "EVERY", {"cpu": EVERY})
    found, seen = _fit(tmp_path / "some", progress=shown)
    torch.testing.assert_close(found, known, rtol=0, atol=0)
    assert seen.history == told.history and seen.steps == told.steps == 9
    assert shown.losses == known_shown.losses and len(shown.losses) == 9


@pytest.mark.parametrize("bad", [2, 7])
def test_a_loss_that_is_not_finite_is_named_with_its_step(
    bad: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "EVERY", {"cpu": EVERY})
    real = Objective.forward
    steps: list[int] = []

    def forward(self: Objective, batch: Any) -> Loss:
        steps.append(batch.step)
        loss = real(self, batch)
        if batch.step == bad:
            loss.parts["labels"] = loss.parts["labels"] * float("nan")
        return loss

    monkeypatch.setattr(Objective, "forward", forward)
    with pytest.raises(TrainingError, match=f"stopped at step {bad}: the labels loss") as caught:
        _fit(tmp_path)
    assert steps[-1] == {2: 3, 7: 8}[bad], "the reading after it, or the validation, finds it"
    assert "weights hold NaN" in str(caught.value)
    assert not list(tmp_path.glob("checkpoints/*/*"))
