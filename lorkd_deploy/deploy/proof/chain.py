"""The models between the one that was trained and the engine, each run by itself.

The chain is: unfused torch model → fused ONNX → the same in the engine's precision → engine. Where
the engine is one of these models itself, as for the `onnx` target, it isn't run twice.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from lorkd_deploy.errors import RuntimeUnavailableError
from lorkd_deploy.machine.processor import usable_cpus
from lorkd_deploy.precisions.table import BASELINE
from lorkd_deploy.runtime import Runner, RunOptions, exporter
from lorkd_deploy.storage import sha256_bytes

TRAINED = "unfused torch"
FUSED = "fused ONNX"
ENGINE = "engine"
MODEL = "model.onnx"


class Stage(NamedTuple):
    """A model of the chain: its name, its bytes, and the precision whose tolerance judges it."""

    name: str
    model: bytes
    precision: str


def stages(
    fused: bytes, given: bytes | None, precision: str, engine_sha256: str
) -> Sequence[Stage]:
    """The models before the engine: the fused one, and that which its target was `given` (None
    where it isn't known), without the engine's own file, whose hash is `engine_sha256`.
    """
    found = [Stage(FUSED, fused, BASELINE)]
    if given is not None and given != fused:
        found.append(Stage(f"{precision} ONNX", given, precision))
    return tuple(stage for stage in found if sha256_bytes(stage.model) != engine_sha256)


@contextmanager
def opened_stage(stage: Stage) -> Iterator[Runner]:
    """The stage on ONNX Runtime's CPU; raises `RuntimeUnavailableError` where that isn't here."""
    runtime = exporter("onnx")
    probe = runtime.probe()
    if not probe.can_run:
        raise RuntimeUnavailableError(
            f"the steps between are run by ONNX Runtime: {probe.reason}", fix=probe.fix
        )
    with tempfile.TemporaryDirectory(prefix="lorkd-stage-") as name:
        folder = Path(name)
        (folder / MODEL).write_bytes(stage.model)
        with runtime.open(folder, [MODEL], RunOptions(threads=usable_cpus())) as runner:
            yield runner
