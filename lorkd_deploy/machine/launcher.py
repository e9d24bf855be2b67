"""Which process this is, and of how many, as its launcher says in the environment.

`torchrun`, `accelerate launch` and `srun torchrun` set `RANK` and `WORLD_SIZE`. Nothing is
imported for it, so that a process alone pays nothing.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from lorkd_deploy.errors import UsageError


@dataclass(frozen=True)
class Launch:
    """Process `index` of `count`; one that was started alone is the first of one."""

    index: int = 0
    count: int = 1

    @property
    def leads(self) -> bool:
        """The process that writes, logs and prints."""
        return self.index == 0


def launch(environment: Mapping[str, str] = os.environ) -> Launch:
    """What the launcher says; alone where it says nothing."""
    rank, count = environment.get("RANK", ""), environment.get("WORLD_SIZE", "")
    return Launch(int(rank), int(count)) if rank.isdigit() and count.isdigit() else Launch()


def check_launcher(environment: Mapping[str, str] = os.environ) -> None:
    """Raise `UsageError` where several processes were asked for and one was started.

    `accelerate launch --cpu --num_processes 2` does that without a word. What it leaves behind is
    the address at which they would have met.
    """
    by_accelerate = environment.get("ACCELERATE_USE_CPU", "false").lower() == "true"
    if by_accelerate and "MASTER_ADDR" in environment and launch(environment).count == 1:
        raise UsageError(
            "accelerate was asked for several processes on the CPU and started one",
            fix="start them by torchrun: torchrun --nproc-per-node N -m lorkd_deploy …",
        )
