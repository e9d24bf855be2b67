"""Files of weights as users have them: read whatever their names, or said what they are."""

from __future__ import annotations

import io
import logging
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from lorkd_deploy.errors import ModelError
from lorkd_deploy.weight_files import read_weights

State = dict[str, torch.Tensor]


@pytest.fixture
def state() -> State:
    torch.manual_seed(0)
    return dict(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).state_dict())


def _same(found: State, state: State) -> bool:
    return found.keys() == state.keys() and all(torch.equal(found[k], state[k]) for k in state)


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda state: state,
        lambda state: {"state_dict": state},
        lambda state: {"net": state, "acc": 0.9},
        lambda state: {"teacher": state, "optimizer": {"lr": 0.1}},
        lambda state: {"student": state},
        lambda state: {"ema": state, "step": 3},
        lambda state: {"model_ema": {"state_dict": state}},
        lambda state: {**state, "epoch": 3, "optimizer": {"lr": 0.1}},
    ],
)
def test_weights_are_found_in_what_a_script_put_around_them(
    wrapped: Callable[[State], object], state: State, tmp_path: Path
) -> None:
    torch.save(wrapped(state), tmp_path / "a.pth.tar")
    assert _same(read_weights(tmp_path / "a.pth.tar", {}, {}), state)


def test_of_two_the_usual_one_is_taken_and_said(
    state: State, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    other = {name: value + 1 for name, value in state.items()}
    torch.save({"model_ema": other, "model": state}, tmp_path / "a.pt")
    assert _same(read_weights(tmp_path / "a.pt", {}, {}), state)
    assert "'model' are taken, not those in model_ema" in caplog.text


def test_a_file_is_what_its_content_says(state: State, tmp_path: Path) -> None:
    save_file(state, tmp_path / "a.bin")
    torch.save(state, tmp_path / "b.safetensors")
    torch.save(state, tmp_path / "c.pt", _use_new_zipfile_serialization=False)
    for name in ("a.bin", "b.safetensors", "c.pt"):
        assert _same(read_weights(tmp_path / name, {}, {}), state)


@pytest.mark.filterwarnings("ignore")  # torch's own, of how it reads them
def test_sparse_tensors_become_dense(state: State, tmp_path: Path) -> None:
    sparse = {name: v.to_sparse() if v.dim() > 1 else v for name, v in state.items()}
    torch.save(sparse, tmp_path / "a.pt")
    assert _same(read_weights(tmp_path / "a.pt", {}, {}), state)


def _pointer(path: Path, state: State) -> None:
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")


def _torchscript(path: Path, state: State) -> None:
    torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)).save(path)


def _old_tar(path: Path, state: State) -> None:
    with tarfile.open(path, "w") as archive:
        for name in ("storages", "tensors", "pickle"):
            archive.addfile(tarfile.TarInfo(name), io.BytesIO())


def _other_zip(path: Path, state: State) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("weight.npy", b"")


def _part_of_a_zip(path: Path, state: State) -> None:
    """The last of two files into which an archive was divided, as its end says."""
    of_two = struct.pack("<4sLQL", b"PK\x06\x07", 1, 0, 2)
    path.write_bytes(b"PK\x03\x04" + bytes(60) + of_two + b"PK\x05\x06" + bytes(18))


def _unknown_wrapper(path: Path, state: State) -> None:
    torch.save({"encoder": state, "arch": "resnet"}, path)


def _code(path: Path, state: State) -> None:
    torch.save({"model": nn.Linear(2, 2), **state}, path)


def _quantised(path: Path, state: State) -> None:
    torch.save({"w": torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)}, path)


@pytest.mark.filterwarnings("ignore")  # torch's own, of what is written here
@pytest.mark.parametrize(
    ("write", "what", "fix"),
    [
        (_pointer, "Git LFS pointer", "git lfs pull"),
        (_torchscript, "TorchScript program", "torch.jit.load"),
        (_old_tar, "tar archive", "before version 2.6"),
        (_other_zip, r"without weights of torch: weight\.npy", "safetensors"),
        (_part_of_a_zip, "can't be read: zipfiles that span", "anew"),
        (_unknown_wrapper, "its keys are encoder, arch", "one of encoder"),
        (_code, "could run code", "safetensors"),
        (_quantised, "1 tensors are quantised: w", "floating point"),
        (lambda path, _: path.write_bytes(b""), "is empty", "anew"),
        (lambda path, _: path.write_bytes(b"<!DOCTYPE html>"), "web page", "anew"),
        (lambda path, _: path.mkdir(), "is no file", "a file"),
    ],
)
def test_what_holds_no_state_dict_is_named(
    write: Callable[[Path, State], object], what: str, fix: str, state: State, tmp_path: Path
) -> None:
    path = tmp_path / "a.pt"
    write(path, state)
    with pytest.raises(ModelError, match=what) as caught:
        read_weights(path, {}, {})
    assert fix in str(caught.value.fix)
    assert "weights_only" not in str(caught.value), "torch's advice to load it unsafely"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e300])
@pytest.mark.parametrize("name", ["0.weight", "1.running_var"])
def test_values_that_are_not_finite_are_refused_by_name(
    name: str, value: float, state: State, tmp_path: Path
) -> None:
    broken = {**state, name: state[name].double()}
    broken[name].view(-1)[-1] = value
    torch.save(broken, tmp_path / "a.pt")
    with pytest.raises(ModelError, match=f"1 tensors hold values that are not finite: {name}"):
        read_weights(tmp_path / "a.pt", {}, state)


def test_infinities_that_the_network_has_itself_are_no_fault(state: State, tmp_path: Path) -> None:
    state["mask"] = torch.full((2, 2), float("-inf")).triu(1)
    save_file(state, tmp_path / "a.safetensors")
    assert _same(read_weights(tmp_path / "a.safetensors", {}, state), state)


def test_parts_of_names_are_replaced_behind_their_beginnings(tmp_path: Path) -> None:
    """DenseNet's old names, of before torchvision's 0.2."""
    old = {"module.denselayer1.norm.1.weight": torch.ones(2), "module.norm.1.bias": torch.zeros(2)}
    torch.save(old, tmp_path / "old.pth")
    pattern = {r"(denselayer\d+[.]norm)[.](\d)": r"\1\2"}
    found = read_weights(tmp_path / "old.pth", {"module.": ""}, {}, pattern)
    assert list(found) == ["denselayer1.norm1.weight", "norm.1.bias"]


def test_a_tensor_of_two_names_is_found_under_either(tmp_path: Path) -> None:
    class Tied(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = self.again = torch.nn.Linear(2, 2)

    own = Tied().state_dict(keep_vars=True)
    weight, bias = torch.ones(2, 2), torch.zeros(2)
    torch.save({"again.weight": weight, "again.bias": bias}, tmp_path / "one.pt")
    found = read_weights(tmp_path / "one.pt", {}, own)
    assert torch.equal(found["first.weight"], weight) and len(found) == 4
    torch.save({"again.weight": weight, "first.weight": -weight}, tmp_path / "two.pt")
    with pytest.raises(ModelError, match="are one tensor in the network, and differ here"):
        read_weights(tmp_path / "two.pt", {}, own)
