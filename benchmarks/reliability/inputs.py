"""Every kind of file that a user brings or a run holds: well-formed ones, and how each is read."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml
from PIL import Image

from lorkd_deploy.bundle.manifest import MANIFEST, TEMPLATE, expert_file
from lorkd_deploy.bundle.read import load_bundle
from lorkd_deploy.data.csv import CsvData
from lorkd_deploy.data.list import ListData
from lorkd_deploy.data.npz import NpzData
from lorkd_deploy.data.source import TaskData
from lorkd_deploy.deploy.artifact import ARTIFACT, check_files, open_engine, read_artifact
from lorkd_deploy.deploy.graphs.graph import onnx_model
from lorkd_deploy.dicom.pixels import read_dicom
from lorkd_deploy.image_files import read_image
from lorkd_deploy.preprocess import Preprocess
from lorkd_deploy.profiling.profile import PROFILE, read_profile
from lorkd_deploy.recipe import load_recipe
from lorkd_deploy.runtime import exporter
from lorkd_deploy.schema import document_bytes
from lorkd_deploy.storage import sha256_bytes

TASK = "lung"
_Dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)  # in C where libyaml is
SMALL = np.random.default_rng(0).integers(0, 256, (24, 20, 3), np.uint8)


class Kind(NamedTuple):
    """`corpus` are whole files; `read(data)` writes one where it belongs and reads it as the
    product does. `document` makes a file of a changed JSON value, where the file is one."""

    corpus: tuple[bytes, ...]
    read: Callable[[bytes], object]
    document: Callable[[Any], bytes] | None = None
    parse: Callable[[bytes], Any] = json.loads


def kinds(folder: Path, *, torch: bool = True) -> dict[str, Kind]:
    """All of them, below `folder`; without `torch` no checkpoints."""
    from lorkd_deploy.deploy.export import export
    from tests.deploy.made_run import make_run
    from tests.reporting.run_folder import build_run

    run = make_run(folder / "run", folder / "data", images="bundle")
    export(run, task=[TASK])
    shown = build_run(folder / "shown", artifacts=False)
    found = {"recipe": _recipe(folder)} | _of_a_run(run, shown)
    found |= _images(folder) | _lists(folder / "lists")
    return found | ({"checkpoint": _checkpoint(folder / "checkpoint")} if torch else {})


def _recipe(folder: Path) -> Kind:
    file = folder / "recipe.yaml"
    shipped = Path(__file__).parents[2] / "recipes"
    corpus = tuple(path.read_bytes() for path in sorted(shipped.glob("*.yaml")))

    def read(data: bytes) -> object:
        file.write_bytes(data)
        return load_recipe(file)

    def written(value: Any) -> bytes:
        return yaml.dump(value, Dumper=_Dumper).encode()

    return Kind(corpus, read, written, yaml.safe_load)


def _of_a_run(run: Path, shown: Path) -> dict[str, Kind]:
    bundle, profile = run / "bundle", shown / "profile" / PROFILE
    engine = next((run / "export").glob(f"*/{TASK}/*"))
    manifest = (bundle / MANIFEST).read_bytes()

    def used() -> object:
        opened = load_bundle(bundle)
        (engine / "made.onnx").write_bytes(onnx_model(opened, TASK))
        return opened

    def read_manifest(data: bytes) -> object:
        (bundle / MANIFEST).write_bytes(data)
        return used()

    def read_record(data: bytes) -> object:
        (engine / ARTIFACT).write_bytes(data)
        artifact = read_artifact(engine)
        check_files(artifact)
        return artifact

    def read_shown(data: bytes) -> object:
        profile.write_bytes(data)
        return read_profile(profile)

    def in_bundle(name: str) -> Callable[[bytes], object]:
        def read(data: bytes) -> object:
            value = json.loads(manifest)
            value["files"][name] = {"sha256": sha256_bytes(data), "bytes": len(data)}
            (bundle / MANIFEST).write_bytes(document_bytes(value))
            whole = (bundle / name).read_bytes()
            (bundle / name).write_bytes(data)
            try:
                return used()
            finally:
                (bundle / name).write_bytes(whole)

        return read

    record = (engine / ARTIFACT).read_bytes()
    model = (engine / "model.onnx").read_bytes()

    def open_onnx(data: bytes) -> object:
        value = json.loads(record)
        value["files"] = [{"name": "model.onnx", "sha256": sha256_bytes(data), "bytes": len(data)}]
        (engine / ARTIFACT).write_bytes(document_bytes(value))
        (engine / "model.onnx").write_bytes(data)
        artifact = read_artifact(engine)
        with open_engine(artifact) as runner:
            return runner(np.zeros((2, *artifact.input_shape), np.float32))

    exporter("onnx")
    return {
        "manifest": Kind((manifest,), read_manifest, document_bytes),
        "engine record": Kind((record,), read_record, document_bytes),
        "profile": Kind((profile.read_bytes(),), read_shown, document_bytes),
        "ONNX engine": Kind((model,), open_onnx),
        "ONNX template": Kind(((bundle / TEMPLATE).read_bytes(),), in_bundle(TEMPLATE)),
        "safetensors": Kind(
            ((bundle / expert_file(TASK)).read_bytes(),), in_bundle(expert_file(TASK))
        ),
    }


def _images(folder: Path) -> dict[str, Kind]:
    from pydicom.uid import JPEGBaseline8Bit

    from tests.dicom.files import dataset, saved

    preprocess = Preprocess(size=16)

    def reader(suffix: str) -> Callable[[bytes], object]:
        file = folder / f"picture{suffix}"

        def read(data: bytes) -> object:
            file.write_bytes(data)
            return preprocess.geometry(read_image(file))

        return read

    def read_file(data: bytes) -> object:
        (folder / "picture.dcm").write_bytes(data)
        return preprocess.geometry(read_dicom(folder / "picture.dcm").pixels)

    grey = SMALL[..., 0]
    plain = saved(dataset(grey.astype(np.uint16) * 8), folder / "a.dcm").read_bytes()
    compressed = dataset(grey, stored=8)
    compressed.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    frame = _saved(grey, "JPEG")
    compressed.PixelData = _encapsulated(frame)
    compressed["PixelData"].VR = "OB"
    jpeg = saved(compressed, folder / "b.dcm").read_bytes()
    return {
        "PNG": Kind((_saved(SMALL, "PNG"), _saved(grey, "PNG")), reader(".png")),
        "JPEG": Kind((_saved(SMALL, "JPEG"), _saved(grey, "JPEG")), reader(".jpg")),
        "TIFF": Kind(
            (_saved(SMALL, "TIFF"), _saved(SMALL, "TIFF", compression="tiff_lzw")), reader(".tif")
        ),
        "BMP and WebP": Kind((_saved(SMALL, "BMP"), _saved(SMALL, "WEBP")), reader(".bmp")),
        "npy": Kind((_npy(SMALL),), reader(".npy")),
        "DICOM": Kind((plain, jpeg), read_file),
    }


def _encapsulated(frame: bytes) -> bytes:
    from pydicom.encaps import encapsulate

    data: bytes = encapsulate([frame])
    return data


def _saved(pixels: Any, form: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, form, **options)
    return stream.getvalue()


def _npy(array: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def _lists(folder: Path) -> dict[str, Kind]:
    folder.mkdir()
    for name in "abcd":
        Image.fromarray(SMALL).save(folder / f"{name}.png")
    rows = ["path,label,split", *(f"{n}.png,{i % 2},{s}" for i, (n, s) in enumerate(
        [("a", "train"), ("b", "train"), ("c", "val"), ("d", "test")]))]  # fmt: skip

    def seen(data: TaskData) -> object:
        return [split.images[0] for split in (data.train, data.val, data.test) if len(split)]

    def read_csv(data: bytes) -> object:
        (folder / "table.csv").write_bytes(data)
        return seen(CsvData(source="csv", path="table.csv").load([folder]))

    def read_list(data: bytes) -> object:
        (folder / "train.txt").write_bytes(data)
        shutil.copy(folder / "test.txt", folder / "val.txt")
        made = ListData(source="list", train="train.txt", val="val.txt", test="test.txt")
        return seen(made.load([folder]))

    def read_npz(data: bytes) -> object:
        (folder / "set.npz").write_bytes(data)
        return seen(NpzData(source="npz", path="set.npz").load([folder]))

    (folder / "test.txt").write_text("c.png 0\nd.png 1\n")
    return {
        "CSV": Kind(("\n".join(rows).encode(), ";".join(rows).encode()), read_csv),
        "list": Kind((b"a.png 0\nb.png 1\n", b"a.png,0\nb.png,1\n"), read_list),
        "npz": Kind((_archive(np.savez), _archive(np.savez_compressed)), read_npz),
    }


def _archive(save: Callable[..., None]) -> bytes:
    stream = io.BytesIO()
    arrays: Mapping[str, Any] = {
        f"{split}_{part}": values
        for split in ("train", "val", "test")
        for part, values in (("images", SMALL[None].repeat(4, 0)), ("labels", np.arange(4) % 2))
    }
    save(stream, **arrays)
    return stream.getvalue()


class Planted:
    """What runs code where it is unpickled."""

    def __reduce__(self) -> Any:
        return os.system, ("touch planted",)


def _checkpoint(folder: Path) -> Kind:
    import torch

    from lorkd_deploy.weight_files import read_weights

    folder.mkdir()
    state = {"fc.weight": torch.ones(4, 3), "fc.bias": torch.zeros(4)}
    files = []
    for value in ({"state_dict": state}, state, {"model": state, "args": Planted()}):
        stream = io.BytesIO()
        torch.save(value, stream)
        files.append(stream.getvalue())
    stream = io.BytesIO()
    torch.save(state, stream, _use_new_zipfile_serialization=False)
    files += [stream.getvalue(), pickle.dumps(Planted()), pickle.dumps({"a": Planted()})]

    def read(data: bytes) -> object:
        (folder / "c.pt").write_bytes(data)
        return read_weights(folder / "c.pt", {"module.": ""}, state)

    return Kind(tuple(files), read)
