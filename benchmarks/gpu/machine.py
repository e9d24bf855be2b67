"""Step 1: the machine, its packages, what each target can do, and what `lorkd doctor` says."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from importlib import metadata
from typing import Any

import torch

from benchmarks.gpu.given import Given
from lorkd_deploy import doctor
from lorkd_deploy.machine.environment import environment
from lorkd_deploy.runtime import exporter, targets


def run(given: Given) -> Iterator[dict[str, Any]]:
    found: dict[str, Any] = {
        "environment": environment().model_dump(mode="json"),
        "torch": _torch(given.device),
        "packages": {d.name: d.version for d in metadata.distributions()},
        "targets": {},
    }
    yield found
    for name in targets():
        found["targets"][name] = asdict(exporter(name).probe())
    yield found
    if given.rehearsal:
        return  # the doctor starts a process for each of these; it has tests of its own
    yield found | {"doctor": [check.model_dump(mode="json") for check in doctor()]}


def _torch(device: str) -> dict[str, Any]:
    facts: dict[str, Any] = {"version": torch.__version__, "cuda": torch.version.cuda}
    if device == "cuda":
        gpu = torch.cuda.get_device_properties(0)
        facts |= {
            "gpu": gpu.name,
            "capability": f"{gpu.major}.{gpu.minor}",
            "memory_mib": gpu.total_memory >> 20,
            "multiprocessors": gpu.multi_processor_count,
            "cudnn": torch.backends.cudnn.version(),
        }
    return facts


def lines(found: dict[str, Any]) -> Iterator[str]:
    yield "| | |\n|---|---|"
    for name, value in found["torch"].items():
        yield f"| {name} | {value} |"
    for name, probe in found["targets"].items():
        able = [word for word in ("build", "run") if probe[f"can_{word}"]]
        yield f"| {name} | {probe['version']}: {' and '.join(able) or 'nothing'}; " + (
            f"{probe['reason'] or ''} |"
        )
    for check in found.get("doctor", []):
        yield f"| doctor: {check['name']} | {check['status']}: {check['found']} |"
