"""Which of how many processes this one is, as its launcher says in the environment.

`torchrun`, `accelerate launch` and `srun torchrun` set `RANK` and `WORLD_SIZE`; MPI has names of
its own. Nothing is imported for it, so that a process alone pays nothing.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from lorkd_deploy.errors import UsageError

_NAMES = (
    ("RANK", "WORLD_SIZE"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("PMI_RANK", "PMI_SIZE"),
    ("MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE"),
)


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
    for index, count in _NAMES:
        if environment.get(index, "").isdigit() and environment.get(count, "").isdigit():
            found = Launch(int(environment[index]), int(environment[count]))
            if found.count > 1:
                return found
    return Launch()


def check_launcher(environment: Mapping[str, str] = os.environ) -> None:
    """Raise `UsageError` where several processes were asked for and one was started.

    `accelerate launch --cpu --num_processes 2` does that without a word unless MPI is there. What
    it leaves behind is the address at which they would have met.
    """
    by_accelerate = environment.get("ACCELERATE_USE_CPU", "false").lower() == "true"
    if by_accelerate and "MASTER_ADDR" in environment and launch(environment).count == 1:
        raise UsageError(
            "accelerate was asked for several processes on the CPU and started one",
            fix="start them by torchrun: torchrun --nproc-per-node N -m lorkd_deploy …",
        )
