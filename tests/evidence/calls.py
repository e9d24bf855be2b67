"""Functions that a worker is asked to call, beside trainings."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any


def die(given: dict[str, Any], folder: str) -> dict[str, Any]:
    """Kill the process, and leave a line for each time."""
    with (Path(folder) / "begun").open("a") as file:
        file.write("x")
    os.kill(os.getpid(), signal.SIGKILL)
    return given


def give(given: dict[str, Any], folder: str) -> dict[str, Any]:
    """What was given."""
    return given
