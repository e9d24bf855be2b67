"""The one shape every runtime has: probe, export, open. Targets are found by name.

An exporter is a module `lorkd_exporters/TARGET.py` (`-` becomes `_`), or a module that a package of
someone else names under the entry point group `lorkd_deploy.exporters`:

    [project.entry-points."lorkd_deploy.exporters"]
    mine = "my_package.exporter"

The module has the three functions of `Exporter` and, if `--sample python` is to work for it, a
`PythonSample` called `PYTHON_SAMPLE`; with `layers(folder, files, options, batch, calls)`, which
gives a `LayerTime` for each layer in the order in which they run, a benchmark says where the time
goes. With that every command knows the target `mine`: parity,
accuracy, latency and memory are measured over `Runner`. All names that it needs are those of
`lorkd_deploy` itself:

    from lorkd_deploy import ArtifactError, Closing, EngineFiles, NoOptions, Probe, parse_options

    def probe():
        return Probe(can_build=True, can_run=True, version="1.0", precisions=("fp32",))

    def export(onnx_path, folder, spec):
        parse_options("mine", NoOptions, spec.options)
        (folder / "model.mine").write_bytes(my_runtime.build(onnx_path.read_bytes()))
        return EngineFiles(("model.mine",))

    def open(folder, files, options):
        return MyRunner(folder / files[0], options.threads)

    class MyRunner(Closing):
        def __init__(self, path, threads):
            self.model = my_runtime.load(path, threads)
            self.facts = {"runtime": "mine", "version": "1.0", "precision": "fp32"}

        def __call__(self, batch):
            return self.model.run(batch)

        def close(self):
            self.model.free()

The core imports no runtime; `exporter("onnx")` imports the one that is asked for.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, Protocol, TypeVar

from pydantic import BaseModel, Field, ValidationError

from lorkd_deploy.arrays import F32, Batch
from lorkd_deploy.errors import ArtifactError, RuntimeUnavailableError, UsageError, unknown_name
from lorkd_deploy.schema import Part
from lorkd_deploy.storage import inside

if TYPE_CHECKING:
    from importlib import metadata

Schema = TypeVar("Schema", bound=BaseModel)
Own = TypeVar("Own", bound="Closing")
ENTRY_POINTS = "lorkd_deploy.exporters"
Int8 = Literal["any", "tensor", "signed"]
ALIASES = {"tensorrt": "trt"}
OUTPUT = "output"  # an engine's logits, and what it may give beside them:
FEATURES = "features"  # what a guard looks at: (N, E), `safety/guard.py`
MAPS = "maps"  # where each class was seen: (N, K, h, w), `safety/explanation.py`
# Of an engine that was exported with `raw`: its input, and its first output in place of logits.
IMAGE, PROBABILITIES = "image", "probabilities"
# The option `raw` of a target's own schema. The model that it builds from has all of it already;
# the engine's record says so, beside the options.
Raw = Annotated[
    bool,
    Field(
        strict=True,
        exclude=True,
        description="uint8 images (N, S, S, 3) in and probabilities out, all else in the engine",
    ),
]


@dataclass(frozen=True)
class Probe:
    """What a target can do on this machine, and if not, why and what to do about it.

    `can_build` and `can_run` may differ: an engine for another GPU is built here and runs there.
    `version` is the runtime's, None where it isn't installed; `reason` and `fix` are sentences for
    the user wherever one of both is False. `precisions` are the rows of `precisions/table.py` that
    it can build; `converted` are those for which the ONNX model that it is given has to be in that
    precision already, for the others it is float32. `int8` is the form of quantised activations
    that it takes: `any`, one scale per `tensor`, or that and nothing but `signed` values.
    """

    can_build: bool
    can_run: bool
    version: str | None
    precisions: tuple[str, ...] = ()
    reason: str | None = None
    fix: str | None = None
    converted: tuple[str, ...] = ()
    int8: Int8 = "any"


@dataclass(frozen=True)
class EngineSpec:
    """What to build: one of the target's `Probe.precisions`, and its own options as the user gave
    them (`parse_options`). Nothing here is ever replaced silently: what can't be done is an error.
    """

    precision: str = "fp32"
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def adapters(self) -> bool:
        """Whether the task's own tensors are to be inputs of the model that is built from."""
        return self.options.get("adapters") is True

    @property
    def raw(self) -> bool:
        """Whether the model takes images as they are, and gives probabilities (`Raw`)."""
        return self.options.get("raw") is True


@dataclass(frozen=True)
class EngineFiles:
    """What an exporter wrote: file names in the folder, the engine first, and what it has to say of
    the build; `facts["options"]` are the options that it was built with, JSON values all.
    """

    files: tuple[str, ...]
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RunOptions:
    """How to run an engine: with so many CPU `threads`, which a runtime left to itself would take
    from the host instead of the container, and with the target's own `options` for that.
    """

    threads: int = 1
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class PythonSample:
    """How a program that has nothing of ours runs an engine, as source text.

    `line` imports the runtime, which the wheel `wheel` brings. `infer` defines `infer(batch)`,
    float32 `(N, 3, S, S)` → logits `(N, K)`; `ENGINE` is the engine's path and `np` is NumPy.
    """

    line: str
    wheel: str
    infer: str


class LayerTime(NamedTuple):
    """One layer of an engine as its runtime runs it: its name and kind there, what it computes in,
    and the median of its calls, ms."""

    name: str
    kind: str
    precision: str
    ms: float


class NoOptions(Part):
    """The schema of a target that has no options, or of one whose engines open without any."""


class Runner(Protocol):
    """An open engine: float32 `(N, 3, S, S)` → float32 logits `(N, K)`; of one that was exported
    with `raw` uint8 `(N, S, S, 3)` → float32 probabilities. A context manager.

    A call gives the logits of all N images, whatever N is, and raises `ArtifactError` where the
    runtime refuses or fails, or after `close`. `facts` says what really runs: `runtime`, `version`,
    `provider`, `precision`, `threads`. A runner on a GPU may have a method `allocated()` too: the
    bytes that its runtime's allocator holds there. One whose runtime keeps compiled models has
    their folder as `cache`, and the fact `from_cache`.
    """

    facts: dict[str, Any]

    def __call__(self, batch: Batch) -> F32: ...

    def outputs(self, batch: Batch) -> Mapping[str, F32]:
        """Everything that the engine gives of `batch`, by name, the logits first.

        Engines with a guard need it; one that gives its logits alone may leave it to `Closing`.
        """
        ...

    def close(self) -> None: ...

    def __enter__(self) -> Runner: ...

    def __exit__(self, *error: object) -> None: ...


class Closing:
    """A base for runners: leaving the `with` block calls `close`, which may be called twice."""

    def outputs(self, batch: Batch) -> Mapping[str, F32]:
        """The logits alone."""
        logits: F32 = self(batch)  # type: ignore[operator]
        return {OUTPUT: logits}

    def close(self) -> None:
        raise NotImplementedError

    def __enter__(self: Own) -> Own:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class Exporter(Protocol):
    """The three functions of an exporter module."""

    def probe(self) -> Probe:
        """Whether the target can build and run here; never raises, and imports its runtime late."""
        ...

    def export(self, onnx_path: Path, folder: Path, spec: EngineSpec) -> EngineFiles:
        """Build the ONNX model of one engine, `(N, 3, S, S)` → `(N, K)`, into the empty `folder`.

        Raises `UsageError` for options that it doesn't have, `RuntimeUnavailableError` for what
        can't be built here, `ArtifactError` with the runtime's own words where it fails.
        """
        ...

    def open(self, folder: Path, files: Sequence[str], options: RunOptions) -> Runner:
        """Open the engine `folder / files[0]`, which `export` wrote, here or elsewhere.

        Raises `ArtifactError` for an engine that is missing or damaged, `RuntimeUnavailableError`
        where the runtime can't run it here.
        """
        ...


def targets() -> tuple[str, ...]:
    """Names of every exporter that is installed, sorted."""
    return tuple(sorted(_own() | {point.name for point in _others(tuple(sys.path))}))


def exporter(target: str) -> Exporter:
    """The exporter module of `target`; raises `UsageError` for a name that doesn't exist.

    Other packages are looked at for a name alone that none of ours has: they replace no target.
    """
    name = ALIASES.get(target, target)
    if name in _own():
        found: Any = importlib.import_module("lorkd_exporters." + name.replace("-", "_"))
        own: Exporter = found
        return own
    for point in _others(tuple(sys.path)):
        if point.name == name:
            module: Exporter = point.load()
            return module
    raise unknown_name("target", target, (*targets(), *ALIASES))


def _own() -> set[str]:
    package = importlib.import_module("lorkd_exporters")
    found = (module.name for module in pkgutil.iter_modules(package.__path__))
    return {name.replace("_", "-") for name in found if not name.startswith("_")}


@cache
def _others(where: tuple[str, ...]) -> tuple[metadata.EntryPoint, ...]:
    """Exporters of other packages below `where`, the process's `sys.path`: finding them reads a
    file of every package, which a switch from engine to engine has no time for."""
    from importlib import metadata  # 15 ms, which an engine of ours needn't wait for

    return tuple(metadata.entry_points(group=ENTRY_POINTS))


def require_precision(target: str, precision: str, probe: Probe) -> None:
    """Raise `RuntimeUnavailableError` where `target` can't build here, or not in `precision`."""
    if not probe.can_build:
        raise RuntimeUnavailableError(
            f"{target} can't build engines on this machine: {probe.reason}", fix=probe.fix
        )
    if precision not in probe.precisions:
        raise RuntimeUnavailableError(
            f"{target} can't do {precision} on this machine",
            fix=f"it can do: {', '.join(probe.precisions)}",
        )


def require_running(target: str, probe: Probe) -> None:
    """Raise `RuntimeUnavailableError` where `target` can't run here."""
    if not probe.can_run:
        raise RuntimeUnavailableError(f"{target} can't run here: {probe.reason}", fix=probe.fix)


def parse_options(target: str, schema: type[Schema], given: Mapping[str, Any]) -> Schema:
    """`given` as the target's own `schema`; raises `UsageError` that tells every fault at once.

    `schema` forbids unknown keys; what it says of its fields is what the user is shown.
    """
    try:
        return schema.model_validate(dict(given))
    except ValidationError as exc:
        faults = [_fault(target, error) for error in exc.errors()]
        known = [
            f"{name}: {field.description} (default {field.default})"
            for name, field in schema.model_fields.items()
        ]
        raise UsageError(
            "; ".join(faults),
            fix="its options are\n    " + "\n    ".join(known) if known else "it has no options",
        ) from exc


def engine_path(folder: Path, name: str) -> Path:
    """The engine's file `name` in `folder`; raises `ArtifactError` where it isn't there."""
    path = inside(folder, name)
    if not path.is_file():
        raise ArtifactError(f"{name} is missing", where=folder, fix="run `lorkd export` again")
    return path


def unusable(module: str, name: str, oldest: tuple[int, ...], install: str) -> Probe | None:
    """Why the runtime `name`, imported as `module`, can't be used here: it isn't installed, is
    broken, or is older than `oldest`; None where it can. `install` is what to do about it.
    """
    version = None
    try:
        version = str(importlib.import_module(module).__version__).partition("-")[0]
    except ModuleNotFoundError:
        reason = f"{module} is not installed"
    except ImportError as exc:
        reason = f"{module} is broken: {exc}"
    else:
        if tuple(map(int, re.findall(r"\d+", version)[: len(oldest)])) >= oldest:
            return None
        reason = f"{name} {version} is too old: {'.'.join(map(str, oldest))} is needed"
    return Probe(False, False, version, reason=reason, fix=install)


def _fault(target: str, error: Any) -> str:
    name = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        return f"{target} has no option {name}"
    message = error["msg"].removeprefix("Value error, ")
    return f"{target}: {name}: {message}" if name else f"{target}: {message}"
