"""The way of one image from its file to an answer, stage by stage, in the worker."""

from __future__ import annotations

import time
from array import array
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lorkd_deploy.image_files import read_image
from lorkd_deploy.metrics.score import probabilities_given
from lorkd_deploy.preprocess import Preprocess
from lorkd_deploy.runtime import Runner

STAGES = ("read", "preprocess", "inference", "postprocess")
SIDE = 512  # px of the drawn image: about what a scan has that was saved for viewing


def draw_image(file: Path, seed: int) -> None:
    """A grey 8-bit PNG of soft shapes and grain, so that decoding it is neither trivial nor
    hopeless; drawn, so that the same file is read on every machine and no patient's is needed."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 255, (12, 12), dtype=np.uint8)
    soft = Image.fromarray(coarse).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    grain = generator.integers(-6, 7, (SIDE, SIDE))
    image = np.clip(np.asarray(soft, np.int64) + grain, 0, 255).astype(np.uint8)
    Image.fromarray(image).save(file, "PNG")


def time_stages(runner: Runner, request: dict[str, Any]) -> array[int]:
    """Nanoseconds of every stage of every pass, one after the other: four numbers per pass."""
    preprocess = Preprocess.model_validate(request["preprocess"])
    file, kind = Path(request["image"]), request["kind"]
    columns, raw = slice(request["start"], request["stop"]), request["raw"]
    clock = time.perf_counter_ns
    found = array("q")
    deadline = clock() + int(request["seconds"] * 1e9)
    passes = 0
    while passes < request["iterations"] or clock() < deadline:
        began = clock()
        image = read_image(file)
        opened = clock()
        batch = preprocess.batch(preprocess.stacked([image]), raw=raw)
        prepared = clock()
        given = runner(batch)[:, columns]
        answered = clock()
        probabilities_given(given, kind, raw=raw).argmax(axis=1)
        ended = clock()
        # The first pass imports and fills caches; it is no picture of a running service.
        if passes:
            found.extend((opened - began, prepared - opened, answered - prepared, ended - answered))
        passes += 1
    return found
