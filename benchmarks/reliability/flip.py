"""Single-bit flips in every file that is read back: found when it is opened, or without effect.

    python benchmarks/reliability/flip.py --count 10000

The material is a run of the tests' tiny network (bundle, teacher, engines of ONNX Runtime and
OpenVINO), a profile with its calls and answers, rounds of a stopped benchmark, a history, a
checkpoint and an audit log. Each trial flips one bit of one file, opens what it belongs to as the
product does, and puts it back. Writes results/reliability-flip.json and .md; a stopped campaign
goes on by the same call.
"""

from __future__ import annotations

import logging
import sys
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.reliability.campaign import Campaign, arguments
from lorkd_deploy.bundle.read import load_bundle
from lorkd_deploy.clinic.audit import AuditLog, verify_log
from lorkd_deploy.deploy.artifact import check_files, find_artifacts
from lorkd_deploy.deploy.export import export
from lorkd_deploy.errors import LorkdError
from lorkd_deploy.profiling.rounds.store import KeptRounds
from lorkd_deploy.reporting.facts.sources import read_sources
from lorkd_deploy.run import Run, read_record
from lorkd_deploy.schema import read_document

BATCH = 100
PROTOCOL = (
    "One bit is flipped in one file (part, file, byte and bit drawn evenly), what it belongs to "
    "is opened as the product opens it, and the bit is put back. Found: refused in a sentence, or "
    "left out with a warning. Missed: opened with other values. Traceback: another error."
)


class Part(NamedTuple):
    """Files that are opened together. `opened()` gives what was read, `shown` of it what would be
    lost in silence; it raises `LorkdError` where something is damaged."""

    files: tuple[Path, ...]
    opened: Callable[[], Any]


def material(folder: Path) -> dict[str, Part]:
    """Write one of each, below `folder`."""
    from tests.deploy.made_run import make_run
    from tests.reporting.run_folder import build_run

    run = make_run(folder / "run", folder / "data", images="bundle")
    export(run, teacher=True)
    shown = build_run(folder / "shown")
    other = make_run(folder / "other", folder / "data", images="bundle")
    if find_spec("openvino"):
        export(other, "openvino", task=["eye"])
    parts = {
        "bundle": Part(_below(run / "bundle"), lambda: load_bundle(run / "bundle").manifest),
        "teacher": Part(_below(run / "teacher"), lambda: load_bundle(run / "teacher").manifest),
        "engines": Part(_below(run / "export"), lambda: _engines(run)),
        "OpenVINO's engine": Part(_below(other / "export"), lambda: _engines(other)),
        "run.json": Part((run / "run.json",), lambda: read_record(run / "run.json")),
        "profile": Part(_below(shown / "profile"), lambda: _shown(shown)),
        "audit log": _audit_log(folder / "audit" / "log.jsonl"),
        "rounds of a benchmark": _rounds(folder / "rounds", shown),
    }
    parts |= _of_training(folder) if find_spec("torch") else {}
    return {name: part for name, part in parts.items() if part.files}


def _below(folder: Path) -> tuple[Path, ...]:
    files = (file for file in folder.rglob("*") if file.is_file() and file.stat().st_size)
    return tuple(sorted(files))


def _engines(run: Path) -> Any:
    artifacts = find_artifacts(run)
    for artifact in artifacts:
        check_files(artifact)
    return artifacts


def _shown(run: Path) -> Any:
    found = read_sources(Run(run, run / "bundle"))
    return found.profile, _listed(found.calls), _listed(found.answers)


def _audit_log(path: Path) -> Part:
    log = AuditLog(path)
    for number in range(20):
        log.append({"image": f"{number:064x}", "label": "Kälte"})
    return Part((path,), lambda: (verify_log(path), path.read_bytes()))


def _rounds(folder: Path, shown: Path) -> Part:
    from lorkd_deploy.profiling.conditions import Conditions
    from lorkd_deploy.profiling.profile import read_profile
    from lorkd_deploy.profiling.rounds.round import Round
    from lorkd_deploy.profiling.timing import RoundCalls

    profile = read_profile(shown / "profile" / "profile.json")
    quiet = Conditions(others=0, throttled=None, mhz=None, celsius=None, disturbed=False)
    calls = RoundCalls(np.linspace(1, 2, 200), peak=None, interruptions=None, settled=True)
    none: dict[str, Any] = dict.fromkeys(
        ("empty", "loaded", "joules", "gpu", "allocator", "unified", "uncached")
    )
    measured = Round(
        cold={"open": 3.0}, facts={}, batches={1: calls}, stages={}, paces=(1.0,),
        conditions=quiet, **none,
    )  # fmt: skip
    kept = KeptRounds(folder, profile.protocol, find_artifacts(shown), {}, resume=False)
    kept.save(0, "ward/lung", measured)

    def opened() -> Any:
        again = KeptRounds(folder, profile.protocol, find_artifacts(shown), {}, resume=True)
        found = again.load(0, "ward/lung")
        return found and (found.batches[1].calls.tobytes(), found.cold, found.paces)

    return Part(_below(folder), opened)


def _of_training(folder: Path) -> dict[str, Part]:
    import torch

    from lorkd_deploy.training.fitting.checkpoint import Checkpoints, State
    from lorkd_deploy.training.fitting.history import Fitted, write_history

    history = folder / "history" / "bundle.json"
    fitted = Fitted(steps=2, history=[{"step": 1, "loss": 0.5}], seconds=1.0, waiting=0.0)
    write_history(history, fitted, torch.device("cpu"), finished=True)
    checkpoints = Checkpoints(folder / "checkpoints", "0" * 64)
    generator = torch.Generator().manual_seed(0)
    weights = {"model/weight": torch.randn(64, 32, generator=generator)}
    checkpoints.save(State(3, weights, {"best": 0.5}))

    def state() -> Any:
        found = checkpoints.load()
        return found and (found.step, found.facts, found.tensors["model/weight"].numpy().tobytes())

    return {
        "history": Part((history,), lambda: read_document(history, LorkdError, "")),
        "checkpoint": Part(_below(folder / "checkpoints"), state),
    }


def _listed(arrays: Any) -> Any:
    return {name: values.tobytes() for name, values in arrays.items()}


class _Warnings(logging.Handler):
    """Whether anything was warned of."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.any = False

    def emit(self, record: logging.LogRecord) -> None:
        self.any = True


def flip(
    part: Part, rng: np.random.Generator, warnings: _Warnings, right: Any
) -> tuple[str, dict[str, Any]]:
    """One trial: its outcome, and where it was."""
    file = part.files[int(rng.integers(len(part.files)))]
    whole = file.read_bytes()
    byte, bit = int(rng.integers(len(whole))), int(rng.integers(8))
    changed = bytearray(whole)
    changed[byte] ^= 1 << bit
    where = {"file": file.name, "byte": byte, "bit": bit}
    warnings.any = False
    try:
        file.write_bytes(changed)
        found = part.opened()
    except LorkdError:
        return "found", where
    except Exception as exc:
        return "traceback", where | {"error": f"{type(exc).__name__}: {exc}"}
    finally:
        file.write_bytes(whole)
    if found == right:
        return "no effect", where
    return ("found" if warnings.any else "missed"), where


def run(campaign: Campaign, parts: dict[str, Part], count: int) -> None:
    """`count` flips over all parts, in turn; those that were done are left out."""
    warnings = _Warnings()
    logger = logging.getLogger("lorkd_deploy")
    logger.addHandler(warnings)
    logger.propagate = False
    try:
        right = {name: part.opened() for name, part in parts.items()}
        for trial, name, rng in campaign.trials(
            list(parts), count, BATCH, "Single-bit flips", PROTOCOL
        ):
            outcome, where = flip(parts[name], rng, warnings, right[name])
            bad = outcome in ("missed", "traceback")
            campaign.add(name, outcome, {"trial": trial, **where} if bad else None)
    finally:
        logger.removeHandler(warnings)
        logger.propagate = True


def main() -> int:
    given = arguments(__doc__ or "", 10_000)
    campaign = Campaign("flip", given.seed, given.results)
    with tempfile.TemporaryDirectory() as folder:
        run(campaign, material(Path(folder)), given.count)
    return bool(campaign.faults)


if __name__ == "__main__":
    sys.exit(main())
