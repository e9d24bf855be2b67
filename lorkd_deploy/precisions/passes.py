"""Precision as a pass over the ONNX model: what a runtime then builds has the types that it reads.

Input and output stay float32, so that every engine is called and judged alike.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from lorkd_deploy.arrays import F32
from lorkd_deploy.errors import DataError, LorkdError, ModelError, RuntimeUnavailableError
from lorkd_deploy.runtime import Int8

KEY = "lorkd.precision"  # in the model's metadata
QUANTIZE = "lorkd_deploy.precisions.quantize"


def float16(model: bytes, *, beside: Sequence[str] = ("fp32",)) -> bytes:
    """The same model with float16 weights and arithmetic.

    Raises `ModelError` for a weight beyond float16's range: it would be cut off silently. `beside`
    are the target's other precisions, which the error names.
    """
    import onnx
    from onnxconverter_common.float16 import (  # type: ignore[import-untyped]
        convert_float_to_float16,
    )

    largest = np.finfo(np.float16).max
    parsed = onnx.ModelProto.FromString(model)
    for initializer in parsed.graph.initializer:
        values = onnx.numpy_helper.to_array(initializer)
        if values.dtype == np.float32 and values.size and np.abs(values).max() > largest:
            raise ModelError(
                f"{initializer.name} has values beyond float16's range "
                f"({np.abs(values).max():.3g}, {largest:.0f} is the largest)",
                fix=f"choose another --precision: {', '.join(beside)}",
            )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of values that become the smallest float16
        converted = convert_float_to_float16(parsed, keep_io_types=True)
    return _finished(converted, "fp16")


def int8(
    model: bytes,
    calibration: Callable[[], F32],
    *,
    form: Int8 = "any",
    left: Sequence[str] = (),
) -> bytes:
    """The same model with int8 quantise and dequantise nodes around its heavy operators, by NNCF.

    `calibration()` are network inputs float32 `(N, 3, S, S)`. `form` is what the target takes
    (`Probe`): left to NNCF, tensors without negative values are UINT8, and the input of a depthwise
    convolution has one scale per channel. The nodes that `left` names stay as they are. Raises
    `RuntimeUnavailableError` where NNCF isn't installed, `DataError` for no image or values that
    are not finite.
    """
    import onnx

    with nncf_folder(model, calibration, left) as folder:
        by_nncf(QUANTIZE, folder, form)
        quantised = onnx.load(folder / "int8.onnx")
    return _finished(_signed(quantised) if form == "signed" else quantised, "int8")


@contextmanager
def nncf_folder(
    model: bytes, calibration: Callable[[], F32], left: Sequence[str]
) -> Iterator[Path]:
    """A folder with what NNCF's processes read; raises as `int8` does."""
    if find_spec("nncf") is None:
        raise RuntimeUnavailableError(
            "int8 needs NNCF, which is not installed", fix="pip install 'lorkd-deploy[int8]'"
        )
    images = calibration()
    if not len(images) or not np.isfinite(images).all():
        what = "has values that are not finite" if len(images) else "has no image"
        raise DataError(
            f"the set that int8 is calibrated on {what}",
            fix="look at the training images, and at `preprocess` and `calibration` of the recipe",
        )
    with tempfile.TemporaryDirectory(prefix="lorkd-int8-") as name:
        folder = Path(name)
        (folder / "model.onnx").write_bytes(model)
        (folder / "left.json").write_text(json.dumps(list(left)))
        np.save(folder / "images.npy", images, allow_pickle=False)
        yield folder


def by_nncf(module: str, folder: Path, form: Int8) -> None:
    """Run one of NNCF's two modules on `folder`.

    In a process of its own: NNCF would import torch where that is installed, and report to its
    vendor.
    """
    done = subprocess.run(
        [sys.executable, "-m", module, str(folder), *(["tensor"] if form != "any" else [])],
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"it ended with code {done.returncode}"]
        raise LorkdError(
            f"NNCF could not quantise the model: {lines[-1]}",
            fix="choose another --precision; `lorkd doctor` shows what is installed",
        )


def _signed(model: Any) -> Any:
    """UINT8 tensors with zero point 0 (`0 … 255 · scale`) as INT8 ones of the same range.

    NNCF can't be asked for them: no device that it knows lets an activation be forced to be signed.
    """
    import onnx

    values = {entry.name: entry for entry in model.graph.initializer}
    quantise = ("QuantizeLinear", "DequantizeLinear")
    pairs = {tuple(node.input[1:]) for node in model.graph.node if node.op_type in quantise}
    for scale, zero in pairs:
        if values[zero].data_type == onnx.TensorProto.UINT8:
            for name, kind, factor in ((scale, np.float32, 255 / 127), (zero, np.int8, 1)):
                changed = (onnx.numpy_helper.to_array(values[name]) * factor).astype(kind)
                values[name].CopyFrom(onnx.numpy_helper.from_array(changed, name))
    for value in model.graph.value_info:
        if value.type.tensor_type.elem_type == onnx.TensorProto.UINT8:
            value.type.tensor_type.elem_type = onnx.TensorProto.INT8
    return model


def _finished(model: object, precision: str) -> bytes:
    import onnx

    assert isinstance(model, onnx.ModelProto)
    model.metadata_props.add(key=KEY, value=precision)
    onnx.checker.check_model(model, full_check=True)
    data: bytes = model.SerializeToString(deterministic=True)
    return data
