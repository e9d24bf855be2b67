"""A bundle with smaller experts: the same W0, graph, norms and heads, factors of lower ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from lorkd_deploy.bundle.manifest import EXPERT, FACTORS, LayerEntry, TaskEntry
from lorkd_deploy.bundle.read import Bundle
from lorkd_deploy.bundle.write import now, own_files, write_derived
from lorkd_deploy.errors import BundleError
from lorkd_deploy.lowrank.delta import Factorisation
from lorkd_deploy.lowrank.spectrum import Spectrum, spectrum_of_factors
from lorkd_deploy.machine.packages import software
from lorkd_deploy.storage import Tensors


def factor_parameters(tensors: Tensors) -> int:
    """Numbers in the factors of an expert."""
    return sum(value.size for name, value in tensors.items() if name.endswith(FACTORS))


def spectra_of(
    task: TaskEntry, tensors: Tensors, layers: Sequence[LayerEntry], factorisation: Factorisation
) -> dict[str, Spectrum]:
    """The spectrum of ΔW on every layer where the task has an expert.

    Raises `BundleError` for a task without rank or alpha.
    """
    if task.rank is None or task.alpha is None:
        raise BundleError(f"task {task.name} has no rank or alpha: it is no expert")
    found = {}
    for layer in layers:
        if rank := task.rank_of(layer.name):
            a, b = (tensors[layer.name + side] for side in FACTORS)
            scale = task.alpha / rank
            found[layer.name] = spectrum_of_factors(a, b, scale, layer.shape, factorisation)
    return found


def truncated(
    task: TaskEntry, tensors: Tensors, spectra: Mapping[str, Spectrum], ranks: Mapping[str, int]
) -> tuple[TaskEntry, Tensors]:
    """The task and its tensors with `ranks` by layer; layers without a spectrum have none.

    Factors whose rank stays are the same bytes, and so are norms and head.
    """
    assert task.alpha is not None  # `spectra_of` saw to it
    fresh = {name: value for name, value in tensors.items() if not name.endswith(FACTORS)}
    for layer, rank in ranks.items():
        if rank == task.rank_of(layer) and rank:
            fresh |= {layer + side: tensors[layer + side] for side in FACTORS}
        elif rank:
            pair = spectra[layer].factors(rank, task.alpha)
            fresh |= {layer + side: factor for side, factor in zip(FACTORS, pair, strict=True)}
    largest = max(ranks.values())
    other = {layer: rank for layer, rank in ranks.items() if rank != largest}
    return task.model_copy(update={"rank": largest, "ranks": other}), fresh


def write_compressed(
    bundle: Bundle,
    path: Path,
    *,
    tasks: Sequence[TaskEntry],
    experts: Mapping[str, Tensors],
    logits: Mapping[str, Tensors],
    safety: Mapping[str, Tensors],
    rule: str,
) -> Bundle:
    """Write `bundle` with these tasks, `experts`, reference `logits` and `safety` as `path`.

    W0 and graph are copied byte for byte; the manifest names the bundle that was compressed, and
    the `rule` by which.
    """
    old = bundle.manifest
    counts = {EXPERT + name: factor_parameters(tensors) for name, tensors in experts.items()}
    described = old.model_copy(
        update={
            "tasks": tuple(tasks),
            "parameters": {**old.parameters, **counts},
            "versions": software(),
            "created": now(),
            # What proved the larger experts' engines doesn't prove these.
            "packed_from": (),
            "grown_from": (),
            "compressed_from": (*old.compressed_from, bundle.sha256),
            "compression": rule,
        }
    )
    return write_derived(bundle, path, described, own_files(experts, logits, safety))
