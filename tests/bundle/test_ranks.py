"""Bundles whose experts have another rank on some layers, and whose factors are separable."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lorkd_deploy.bundle.manifest import LayerEntry
from lorkd_deploy.bundle.read import load_bundle
from lorkd_deploy.bundle.write import Contents, write_bundle
from lorkd_deploy.errors import BundleError
from lorkd_deploy.inspection import inspect
from lorkd_deploy.lowrank.delta import factor_shapes
from tests import tiny_bundle

RANKS = {"conv1": 1, "conv2": 0}  # of "lung"; its rank is 2, so "conv3" below has 2
LAYERS = (*tiny_bundle.LAYERS, LayerEntry(name="fc", kind="linear", shape=(4, 3)))
ALPHA = 5.0


def write(path: Path, factorisation="interleaved", ranks=RANKS) -> dict[str, np.ndarray]:
    """A bundle with one task; gives its tensors."""
    rng = np.random.default_rng(3)
    base, own = {}, {"head:weight": np.ones((2, 4), np.float32)}
    for layer in LAYERS:
        base[f"{layer.name}.weight"] = rng.normal(size=layer.shape).astype(np.float32)
        if rank := {"fc": 2, **RANKS}[layer.name]:
            shapes = factor_shapes(layer.shape, rank, factorisation)
            for side, shape in zip("AB", shapes, strict=True):
                own[f"{layer.name}.{side}"] = rng.normal(size=shape).astype(np.float32)
    described = tiny_bundle.manifest(
        tasks=[tiny_bundle.entry("lung", 2, rank=2, ranks=ranks, alpha=ALPHA)],
        layers=LAYERS,
        factorisation=factorisation,
    )
    write_bundle(path, described, Contents(base, {"lung": own}, {"lung": {}}, b""))
    return {**base, **own}


@pytest.mark.parametrize("factorisation", ["interleaved", "separable"])
def test_every_layer_is_scaled_by_its_own_rank(tmp_path: Path, factorisation: str) -> None:
    tensors = write(tmp_path / "bundle", factorisation)
    dense = load_bundle(tmp_path).dense("lung")
    for layer, scale in (("conv1", ALPHA / 1), ("fc", ALPHA / 2)):
        product = tensors[f"{layer}.B"].astype(np.float64) @ tensors[f"{layer}.A"]
        wanted = tensors[f"{layer}.weight"] + scale * product.reshape(
            dense[f"{layer}.weight"].shape
        )
        np.testing.assert_allclose(dense[f"{layer}.weight"], wanted, rtol=1e-12)
        assert not any(name.endswith((".A", ".B")) for name in dense)
    assert np.array_equal(dense["conv2.weight"], tensors["conv2.weight"])


def test_the_ranks_can_be_read(tmp_path: Path) -> None:
    write(tmp_path / "bundle", "separable")
    found = inspect(tmp_path / "bundle").bundle
    assert found is not None
    assert found.factorisation == "separable"
    task = found.tasks[0]
    assert (task.rank_of("conv1"), task.rank_of("conv2"), task.rank_of("fc")) == (1, 0, 2)
    assert task.shown_rank == "0 to 2 by layer"
    assert '"separable"' in (tmp_path / "bundle/manifest.json").read_text()


def test_ranks_that_are_not_the_factors_are_a_contradiction(tmp_path: Path) -> None:
    write(tmp_path / "bundle", ranks={"conv2": 0})
    with pytest.raises(BundleError, match=r"conv1\.A of task lung is of shape \(3, 9\), \(6, 9\)"):
        load_bundle(tmp_path).dense("lung")


def test_a_bundle_without_them_says_nothing_of_them(tmp_path: Path) -> None:
    manifest = tiny_bundle.make_bundle(tmp_path / "bundle") / "manifest.json"
    text = manifest.read_text()
    assert '"ranks"' not in text
    assert '"factorisation"' not in text
