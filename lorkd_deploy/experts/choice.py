"""Which of two exact forms computes a layer for a mixed batch: decided here, from shapes alone.

How a form's products are called is no choice of form: where a device has torch's grouped product,
it takes the place of one product per span (`rows.GROUPED`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

Form = Literal["fused", "low_rank"]


@dataclass(frozen=True)
class Choice:
    """What `choose` was asked and what it said."""

    shape: tuple[int, ...]
    width: int
    tasks: int
    rows: int
    form: Form


_observers: list[list[Choice]] = []


@contextmanager
def observed() -> Iterator[list[Choice]]:
    """Every choice that is made inside, in order: for `lorkd inspect --training`."""
    seen: list[Choice] = []
    _observers.append(seen)
    try:
        yield seen
    finally:
        _observers.remove(seen)


def choose(shape: tuple[int, ...], width: int, tasks: int, rows: int) -> Form:
    """The cheaper form for one layer and batch; results are the same.

    `fused` builds a dense weight for each task present, so it costs passes over `tasks` weights.
    `low_rank` runs W0 once for all and each task's factors beside it, so it costs passes over the
    activations, or for kernels larger than a pixel a convolution to `width` channels more.

    `shape` is the weight's, `(Cout, Cin)` or `(Cout, Cin, kh, kw)`; `width` the channels between
    the factors: the largest r, or for larger kernels, interleaved, r·kh²; `tasks` those present;
    `rows` the output positions of all samples together. The constants are from timings of forward
    and backward on an AVX-512 CPU (2.5 ns a fused weight's number against 0.6 ns an activation at
    rank 4; with larger kernels 12 ns a weight's number, which the convolution must reorder for
    each task, against 0.1 ns a multiplication).
    """
    cout, cin = shape[:2]
    kh, kw = (*shape[2:], 1, 1)[:2]
    if kh * kw == 1:
        fused = 4.0 * tasks * cin * cout
        low_rank = rows * (cin + cout) * (4 + width) / 8
    else:
        fused = tasks * cout
        low_rank = width * (rows / 128 + tasks)
    form: Form = "fused" if fused < low_rank else "low_rank"
    for seen in _observers:
        seen.append(Choice(shape, width, tasks, rows, form))
    return form
