"""What a recipe or a flag asks of the loop, on a student that trains in seconds; its schedule."""

from __future__ import annotations

import json
import logging
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_recipe import tiny_recipe

from lorkd_deploy.errors import LorkdError, TrainingError
from lorkd_deploy.experts import ExpertClassifier
from lorkd_deploy.recipe import TrainSpec, parse_recipe
from lorkd_deploy.run import Run
from lorkd_deploy.schema import read_document
from lorkd_deploy.training.batches.setup import Setup, open_setup
from lorkd_deploy.training.fitting import objective as module
from lorkd_deploy.training.fitting.history import Fitted
from lorkd_deploy.training.fitting.job import Job
from lorkd_deploy.training.fitting.loop import schedule
from lorkd_deploy.training.fitting.student import fit_student
from lorkd_deploy.training.networks.student import build_student
from tests.stopping import KilledError, StopAt

STEPS = 18


def _setup(student: str = "backbone", **train: Any) -> Setup:
    architecture = {"architecture": f"tiny_backbone:{student}"}
    recipe = tiny_recipe(transfer={"kind": "none"}, student=architecture)
    recipe["train"] = recipe["train"] | train
    return open_setup(parse_recipe(recipe, where="test"))


def _fit(setup: Setup, folder: Path, **options: Any) -> tuple[ExpertClassifier, Fitted]:
    torch.manual_seed(0)
    student = build_student(setup)
    job = Job("decompose", Run(folder, folder / "bundle"), setup, **options)
    fitted = fit_student(job, student, None)
    return student, fitted


def _assert_equal(one: ExpertClassifier, other: ExpertClassifier) -> None:
    torch.testing.assert_close(one.state_dict(), other.state_dict(), rtol=0, atol=0)


@pytest.mark.thorough
def test_a_training_with_everything_on_goes_on_bit_for_bit(tmp_path: Path) -> None:
    setup = _setup(
        "forgetful",
        precision="fp16",
        accumulate=3,
        clip=0.5,
        class_weights="balanced",
        channels_last=False,
        augment=[{"kind": "rotation"}, {"kind": "random_erasing"}],
    )
    whole, fitted = _fit(setup, tmp_path / "whole")
    assert fitted.steps == STEPS and fitted.notes == {"parts": 3}
    for last in (5, 11):
        with pytest.raises(KilledError):
            _fit(setup, tmp_path / "killed", progress=StopAt(last), resume=last > 5)
        saved = list((tmp_path / "killed" / "checkpoints" / "decompose").iterdir())
        assert len(saved) == 2
    resumed, _ = _fit(setup, tmp_path / "killed", resume=True)
    _assert_equal(resumed, whole)


def test_a_stopped_training_has_its_history_and_resume_goes_on_with_it(tmp_path: Path) -> None:
    setup, file = _setup(epochs=2.5), tmp_path / "history" / "bundle.json"
    _, whole = _fit(setup, tmp_path / "whole")
    for last, validated in ((1, []), (9, [6]), (14, [6, 12])):
        with pytest.raises(KilledError):
            _fit(setup, tmp_path, progress=StopAt(last), resume=last > 9)
        found = read_document(file, LorkdError, "")  # its digest is right
        assert [entry["step"] for entry in found["validations"]] == validated
        assert not found["finished"] and found["steps"] == max(validated, default=0)
        assert found["parts"] == 1 and 0 <= found["waiting_for_data"] <= 1
    _fit(setup, tmp_path, resume=True)
    assert json.loads(file.read_text())["validations"] == whole.history


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("changed", "tolerance"),
    [
        ({"channels_last": False}, 1e-4),
        ({"precision": "bf16"}, 0.05),  # 8 bits of significand
        ({"precision": "fp16"}, 0.02),  # 11 bits
    ],
)
def test_precisions_and_memory_formats_keep_the_numbers(
    changed: dict[str, Any], tolerance: float, tmp_path: Path
) -> None:
    """Six steps beside those in fp32 and channels-last: the last loss, and the weights' whole way
    from where they began, within a fraction of its length.
    """
    torch.manual_seed(0)
    start = build_student(_setup()).state_dict()
    sgd = {"epochs": 1, "optimizer": "sgd", "lr": 0.05}  # AdamW steps as far where all is rounding
    plain, known = _fit(_setup(**sgd, channels_last=True), tmp_path / "plain")
    other, found = _fit(_setup(**sgd, **changed), tmp_path / "other")
    assert (known.precision, found.precision) == ("fp32", changed.get("precision", "fp32"))
    assert known.steps == found.steps == 6
    names = [n for n, p in plain.named_parameters() if p.requires_grad]
    assert all(other.state_dict()[n].dtype == torch.float32 for n in names)
    wanted = torch.cat([(plain.state_dict()[n] - start[n]).flatten() for n in names])
    gone = torch.cat([(other.state_dict()[n] - start[n]).flatten() for n in names])
    off = float((gone - wanted).norm() / wanted.norm())
    assert off <= tolerance
    assert off > 1e-4 or "precision" not in changed, "it was computed in fp32 after all"
    loss = known.history[-1]["labels"]
    assert found.history[-1]["labels"] == pytest.approx(loss, rel=tolerance)


def test_a_batch_smaller_than_the_number_of_tasks(tmp_path: Path) -> None:
    student, fitted = _fit(_setup(batch_size=2, epochs=0.5), tmp_path)
    assert fitted.steps == 24
    assert all(value.isfinite().all() for value in student.state_dict().values())
    trained = student.backbone.expert_state(2)
    assert float(trained["5.B"].abs().max()) > 0


def _little_memory(monkeypatch: pytest.MonkeyPatch, images: int) -> None:
    real = module.network_input

    def network_input(batch: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        if len(batch) > images:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return real(batch, *args, **kwargs)

    monkeypatch.setattr(module, "network_input", network_input)


def test_auto_batch_finds_what_fits_by_halving_and_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    by_hand, _ = _fit(_setup(accumulate=4, epochs=1), tmp_path / "by-hand")
    setup = _setup(epochs=1)
    _little_memory(monkeypatch, 5)
    with pytest.raises(torch.OutOfMemoryError):
        _fit(setup, tmp_path / "without")
    with pytest.raises(KilledError):
        _fit(setup, tmp_path / "found", auto_batch=True, progress=StopAt(3))
    assert "16 images at a time don't fit" in caplog.text
    assert "8 images at a time don't fit" in caplog.text
    assert "batches of 16 images pass 4 at a time (as train.accumulate: 4 asks" in caplog.text
    found, fitted = _fit(setup, tmp_path / "found", resume=True)  # in the parts it began with
    assert fitted.notes == {"parts": 4}
    _assert_equal(found, by_hand)


def test_auto_batch_says_so_where_everything_or_nothing_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    setup = _setup(epochs=0.5)
    plain, _ = _fit(setup, tmp_path / "plain")
    tried, fitted = _fit(setup, tmp_path / "tried", auto_batch=True)
    assert "batches of 16 images fit into memory" in caplog.text
    assert fitted.notes == {"parts": 1}
    _assert_equal(tried, plain)
    _little_memory(monkeypatch, 0)
    with pytest.raises(TrainingError, match="not even one image"):
        _fit(setup, tmp_path / "none", auto_batch=True)


def test_tensorboard_has_every_step_once_though_the_training_was_killed(tmp_path: Path) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    setup, folder = _setup(epochs=1), tmp_path / "tensorboard" / "decompose"
    with pytest.raises(KilledError):
        _fit(setup, tmp_path, tensorboard=True, progress=StopAt(4))
    _, fitted = _fit(setup, tmp_path, tensorboard=True, resume=True)
    found = events.EventAccumulator(str(folder))
    found.Reload()
    tags = set(found.Tags()["scalars"])
    assert {"loss/labels", "lr", "accuracy", "validation/score", "waiting for data"} <= tags
    assert [e.step for e in found.Scalars("loss/labels")] == [1, 2, 3, 4, 5, 6]
    rates = [schedule(setup.recipe.train, step, 6) for step in range(6)]
    assert [e.value / setup.recipe.train.lr for e in found.Scalars("lr")] == pytest.approx(rates)
    (last,) = found.Scalars("validation/score")
    assert last.value == pytest.approx(fitted.history[-1]["score"])
    assert 0 <= found.Scalars("waiting for data")[-1].value < 1


def _factors(steps: int = 100, **spec: object) -> list[float]:
    return [schedule(TrainSpec.model_validate(spec), step, steps) for step in range(steps)]


def test_warm_up_rises_to_the_whole_rate_and_the_cosine_falls_to_almost_nothing() -> None:
    found = _factors(warmup=0.1)
    assert found[0] == pytest.approx(0.1), "the first step learns too"
    assert found[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert found[9] == found[10] == 1, "the end of the warm-up is the cosine's beginning"
    assert found[55] == pytest.approx(0.5), "half of the way down"
    assert found[99] == pytest.approx(0.5 * (1 + math.cos(math.pi * 89 / 90)))
    assert 0 < found[99] < 1e-3, "zero would be a step for nothing"
    assert all(now > then for now, then in pairwise(found[10:]))


def test_without_warm_up_the_first_step_has_the_whole_rate() -> None:
    found = _factors(warmup=0)
    assert found[0] == 1
    assert found[50] == pytest.approx(0.5)


def test_constant_is_constant_after_the_warm_up() -> None:
    found = _factors(warmup=0.2, schedule="constant")
    assert found[:2] == pytest.approx([0.05, 0.1])
    assert found[19:] == [1.0] * 81


@pytest.mark.parametrize("steps", [1, 2])
def test_the_shortest_trainings_learn(steps: int) -> None:
    assert all(factor > 0 for factor in _factors(steps, warmup=0.5))
