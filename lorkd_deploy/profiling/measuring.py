"""Every round of every engine: in the recorded order, kept on disk, taken over where it is done."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from lorkd_deploy.deploy.artifact import Artifact
from lorkd_deploy.errors import LorkdError
from lorkd_deploy.machine.gpu import Gpus
from lorkd_deploy.machine.power import open_power
from lorkd_deploy.profiling.best_batch import best_batch
from lorkd_deploy.profiling.kept_rounds import Kept
from lorkd_deploy.profiling.protocol import Protocol
from lorkd_deploy.profiling.rounds import Instruments, Round, measure_round
from lorkd_deploy.profiling.stages import draw_image
from lorkd_deploy.progress import Progress

Measured = dict[str, list[Round]]


def check_writable(folder: Path) -> None:
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


def measure(
    engines: Sequence[Artifact], kept: Kept, progress: Progress
) -> tuple[Protocol, Measured, int]:
    """All rounds by engine, the protocol with each engine's best batch, and how many rounds an
    earlier process had done. Raises `WorkerError`; the rounds done so far stay in `kept`.
    """
    by_name = {engine.name: engine for engine in engines}
    protocol = _with_best_batches(engines, kept, progress)
    gpus = Gpus()
    power = open_power(gpus)
    idle = power.idle if power.meters else None
    instruments = Instruments(power, gpus)
    found_here = {
        "power": power.source,
        "idle_watts": idle,
        "gpu_memory": gpus.memory_source,
    }
    protocol = protocol.model_copy(update=found_here)
    measured: Measured = {name: [] for name in by_name}
    taken_over = 0
    progress.start("measuring", protocol.rounds * len(engines))
    try:
        with tempfile.TemporaryDirectory() as folder:
            image = Path(folder) / "image.png"
            draw_image(image, protocol.seed)
            for number, order in enumerate(protocol.order, 1):
                for name in order:
                    found = kept.load(number, name)
                    if found is not None:
                        taken_over += 1
                        instruments.pace.seen += found.paces
                    else:
                        found = measure_round(by_name[name], protocol, image, instruments)
                        kept.save(number, name, found)
                    measured[name].append(found)
                    progress.advance(round=f"{number}/{protocol.rounds}", engine=name)
    finally:
        progress.stop()
    return protocol, measured, taken_over


def _with_best_batches(engines: Sequence[Artifact], kept: Kept, progress: Progress) -> Protocol:
    protocol = kept.protocol
    if protocol.best_batches or not protocol.largest_batch:
        return protocol
    found = {}
    progress.start("looking for the best batch", len(engines))
    try:
        for engine in engines:
            found[engine.name] = best_batch(engine, protocol)
            progress.advance(engine=engine.name, batch=str(found[engine.name]))
    finally:
        progress.stop()
    return kept.decide(found)
