"""Which layers of a module get experts, and how they get them."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Literal

from torch import nn

from lorkd_deploy.errors import ModelError, UsageError, unknown_name
from lorkd_deploy.experts.layers import ExpertConv2d, ExpertLinear
from lorkd_deploy.experts.model import ExpertModel, replace_modules
from lorkd_deploy.experts.norms import NORMS, PerTaskNorm, has_own_state
from lorkd_deploy.experts.routing import Router


def add_experts(
    module: nn.Module,
    tasks: int,
    rank: int | Sequence[int] = 4,
    alpha: float = 16,
    *,
    norm: Literal["shared", "per_task"] = "shared",
    skip: Sequence[str] = (),
) -> ExpertModel:
    """Give every `Conv2d` (groups 1) and `Linear` of `module` a low-rank expert for each task.

    Each computes g_t = (W0 + α/r · B_t A_t) h_t (LoRKD, CVPR 2024, section 3), where W0 is the
    layer's own weight. B starts at zero, so the module computes what it did before. Its layers are
    replaced in place.

    `rank` is one number or one for each task. `norm="per_task"` gives every norm layer weights
    and statistics a task. `skip` are names or patterns (`"head"`, `"features.0.*"`) of layers
    that stay without experts. Grouped convolutions, and layers whose class computes something of
    its own, stay without and are listed in `ExpertModel.skipped`.

    Raises `UsageError` for arguments out of range or a pattern without a match, `ModelError` if
    the module already has experts or no layer could get one.
    """
    ranks = _checked(tasks, rank, alpha, norm)
    if any(isinstance(m, ExpertModel | ExpertConv2d | ExpertLinear) for m in module.modules()):
        raise ModelError("the module already has experts", fix="start from the plain module")
    reasons = {m: _reason_to_skip(m) for m in module.modules()}
    names = {m: name for name, m in module.named_modules()}
    _apply_patterns(skip, names, reasons)

    router = Router()
    bound = 0

    def change(old: nn.Module) -> nn.Module:
        nonlocal bound
        if norm == "per_task" and has_own_state(old):
            return PerTaskNorm(old, names[old], tasks, router)
        kind = ExpertConv2d if isinstance(old, nn.Conv2d) else ExpertLinear
        if not isinstance(old, nn.Conv2d | nn.Linear) or reasons[old] is not None:
            return old
        bound += 1
        return kind.around(old, names[old], ranks, alpha, router)

    skipped = tuple((names[m], why) for m, why in reasons.items() if why is not None)
    changed = replace_modules(module, change)
    if not bound:
        listed = "".join(f"\n    {name or 'the module'}: {why}" for name, why in skipped[:8])
        raise ModelError(
            f"no layer of {type(module).__name__} can have experts{':' if listed else ''}{listed}",
            fix="give a module with Conv2d (groups 1) or Linear layers",
        )
    return ExpertModel(changed, tasks, router, skipped)


def _checked(tasks: int, rank: int | Sequence[int], alpha: float, norm: str) -> tuple[int, ...]:
    if not isinstance(tasks, int) or tasks < 1:
        raise UsageError(f"tasks is {tasks!r}, wanted a number of at least 1")
    ranks = (rank,) * tasks if isinstance(rank, int) else tuple(rank)
    if len(ranks) != tasks:
        raise UsageError(f"{len(ranks)} ranks were given for {tasks} tasks")
    if any(not isinstance(r, int) or r < 1 for r in ranks):
        raise UsageError(f"rank is {rank!r}, wanted numbers of at least 1")
    if not alpha > 0:
        raise UsageError(f"alpha is {alpha!r}, wanted a number above 0")
    if norm not in ("shared", "per_task"):
        raise unknown_name("norm", norm, ("shared", "per_task"))
    return ranks


def _reason_to_skip(module: nn.Module) -> str | None:
    """Why a module's weight can't have experts; None if it can, or has none to begin with."""
    if isinstance(module, NORMS) or not list(module.parameters(recurse=False)):
        return None
    kind = type(module).__name__
    if not isinstance(module, nn.Conv2d | nn.Linear):
        return f"{kind} holds weights that are no Conv2d's or Linear's: all tasks share them"
    if isinstance(module, nn.Conv2d) and module.groups > 1:
        return f"a grouped convolution ({module.groups} groups)"
    plain = nn.Conv2d if isinstance(module, nn.Conv2d) else nn.Linear
    own = [f for f in ("forward", "_conv_forward") if getattr(type(module), f, None) is not
           getattr(plain, f, None)]  # fmt: skip
    if own or "weight" not in module._parameters:
        return f"{kind} computes something of its own from its weight"
    if isinstance(module.weight, nn.parameter.UninitializedParameter):
        return f"{kind} has no weight before its first forward"
    return None


def _apply_patterns(
    patterns: Sequence[str],
    names: dict[nn.Module, str],
    reasons: dict[nn.Module, str | None],
) -> None:
    able = {m: names[m] for m, why in reasons.items()
            if why is None and isinstance(m, nn.Conv2d | nn.Linear)}  # fmt: skip
    for pattern in (patterns,) if isinstance(patterns, str) else patterns:
        matched = [m for m, name in able.items() if fnmatchcase(name, pattern)]
        if not matched:
            raise unknown_name("layer that can have experts", pattern, able.values())
        for m in matched:
            reasons[m] = "left out as asked"
