"""One training loop for teacher and student: it reads from top to bottom."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lorkd_deploy.errors import TrainingError
from lorkd_deploy.progress import Progress
from lorkd_deploy.recipe import TrainSpec
from lorkd_deploy.training.batches.loader import Loader
from lorkd_deploy.training.fitting.auto_batch import fitting_parts
from lorkd_deploy.training.fitting.autocast import chosen_precision
from lorkd_deploy.training.fitting.batch_statistics import shared_statistics
from lorkd_deploy.training.fitting.checkpoint import Checkpoints, State, Tensors, pack, unpack
from lorkd_deploy.training.fitting.compiled import compiled
from lorkd_deploy.training.fitting.history import Fitted
from lorkd_deploy.training.fitting.processes import ALONE, Processes
from lorkd_deploy.training.fitting.tensorboard import Scalars, open_scalars
from lorkd_deploy.training.fitting.update import Loss, Objective, Update

log = logging.getLogger(__name__)


@dataclass
class _Progress:
    """What changes from step to step beside weights and optimiser."""

    step: int = 0
    best_score: float = -math.inf
    best_step: int = 0
    seconds: float = 0.0
    waiting: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)
    scaler: dict[str, Any] = field(default_factory=dict)
    parts: int = 0  # 0: as the recipe says


def _no_record(fitted: Fitted) -> None:
    """Where nobody asks for the history."""


def fit(
    model: nn.Module,
    loader: Loader,
    spec: TrainSpec,
    *,
    objective: Objective,
    validate: Callable[[], dict[str, float]],
    checkpoints: Checkpoints,
    steps: int,
    validate_steps: int,
    seed: int,
    resume: bool,
    progress: Progress,
    what: str,
    auto_batch: bool = False,
    tensorboard: Path | None = None,
    record: Callable[[Fitted], None] = _no_record,
    processes: Processes = ALONE,
) -> Fitted:
    """Train `model` for `steps` steps and leave the best state by `validate()["score"]` in it.

    Every step's randomness comes from `(seed, step)`, so a resumed training ends with the same
    weights, bit for bit on the CPU, as an uninterrupted one. `auto_batch` lets a batch that does
    not fit into memory pass in parts; `tensorboard` is a folder for the figures of every step;
    `record` is given the training so far: at its start, at each validation, where it can't go on.
    Each of the `processes` calls this with its own share of every batch; the first one writes.
    Raises `TrainingError` where the loss is not finite, naming the step and the cause.
    """
    precision = chosen_precision(spec.precision, next(model.parameters()).device)
    update = Update(model, spec, precision, processes)
    processes.share_state(model)
    now, best = _Progress(), _copy(model)
    if not resume and processes.leads and checkpoints:
        log.warning("starting afresh: the checkpoints here would go on with --resume")
    if resume and (saved := processes.first(checkpoints.load)) is not None:
        now, best = _restore(saved, model, update)
        log.info("resumed at step %d of %d", now.step, steps)
    update.parts = now.parts or spec.accumulate
    if auto_batch and now.step < steps:
        fitting = fitting_parts(
            model, lambda: Update(model, spec, precision), loader.at(now.step), objective,
            parts=update.parts, section=_section(what),
        )  # fmt: skip
        update.parts = processes.most(fitting)
    now.parts = update.parts
    so_far = partial(_so_far, now, loader, update, precision, processes)
    record = record if processes.leads else _no_record
    scalars = open_scalars(tensorboard if processes.leads else None, now.step)
    began, saved_at = time.perf_counter() - now.seconds, time.monotonic()
    progress.start(what, steps)
    progress.advance(now.step)
    whole_batch = shared_statistics(model.train(), processes)
    with (
        closing(scalars),
        _stopped(progress, lambda: record(so_far())),
        whole_batch,
        compiled(model, spec),
    ):
        record(so_far())
        for batch in loader.batches(now.step):
            model.train()
            torch.manual_seed(_mixed(seed, batch.step, processes.index))
            result = update.gradients(batch, objective)
            parts = result.parts
            if not math.isfinite(float(torch.stack(list(parts.values())).sum())):
                raise _not_finite(model, batch.step, what, parts)
            lr = spec.lr * schedule(spec, batch.step, steps)
            update.apply(lr)
            now.step = batch.step + 1
            now.seconds = time.perf_counter() - began
            rate = batch.total * now.step / max(now.seconds, 1e-9)
            losses = _report(progress, scalars, now.step, result, lr=lr, rate=rate)
            if now.step % validate_steps == 0 or now.step == steps:
                _check_weights(model, batch.step, what)
                best = _validated(model, now, best, validate(), losses)
                found = {f"validation/{name}": value for name, value in now.history[-1].items()}
                scalars.add(now.step, found | {"waiting for data": so_far().waited})
                record(so_far())
            due = time.monotonic() - saved_at >= 60 * spec.checkpoint_minutes
            if due and now.step < steps and processes.leads:
                now.waiting += loader.waiting
                loader.waiting = 0.0
                _check_weights(model, batch.step, what)
                _save(checkpoints, model, update, now, best)
                saved_at = time.monotonic()
    model.load_state_dict(best)
    return so_far()


def _so_far(
    now: _Progress, loader: Loader, update: Update, precision: str, processes: Processes
) -> Fitted:
    shared = {"processes": processes.count} if processes.count > 1 else {}
    notes = {"parts": update.parts} | shared
    waiting = now.waiting + loader.waiting
    return Fitted(now.step, now.best_step, now.history, now.seconds, waiting, precision, notes)


@contextmanager
def _stopped(progress: Progress, keep: Callable[[], None]) -> Iterator[None]:
    """Whose bar ends with the block; `keep` is called where the training can't go on."""
    try:
        yield
    except TrainingError:
        keep()
        raise
    finally:
        progress.stop()


def schedule(spec: TrainSpec, step: int, steps: int) -> float:
    """Factor on the learning rate at `step` (from 0): linear warm-up, then cosine to zero."""
    warm = round(spec.warmup * steps)
    if step < warm:
        return (step + 1) / warm
    if spec.schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def _report(
    progress: Progress, scalars: Scalars, step: int, loss: Loss, *, lr: float, rate: float
) -> dict[str, float]:
    """Show the step that was just done; returns its losses by name."""
    losses = {name: float(value) for name, value in loss.parts.items()}
    shown = {name: f"{value:.3f}" for name, value in losses.items()}
    progress.advance(1, **shown, accuracy=f"{loss.accuracy:.2f}", images=f"{rate:.0f}/s")
    figures = {"lr": lr, "accuracy": loss.accuracy, "images per second": rate}
    scalars.add(step, {f"loss/{name}": v for name, v in losses.items()} | figures)
    return losses


def _validated(
    model: nn.Module,
    now: _Progress,
    best: Tensors,
    scores: dict[str, float],
    losses: dict[str, float],
) -> Tensors:
    now.history.append({"step": now.step, **losses, **scores})
    log.info("step %d: %s", now.step, ", ".join(f"{k} {v:.4f}" for k, v in scores.items()))
    if scores["score"] <= now.best_score:
        return best
    now.best_score, now.best_step = scores["score"], now.step
    return _copy(model)


def _check_weights(model: nn.Module, step: int, what: str) -> None:
    """So that neither the best state nor a checkpoint is one that can't be gone on from."""
    if any(not torch.isfinite(v).all() for v in model.state_dict().values()):
        raise _not_finite(model, step, what, {})


def _not_finite(model: nn.Module, step: int, what: str, parts: dict[str, Tensor]) -> TrainingError:
    bad = [name for name, value in parts.items() if not math.isfinite(float(value))]
    names = [n for n, value in model.state_dict().items() if not torch.isfinite(value).all()]
    causes = [f"the {' and '.join(bad) or 'summed'} loss is not finite"] if parts else []
    if names:
        causes.append(f"{len(names)} weights hold NaN or infinity, {names[0]} first")
    section = _section(what)
    return TrainingError(
        f"training stopped at step {step}: {'; '.join(causes)}",
        fix=f"lower {section}.lr, or lengthen {section}.warmup, and start in a new --out: the same "
        "recipe would end here again",
    )


def _section(what: str) -> str:
    return "teacher.train" if what == "teacher" else "train"


def _mixed(seed: int, step: int, process: int) -> int:
    return (seed * 1_000_003 + step + process * (1 << 40)) % (1 << 63)


def _copy(model: nn.Module) -> Tensors:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def _save(
    checkpoints: Checkpoints, model: nn.Module, update: Update, now: _Progress, best: Tensors
) -> None:
    now.scaler = update.scaler.state_dict()
    tensors = pack("model", _copy(model)) | pack("best", best)
    tensors |= pack("optimizer", update.tensors())
    checkpoints.save(State(now.step, tensors, {**now.__dict__, "best_score": _plain(now)}))


def _plain(now: _Progress) -> float | None:
    return now.best_score if math.isfinite(now.best_score) else None  # JSON has no infinity


def _restore(saved: State, model: nn.Module, update: Update) -> tuple[_Progress, Tensors]:
    try:
        model.load_state_dict(unpack("model", saved.tensors))
    except RuntimeError as exc:
        raise TrainingError(f"the checkpoint doesn't fit the model: {exc}") from exc
    facts = dict(saved.facts)
    facts["best_score"] = -math.inf if facts["best_score"] is None else facts["best_score"]
    now = _Progress(**facts)
    update.restore(unpack("optimizer", saved.tensors), now.scaler)
    device = next(model.parameters()).device
    best = {name: value.to(device) for name, value in unpack("best", saved.tensors).items()}
    return now, best
