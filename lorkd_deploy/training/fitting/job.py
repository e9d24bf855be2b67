"""What a training is given beside its objective: the run, the data, and how it is to be done."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeVar

import torch

from lorkd_deploy.datacheck.quick import warn_of_leaks
from lorkd_deploy.progress import Progress, Silent
from lorkd_deploy.recipe import TrainSpec
from lorkd_deploy.run import Run
from lorkd_deploy.training.batches.setup import Setup
from lorkd_deploy.training.fitting.checkpoint import Checkpoints
from lorkd_deploy.training.processes import Processes

T = TypeVar("T")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """One training of a run, of its teacher or of the experts (`decompose`).

    `resume` continues from the last checkpoint, `auto_batch` lets a batch that does not fit into
    memory pass in parts, `allow_missing` lets a frozen teacher have weights that its checkpoint
    lacks, `tensorboard` writes the figures of every step. `identity` is a hash of all that the
    training depends on, which its checkpoints must share: by default the run's. `cache_folder`
    is one for the teacher's features that it shares with other jobs, by default one of its own.
    """

    name: Literal["teacher", "decompose"]
    run: Run
    setup: Setup
    resume: bool = False
    auto_batch: bool = False
    allow_missing: bool = False
    tensorboard: bool = False
    progress: Progress = field(default_factory=Silent)
    identity: str | None = None
    cache_folder: Path | None = None

    @property
    def spec(self) -> TrainSpec:
        """The recipe's section for it."""
        recipe = self.setup.recipe
        return recipe.teacher.train if self.name == "teacher" else recipe.train

    @property
    def section(self) -> str:
        """That section's name, for messages."""
        return "teacher.train" if self.name == "teacher" else "train"

    @property
    def processes(self) -> Processes:
        """Those that share it."""
        return self.setup.processes

    @property
    def device(self) -> torch.device:
        """What this process computes on."""
        return self.setup.processes.device

    @property
    def checkpoints(self) -> Checkpoints:
        """Where it is continued from."""
        identity = self.identity or self.run.recipe_sha256 or self.setup.recipe.sha256
        return Checkpoints(self.run.path / "checkpoints" / self.name, identity)

    def warn_of_leaks(self) -> None:
        """Warn of images and patients that lie in two splits, and keep in the run what is found."""
        setup = self.setup
        self.processes.first(
            lambda: warn_of_leaks(setup.recipe, setup.data, self.run.path, self.progress).leaks
        )

    def finish(self, write: Callable[[], T]) -> T:
        """What the first process writes of the finished training, whose checkpoints then go."""

        def last() -> T:
            try:
                result = write()
            except Exception:
                if self.checkpoints:
                    log.warning("what was trained is kept: the same call with --resume ends it")
                raise
            self.checkpoints.clear()
            return result

        return self.processes.first(last)

    @property
    def cache(self) -> Path:
        """Where the teacher's features lie, by default in the run."""
        return self.cache_folder or self.run.path / "cache"

    @property
    def history(self) -> Path:
        """The file that tells of it, named as the folder that comes of it."""
        folder = self.run.teacher if self.name == "teacher" else self.run.bundle
        return self.run.path / "history" / f"{folder.name}.json"

    @property
    def events(self) -> Path | None:
        """TensorBoard's folder, if it is wanted and this process writes."""
        wanted = self.tensorboard and self.processes.leads
        return self.run.path / "tensorboard" / self.name if wanted else None
