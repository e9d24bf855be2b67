"""Maps of where a network looks: the graph's, torch's formula and pytorch-grad-cam's are one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torchvision import models as torchvision
from torchvision.models.efficientnet import MBConvConfig
from torchvision.models.mobilenetv3 import InvertedResidualConfig

from lorkd_deploy.errors import ModelError
from lorkd_deploy.training.bundling.graph_template import explained, graph_template
from lorkd_deploy.training.networks.explained import grad_cam
from tests import tiny_backbone

SIZE, CLASSES = 64, 3


def _shufflenet() -> tuple[nn.Module, nn.Module]:
    made = torchvision.ShuffleNetV2([1, 1, 1], [8, 16, 24, 32, 48], num_classes=4)
    made.fc = nn.Identity()
    return made, made.conv5


def _resnet() -> tuple[nn.Module, nn.Module]:
    made = torchvision.ResNet(torchvision.resnet.BasicBlock, [1, 1, 1, 1], num_classes=4)
    made.fc = nn.Identity()
    return made, made.layer4


def _efficientnet() -> tuple[nn.Module, nn.Module]:
    made = torchvision.EfficientNet([MBConvConfig(2, 3, 2, 16, 16, 1)], dropout=0.2)
    made.classifier = nn.Identity()
    return made, made.features


def _mobilenet() -> tuple[nn.Module, nn.Module]:
    setting = [InvertedResidualConfig(16, 3, 16, 24, True, "HS", 2, 1, 1.0)]
    made = torchvision.MobileNetV3(setting, last_channel=40)
    made.classifier = nn.Sequential(*made.classifier[:2])  # its hidden layer is the backbone's
    return made, made.features


NETWORKS = {"shufflenet": _shufflenet, "resnet": _resnet} | {
    "efficientnet": _efficientnet,
    "mobilenet": _mobilenet,
}


EXPORTED = ("shufflenet", "mobilenet")  # which takes seconds; the others end as the first does


def _randomised(network: nn.Module) -> nn.Module:
    """Statistics far from (0, 1), as after a training."""
    generator = torch.Generator().manual_seed(0)
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_(0, 0.2, generator=generator)
            part.running_var.uniform_(0.5, 2, generator=generator)
    return network.eval()


def _filled(backbone: nn.Module, head: nn.Linear, size: int = SIZE) -> bytes:
    """The graph with maps and this network's own weights, its norms folded."""
    template = explained(graph_template(backbone, head, size))
    state = {name: value.double() for name, value in backbone.state_dict().items()}
    state |= {f"head:{name}": value.double() for name, value in head.state_dict().items()}
    for fold in template.folds:
        norm = {part: state[f"{fold.norm}.{part}"] for part in ("weight", "bias")}
        gain = norm["weight"] / (state[f"{fold.norm}.running_var"] + fold.eps).sqrt()
        weight = state[f"{fold.conv}.weight"]
        bias = state.get(f"{fold.conv}.bias", torch.zeros(len(weight), dtype=torch.float64))
        state[f"{fold.conv}.weight"] = weight * gain.reshape(-1, 1, 1, 1)
        state[f"{fold.conv}.bias"] = norm["bias"] + gain * (
            bias - state[f"{fold.norm}.running_mean"]
        )
    model = onnx.ModelProto.FromString(template.onnx)
    places = {value.name: value for value in model.graph.initializer}
    for binding in template.graph.bindings:
        value = state[binding.source].float().numpy()
        value = (value.T if binding.transpose else value).reshape(binding.shape or value.shape)
        place = places[binding.initializer]
        place.dims[:], place.raw_data = value.shape, np.ascontiguousarray(value).tobytes()
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())


def _run(model: bytes, x: Tensor) -> dict[str, Any]:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(names, {"input": x.numpy()}), strict=True))


@pytest.mark.parametrize("name", NETWORKS)
def test_maps_are_those_of_pytorch_grad_cam(name: str) -> None:
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.image import scale_cam_image
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    torch.manual_seed(1)
    backbone, last = NETWORKS[name]()
    _randomised(backbone)
    x = torch.randn(3, 3, SIZE, SIZE)
    with torch.no_grad():
        head = nn.Linear(backbone(x).shape[1], CLASSES)
    whole = nn.Sequential(backbone, head)
    maps = grad_cam(backbone, head, x).numpy()
    assert maps.shape[:2] == (3, CLASSES) and maps.shape[2] > 1
    for k in range(CLASSES):
        with GradCAM(model=whole, target_layers=[last]) as oracle:
            theirs = oracle(x, [ClassifierOutputTarget(k)] * 3)
        ours = scale_cam_image(scale_cam_image(np.maximum(maps[:, k], 0), (SIZE, SIZE)))
        assert np.abs(ours - theirs).max() < 1e-3
    if name in EXPORTED:
        given = _run(_filled(backbone, head), x)
        with torch.no_grad():
            assert given["output"] == pytest.approx(whole(x).numpy(), abs=1e-4)
        assert given["maps"] == pytest.approx(maps, abs=1e-6, rel=1e-4)
    if name != "mobilenet":  # a linear head: the places' sum and the bias are the logit
        with torch.no_grad():
            logits = whole(x).numpy()
        assert maps.sum((2, 3)) + head.bias.detach().numpy() == pytest.approx(logits, abs=1e-4)


def test_a_convolution_and_a_relu_behind_the_pooling_are_followed() -> None:
    torch.manual_seed(2)
    backbone = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 6, 1),
        nn.ReLU(), nn.Flatten(), nn.Linear(6, 5, bias=False), nn.Hardswish(),
    ).eval()  # fmt: skip
    head, x = nn.Linear(5, CLASSES), torch.randn(2, 3, 16, 16)
    maps = _run(_filled(backbone, head, 16), x)["maps"]
    assert np.abs(maps).max() > 1e-4
    assert maps == pytest.approx(grad_cam(backbone, head, x).numpy(), abs=1e-7, rel=1e-4)


@pytest.mark.parametrize(
    ("made", "features", "why"),
    [
        (tiny_backbone.attention, 8, "no global average pooling|by other ways"),
        (tiny_backbone.without_batch_statistics, 8, "LayerNormalization stands between"),
        (
            lambda: nn.Sequential(nn.Conv2d(3, 4, 16), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
            4,
            "a single place",
        ),
    ],
)
def test_a_network_without_maps_is_refused(
    made: Callable[[], nn.Module], features: int, why: str
) -> None:
    backbone, head = made().eval(), nn.Linear(features, CLASSES)
    with pytest.raises(ModelError, match=why):
        grad_cam(backbone, head, torch.randn(2, 3, 16, 16))
        explained(graph_template(backbone, head, 16))


def test_a_second_way_to_the_answer_is_refused() -> None:
    class Peak(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            seen = self.conv(x)
            return seen.mean((2, 3)) + seen.amax((2, 3))

    with pytest.raises(ModelError, match="by other ways than its mean"):
        grad_cam(Peak(), nn.Linear(4, 2), torch.randn(2, 3, 16, 16))
