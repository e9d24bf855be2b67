"""The processor: its name, on which every measured time depends, and how much of it is ours."""

from __future__ import annotations

import os
import platform
from pathlib import Path

from lorkd_deploy.machine.kernel import control_groups, text


def cpu_model(root: Path = Path("/")) -> str:
    """The CPU's name; on a board whose kernel gives none, the board's."""
    for line in (text(root / "proc/cpuinfo") or "").splitlines():
        name, _, value = line.partition(":")
        if name.strip().lower() == "model name":
            return value.strip()
    board = text(root / "proc/device-tree/model")
    return board or platform.processor() or platform.machine()


def usable_cpus(root: Path = Path("/")) -> int:
    """How many threads this process has CPUs for: those it may run on, within a container's limit.

    It is the thread count of whatever isn't measured.
    """
    allowed = allowed_cpus()
    return max(1, int(min(allowed, cpu_limit(root) or allowed)))


def allowed_cpus() -> int:
    """How many logical CPUs this process may run on, whatever share of their time it gets."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cpu_limit(root: Path = Path("/")) -> float | None:
    """CPUs' worth of time that control groups (a container) allow; None: no limit."""
    limits = []
    for folder in control_groups(root, "cpu"):
        quota, period = ([*(text(folder / "cpu.max") or "max").split(), "100000"])[:2]
        if quota != "max":
            limits.append(int(quota) / int(period))
        old = int(text(folder / "cpu.cfs_quota_us") or -1)
        if old > 0:
            limits.append(old / int(text(folder / "cpu.cfs_period_us") or 100000))
    return min(limits, default=None)
