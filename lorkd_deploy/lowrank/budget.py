"""How large one task's expert may be, as it is written in a recipe or on the command line."""

from __future__ import annotations

import re
from dataclasses import dataclass

from lorkd_deploy.errors import UsageError

_UNITS = {"B": 1, "kB": 1e3, "KB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 2**10, "MiB": 2**20}
_TEXT = re.compile(r"\s*([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*([A-Za-z]+)\s*")


@dataclass(frozen=True)
class Budget:
    """At most `amount` of `unit` per task: bytes of its file, or parameters of its factors.

    A task's file holds its factors, its head and, where they are its own, its norms.
    """

    amount: int
    unit: str

    def factors(self, fixed_bytes: int) -> int:
        """How many float32 parameters the factors may have beside `fixed_bytes` of the file.

        Negative where the rest alone is too large.
        """
        return self.amount if self.unit == "parameters" else (self.amount - fixed_bytes) // 4


def parse_budget(text: str) -> Budget:
    """`0.3MB`, `300 kB`, `0.3 MiB` or `40000 parameters`; raises `UsageError` for anything else."""
    found = _TEXT.fullmatch(text)
    if found:
        number, unit = float(found[1]), found[2]
        if unit == "parameters":
            return Budget(int(number), unit)
        if unit in _UNITS:
            return Budget(int(number * _UNITS[unit]), "bytes")
    raise UsageError(
        f"{text!r} is no budget",
        fix="write bytes per task (0.3MB, 300kB, 0.3MiB) or parameters per task (40000 parameters)",
    )
