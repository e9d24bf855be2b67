"""What the kernel shows in files. `root` is where `/proc` and `/sys` lie, for tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path


def text(path: Path) -> str | None:
    """What a file of the kernel says, without the zeros and line breaks around it; None where it
    can't be read."""
    try:
        return path.read_text(errors="replace").strip("\0 \n")
    except OSError:
        return None


def number(path: Path) -> int | None:
    """The integer that a file of the kernel holds; None where there is none."""
    try:
        return int(text(path) or "")
    except ValueError:
        return None


def control_groups(root: Path, controller: str) -> Iterator[Path]:
    """This process's control-group folder and those above it, versions 2 and 1."""
    mounted = root / "sys/fs/cgroup"
    for line in (text(root / "proc/self/cgroup") or "").splitlines():
        _, controllers, place = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        top = mounted / controllers if controllers else mounted
        # Inside a container the group's own name is often not mounted: its limits are at the top.
        folder = top / place.strip("/")
        while folder != top:
            yield folder
            folder = folder.parent
        yield top
