"""Read a bundle without torch: hashes first, then dense or fused weights of any task.

Fusing starts from W0 every time and never changes it, so that A → B → A gives the same bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from lorkd_deploy.arrays import F32, F64
from lorkd_deploy.bundle import manifest as layout
from lorkd_deploy.bundle.manifest import FACTORS, HEAD_TENSORS, LayerEntry, Manifest, TaskEntry
from lorkd_deploy.errors import BundleError, unknown_name
from lorkd_deploy.lowrank.delta import delta_weight, factor_shapes
from lorkd_deploy.preprocess import resized_otherwise
from lorkd_deploy.schema import read_part
from lorkd_deploy.storage import inside, read_tensors, sha256_bytes, sha256_file

if TYPE_CHECKING:  # loaded late: where a picture is answered nothing asks for a recipe
    from lorkd_deploy.data import TaskData
    from lorkd_deploy.recipe import Recipe

FRESH_COPY = "get a fresh copy from where it was made, or run that stage again"


class Bundle:
    """A verified bundle folder. Tensors are read when they are first asked for."""

    def __init__(self, path: Path, manifest: Manifest, sha256: str) -> None:
        self.path = path
        self.manifest = manifest
        self.sha256 = sha256  # of manifest.json, which holds the hash of every other file

    @property
    def origins(self) -> frozenset[str]:
        """Hashes of the bundles whose engines are this one's: itself, what it is a part of, and
        what departments were added to.
        """
        return frozenset((self.sha256, *self.manifest.packed_from, *self.manifest.grown_from))

    @property
    def recipe(self) -> Recipe:
        """The recipe that it was made by; raises `RecipeError` where this version can't read it."""
        from lorkd_deploy.recipe import parse_recipe

        kept = self.manifest.recipe
        # `norm` was a key of recipes too; a bundle's own says the manifest.
        experts = {k: v for k, v in kept.get("experts", {}).items() if k != "norm"}
        return parse_recipe({**kept, "experts": experts}, where=self.path)

    @property
    def resized_otherwise(self) -> str | None:
        """Where pictures are resized to other pixels here than where it was made: what that means.

        None where they are the same, or the bundle doesn't say.
        """
        manifest = self.manifest
        return resized_otherwise(
            manifest.preprocess.interpolation, manifest.resampling_sha256, self.pillow
        )

    @property
    def pillow(self) -> str:
        """The version of Pillow that resized its pictures."""
        return self.manifest.versions.get("pillow", "that").split("+")[0]

    def data(self, task: str) -> TaskData:
        """A task's images as the recipe names them, which may be others than it was made with.

        Raises `DataError` where they aren't here.
        """
        from lorkd_deploy.data import open_data

        recipe = self.recipe
        return open_data(recipe.task(task).data, recipe.data_folder)

    def own_data(self, task: str) -> TaskData:
        """The images that the bundle was made with; `DataError` where they aren't here."""
        data = self.data(task)
        self.task(task).require_own(data)
        return data

    @cached_property
    def base(self) -> Mapping[str, npt.NDArray[Any]]:
        """W0 and everything else that all tasks share, by torch name; read-only arrays."""
        return _frozen(read_tensors(self.path / layout.BASE))

    def expert(self, task: str) -> Mapping[str, npt.NDArray[Any]]:
        """A task's own tensors: `LAYER.A`, `LAYER.B`, per-task norms, `HEAD_TENSORS`.

        Raises `UsageError` for an unknown task.
        """
        name = self.task(task).name
        return _frozen(read_tensors(self.path / layout.expert_file(name)))

    def task(self, task: str) -> TaskEntry:
        """What the manifest says of a task; raises `UsageError` for an unknown one."""
        for entry in self.manifest.tasks:
            if entry.name == task:
                return entry
        raise unknown_name("task", task, [t.name for t in self.manifest.tasks], where=self.path)

    def engine(self, engine: str) -> tuple[TaskEntry, ...]:
        """The tasks of an engine, in the order of its logits; `UsageError` if it is unknown."""
        engines = self.manifest.engines()
        if engine not in engines:
            raise unknown_name("engine", engine, engines, where=self.path)
        return engines[engine]

    def department(self, engine: str) -> str:
        """The department of an engine; the teacher's engine is called one of its own."""
        return layout.TEACHER if engine == layout.TEACHER else self.task(engine).department

    def logits(self, engine: str) -> dict[str, npt.NDArray[Any]]:
        """The reference logits of an engine and what belongs to them, as they were written."""
        self.engine(engine)
        return read_tensors(self.path / layout.parity_file(engine))

    def safety(self, task: str) -> Mapping[str, npt.NDArray[Any]]:
        """What the safety of a task's answers rests on (`manifest.py`); none of it may be there."""
        entry = self.task(task)
        file = self.path / layout.safety_file(entry.name)
        return _frozen(read_tensors(file) if entry.safety.file else {})

    def template(self) -> bytes:
        """The ONNX graph without its weights."""
        return (self.path / layout.TEMPLATE).read_bytes()

    def dense(self, task: str) -> dict[str, F64]:
        """The plain network of one task, float64 by torch name: W0 + ΔW, its norms and its head.

        Nothing is folded. Integer tensors are left out: they are part of the graph.
        """
        entry = self.task(task)
        own = dict(self.expert(task))
        updates = {layer.name: self._update(own, layer, entry) for layer in self.manifest.layers}
        state = {
            name: array.astype(np.float64)
            for name, array in {**self.base, **own}.items()
            if np.issubdtype(array.dtype, np.floating)
        }
        for layer in self.manifest.layers:
            weight = state.get(f"{layer.name}.weight")
            if weight is None or weight.shape != layer.shape:
                raise _disagree(f"{layer.name}.weight is not of shape {layer.shape}", self.path)
            weight += updates[layer.name]
        return state

    def fuse(self, engine: str) -> dict[str, F32]:
        """Exactly the template's initialisers for one engine, norms folded, float32.

        `engine` is a task, or `"teacher"` of a teacher's bundle, which has every task's head side
        by side in the manifest's order. Computed in float64 from `base`, which stays as it is.
        """
        tasks = self.engine(engine)
        try:
            state = self.dense(tasks[0].name)
            for part in HEAD_TENSORS:
                heads = [state[part], *(self.expert(t.name)[part] for t in tasks[1:])]
                state[part] = np.concatenate([h.astype(np.float64) for h in heads])
            self._fold(state)
            return self._bound(state)
        except (KeyError, ValueError) as exc:  # a tensor is missing, or shapes don't fit
            raise _disagree(str(exc), self.path) from exc

    def _bound(self, state: dict[str, F64]) -> dict[str, F32]:
        """Give every folded tensor the name and form of its initialiser."""
        graph = self.manifest.graph
        unbound = (state.keys() - set(graph.unused)) ^ {b.source for b in graph.bindings}
        if unbound:
            raise _disagree(f"no one-to-one map to the graph for {_some(unbound)}", self.path)
        fused = {}
        for binding in self.manifest.graph.bindings:
            value = state[binding.source]
            value = value.T if binding.transpose else value
            shape = value.shape if binding.shape is None else binding.shape
            fused[binding.initializer] = np.asarray(value.reshape(shape), np.float32, order="C")
        return fused

    def _fold(self, state: dict[str, F64]) -> None:
        """Put each BatchNorm behind a convolution into that convolution's weight and bias."""
        for fold in self.manifest.folds:
            weight = state[f"{fold.conv}.weight"]
            mean = state.pop(f"{fold.norm}.running_mean")
            gain = 1.0 / np.sqrt(state.pop(f"{fold.norm}.running_var") + fold.eps)
            gain *= state.pop(f"{fold.norm}.weight", np.float64(1.0))
            bias = state.get(f"{fold.conv}.bias", np.float64(0.0))
            shift = state.pop(f"{fold.norm}.bias", np.float64(0.0))
            state[f"{fold.conv}.weight"] = weight * gain.reshape(-1, *(1,) * (weight.ndim - 1))
            state[f"{fold.conv}.bias"] = (bias - mean) * gain + shift

    def _update(self, own: dict[str, npt.NDArray[Any]], layer: LayerEntry, task: TaskEntry) -> F64:
        """ΔW of one layer; takes its factors out of `own`, checked against rank and shape."""
        rank = task.rank_of(layer.name)
        if rank is None or task.alpha is None:
            raise _disagree(f"task {task.name} has no rank or alpha", self.path)
        if not rank:
            return np.zeros(layer.shape)
        factors = []
        shapes = factor_shapes(layer.shape, rank, self.manifest.factorisation)
        for side, expected in zip(FACTORS, shapes, strict=True):
            factor = own.pop(layer.name + side, None)
            if factor is None or factor.shape != expected:
                found = "missing" if factor is None else f"of shape {factor.shape}"
                raise _disagree(
                    f"{layer.name}{side} of task {task.name} is {found}, {expected} is needed",
                    self.path,
                )
            factors.append(factor.astype(np.float64))
        a, b = factors
        return np.asarray(delta_weight(a, b, task.alpha / rank, layer.shape))


def load_bundle(path: str | Path) -> Bundle:
    """Open and verify a bundle; `path` is it, or a RUN that holds one (`RUN/bundle`).

    Raises `BundleError` for a folder without a bundle, another schema, a missing or changed
    file, a path that leaves the folder, or a manifest that contradicts itself.
    """
    folder = _folder(Path(path))
    file = folder / layout.MANIFEST
    manifest = read_part(file, Manifest, BundleError, FRESH_COPY)
    _verify(folder, manifest)
    return Bundle(folder, manifest, sha256_bytes(file.read_bytes()))


def _folder(path: Path) -> Path:
    for folder in (path, path / "bundle"):
        if (folder / layout.MANIFEST).is_file():
            return folder
    what = "there is no bundle here" if path.exists() else "the folder does not exist"
    raise BundleError(what, where=path, fix="give a RUN whose `lorkd decompose` has ended")


def _verify(folder: Path, manifest: Manifest) -> None:
    if unlisted := manifest.needed_files - set(manifest.files):
        raise BundleError(
            f"manifest.json doesn't list {_some(unlisted)}", where=folder, fix=FRESH_COPY
        )
    if manifest.preprocess.sha256 != manifest.preprocess_sha256:
        raise _disagree("the preprocessing has another hash than recorded", folder)
    for relative, entry in manifest.files.items():
        file = inside(folder, relative)
        if not file.is_file():
            raise BundleError(f"{relative} is missing", where=folder, fix=FRESH_COPY)
        if file.stat().st_size != entry.bytes or sha256_file(file) != entry.sha256:
            raise BundleError(
                f"{relative} has changed since the bundle was written",
                where=folder,
                fix=FRESH_COPY,
            )


def _frozen(tensors: dict[str, npt.NDArray[Any]]) -> Mapping[str, npt.NDArray[Any]]:
    for array in tensors.values():
        array.flags.writeable = False
    return MappingProxyType(tensors)


def _disagree(what: str, where: Path) -> BundleError:
    return BundleError(f"the bundle contradicts itself: {what}", where=where, fix=FRESH_COPY)


def _some(names: set[str]) -> str:
    shown = sorted(names)
    return ", ".join(shown[:5]) + (f" and {len(shown) - 5} more" if len(shown) > 5 else "")
