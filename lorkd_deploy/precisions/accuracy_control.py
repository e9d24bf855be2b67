"""`python -m lorkd_deploy.precisions.accuracy_control FOLDER [tensor]`: NNCF's part of
`sensitivity.measured`, alone. Reads what `quantize` reads, `control.json`, `validation.npy` and
`labels-N.npy` of each task, writes `found.json`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lorkd_deploy.arrays import F32, F64, I64
from lorkd_deploy.machine.processor import usable_cpus
from lorkd_deploy.metrics.score import Kind, accuracy, probabilities
from lorkd_deploy.precisions.quantize import Given, given, quantised
from lorkd_deploy.runtime import RunOptions, exporter

BATCH = 32
MODEL = "judged.onnx"
# Models of equal accuracy are ordered by how sure they are of the right answer, in points for
# certainty: far below what one image is worth.
TIE = 1e-3
Answers = dict[str, F64]  # of some images: by task, probabilities `(n, K)`


class Task(NamedTuple):
    """A task's validation images, rows `start` up to `stop`, and where its logits stand."""

    name: str
    kind: Kind
    columns: slice
    start: int
    stop: int
    labels: I64


class Seen(NamedTuple):
    """A model that NNCF asked about: its nodes in int8, and the points that it loses on `rows`."""

    nodes: frozenset[str]
    rows: list[int]
    lost: float


class Judge:
    """NNCF's validation function: minus the points of accuracy that a model loses against `exact`,
    of the task that loses most. It remembers each model that it was asked about."""

    def __init__(self, folder: Path, tasks: Sequence[Task], exact: Any) -> None:
        self.folder, self.tasks = folder, tasks
        self.images: F32 = np.load(folder / "validation.npy", mmap_mode="r", allow_pickle=False)
        self.every = list(range(len(self.images)))
        self.exact = self.answers(exact, self.every)
        self.seen: list[Seen] = []

    def __call__(self, model: Any, rows: Iterable[int]) -> tuple[float, list[float]]:
        """A value that is higher for a better model, and one of each image."""
        chosen = sorted(rows)
        answers = self.answers(model, chosen)
        lost = self.lost(answers, chosen)
        self.seen.append(Seen(in_int8(model), chosen, lost))
        sure = [
            value
            for task, own in self._of(chosen)
            for value in _sure(answers[task.name], task.labels[own])
        ]
        return TIE * float(np.mean(sure)) - lost, sure

    def answers(self, model: Any, rows: Sequence[int]) -> Answers:
        """Those of `model` on `rows`, by ONNX Runtime; a logit that is not finite counts as 0."""
        (self.folder / MODEL).write_bytes(model.SerializeToString())
        options = RunOptions(threads=usable_cpus())
        with exporter("onnx").open(self.folder, [MODEL], options) as runner:
            starts = range(0, len(rows), BATCH)
            parts = [runner(self.images[rows[i : i + BATCH]]) for i in starts]
        logits = np.nan_to_num(np.concatenate(parts), posinf=0, neginf=0)
        found, done = {}, 0
        for task, own in self._of(rows):
            part = logits[done : done + len(own), task.columns]
            found[task.name], done = probabilities(part, task.kind), done + len(own)
        return found

    def lost(self, answers: Answers, rows: Sequence[int]) -> float:
        """Points of accuracy that `answers` to `rows` lose, of the task that loses most."""
        losses = []
        for task, own in self._of(rows):
            exact = accuracy(task.labels[own], self.exact[task.name][own])
            losses.append(100 * (exact - accuracy(task.labels[own], answers[task.name])))
        return max(losses)

    def restricted(self, answers: Answers, rows: Sequence[int]) -> Answers:
        """Answers to every image, those of `rows` alone."""
        return {task.name: answers[task.name][own] for task, own in self._of(rows)}

    def accuracies(self, answers: Answers) -> dict[str, float]:
        """Accuracy by task of answers to every image."""
        return {task.name: accuracy(task.labels, answers[task.name]) for task in self.tasks}

    def _of(self, rows: Sequence[int]) -> Iterator[tuple[Task, list[int]]]:
        """The tasks that `rows` belong to, each with its own, counted from its first."""
        for task in self.tasks:
            if own := [row - task.start for row in rows if task.start <= row < task.stop]:
                yield task, own


def main(folder: Path, *, tensor: bool = False) -> None:
    """Find the layers that have to stay in float32, and say what each costs."""
    control = json.loads((folder / "control.json").read_bytes())
    what = given(folder, [], tensor=tensor)
    judge = Judge(folder, list(_tasks(folder, control["tasks"])), what.model)
    whole = quantised(what)
    coarse = judge.answers(whole, judge.every)
    left = in_int8(whole) - in_int8(_controlled(what, judge, control["max_drop"]))
    mixed = quantised(what._replace(left=what.left | left)) if left else whole
    names = _names(what.model.graph)
    groups: list[dict[str, Any]] = [
        {
            "layers": sorted(names[node] for node in out & set(names)) or sorted(out),
            "gain": judge.lost(judge.restricted(coarse, seen.rows), seen.rows) - seen.lost,
            "images": len(seen.rows),
            "left": out <= left,
        }
        for out, seen in _alone(judge.seen, in_int8(whole)).items()
    ]
    found = {
        "max_drop": control["max_drop"],
        "images": len(judge.every),
        "layers": sorted(names[node] for node in in_int8(whole) & set(names)),
        "fp32": judge.accuracies(judge.exact),
        "int8": judge.accuracies(coarse),
        "mixed": judge.accuracies(judge.answers(mixed, judge.every)),
        "nodes_left": sorted(left),
        "left": sorted(names[node] for node in left & set(names)),
        "groups": sorted(groups, key=lambda group: group["gain"], reverse=True),
    }
    (folder / "found.json").write_text(json.dumps(found))


def in_int8(model: Any) -> frozenset[str]:
    """Names of the nodes that are given what was dequantised."""
    last = "DequantizeLinear"
    nodes = model.graph.node
    made = {name for node in nodes if node.op_type == last for name in node.output}
    own = [node for node in nodes if node.op_type not in ("QuantizeLinear", last)]
    return frozenset(node.name for node in own if made & set(node.input))


def _controlled(what: Given, judge: Judge, max_drop: float) -> Any:
    """What NNCF makes of it: layers are taken out of int8, the most harmful first, until the rest
    loses no more than `max_drop` points."""
    import nncf  # type: ignore[import-untyped]
    from nncf.quantization.advanced_parameters import (  # type: ignore[import-untyped]
        AdvancedAccuracyRestorerParameters,
    )

    return nncf.quantize_with_accuracy_control(
        deepcopy(what.model),
        what.data,
        nncf.Dataset(judge.every),
        judge,
        max_drop=max_drop + TIE + 1e-9,
        subset_size=what.images,
        ignored_scope=nncf.IgnoredScope(names=sorted(what.left)) if what.left else None,
        advanced_quantization_parameters=what.advanced,
        advanced_accuracy_restorer_parameters=AdvancedAccuracyRestorerParameters(
            num_ranking_workers=1
        ),
    )


def _alone(asked: Sequence[Seen], whole: frozenset[str]) -> dict[frozenset[str], Seen]:
    """Nodes that are quantised together → the model with them alone in float32.

    NNCF asks about each such group alone, then takes one after the other out, and may ask about
    those that are left once more with some out: such a model isn't one group's.
    """
    found: dict[frozenset[str], Seen] = {}
    for seen in asked:
        out = whole - seen.nodes
        if out and out != whole and not any(group < out for group in found):
            found.setdefault(out, seen)
    return found


def _names(graph: Any) -> Mapping[str, str]:
    """Node → what a reader calls the layer, which is its weight's name."""
    weights = {entry.name for entry in graph.initializer if len(entry.dims) > 1}
    return {
        node.name: next(name for name in node.input if name in weights).removesuffix(".weight")
        for node in graph.node
        if weights & set(node.input)
    }


def _sure(probs: F64, labels: I64) -> list[float]:
    """How probable the right answer is to the model, for each image."""
    if labels.ndim == 1:
        return [float(row[label]) for row, label in zip(probs, labels, strict=True)]
    return [float(mean) for mean in np.where(labels == 1, probs, 1 - probs).mean(axis=1)]


def _tasks(folder: Path, described: Sequence[Mapping[str, Any]]) -> Iterator[Task]:
    for number, one in enumerate(described):
        labels = np.load(folder / f"labels-{number}.npy", allow_pickle=False)
        start, stop = one["rows"]
        yield Task(one["name"], one["kind"], slice(*one["columns"]), start, stop, labels)


if __name__ == "__main__":
    main(Path(sys.argv[1]), tensor="tensor" in sys.argv[2:])
