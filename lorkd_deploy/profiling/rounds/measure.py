"""Measure every round of every engine in the protocol's order, keep it, and resume from it."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lorkd_deploy.deploy.artifact import Artifact
from lorkd_deploy.machine.gpu import Gpus
from lorkd_deploy.machine.power import open_power
from lorkd_deploy.profiling.planning.protocol import Protocol
from lorkd_deploy.profiling.rounds.best_batch import best_batch
from lorkd_deploy.profiling.rounds.round import Instruments, Round, measure_round
from lorkd_deploy.profiling.rounds.store import KeptRounds
from lorkd_deploy.profiling.worker.stages import draw_image
from lorkd_deploy.progress import Progress, bar


@dataclass(frozen=True)
class MeasuredRounds:
    """All rounds `of_engines`, by name; the `protocol` that they were measured by, each engine's
    best batch in it; and how many an earlier process had done before this one was `resumed`."""

    of_engines: dict[str, list[Round]]
    protocol: Protocol
    resumed: int


def measure(
    engines: Sequence[Artifact], kept: KeptRounds, progress: Progress | None
) -> MeasuredRounds:
    """Every round of every engine, in the protocol's order; each is kept once it is done.

    Raises `WorkerError`; the rounds done so far stay in `kept`.
    """
    by_name = {engine.name: engine for engine in engines}
    protocol = _with_best_batches(engines, kept, progress)
    gpus = Gpus()
    power = open_power(gpus)
    instruments = Instruments(power, gpus)
    found_here = {
        "power": power.source,
        "idle_watts": power.idle if power.meters else None,
        "gpu_memory": gpus.memory_source,
    }
    protocol = protocol.model_copy(update=found_here)
    measured: dict[str, list[Round]] = {name: [] for name in by_name}
    resumed = 0
    with (
        bar(progress, "measuring", protocol.rounds * len(engines)) as shown,
        tempfile.TemporaryDirectory() as folder,
    ):
        image = Path(folder) / "image.png"
        draw_image(image, protocol.seed)
        for number, order in enumerate(protocol.order, 1):
            for name in order:
                found = kept.load(number, name)
                if found is not None:
                    resumed += 1
                    instruments.pace.seen += found.paces
                else:
                    found = measure_round(by_name[name], protocol, image, instruments)
                    kept.save(number, name, found)
                measured[name].append(found)
                shown.advance(round=f"{number}/{protocol.rounds}", engine=name)
    return MeasuredRounds(measured, protocol, resumed)


def _with_best_batches(
    engines: Sequence[Artifact], kept: KeptRounds, progress: Progress | None
) -> Protocol:
    protocol = kept.protocol
    if protocol.best_batches or not protocol.largest_batch:
        return protocol
    found = {}
    with bar(progress, "looking for the best batch", len(engines)) as shown:
        for engine in engines:
            found[engine.name] = best_batch(engine, protocol)
            shown.advance(engine=engine.name, batch=str(found[engine.name]))
    return kept.decide(found)
