from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from lorkd_deploy.bundle.manifest import Manifest
from lorkd_deploy.bundle.read import load_bundle
from lorkd_deploy.errors import BundleError, UsageError
from lorkd_deploy.schema import document_bytes
from lorkd_deploy.storage import read_tensors, sha256_file, write_tensors
from tests import tiny_bundle
from tests.tiny_bundle import make_bundle


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_bundle(tmp_path / "run" / "bundle")


def rewrite(folder: Path, change: object) -> None:
    """Edit the manifest by `change(dict)` and write it back."""
    file = folder / "manifest.json"
    value = json.loads(file.read_text())
    change(value)  # type: ignore[operator]
    file.write_bytes(document_bytes(value))


def replace_tensors(folder: Path, relative: str, tensors: dict[str, object]) -> None:
    """Replace a tensor file and record its hash, as a faulty writer would have."""
    write_tensors(folder / relative, tensors)  # type: ignore[arg-type]
    size = (folder / relative).stat().st_size
    entry = {"sha256": sha256_file(folder / relative), "bytes": size}
    rewrite(folder, lambda m: m["files"].__setitem__(relative, entry))


def test_run_or_bundle_may_be_given(folder: Path) -> None:
    by_run, by_bundle = load_bundle(folder.parent), load_bundle(str(folder))
    assert by_run.path == by_bundle.path == folder
    assert by_run.sha256 == by_bundle.sha256 == sha256_file(folder / "manifest.json")
    assert [t.name for t in by_run.manifest.tasks] == ["lung", "eye"]


def test_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no bundle here"):
        load_bundle(tmp_path)
    with pytest.raises(BundleError, match="does not exist"):
        load_bundle(tmp_path / "nowhere")


@pytest.mark.parametrize("norm", ["shared", "per_task"])
@pytest.mark.parametrize("task", ["lung", "eye"])
def test_dense_is_the_base_plus_the_scaled_product(tmp_path: Path, norm: str, task: str) -> None:
    bundle = load_bundle(make_bundle(tmp_path / "b", norm=norm))
    expected = tiny_bundle.unfused(bundle.base, bundle.expert(task), 2.5)
    dense = bundle.dense(task)
    assert set(dense) == {name for name in expected if name[-2:] not in (".A", ".B")}
    for name, value in dense.items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-14)


@pytest.mark.parametrize("norm", ["shared", "per_task"])
def test_fused_graph_equals_the_unfused_network(tmp_path: Path, norm: str) -> None:
    bundle = load_bundle(make_bundle(tmp_path / "b", norm=norm))
    x = np.random.default_rng(0).normal(size=(3, 3, 16, 16))
    for task in ("lung", "eye"):
        fused = bundle.fuse(task)
        assert {v.dtype for v in fused.values()} == {np.dtype(np.float32)}
        # The fused network is the same forward with norms that change nothing.
        state = {
            "conv1.weight": fused["conv1.weight"],
            "bn1.bias": fused["conv1.bias"],
            "bn1.running_var": np.full(4, 1 - tiny_bundle.EPS["bn1"]),
            "conv2.weight": fused["conv2.weight"],
            "conv2.bias": fused["conv2.bias"],
            "bn2.running_var": np.full(5, 1 - tiny_bundle.EPS["bn2"]),
            "head:weight": fused["val_1"].T,
            "head:bias": fused["head.bias"],
        } | {f"pre.{k}": fused[f"p.{k}"] for k in ("weight", "bias", "running_mean", "running_var")}
        expected = tiny_bundle.forward(
            tiny_bundle.unfused(bundle.base, bundle.expert(task), 2.5), x
        )
        np.testing.assert_allclose(tiny_bundle.forward(state, x), expected, rtol=1e-5, atol=1e-6)


def test_a_then_b_then_a_is_bit_identical_and_the_base_stays(folder: Path) -> None:
    bundle = load_bundle(folder)
    before = {name: array.copy() for name, array in bundle.base.items()}
    first, other, again = bundle.fuse("lung"), bundle.fuse("eye"), bundle.fuse("lung")
    assert all(first[name].tobytes() == again[name].tobytes() for name in first)
    assert not np.array_equal(first["conv1.weight"], other["conv1.weight"])
    assert all(np.array_equal(before[name], bundle.base[name]) for name in before)
    with pytest.raises(ValueError, match="read-only"):
        bundle.base["conv1.weight"][0] = 0


def test_teacher_has_the_heads_side_by_side(tmp_path: Path) -> None:
    bundle = load_bundle(make_bundle(tmp_path / "teacher", kind="teacher"))
    fused = bundle.fuse("teacher")
    heads = [bundle.expert(task)["head:weight"] for task in ("lung", "eye")]
    np.testing.assert_array_equal(fused["val_1"], np.concatenate(heads).T)
    assert fused["head.bias"].shape == (5,)
    assert [t.name for t in bundle.engine("teacher")] == ["lung", "eye"]


def test_unknown_names_are_usage_errors(folder: Path) -> None:
    bundle = load_bundle(folder)
    for call in (bundle.expert, bundle.dense, bundle.fuse, bundle.logits):
        with pytest.raises(UsageError, match="lungs") as caught:
            call("lungs")
        assert "did you mean 'lung'" in str(caught.value)


@pytest.mark.parametrize(
    "relative",
    ["base.safetensors", "experts/eye.safetensors", "template.onnx", "parity/lung.safetensors"],
)
def test_one_flipped_byte_or_a_missing_file_is_refused(folder: Path, relative: str) -> None:
    file = folder / relative
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(BundleError, match=f"{relative} has changed"):
        load_bundle(folder)
    file.unlink()
    with pytest.raises(BundleError, match=f"{relative} is missing"):
        load_bundle(folder)


def test_newer_schema_asks_for_an_upgrade(folder: Path) -> None:
    rewrite(folder, lambda m: m.update(schema_version=99, something_new=1))
    with pytest.raises(BundleError, match="schema 99") as caught:
        load_bundle(folder)
    assert "upgrade" in str(caught.value)


def test_manifest_that_is_no_manifest(folder: Path) -> None:
    file = folder / "manifest.json"
    rewrite(folder, lambda m: m["graph"].update(opset="eighteen"))
    with pytest.raises(BundleError, match=r"graph\.opset"):
        load_bundle(folder)
    for text, fault in (
        (b"{", "not valid JSON"),
        (b"[]", "no digest"),
        (b"{}", "no digest"),
        (document_bytes({}), "schema_version"),
    ):
        file.write_bytes(text)
        with pytest.raises(BundleError, match=fault):
            load_bundle(folder)


@pytest.mark.parametrize("outside", ["../secret", "/etc/hostname", "a/../../secret"])
def test_a_path_that_leaves_the_folder(folder: Path, outside: str) -> None:
    (folder.parent / "secret").write_bytes(b"x")
    entry = {"sha256": "0" * 64, "bytes": 1}
    rewrite(folder, lambda m: m["files"].__setitem__(outside, entry))
    with pytest.raises(BundleError, match="leaves its folder"):
        load_bundle(folder)


def test_a_link_that_leaves_the_folder(folder: Path) -> None:
    moved = folder.parent / "elsewhere.safetensors"
    (folder / "base.safetensors").rename(moved)
    (folder / "base.safetensors").symlink_to(moved)
    with pytest.raises(BundleError, match="leaves its folder"):
        load_bundle(folder)


@pytest.mark.parametrize("key", ["name", "department"])
def test_a_name_that_would_lead_an_engine_out_of_its_folder(folder: Path, key: str) -> None:
    rewrite(folder, lambda m: m["tasks"][0].update({key: "../../outside"}))
    with pytest.raises(BundleError, match=rf"tasks\.0\.{key}"):
        load_bundle(folder)


def test_files_the_manifest_must_list(folder: Path) -> None:
    rewrite(folder, lambda m: m["files"].pop("experts/eye.safetensors"))
    with pytest.raises(BundleError, match=r"doesn't list experts/eye\.safetensors"):
        load_bundle(folder)


def test_other_preprocessing_than_its_hash(folder: Path) -> None:
    rewrite(folder, lambda m: m["preprocess"].update(size=32))
    with pytest.raises(BundleError, match="preprocessing"):
        load_bundle(folder)


def test_a_missing_or_misshapen_factor_is_named(folder: Path) -> None:
    own = read_tensors(folder / "experts/lung.safetensors")
    replace_tensors(folder, "experts/lung.safetensors", own | {"conv2.B": own["conv2.B"].T.copy()})
    with pytest.raises(BundleError, match=r"conv2\.B of task lung is of shape \(2, 5\)"):
        load_bundle(folder).fuse("lung")
    del own["conv1.A"]
    replace_tensors(folder, "experts/lung.safetensors", own)
    with pytest.raises(BundleError, match=r"conv1\.A of task lung is missing"):
        load_bundle(folder).fuse("lung")


@pytest.mark.parametrize("lost", ["bn1.running_mean", "conv2.weight", "conv2.bias", "pre.bias"])
def test_a_tensor_too_few_or_too_many_is_named(folder: Path, lost: str) -> None:
    base = read_tensors(folder / "base.safetensors")
    replace_tensors(folder, "base.safetensors", base | {"extra.weight": np.ones(3, np.float32)})
    with pytest.raises(BundleError, match=r"extra\.weight"):
        load_bundle(folder).fuse("lung")
    del base[lost]
    replace_tensors(folder, "base.safetensors", base)
    if lost == "conv2.bias":  # a folded convolution without a bias is a valid network
        assert load_bundle(folder).fuse("lung")["conv2.bias"].shape == (5,)
        return
    with pytest.raises(BundleError, match=lost):
        load_bundle(folder).fuse("lung")


def test_manifest_leaves_defaults_out_and_reads_back(folder: Path) -> None:
    raw = json.loads((folder / "manifest.json").read_text())
    assert raw.pop("schema_version") == 2 and len(raw.pop("digest")) == 64
    assert "transpose" not in raw["graph"]["bindings"][0]
    assert Manifest.model_validate(raw) == load_bundle(folder).manifest
