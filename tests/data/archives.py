"""Archives in MedMNIST's form, and the folder of real ones."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]


def arrays(classes: int = 3, *, colour: bool = True, **replaced: Any) -> dict[str, np.ndarray]:
    """Small random splits of 12, 6 and 9 images; `replaced` overrides keys."""
    rng = np.random.default_rng(0)
    made = {}
    for split, count in (("train", 12), ("val", 6), ("test", 9)):
        shape = (count, 10, 12, 3) if colour else (count, 10, 12)
        made[f"{split}_images"] = rng.integers(0, 256, shape, np.uint8)
        made[f"{split}_labels"] = (np.arange(count, dtype=np.uint8) % classes)[:, None]
    return {**made, **replaced}


def save(path: Path, **given: Any) -> Path:
    np.savez_compressed(path, **given)
    return path


def real_data() -> Path:
    """The folder of real images, or the test is skipped and says why."""
    given = os.environ.get("LORKD_DATA")
    places = [Path(given)] if given else [ROOT / "../shared/medmnist", Path("~/.medmnist")]
    for place in places:
        if (place.expanduser() / "breastmnist_64.npz").is_file():
            return place.expanduser().resolve()
    pytest.skip(f"breastmnist_64.npz is not in {' or '.join(map(str, places))} (LORKD_DATA)")
