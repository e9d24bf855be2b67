"""The processor's name: some bytes and every time that is measured depend on it."""

from __future__ import annotations

import platform
from pathlib import Path


def cpu_model(root: Path = Path("/")) -> str:
    """The CPU's name; on a board whose kernel gives none, the board's. `/proc` is below `root`."""
    for line in _text(root / "proc/cpuinfo").splitlines():
        name, _, value = line.partition(":")
        if name.strip().lower() == "model name":
            return value.strip()
    board = _text(root / "proc/device-tree/model")
    return board or platform.processor() or platform.machine()


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip("\0 \n")
    except OSError:
        return ""
