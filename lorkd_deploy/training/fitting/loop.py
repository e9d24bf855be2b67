"""One training loop for teacher and student: it reads from top to bottom."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from lorkd_deploy.errors import TrainingError
from lorkd_deploy.recipe import TrainSpec
from lorkd_deploy.training.fitting.autocast import chosen_precision
from lorkd_deploy.training.fitting.checkpoint import State, pack, unpack
from lorkd_deploy.training.fitting.compiled import compiled
from lorkd_deploy.training.fitting.history import Fitted, write_history
from lorkd_deploy.training.fitting.job import Job
from lorkd_deploy.training.fitting.objective import Objective
from lorkd_deploy.training.fitting.sharing import share_state, shared_statistics
from lorkd_deploy.training.fitting.tensorboard import Scalars
from lorkd_deploy.training.fitting.update import Update, fitting_parts
from lorkd_deploy.training.fitting.watch import Seen, Watch
from lorkd_deploy.training.networks.evaluate import scores, summary

log = logging.getLogger(__name__)


def fit(job: Job, objective: Objective, notes: Mapping[str, Any] | None = None) -> Fitted:
    """Train what of `objective` can be trained, in place, to the schedule's last step.

    Validations are for the eye: a state that is chosen by the score on a few images is a spike of
    that score (78 images leave .04 of an AUC to chance). Every step's randomness comes from the
    recipe's seed and the step, so a resumed training ends with the same weights, bit for bit on the
    CPU, as an uninterrupted one. Each of the job's processes calls this with its own share of
    every batch; the first one writes. `notes` are further facts for the history, which is written
    at the start, at each validation and where the training can't continue.

    Raises `TrainingError` where the loss or a weight is not finite, naming the step and the cause.
    """
    training = _Training(job, objective, notes or {})
    spec, seed, now = job.spec, job.setup.recipe.seed, training.now
    statistics = shared_statistics(objective.train(), job.processes)
    with training.shown(), statistics, compiled(objective.network, spec):
        training.record()
        for batch in training.loader.batches(now.step):
            objective.train()
            torch.manual_seed(_mixed(seed, batch.step, job.processes.index))
            loss = training.update.gradients(batch)
            lr = spec.lr * schedule(spec, batch.step, training.steps)
            seen = training.finite(training.watch.add(batch.step, loss, lr))
            training.update.apply(lr)
            now.step = batch.step + 1
            training.report(seen)
            if now.step % training.validate_steps == 0 or now.step == training.steps:
                training.validate()
            if training.must_save():
                training.save()
    return training.fitted()


def schedule(spec: TrainSpec, step: int, steps: int) -> float:
    """Factor on the learning rate at `step` (from 0): linear warm-up, then cosine to zero."""
    warm = round(spec.warmup * steps)
    if step < warm:
        return (step + 1) / warm
    if spec.schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


@dataclass
class _Progress:
    """What changes from step to step beside weights and optimiser."""

    step: int = 0
    seconds: float = 0.0
    waiting: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)
    scaler: dict[str, Any] = field(default_factory=dict)
    parts: int = 0  # 0: as the recipe says


class _Training:
    """A training under way: weights and optimiser, and what is shown and saved."""

    def __init__(self, job: Job, objective: Objective, notes: Mapping[str, Any]) -> None:
        self.steps, self.validate_steps = job.setup.steps(job.spec)
        self.loader = job.setup.loader(job.spec, self.steps)
        self._precision = chosen_precision(job.spec.precision, job.device)
        self.update = Update(objective, job.spec, self._precision, job.processes)
        self._job, self._objective, self._notes = job, objective, notes
        share_state(objective, job.processes)
        self.now = _Progress()
        self._resume()
        self.update.parts = self.now.parts or job.spec.accumulate
        if job.auto_batch and self.now.step < self.steps:
            batch = self.loader.at(self.now.step)
            parts = fitting_parts(job, objective, self._precision, batch, self.update.parts)
            self.update.parts = job.processes.most(parts)
        self.now.parts = self.update.parts
        self.watch = Watch(job.device)
        self._losses: dict[str, float] = {}
        self._scalars = Scalars(job.events, self.now.step)
        self._began, self._saved = time.perf_counter() - self.now.seconds, time.monotonic()

    @contextmanager
    def shown(self) -> Iterator[None]:
        """The length of its progress bar; where it can't continue, the history says how far."""
        progress = self._job.progress
        progress.start(self._job.name, self.steps)
        progress.advance(self.now.step)
        try:
            yield
        except TrainingError:
            self.record()
            raise
        finally:
            progress.stop()
            self._scalars.close()

    def finite(self, seen: list[Seen]) -> list[Seen]:
        """`seen`, whose losses are finite; raises `TrainingError` naming the first that isn't."""
        for one in seen:
            if not one.finite:
                raise self.not_finite(one.step, one.parts)
        return seen

    def report(self, seen: list[Seen]) -> None:
        """Show steps that were done."""
        now = self.now
        now.seconds = time.perf_counter() - self._began
        rate = self._job.spec.batch_size * now.step / max(now.seconds, 1e-9)
        for one in seen:
            self._losses = one.parts
            shown = {name: f"{value:.3f}" for name, value in one.parts.items()}
            shown |= {"accuracy": f"{one.accuracy:.2f}", "images": f"{rate:.0f}/s"}
            self._job.progress.advance(1, **shown)
            figures = {"lr": one.lr, "accuracy": one.accuracy, "images per second": rate}
            figures |= {f"loss/{name}": value for name, value in one.parts.items()}
            self._scalars.add(one.step + 1, figures)

    def validate(self) -> None:
        """Score every task on its validation split."""
        self.report(self.finite(self.watch.read()))
        self._check_weights()
        setup, now = self._job.setup, self.now
        network, preprocess = self._objective.network, setup.preprocess
        found = summary(
            scores(network, setup.val, setup.kinds, preprocess, setup.processes), setup.names
        )
        now.history.append({"step": now.step, **self._losses, **found})
        log.info("step %d: %s", now.step, ", ".join(f"{k} {v:.4f}" for k, v in found.items()))
        figures = {f"validation/{name}": value for name, value in now.history[-1].items()}
        self._scalars.add(now.step, figures | {"waiting for data": self.fitted().waited})
        self.record()

    def record(self) -> None:
        """Write the history so far."""
        if self._job.processes.leads:
            write_history(self._job.history, self.fitted(), self._job.device, finished=False)

    def fitted(self) -> Fitted:
        """The training so far."""
        now, count = self.now, self._job.processes.count
        shared = {"processes": count} if count > 1 else {}
        return Fitted(
            now.step,
            now.history,
            now.seconds,
            now.waiting + self.loader.waiting,
            self._precision,
            {"parts": self.update.parts, **shared, **self._notes},
        )

    def must_save(self) -> bool:
        """Whether this process writes a checkpoint after this step: after the last in any case,
        from which a run finishes whose bundle couldn't be written.
        """
        due = time.monotonic() - self._saved >= 60 * self._job.spec.checkpoint_minutes
        return (due or self.now.step == self.steps) and self._job.processes.leads

    def save(self) -> None:
        """Write a checkpoint."""
        now = self.now
        self.report(self.finite(self.watch.read()))
        now.waiting += self.loader.waiting
        self.loader.waiting = 0.0
        self._check_weights()
        now.scaler = self.update.scaler.state_dict()
        tensors = pack("model", self._objective.state_dict())
        tensors |= pack("optimizer", self.update.tensors())
        self._job.checkpoints.save(State(now.step, tensors, dict(now.__dict__)))
        self._saved = time.monotonic()

    def _resume(self) -> None:
        """Continue from the last checkpoint, if that is asked for and there is one."""
        job, checkpoints = self._job, self._job.checkpoints
        if not job.resume:
            if job.processes.leads and checkpoints:
                log.warning("starting afresh: --resume would continue from the checkpoints here")
            return
        saved = job.processes.first(checkpoints.load)
        if saved is None:
            return
        try:
            self._objective.load_state_dict(unpack("model", saved.tensors))
        except RuntimeError as exc:
            raise TrainingError(f"the checkpoint doesn't fit the model: {exc}") from exc
        self.now = _Progress(**saved.facts)
        self.update.restore(unpack("optimizer", saved.tensors), self.now.scaler)
        log.info("resumed at step %d of %d", self.now.step, self.steps)

    def _check_weights(self) -> None:
        """So that neither what is tested nor a checkpoint can't be continued from."""
        if any(not torch.isfinite(v).all() for v in self._objective.state_dict().values()):
            raise self.not_finite(self.now.step - 1)

    def not_finite(self, step: int, parts: Mapping[str, float] | None = None) -> TrainingError:
        """The error for weights, or parts of the loss, that are not finite after `step`."""
        parts = parts or {}
        bad = [name for name, value in parts.items() if not math.isfinite(value)]
        state = self._objective.state_dict()
        names = [n for n, value in state.items() if not torch.isfinite(value).all()]
        causes = [f"the {' and '.join(bad) or 'summed'} loss is not finite"] if parts else []
        if names:
            causes.append(f"{len(names)} weights hold NaN or infinity, {names[0]} first")
        section = self._job.section
        return TrainingError(
            f"training stopped at step {step}: {'; '.join(causes)}",
            fix=f"lower {section}.lr, or lengthen {section}.warmup, and start in a new --out: the "
            "same recipe would end here again",
        )


def _mixed(seed: int, step: int, process: int) -> int:
    return (seed * 1_000_003 + step + process * (1 << 40)) % (1 << 63)
