"""What one benchmark works on: engines of a run, the protocol that measures them, their tasks."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lorkd_deploy.bundle.manifest import TaskEntry
from lorkd_deploy.bundle.read import Bundle, load_bundle
from lorkd_deploy.deploy.artifact import Artifact
from lorkd_deploy.errors import LorkdError
from lorkd_deploy.profiling.planning.protocol import Protocol, protocol_of
from lorkd_deploy.profiling.planning.selection import EngineFilter, is_teacher, select_engines
from lorkd_deploy.run import Run, open_run


@dataclass(frozen=True)
class Setup:
    """`engines` of a run in the order of its recipe, and the `protocol` that they are measured by.

    `notes` say which engines were left out, and which were never proven.
    """

    run: Run
    bundle: Bundle
    engines: tuple[Artifact, ...]
    protocol: Protocol
    notes: tuple[str, ...]

    @property
    def tasks(self) -> list[TaskEntry]:
        """The tasks of the experts among `engines`, in the recipe's order."""
        experts = [engine for engine in self.engines if not is_teacher(engine)]
        wanted = {task.name for expert in experts for task in expert.tasks}
        return [task for task in self.bundle.manifest.tasks if task.name in wanted]


def set_up(
    run: str | Path, wanted: EngineFilter, given: Mapping[str, float | None], *, quick: bool = False
) -> Setup:
    """The engines of `run` that are `wanted`, and its recipe's protocol but for what is `given`.

    Raises what `select_engines` and `protocol_of` raise, and `LorkdError` where RUN/profile can't
    be written.
    """
    folder = open_run(run)
    bundle = load_bundle(folder.bundle)
    engines, notes = select_engines(folder.path, bundle, wanted)
    protocol = protocol_of(
        bundle.recipe.benchmark,
        [engine.name for engine in engines],
        bundle.manifest.preprocess.size,
        {name: value for name, value in given.items() if value is not None},
        quick=quick,
    )
    sizes = {e.preprocess.size for e in engines if is_teacher(e)}
    own = {(3, size, size) for size in sizes} - {protocol.input_shape}
    if own:
        protocol = protocol.model_copy(update={"teacher_input_shape": own.pop()})
    _check_writable(folder.profile)
    return Setup(folder, bundle, tuple(engines), protocol, tuple(notes))


def _check_writable(folder: Path) -> None:
    """Raise `LorkdError` now, and not after an hour, where nothing can be written to `folder`."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".writable-"):
            pass
    except OSError as exc:
        raise LorkdError(
            f"the profile can't be written: {exc.strerror}",
            where=folder,
            fix="check who owns the run's folder and what room its disk has, or copy the run to "
            "where you may write",
        ) from exc
