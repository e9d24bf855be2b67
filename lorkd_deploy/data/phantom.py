"""Procedurally drawn images for the demo and for CI: never for a claim of accuracy.

Four sets that a convolutional network has to learn: classes differ in shape, direction or
curvature, while position, colour, contrast, its sign and the lighting are drawn at random, so
that neither mean values nor single pixels say anything.

The same image comes out on every machine: random bits from PCG64, whose stream NumPy keeps, and
only operations that IEEE 754 rounds exactly (+ − × ÷ √), since sin and exp differ between
processors in the last bit. An image depends on seed, set, split and its index, not on how many
there are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from lorkd_deploy.arrays import I64, U8
from lorkd_deploy.data.source import SPLITS, DataSource, OnRequest, Split, TaskData

Plane = npt.NDArray[Any]  # float32 `(n, 64, 64)`, a side of length 1 where values repeat
SIDE = 64  # px
_DRAWS = 64  # random numbers that an image may use
_NOISE = SIDE * SIDE // 8  # further random words per image: one byte per pixel
_X = np.arange(SIDE, dtype=np.float32)[None, None, :] - np.float32((SIDE - 1) / 2)
_Y = _X.transpose(0, 2, 1)


class Draws:
    """Uniform random numbers of `n` images, taken one after the other."""

    def __init__(self, uniform: npt.NDArray[np.floating[Any]]) -> None:
        self._uniform = uniform
        self._taken = 0

    def __call__(self, low: float = 0.0, high: float = 1.0) -> Plane:
        """The next number of every image in `[low, high)`, `(n, 1, 1)`."""
        column = self._uniform[:, self._taken, None, None]
        self._taken += 1
        return (low + (high - low) * column).astype(np.float32)

    def sign(self) -> Plane:
        """−1 or 1, `(n, 1, 1)`."""
        return np.where(self() < 0.5, np.float32(-1), np.float32(1))

    def direction(self, low: float = 0.0, high: float = 1.0) -> tuple[Plane, Plane]:
        """A unit vector (x, y) whose angle is about `low` … `high` turns."""
        turns = self(low, high)
        x, y = wave(turns + np.float32(0.25)), wave(turns)
        length = np.sqrt(x * x + y * y)
        return x / length, y / length


def wave(turns: Plane) -> Plane:
    """Nearly sin(2π · turns), by parabolas: the same bits on every processor."""
    t = 2 * (turns - np.floor(turns)) - 1
    return np.asarray(4 * t * (np.abs(t) - 1))


def _edge(inside: Plane) -> Plane:
    """Signed distance in px (positive inside) → coverage 0 … 1."""
    return np.asarray(np.clip(inside + np.float32(0.5), 0, 1))


def _disc(x: Plane, y: Plane, radius: Plane | float) -> Plane:
    return _edge(radius - np.sqrt(x * x + y * y))


def _spiked(x: Plane, y: Plane, radius: Plane) -> Plane:
    """A disc with five points: the radius follows cos 5φ, from the fifth power of x + iy."""
    square = x * x + y * y
    length = np.sqrt(square) + np.float32(1e-3)
    real = x * (x * x * x * x - 10 * x * x * y * y + 5 * y * y * y * y)
    cosine = real / (length * length * length * length * length)
    return _edge(radius * (np.float32(0.75) + np.float32(0.4) * cosine) - length)


def _somewhere(draw: Draws, quarter: int, reach: float) -> tuple[Plane, Plane]:
    """Coordinates whose origin is `reach` px at most from the middle of a quarter of the image."""
    x = _X - (32.0 * (quarter % 2) - 16 + draw(-reach, reach))
    y = _Y - (32.0 * (quarter // 2) - 16 + draw(-reach, reach))
    return x, y


_CELLS: dict[str, Callable[[Plane, Plane, Plane], Plane]] = {
    "round": lambda x, y, r: _disc(x, y, 0.9 * r),
    "ring": lambda x, y, r: _disc(x, y, r) - _disc(x, y, 0.55 * r),
    "crescent": lambda x, y, r: _disc(x, y, 1.1 * r) * (1 - _disc(x - 0.7 * r, y, 0.9 * r)),
    "dividing": lambda x, y, r: np.maximum(
        _disc(x - 0.68 * r, y, 0.58 * r), _disc(x + 0.68 * r, y, 0.58 * r)
    ),
    "spiked": lambda x, y, r: _spiked(x, y, 1.1 * r),
}


def _cells(draw: Draws, kind: str) -> Plane:
    """Three or four cells of one shape, at most one per quarter of the image, turned at random."""
    shape = _CELLS[kind]
    spared = draw(0, 8)  # 4 and more: none
    total: Plane = np.zeros((1, 1, 1), np.float32)
    for quarter in range(4):
        x, y = _somewhere(draw, quarter, 3.5)
        c, s = draw.direction()
        cell = shape(c * x + s * y, c * y - s * x, draw(9.5, 12.5))
        total = np.maximum(total, np.where(np.floor(spared) == quarter, np.float32(0), cell))
    return total


_ANGLES = {"level": 0.25, "upright": 0.0, "diagonal": 0.125, "woven": 0.0}  # turns


def _tissue(draw: Draws, kind: str) -> Plane:
    """Bent fibres in one direction, or, woven, in two that cross."""
    spread = 0.25 if kind == "woven" else 0.02
    turned = _ANGLES[kind]
    c, s = draw.direction(turned - spread, turned + spread)
    if kind == "diagonal":
        s = s * draw.sign()  # rising and falling: a mirrored image keeps its class
    frequency = 1 / draw(8, 13)
    bend = draw(0.5, 1.5) * wave((_X * s - _Y * c) / draw(40, 60) + draw())
    along = wave((_X * c + _Y * s + bend) * frequency + draw())
    across = wave((_X * s - _Y * c + bend) * frequency + draw())
    return along + across if kind == "woven" else along


def _xray(draw: Draws, kind: str) -> Plane:
    """Broad ribs, and between them nothing, round nodules or straight lines."""
    c, s = draw.direction()
    ribs = np.float32(0.18) * wave((_X * c + _Y * s) / draw(24, 34) + draw())
    if kind == "clear":
        return ribs
    finding: Plane = np.zeros((1, 1, 1), np.float32)
    for quarter in range(4):
        x, y = _somewhere(draw, quarter, 7)
        c, s = draw.direction()
        along, across = c * x + s * y, c * y - s * x
        if kind == "nodules":
            mark = _disc(x, y, draw(5, 7.5))
        else:
            mark = _edge(draw(1.6, 2.2) - np.abs(across)) * _edge(draw(11, 16) - np.abs(along))
        finding = np.maximum(finding, mark)
    return np.asarray(ribs + draw.sign() * finding)


def _fundus(draw: Draws, kind: str) -> Plane:
    """Vessels through a round field of view, nearly straight or winding."""
    total: Plane = np.zeros((1, 1, 1), np.float32)
    for _ in range(3):
        c, s = draw.direction()
        along = c * _X + s * _Y
        swing = draw(0, 0.5) if kind == "straight" else draw(5, 7)
        course = draw(-18, 18) + swing * wave(along / draw(16, 22) + draw())
        vessel = _edge(draw(1.8, 2.6) - np.abs(c * _Y - s * _X - course))
        total = np.maximum(total, vessel)
    return total


@dataclass(frozen=True)
class Drawing:
    """How one set is drawn: marks float32 `(n, 64, 64)` for `n` images of one class."""

    marks: Callable[[Draws, str], Plane]
    classes: tuple[str, ...]
    colour: bool
    round_view: bool = False


SETS = {
    "cells": Drawing(_cells, tuple(_CELLS), colour=True),
    "fundus": Drawing(_fundus, ("straight", "winding"), colour=True, round_view=True),
    "tissue": Drawing(_tissue, tuple(_ANGLES), colour=True),
    "xray": Drawing(_xray, ("clear", "nodules", "lines"), colour=False),
}


class PhantomData(DataSource):
    """Procedurally drawn images, for the demo and for CI; never for a claim of accuracy."""

    source: Literal["phantom"]
    name: Literal["cells", "fundus", "tissue", "xray"]
    train: int = Field(default=512, ge=8)
    val: int = Field(default=128, ge=8)
    test: int = Field(default=256, ge=8)
    seed: int = 0

    def load(self, folders: Sequence[Path]) -> TaskData:
        """One of the four sets; classes take turns, so every split is balanced. Needs no file."""
        classes = SETS[self.name].classes
        splits = {}
        for split in SPLITS:
            count: int = getattr(self, split)
            labels = np.arange(count, dtype=np.int64) % len(classes)
            splits[split] = Split(OnRequest(count, partial(draw, self, split, labels)), labels)
        provenance = {
            "source": self.source,
            "name": self.name,
            "seed": self.seed,
            "note": "procedurally drawn, no patient's data; not for claims of accuracy",
        }
        return TaskData(classes, "multiclass", **splits, provenance=provenance)


def draw(spec: PhantomData, split: str, labels: I64) -> U8:
    """Images uint8 `(N, 64, 64)` or `(N, 64, 64, 3)` for the class numbers of a whole split."""
    drawing = SETS[spec.name]
    entropy = (spec.seed, sorted(SETS).index(spec.name), SPLITS.index(split))
    bits = np.random.PCG64(np.random.SeedSequence(entropy))
    words = bits.random_raw(len(labels) * (_DRAWS + _NOISE)).reshape(len(labels), -1)
    uniform = (words[:, :_DRAWS] >> np.uint64(11)) * 2.0**-53
    noise = words[:, _DRAWS:].astype("<u8", copy=False).view(np.uint8).reshape(-1, SIDE, SIDE)
    channels = (3,) if drawing.colour else ()
    images = np.empty((len(labels), SIDE, SIDE, *channels), np.uint8)
    for number, name in enumerate(drawing.classes):
        own = labels == number
        draws = Draws(uniform[own])
        look = Draws(uniform[own, ::-1])  # from the other end: the same for every class
        images[own] = _developed(drawing.marks(draws, name), noise[own], look, drawing)
    return images


def _developed(marks: Plane, noise: U8, look: Draws, drawing: Drawing) -> U8:
    """Marks → images: lit, noisy, each with the mean and the spread that chance gives it.

    Mean and spread are taken out in whole numbers, whose sums are exact in any order, and
    replaced by random ones: they tell nothing of the class.
    """
    c, s = look.direction()
    light = look(0, 0.008) * (c * _X + s * _Y)
    grain = (noise.astype(np.float32) - np.float32(127.5)) / 127.5 * look(0.05, 0.2)
    whole = ((look.sign() * marks + light + grain) * 1024).astype(np.int64)
    mean = whole.sum(axis=(1, 2), keepdims=True) / SIDE**2
    square = (whole * whole).sum(axis=(1, 2), keepdims=True) / SIDE**2
    plain = ((whole - mean) / np.sqrt(square - mean * mean + 1)).astype(np.float32)
    plain = np.clip(plain, -2.5, 2.5)
    if drawing.round_view:
        plain = np.where(_X * _X + _Y * _Y < 31 * 31, plain, np.float32(0))
    contrast = look(22, 42)
    channels = [
        look(100, 156) + contrast * look(0.6, 1) * plain for _ in range(3 if drawing.colour else 1)
    ]
    values = np.stack(channels, axis=-1) if drawing.colour else channels[0]
    return np.asarray(np.clip(values, 0, 255), np.uint8)
