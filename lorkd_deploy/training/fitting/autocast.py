"""Mixed precision: the one that a training uses on this machine.

A CPU without bf16 instructions emulates them: a step of ResNet-50 took 16 times as long as in fp32
on an AVX2 machine. So `auto` looks before it chooses, and an explicit bf16 is warned about.
"""

from __future__ import annotations

import logging
from typing import Literal, cast

import torch

log = logging.getLogger(__name__)
Precision = Literal["fp32", "bf16", "fp16"]
_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
_CPU_HAS = ("avx512_bf16", "amx_bf16", "avx10_2", "bf16")  # torch's names; the last is Arm's


def chosen_precision(asked: str, device: torch.device) -> Precision:
    """`asked` (a precision or `auto`) for trainings on `device`, with `auto` resolved."""
    native = has_bf16(device)
    if asked == "auto":
        return "bf16" if native else "fp32"
    if asked == "bf16" and not native:
        log.warning("this %s has no bf16 arithmetic and emulates it: expect it to be slower than "
                    "precision: fp32 (or auto)", device.type)  # fmt: skip
    return cast(Precision, asked)


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The context in which a forward on `device` computes in `precision`."""
    wanted = _TYPES.get(precision)
    return torch.autocast(device.type, wanted, enabled=wanted is not None)


def has_bf16(device: torch.device) -> bool:
    """Whether `device` computes in bf16 itself."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    able = torch.cpu.get_capabilities()
    return any(bool(able.get(name)) for name in _CPU_HAS)
