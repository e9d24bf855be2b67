"""Knowledge factorisation: its terms against the written equations, its network, its stages."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lorkd_deploy import models
from lorkd_deploy.evidence.methods.kf import FactorisedNetwork, InfoMax, info_max, info_min
from lorkd_deploy.evidence.methods.stages import StagedNetwork
from lorkd_deploy.experts import Outputs

NARROW = "lorkd_deploy.evidence.methods.shufflenet:shufflenet_v2_x0_25"


def factorised(classes: tuple[int, ...] = (2, 5, 3)) -> FactorisedNetwork:
    torch.manual_seed(0)
    common = StagedNetwork(models.build("torchvision:shufflenet_v2_x0_5"), 32)
    own = [models.build(NARROW) for _ in classes]
    return FactorisedNetwork(common, 1024, own, 512, classes)


@pytest.mark.parametrize(
    ("architecture", "widths"),
    [
        ("torchvision:shufflenet_v2_x0_5", (96, 192, 1024)),
        ("torchvision:resnet18", (128, 256, 512)),
        ("timm:tf_efficientnet_lite0", (192, 320, 1280)),
        ("timm:vit_tiny_patch16_224", (192,)),
    ],
)
def test_stages_are_found_in_networks_of_other_kinds(
    architecture: str, widths: tuple[int, ...]
) -> None:
    size = 224 if "vit" in architecture else 32
    module = models.build(architecture).train()
    staged = StagedNetwork(module, size)
    assert staged.widths == widths
    assert all(m.training for m in module.modules())
    x = torch.randn(3, 3, size, size)
    features, stages = staged.eval()(x)
    assert [tuple(stage.shape) for stage in stages] == [(3, width) for width in widths]
    torch.testing.assert_close(features, module(x))
    torch.testing.assert_close(stages[-1], features)
    assert not any(m._forward_hooks for m in module.modules())


def test_the_narrow_network_has_half_the_width() -> None:
    narrow = models.build(NARROW)
    assert models.feature_dim(narrow, 32) == 512
    wide = sum(p.numel() for p in models.build("torchvision:shufflenet_v2_x0_5").parameters())
    assert 0.2 < sum(p.numel() for p in narrow.parameters()) / wide < 0.4


def test_info_max_is_the_written_equation() -> None:
    torch.manual_seed(0)
    u, v = torch.randn(5, 8), torch.randn(5, 8)
    s = torch.nn.functional.cosine_similarity(u[:, None], v[None], dim=2)
    one = torch.eye(5)
    expected = -((s * one).sum() / 25 - ((s * (1 - one)).exp().sum() / 25).log())
    torch.testing.assert_close(info_max(u, v), expected)
    assert info_max(u, u) < info_max(u, u.roll(1, 0))


def test_info_min_is_the_written_equation_and_least_for_standard_features() -> None:
    torch.manual_seed(0)
    z = torch.randn(50, 6) * 2 + 1
    mean, variance = z.mean(0), z.var(0, unbiased=False)
    expected = -0.5 * (1 + variance.log() - mean**2 - variance).mean()
    torch.testing.assert_close(info_min(z), expected)
    standard = (z - mean) / variance.sqrt()
    assert float(info_min(standard)) == pytest.approx(0.0, abs=1e-6)
    assert float(info_min(z[:1])) == 0.0
    dead = torch.zeros(4, 6, requires_grad=True)
    info_min(dead).backward()
    assert torch.isfinite(info_min(dead))
    assert torch.isfinite(dead.grad).all()


def test_stages_are_paired_from_the_last_one() -> None:
    loss = InfoMax((10, 20, 30), (4, 6))
    teacher = [torch.randn(7, width) for width in (10, 20, 30)]
    student = [torch.randn(7, width, requires_grad=True) for width in (4, 6)]
    loss(teacher, student).backward()
    assert all(stage.grad is not None and stage.grad.any() for stage in student)
    assert [m[0].in_features for m in loss.maps] == [20, 30]


def test_each_sample_passes_the_common_network_and_its_own_tasks() -> None:
    network = factorised().eval()
    x, task = torch.randn(6, 3, 32, 32), torch.tensor([2, 0, 1, 0, 0, 1])  # other counts per task
    found = network.factors(x, task)
    torch.testing.assert_close(network(x, task), Outputs(found.features, found.logits))
    assert [tuple(logits.shape) for logits in found.logits] == [(3, 2), (2, 5), (1, 3)]
    torch.testing.assert_close(found.stages, network.common(x).stages)
    for number in range(3):
        rows = task == number
        alone = network.dense(number)(x[rows])
        torch.testing.assert_close(found.logits[number], alone)
        z_t = network.own[number](x[rows])
        torch.testing.assert_close(found.own_logits[number], network.own_heads.head(number)(z_t))
        torch.testing.assert_close(found.features[rows], network.common.module(x[rows]) + z_t)


def test_a_task_that_is_absent_gets_no_gradient() -> None:
    network = factorised()
    found = network(torch.randn(4, 3, 32, 32), torch.tensor([0, 0, 2, 2]))
    sum(logits.sum() for logits in found.logits).backward()
    assert all(p.grad is None for p in network.own[1].parameters())
    assert any(p.grad is not None and p.grad.any() for p in network.own[2].parameters())
    assert isinstance(network.own[0][1], nn.Linear)
    assert network.own[0][1].bias is None
