"""An exported ONNX engine, without lorkd: NumPy, Pillow and ONNX Runtime are enough.

python examples/engine_without_us.py runs/chest/export/chest-radiology/ct/onnx-fp32 scan.png
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps


def main(folder: str, image: str) -> dict[str, float]:
    record = json.loads((Path(folder) / "artifact.json").read_text())
    how, (task,) = record["preprocess"], record["tasks"]
    side, picture = how["size"], ImageOps.exif_transpose(Image.open(image)).convert("RGB")
    pixels = np.asarray(picture.resize((side, side), Image.Resampling.BILINEAR), np.float32)
    x = ((pixels / 255 - how["mean"]) / how["std"]).astype(np.float32)
    session = onnxruntime.InferenceSession(Path(folder) / "model.onnx")
    (logits,) = session.run(None, {session.get_inputs()[0].name: x.transpose(2, 0, 1)[None]})[0]
    p = np.exp(logits - logits.max())
    return dict(zip(task["classes"], (p / p.sum()).tolist(), strict=True))


if __name__ == "__main__":
    for label, probability in main(*sys.argv[1:]).items():
        print(f"{label}: {probability:.3f}")
