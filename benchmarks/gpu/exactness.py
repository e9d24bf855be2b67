"""Step 2: how far a mixed batch on the device is from the CPU's float64, forward and backward.

In fp32 without TF32, and under bf16's autocast. An error is ‖found − known‖ / ‖known‖, of the
features, of the gradients of all parameters and of those of the experts' factors. Of bf16 it says
little by itself: the plain student's own is beside it. Norms are in evaluation mode: by the
statistics of a few images gradients are so badly conditioned that bf16 loses them, of any network.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.given import Given
from benchmarks.knowledge_separation import layout_of, student
from lorkd_deploy.experts import ExpertModel, route_of_counts

VARIANTS = ("plain-channels-last", "ours")
CASES = (  # architecture, px, samples of each of ten tasks
    ("torchvision:shufflenet_v2_x1_0", 64, (1, 2, 3, 4, 5, 6, 7, 8, 9, 19)),
    ("torchvision:resnet18", 64, (1, 2, 3, 4, 5, 6, 7, 8, 9, 19)),
    ("timm:vit_small_patch16_224", 224, (1, 1, 1, 2, 2, 2, 2, 2, 2, 3)),
)
TINY = (("torchvision:shufflenet_v2_x0_5", 32, (2, 4)),)
MOST = {"fp32": 1e-4}  # far above what rounding gives, far below what a wrong weight does
Found = dict[str, Tensor]
Case = tuple[str, int, Sequence[int]]


def run(given: Given) -> Iterator[dict[str, Any]]:
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    document: dict[str, Any] = {"rows": [], "failed": []}
    for architecture, size, counts in TINY if given.rehearsal else CASES:
        plain: dict[str, float] = {}
        for variant in VARIANTS:
            case = (architecture, size, counts)
            known = computed(variant, case, "cpu", "float64")
            for precision in ("fp32", "bf16"):
                try:
                    found = computed(variant, case, given.device, precision)
                except RuntimeError as exc:  # torch's: what one network meets, others may not
                    document["failed"].append(f"{architecture}, {variant}, {precision}: {exc}")
                    yield document
                    continue
                errors = {name: error(found[name], known[name]) for name in known}
                if variant == VARIANTS[0]:
                    plain[precision] = errors["gradients"]
                most = MOST.get(precision, 2 * plain.get(precision, 0.0))
                document["rows"].append(
                    {
                        "architecture": architecture,
                        "variant": variant,
                        "precision": precision,
                        "errors": errors,
                        "most": most,
                        "holds": max(errors.values()) <= most or variant == VARIANTS[0],
                    }
                )
                yield document


def computed(variant: str, case: Case, device: str, precision: str) -> Found:
    """Features and gradients, float64 on the CPU; inputs and weights are the same each time."""
    architecture, size, counts = case
    model = student(variant, architecture, len(counts)).to(device).eval()
    torch.manual_seed(1)
    images = torch.randn(sum(counts), 3, size, size)
    x = images.to(device, memory_format=layout_of(variant))
    if precision == "float64":
        model, x = model.double(), x.double()
    with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
        if isinstance(model, ExpertModel):
            features = model(x, task=route_of_counts(counts, x.device))
        else:
            features = model(x)
    weights = torch.linspace(-1, 1, features.numel(), dtype=torch.float64).view(features.shape)
    features.backward(weights.to(features))
    found = {"features": features}
    named = [(n, p.grad) for n, p in model.named_parameters() if p.grad is not None]
    found["gradients"] = torch.cat([g.flatten() for _, g in named])
    if factors := [g.flatten() for n, g in named if n.endswith((".A", ".B"))]:
        found["factors"] = torch.cat(factors)
    return {name: value.detach().double().cpu() for name, value in found.items()}


def error(found: Tensor, known: Tensor) -> float:
    return float((found - known).norm() / known.norm())


def lines(document: dict[str, Any]) -> Iterator[str]:
    yield "| network | variant | precision | features | gradients | factors | at most | holds |"
    yield "|---|---|---|---|---|---|---|---|"
    for row in document["rows"]:
        errors = row["errors"]
        each = (errors.get(name) for name in ("features", "gradients", "factors"))
        shown = " | ".join("–" if value is None else f"{value:.1e}" for value in each)
        yield (
            f"| {row['architecture']} | {row['variant']} | {row['precision']} | {shown} "
            f"| {row['most']:.1e} | {'yes' if row['holds'] else '**no**'} |"
        )
    yield from (f"\nFailed: {why}" for why in document["failed"])
