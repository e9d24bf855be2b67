"""The precisions of engines, one row each: the only place that lists them.

A new one is a row here, its pass over the ONNX model beside `passes.py`, and its name in the
exporters of the targets that can do it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from lorkd_deploy.arrays import F32
from lorkd_deploy.errors import RuntimeUnavailableError, unknown_name
from lorkd_deploy.precisions.passes import float16, int8
from lorkd_deploy.runtime import Probe

Calibration = Callable[[], F32]  # network inputs (N, 3, S, S), from the training images


class Tolerance(NamedTuple):
    """How far an engine may be from the model it came from.

    `logits` is the largest difference on test images, `inputs` that on generated inputs, both as a
    fraction of max(1, max |reference logit|); `flips` the share of labels of test images that may
    differ (rounded up, so that one near a tie may). Generated inputs have no label that means
    anything.
    """

    logits: float
    flips: float
    inputs: float

    def changed(self, logits: float | None, flips: float | None) -> Tolerance:
        """The same with other `logits` or `flips`; `inputs` changes in proportion to `logits`."""
        logits = self.logits if logits is None else logits
        flips = self.flips if flips is None else flips
        return Tolerance(logits, flips, self.inputs * logits / self.logits)


@dataclass(frozen=True)
class Precision:
    """One precision.

    `convert(model, probe, calibration, left)` is its pass over the float32 ONNX model, for targets
    that take a model in that precision (`Probe.converted`); None where there is none. The pass may
    depend on what the target says of itself, and on calibration images, which it fetches if it
    needs them; the nodes in `left` are to stay in float32. `depends_on` are the packages that the
    bytes of the converted model depend on, and `processor` where they depend on that.
    """

    name: str
    tolerance: Tolerance
    convert: Callable[[bytes, Probe, Calibration, Sequence[str]], bytes] | None = None
    depends_on: tuple[str, ...] = ()


def _fp16(model: bytes, probe: Probe, *_: object) -> bytes:
    return float16(model, beside=[name for name in probe.precisions if name != "fp16"])


def _int8(model: bytes, probe: Probe, calibration: Calibration, left: Sequence[str]) -> bytes:
    return int8(model, calibration, form=probe.int8, left=left)


# From exact to coarse.
_ROWS = (
    Precision("fp32", Tolerance(1e-4, 0.005, 1e-4)),
    Precision("fp16", Tolerance(1e-2, 0.01, 1e-2), _fp16, ("onnxconverter-common",)),
    Precision("bf16", Tolerance(5e-2, 0.02, 5e-2)),
    # Generated inputs lie outside of what it is calibrated on: it clips them, so they show only a
    # gross fault. NNCF runs the model on the calibration images, and the last bits of that are the
    # processor's own.
    Precision("int8", Tolerance(0.5, 0.05, 1.5), _int8, ("nncf", "onnxruntime", "processor")),
)
PRECISIONS = {row.name: row for row in _ROWS}
BASELINE = "fp32"  # what every other precision is compared with
INT8 = "int8"  # the one whose layers may stay in float32


def precision_of(name: str) -> Precision:
    """The row of a precision; raises `UsageError` for one that isn't in the table."""
    if name not in PRECISIONS:
        raise unknown_name("precision", name, PRECISIONS)
    return PRECISIONS[name]


def converted(
    model: bytes, name: str, probe: Probe, calibration: Calibration, left: Sequence[str] = ()
) -> bytes:
    """What a target is given: `model` (float32) in precision `name` where the target wants that,
    but for the nodes that `left` names.

    Raises `RuntimeUnavailableError` for a precision that has no pass, `ModelError` for weights
    beyond float16; for int8 `RuntimeUnavailableError` where NNCF isn't installed and `DataError`
    where the calibration images aren't here.
    """
    if name not in probe.converted:
        return model
    convert = precision_of(name).convert
    if convert is None:
        able = [row.name for row in PRECISIONS.values() if row.convert is not None]
        raise RuntimeUnavailableError(
            f"the target takes models in {name}, and nothing here can convert a model to that",
            fix=f"the exporter's `Probe.converted` may name {', '.join(able)}",
        )
    return convert(model, probe, calibration, left)
