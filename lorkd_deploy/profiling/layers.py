"""Where each engine's time goes, layer by layer, as its own runtime tells it."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from lorkd_deploy.deploy.artifact import Artifact
from lorkd_deploy.profiling.planning.protocol import Protocol
from lorkd_deploy.profiling.profile import Layer
from lorkd_deploy.profiling.worker.process import EngineProcess, WorkerError

CALLS = 20  # of which the median counts
log = logging.getLogger(__name__)


def layered(engines: Sequence[Artifact], protocol: Protocol) -> dict[str, tuple[Layer, ...]]:
    """Engine → its layers in the order in which they run, at the smallest batch, all in one
    process after the rounds; none of a target that doesn't tell, and none from an engine on that
    failed, which is no reason to lose what was measured."""
    found: dict[str, tuple[Layer, ...]] = {}
    if not engines:
        return found
    try:
        with EngineProcess(engines[0], protocol.threads, protocol.cpus) as process:
            for engine in engines:
                told = process.layers(engine, min(protocol.batch_sizes), CALLS)
                found[engine.name] = tuple(
                    Layer(name=name, kind=kind, precision=precision, ms=ms)
                    for name, kind, precision, ms in told
                )
    except WorkerError as exc:
        log.warning("where the time goes isn't known of every engine: %s", exc)
    return found
