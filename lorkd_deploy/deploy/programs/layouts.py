"""Deployment folders: exported engines as a server wants to find them, one model per task.

    REPOSITORY/
      TASK/            what the server needs to know of the model, and below it
        FOLDER/        the engine's folder as it was exported: engine and artifact.json

A layout is a file of this room that says which files a model needs beside its engine.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lorkd_deploy.deploy.artifact import ARTIFACT, Artifact, read_artifact
from lorkd_deploy.deploy.programs import kserve, mlserver, ovms, triton, triton_python
from lorkd_deploy.deploy.programs.served import ServedModel
from lorkd_deploy.errors import ArtifactError, UsageError, unknown_name
from lorkd_deploy.storage import exclusive, folder_atomic, write_atomic


@dataclass(frozen=True)
class Layout:
    """`engine` is the folder of a model in which its engine lies. `files` gives what a model needs
    beside the engine's own files, by path, or raises for an engine that the server can't run;
    `shared` what the repository needs once, which stays as it is where it is there already, and
    `index` what names all models in it.
    `targets` are those that the server can run, None where it runs any, and `adapters` says whether
    it can run an engine with an adapter: one that calls this package can. `start` is the command
    that starts it, `{}` the repository; `written` is told what was written. `called` is what the
    server calls a model; it raises for a name that it can't have.
    """

    engine: str
    files: Callable[[ServedModel], Mapping[str, bytes]]
    start: str
    targets: tuple[str, ...] | None = None
    shared: Callable[[], Mapping[str, bytes]] = dict
    index: Callable[[Sequence[str]], Mapping[str, bytes]] = lambda names: {}
    written: Callable[[Sequence[ServedModel]], None] = lambda models: None
    adapters: bool = True
    called: Callable[[str], str] = str


LAYOUTS = {
    "mlserver": Layout(
        mlserver.ENGINE, mlserver.files, "mlserver start {}", shared=mlserver.shared
    ),
    "triton": Layout(
        triton.VERSION,
        triton.files,
        triton.START,
        targets=tuple(triton.BACKENDS),
        written=triton.warn_unpinned,
        adapters=False,
    ),
    "triton-python": Layout(triton.VERSION, triton_python.files, triton.START),
    "kserve": Layout(
        mlserver.ENGINE,
        kserve.files,
        kserve.START,
        shared=kserve.shared,
        called=kserve.service_name,
    ),
    "ovms": Layout(
        triton.VERSION,
        ovms.files,
        ovms.START,
        targets=("openvino",),
        index=ovms.index,
        adapters=False,
    ),
}


def require_layout(layout: str, target: str) -> None:
    """Raise `UsageError` for an unknown layout, or a target that its server can't run."""
    if layout not in LAYOUTS:
        raise unknown_name("layout", layout, LAYOUTS)
    targets = LAYOUTS[layout].targets
    if targets is not None and target not in targets:
        raise UsageError(
            f"--layout {layout}: that server has no backend for {target} engines",
            fix=f"it is for --target {', '.join(targets)}; --layout mlserver is for every target",
        )


def require_own(layout: str, repository: Path, engines: Sequence[tuple[str, str]]) -> None:
    """Raise `ArtifactError` where a model has the name of a (department, engine) and isn't it."""
    chosen = LAYOUTS[layout]
    called: dict[str, str] = {}
    for engine in sorted({*_models(chosen, repository), *(engine for _, engine in engines)}):
        other = called.setdefault(chosen.called(engine), engine)
        if other != engine:
            raise ArtifactError(
                f"{other} and {engine} would both be called {chosen.called(engine)} there",
                where=repository,
                fix="rename one of the tasks; --layout mlserver takes both as they are",
            )
    for department, engine in engines:
        model = repository / engine
        owner = _owner(model / chosen.engine)
        if model.exists() and owner != (department, engine):
            whose = "no export of lorkd" if owner is None else f"that of department {owner[0]}"
            raise ArtifactError(
                f"there is another model called {engine}: {whose}",
                where=model,
                fix="choose another --out: a server takes several, or serves one folder each",
            )


def write_repository(layout: str, models: Sequence[ServedModel], repository: Path) -> None:
    """Put each engine into `repository` as a model of its own.

    What an earlier export wrote for the same task is replaced whole; other models stay. Raises
    `ArtifactError`, before anything is written, where another model has the name of one of these,
    or an engine is one that the server can't run as it is.
    """
    chosen = LAYOUTS[layout]
    with exclusive(repository, "export"):
        require_own(layout, repository, [(m.artifact.department, m.name) for m in models])
        beside = [chosen.files(model) for model in models]
        for model, files in zip(models, beside, strict=True):
            with folder_atomic(repository / model.name) as fresh:
                _copy(model.artifact, fresh / chosen.engine)
                for path, data in files.items():
                    write_atomic(fresh / path, data)
        for path, data in chosen.shared().items():
            if not (repository / path).exists():
                write_atomic(repository / path, data)
        for path, data in chosen.index(_models(chosen, repository)).items():
            write_atomic(repository / path, data)
    chosen.written(models)


def _models(layout: Layout, repository: Path) -> list[str]:
    """Names of the models that lie there, sorted."""
    return sorted(f.parents[1].name for f in repository.glob(f"[!.]*/{layout.engine}/{ARTIFACT}"))


def _owner(engine: Path) -> tuple[str, str] | None:
    """(department, engine) of what an earlier export wrote; None for a model of anyone else."""
    try:
        known = read_artifact(engine)
    except ArtifactError:
        return None
    return known.department, known.engine


def _copy(artifact: Artifact, folder: Path) -> None:
    folder.mkdir(parents=True)
    for name in (*artifact.file_names, ARTIFACT):
        shutil.copyfile(artifact.folder / name, folder / name)
