"""Power rails of a Jetson: INA3221 monitors, which the kernel shows under hwmon.

They tell volts and amperes of the moment and count no energy, so it is summed up here, from a
reading every 50 ms. Written against NVIDIA's description of the boards and the kernel's of the
driver, and tested on a folder laid out like that: there is no Jetson here.
https://docs.kernel.org/hwmon/ina3221.html
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

EVERY = 0.05  # seconds between two readings
WHOLE = ("VDD_IN", "POM_5V_IN")  # rails that feed the whole module
_FOLDERS = "sys/class/hwmon/hwmon*"


@dataclass(frozen=True)
class Rail:
    """One channel of a monitor: millivolts and milliamperes in a file each."""

    name: str
    volts: Path
    amperes: Path

    def watts(self) -> float:
        """Power of this moment; raises `OSError` or `ValueError` where it can't be read."""
        return int(self.volts.read_text()) * int(self.amperes.read_text()) / 1e6


def rails(root: Path = Path("/")) -> tuple[Rail, ...]:
    """The rail that feeds the whole module, or every rail where there is no such one."""
    found = []
    for folder in sorted(root.glob(_FOLDERS)):
        try:
            if (folder / "name").read_text().strip() != "ina3221":
                continue
        except OSError:
            continue
        for label in sorted(folder.glob("in*_label")):
            number = label.name.removeprefix("in").removesuffix("_label")
            rail = Rail(
                label.read_text().strip(),
                folder / f"in{number}_input",
                folder / f"curr{number}_input",
            )
            try:
                rail.watts()
            except (OSError, ValueError):
                continue  # an unused channel, or the sum of the shunts
            found.append(rail)
    whole = tuple(rail for rail in found if rail.name in WHOLE)
    return whole[:1] or tuple(found)


class Integrator:
    """Joules since it was made, by the trapezium rule over readings every `every` seconds."""

    def __init__(self, watts: Callable[[], float], every: float = EVERY) -> None:
        self._watts, self._every = watts, every
        self._lock = threading.Lock()
        self._joules = 0.0
        self._last = (time.monotonic(), watts())
        threading.Thread(target=self._follow, daemon=True).start()

    def joules(self) -> float:
        """Up to now, with a reading of now."""
        with self._lock:
            at, before = self._last
            now, watts = time.monotonic(), self._watts()
            self._joules += (now - at) * (before + watts) / 2
            self._last = (now, watts)
            return self._joules

    def _follow(self) -> None:
        while True:
            time.sleep(self._every)
            try:
                self.joules()
            except (OSError, ValueError):
                continue  # one reading that failed: the next one spans it
