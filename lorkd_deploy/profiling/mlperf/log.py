"""What LoadGen wrote: its detailed log, and the answers of its accuracy mode."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorkd_deploy.errors import LorkdError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

DETAIL = "mlperf_log_detail.txt"
ACCURACY = "mlperf_log_accuracy.json"
_MARK = ":::MLLOG "


def read_log(folder: Path) -> dict[str, Any]:
    """Key → value of `mlperf_log_detail.txt`; of a key that comes twice, the last value.

    `errors` lists what LoadGen calls one. Raises `LorkdError` where there is no such log.
    """
    found: dict[str, Any] = {"errors": []}
    try:
        lines = (folder / DETAIL).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as exc:
        raise LorkdError(f"LoadGen left no log: {exc.strerror}", where=folder) from exc
    for line in lines:
        if line.startswith(_MARK):
            entry = json.loads(line[len(_MARK) :])
            found[entry["key"]] = entry["value"]
            if entry["metadata"]["is_error"]:
                found["errors"].append(str(entry["value"]))
    return found


def read_answers(folder: Path, samples: int) -> npt.NDArray[np.float32]:
    """Float32 logits `(samples, K)` by sample, from `mlperf_log_accuracy.json`.

    Raises `LorkdError` where one is missing: accuracy mode has to ask for each.
    """
    import numpy as np

    entries = json.loads((folder / ACCURACY).read_text(encoding="utf-8"))
    rows = {
        entry["qsl_idx"]: np.frombuffer(bytes.fromhex(entry["data"]), np.float32)
        for entry in entries
    }
    if sorted(rows) != list(range(samples)):
        raise LorkdError(
            f"LoadGen's accuracy log has {len(rows)} of {samples} images",
            where=folder / ACCURACY,
            fix="run the scenario again",
        )
    return np.stack([rows[index] for index in range(samples)])
