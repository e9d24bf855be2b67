"""Foundation models from a hub's folder: the published names and layouts, nothing fetched."""

from __future__ import annotations

import argparse
import json
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lorkd_deploy import models
from lorkd_deploy.errors import LorkdError, ModelError, UsageError
from tests import hub

pytest.importorskip("transformers")
pytest.importorskip("open_clip")


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise AssertionError("something is fetched")

    monkeypatch.setattr(socket.socket, "connect", refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hub")


def loaded(architecture: str, folder: Path) -> tuple[nn.Module, models.LoadReport]:
    module = models.build(architecture, models.read_config(architecture, folder))
    return module.eval(), models.load_checkpoint(module, folder)


def images(size: int) -> Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_dinov2_of_any_size_pools_by_class_token_or_patches(folder: Path) -> None:
    known = hub.dinov2(folder / "dino")
    for size in (42, 56):
        tokens = known(images(size)).last_hidden_state
        for name, wanted in (("", tokens[:, 0]), (":cls", tokens[:, 0])):
            module, report = loaded(f"transformers:Dinov2Model{name}", folder / "dino")
            assert torch.equal(module(images(size)), wanted)
        module, report = loaded("transformers:Dinov2Model:mean", folder / "dino")
        assert torch.equal(module(images(size)), tokens[:, 1:].mean(1))
        assert (report.missing, report.unexpected) == ((), ())
    with pytest.raises(ModelError, match="no attention pooling"):
        models.feature_dim(loaded("transformers:Dinov2Model:map", folder / "dino")[0], 42)


@torch.no_grad()
def test_the_towers_of_a_siglip_and_a_clip_are_taken_out_of_the_whole(folder: Path) -> None:
    for make, name, pooling in ((hub.siglip, "Siglip", "map"), (hub.clip, "CLIP", "cls")):
        known = make(folder / name)
        with safe_open(folder / name / "model.safetensors", "pt") as file:
            kinds = {key.partition(".")[0] for key in file.keys()}  # noqa: SIM118
        assert {"vision_model", "text_model"} <= kinds  # as they are published
        module, report = loaded(f"transformers:{name}VisionModel:{pooling}", folder / name)
        wanted = known.vision_model(images(32)).pooler_output
        assert torch.equal(module(images(32)), wanted)
        assert not report.missing
        assert report.unexpected
        again = models.build(f"transformers:{name}VisionModel", models.config_of(module))
        again.load_state_dict(module.state_dict())  # as a bundle does, without the folder
        assert torch.equal(again.eval()(images(32)), wanted)
    with pytest.raises(ModelError, match="no class token"):
        models.feature_dim(loaded("transformers:SiglipVisionModel:cls", folder / "Siglip")[0], 32)


@torch.no_grad()
def test_biomedclips_tower_needs_no_text_model(folder: Path) -> None:
    visual = hub.biomedclip(folder / "biomed")
    module, report = loaded("open_clip:local-dir", folder / "biomed")
    assert torch.allclose(module(images(160)), visual(images(160)), atol=1e-6)
    assert (report.missing, report.unexpected) == ((), ())
    token, _ = loaded("open_clip:local-dir:cls", folder / "biomed")
    tokens = visual.trunk.forward_features(images(160))
    assert torch.allclose(token(images(160)), tokens[:, 0], atol=1e-6)
    # The form of a .bin alone is read too, as weights only.
    state = load_file(folder / "biomed" / "open_clip_model.safetensors")
    (folder / "biomed" / "open_clip_model.safetensors").unlink()
    torch.save(state, folder / "biomed" / "open_clip_pytorch_model.bin")
    module, _ = loaded("open_clip:local-dir", folder / "biomed")
    assert torch.allclose(module(images(160)), visual(images(160)), atol=1e-6)


def test_a_tower_that_open_clip_knows_by_name() -> None:
    module = models.build("open_clip:ViT-S-32:mean")
    assert models.feature_dim(module, 224) == 384
    assert module.visual.pool_type == "avg"
    assert models.read_config("open_clip:ViT-S-32:mean", None) is None


@torch.no_grad()
def test_retfounds_layout_is_timms_and_its_arguments_are_refused(tmp_path: Path) -> None:
    known = models.build("timm:test_vit").eval()
    decoder = {"mask_token": torch.ones(1, 1, 8), "decoder_embed.weight": torch.ones(8, 64)}
    state = known.state_dict() | decoder
    file = tmp_path / "RETFound_cfp_weights.pth"
    torch.save({"model": state, "args": argparse.Namespace(lr=0.1), "epoch": 800}, file)
    module = models.build("timm:test_vit:mean").eval()
    with pytest.raises(ModelError, match="holds more than tensors") as caught:
        models.load_checkpoint(module, file)
    command = shlex.split(str(caught.value).partition("python -c ")[2])[0]
    subprocess.run([sys.executable, "-c", command.replace("FILE", str(file))], check=True)
    report = models.load_checkpoint(module, f"{file}.safetensors")
    assert (report.missing, set(report.unexpected)) == ((), set(decoder))
    tokens = known.forward_features(images(160))
    assert torch.allclose(module(images(160)), tokens[:, 1:].mean(1), atol=1e-6)


@pytest.mark.parametrize(
    ("architecture", "config", "kind", "said"),
    [
        ("transformers:Dinov2Mode", {}, UsageError, "did you mean 'Dinov2Model'"),
        ("transformers:SiglipModel", {}, UsageError, "transformers:SiglipVisionModel"),
        ("transformers:logging", {}, UsageError, "no class of transformers"),
        ("transformers:Dinov2Model", {"model_type": "vit"}, ModelError, "model_type vit"),
        (
            "transformers:Dinov2Model",
            {"model_type": "dinov2", "hidden_size": 7},
            ModelError,
            "built",
        ),
        ("transformers:Dinov2Model", None, ModelError, "no config.json"),
        ("open_clip:ViT-S-3", None, UsageError, "did you mean 'ViT-S-32'"),
        ("open_clip:local-dir", {"embed_dim": 3}, ModelError, "vision_cfg"),
        ("open_clip:local-dir", None, ModelError, "no open_clip_config.json"),
        ("timm:test_vit:max", None, UsageError, "no pooling is called 'max'"),
        ("timm:test_vit:map", None, ModelError, "can't pool by map"),
        ("timm:resnet18:cls", None, ModelError, "no class token"),
        ("torchvision:resnet18:mean", None, UsageError, "a pooling of its own"),
    ],
)
def test_what_cannot_be_is_told_in_a_sentence(
    architecture: str, config: dict[str, object] | None, kind: type[LorkdError], said: str
) -> None:
    with pytest.raises(kind, match=said.replace("(", r"\(")):
        models.build(architecture, config)


def test_a_folder_that_lacks_something_is_told(folder: Path, tmp_path: Path) -> None:
    arch = "transformers:Dinov2Model"
    with pytest.raises(ModelError, match="none is named"):
        models.read_config(arch, None)
    with pytest.raises(ModelError, match="has no configuration"):
        models.read_config(arch, tmp_path)
    config = {"model_type": "dinov2", **hub.TOWER}
    (tmp_path / "config.json").write_text(json.dumps(config))
    module = models.build(arch, models.read_config(arch, tmp_path))
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ModelError, match="no weights in safetensors"):
        models.load_checkpoint(module, tmp_path)
    state = {name: value + 1 for name, value in module.model.state_dict().items()}
    state["layernorm.weight"][0] = torch.nan
    save_file(state, tmp_path / "model.safetensors")
    before = module.model.layernorm.bias.clone()
    with pytest.raises(ModelError, match=r"not finite, first 'layernorm\.weight'"):
        models.load_checkpoint(module, tmp_path)
    assert torch.equal(module.model.layernorm.bias, before)
    state["layernorm.weight"] = torch.ones(3)
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match="can't be loaded"):
        models.load_checkpoint(module, tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\x10")
    with pytest.raises(ModelError, match="can't be loaded"):
        models.load_checkpoint(module, tmp_path)
    with pytest.raises(UsageError, match="rename nothing"):
        models.load_checkpoint(module, tmp_path, {"a.": "b."})
    with pytest.raises(ModelError, match="no folder"):
        models.load_checkpoint(module, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match="the folder has no weights"):
        models.load_checkpoint(models.build("timm:test_vit"), folder)
