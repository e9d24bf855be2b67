"""ONNX Runtime's adapters: one base for every task of a bundle, and a task's own tensors beside it.

The defaults in the base are NaN, so that a base without its adapter never answers like one: ONNX
Runtime says nothing of it. Engines of one base share one session.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from lorkd_deploy.errors import ArtifactError, first_line
from lorkd_deploy.storage import sha256_file

if TYPE_CHECKING:
    import onnxruntime  # type: ignore[import-untyped]

BASE = "base.onnx"
ADAPTER = "task.onnx_adapter"  # the engine's first file, since it is what makes it the task's
_OF_ONE_TASK = ("lorkd.engine", "lorkd.tasks")
_VERSION = 1  # of the pair, in the adapter's header; ONNX Runtime compares nothing


class Adapter(NamedTuple):
    """The options of a run with an adapter, which has to live as long as they do."""

    options: onnxruntime.RunOptions | None = None
    tensors: Any = None


NONE = Adapter()
sessions: weakref.WeakValueDictionary[tuple[str, int], Any] = weakref.WeakValueDictionary()
_opening = threading.Lock()


def divide(model: Path, folder: Path) -> None:
    """Write `BASE` and `ADAPTER` into `folder`, of a model whose own tensors are inputs with
    defaults (`lorkd_deploy/deploy/graphs/adapters.py`).
    """
    import onnx
    import onnxruntime
    from onnx import numpy_helper

    base = onnx.load(model)
    lengths = {
        value.name: [dim.dim_value or 1 for dim in value.type.tensor_type.shape.dim]
        for value in base.graph.input[1:]
    }
    own = {}
    for initializer in base.graph.initializer:
        if initializer.name in lengths:
            own[initializer.name] = numpy_helper.to_array(initializer).copy()
            nothing = np.full(lengths[initializer.name], np.nan, np.float32)
            initializer.CopyFrom(numpy_helper.from_array(nothing, initializer.name))
    kept = {p.key: p.value for p in base.metadata_props if p.key not in _OF_ONE_TASK}
    onnx.helper.set_model_props(base, kept)
    (folder / BASE).write_bytes(base.SerializeToString(deterministic=True))
    adapter = onnxruntime.AdapterFormat()
    adapter.set_adapter_version(_VERSION)
    adapter.set_model_version(_VERSION)
    # The values aren't copied: `own` has to live until they are written.
    values = {n: onnxruntime.OrtValue.ortvalue_from_numpy(value) for n, value in own.items()}
    adapter.set_parameters(values)
    adapter.export_adapter(str(folder / ADAPTER))


def shared(
    base: Path, threads: int, opened: Callable[[], onnxruntime.InferenceSession]
) -> onnxruntime.InferenceSession:
    """The session of a base with so many threads: one that is open, or what `opened` opens."""
    found = base.stat()
    key = (_content(base, found.st_ino, found.st_size, found.st_mtime_ns), threads)
    with _opening:
        session = sessions.get(key)
        if session is None:
            session = sessions[key] = opened()
        return session


@lru_cache(maxsize=64)
def _content(base: Path, *_state: int) -> str:
    """The hash of a base; a file that was hashed already is not read again while its state holds.

    Whoever opens an engine has checked its files: this is not that check.
    """
    return sha256_file(base)


def active(file: Path) -> Adapter:
    """An adapter, loaded; raises `ArtifactError` for a file that is none."""
    import onnxruntime

    adapter = onnxruntime.LoraAdapter()
    try:
        adapter.Load(str(file))
    except Exception as exc:  # the runtime has no base class for its errors
        raise ArtifactError(
            f"{file.name} is damaged or no adapter: {first_line(exc)}",
            where=file.parent,
            fix="run `lorkd export` again",
        ) from exc
    options = onnxruntime.RunOptions()
    options.add_active_adapter(adapter)
    return Adapter(options, adapter)
