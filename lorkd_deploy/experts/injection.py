"""Which layers of a module get experts, and how they get them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from fnmatch import fnmatchcase
from typing import Literal

from torch import Tensor, nn

from lorkd_deploy.errors import ModelError, UsageError, unknown_name
from lorkd_deploy.experts.layers import EXPERT_LAYERS, ExpertLayer, plain_kind
from lorkd_deploy.experts.model import ExpertModel, replace_modules
from lorkd_deploy.experts.norms import NORMS, PerTaskNorm, has_own_state
from lorkd_deploy.experts.ranks import Rank, ranks_by_layer, unknown_layer, wasteful_layers
from lorkd_deploy.experts.routing import Router
from lorkd_deploy.experts.uses import never_used
from lorkd_deploy.lowrank.delta import FACTORISATIONS, Factorisation


def add_experts(
    module: nn.Module,
    tasks: int,
    rank: Rank | Sequence[Rank] = 4,
    alpha: float = 16,
    *,
    norm: Literal["shared", "per_task"] = "shared",
    factorisation: Factorisation = "interleaved",
    skip: Sequence[str] = (),
    example: Tensor | None = None,
) -> ExpertModel:
    """Give every `Conv2d` (groups 1) and `Linear` of `module` a low-rank expert for each task.

    Each computes g_t = (W0 + α/r · B_t A_t) h_t (LoRKD, CVPR 2024, section 3), where W0 is the
    layer's own weight. B starts at zero, so the module computes what it did before. Its layers are
    replaced in place. To train, with `task` the task number of each image, int64 `(N,)`:

        student = add_experts(backbone, tasks=3)
        optimizer = torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.9)
        hold_absent(optimizer)  # a batch without a task leaves that task's expert as it is
        loss(student(images, task)).backward()
        optimizer.step()

    `rank` is one number, or by pattern of layer names (`{"stage4.*": 8, "*": 4}`, the closest
    fit counts, 0: no expert); or one of these for each task. `norm="per_task"` gives every norm
    layer weights and statistics per task, which was no better on the project's own tasks: recipes
    don't offer it, and bundles of before 0.3 may have it. `factorisation` says what B A is for
    kernels larger than a pixel (`delta.factor_shapes`): the papers' `interleaved`, or `separable`,
    a convolution to r channels and a 1 × 1 behind it. `skip` are names or patterns (`"head"`,
    `"features.0.*"`) of layers that stay without experts, and of norms that stay shared. Grouped
    convolutions, and layers whose class computes something of its own, stay without and are listed
    in `ExpertModel.skipped`; layers that can't use their rank in `ExpertModel.wasteful`. On an
    `example` `(N, …)` the module is run once: what its forward never uses stays as it is, and is
    listed too.

    Raises `UsageError` for arguments out of range, a pattern without a match, or a rank above
    what any layer can use; `ModelError` if the module already has experts or no layer could get
    one. The module is then unchanged.
    """
    _check(tasks, alpha, norm, factorisation)
    if any(isinstance(m, ExpertModel | ExpertLayer) for m in module.modules()):
        raise ModelError("the module already has experts", fix="start from the plain module")
    reasons = {m: _reason_to_skip(m) for m in module.modules()}
    names = {m: name for name, m in module.named_modules()}
    norms = {m for m in reasons if norm == "per_task" and has_own_state(m)}
    _apply_patterns(skip, names, reasons, norms)
    unused = set() if example is None else never_used(module, example)
    reasons |= dict.fromkeys(unused, "the forward never uses it")

    able = {names[m]: m for m, why in reasons.items() if why is None and plain_kind(m)}
    skipped = tuple((names[m], why) for m, why in reasons.items() if why is not None)
    if not able:
        listed = "".join(f"\n    {name or 'the module'}: {why}" for name, why in skipped[:8])
        raise ModelError(
            f"no layer of {type(module).__name__} can have experts{':' if listed else ''}{listed}",
            fix="give a module with Conv2d (groups 1) or Linear layers",
        )
    ranks = ranks_by_layer(rank, tasks, list(able))
    shapes = {name: tuple(layer.get_parameter("weight").shape) for name, layer in able.items()}
    wasteful_layers(ranks, shapes, factorisation)  # raises where no layer can use its rank
    router = Router()

    def change(old: nn.Module) -> nn.Module:
        if old in norms and reasons[old] is None:
            return PerTaskNorm(old, names[old], tasks, router)
        plain, name = plain_kind(old), names[old]
        if plain is None or reasons[old] is not None:
            return old
        kind = EXPERT_LAYERS[plain]
        return kind.around(old, name, ranks[name], alpha, router, factorisation=factorisation)

    changed = replace_modules(module, change)
    return ExpertModel(changed, tasks, router, skipped)


def _check(tasks: int, alpha: float, norm: str, factorisation: str) -> None:
    if not isinstance(tasks, int) or tasks < 1:
        raise UsageError(f"tasks is {tasks!r}, wanted a number of at least 1")
    if not alpha > 0:
        raise UsageError(f"alpha is {alpha!r}, wanted a number above 0")
    if norm not in ("shared", "per_task"):
        raise unknown_name("norm", norm, ("shared", "per_task"))
    if factorisation not in FACTORISATIONS:
        raise unknown_name("factorisation", factorisation, FACTORISATIONS)


def _reason_to_skip(module: nn.Module) -> str | None:
    """Why a module's weight can't have experts; None if it can, or has none to begin with."""
    if isinstance(module, NORMS) or not list(module.parameters(recurse=False)):
        return None
    kind = type(module).__name__
    plain = plain_kind(module)
    if plain is None:
        return f"{kind} holds weights that are no Conv2d's or Linear's: all tasks share them"
    if isinstance(module, nn.Conv2d) and module.groups > 1:
        return f"a grouped convolution ({module.groups} groups)"
    own = [f for f in ("forward", "_conv_forward") if getattr(type(module), f, None) is not
           getattr(plain, f, None)]  # fmt: skip
    if own or "weight" not in module._parameters:
        return f"{kind} computes something of its own from its weight"
    if isinstance(module._parameters["weight"], nn.parameter.UninitializedParameter):
        return f"{kind} has no weight before its first forward"
    return None


def _apply_patterns(
    patterns: Sequence[str],
    names: dict[nn.Module, str],
    reasons: dict[nn.Module, str | None],
    norms: Collection[nn.Module],
) -> None:
    able = {m: names[m] for m, why in reasons.items()
            if why is None and (plain_kind(m) or m in norms)}  # fmt: skip
    for pattern in (patterns,) if isinstance(patterns, str) else patterns:
        matched = [m for m, name in able.items() if fnmatchcase(name, pattern)]
        if not matched:
            raise unknown_layer(pattern, able.values(), where="experts.skip")
        for m in matched:
            reasons[m] = "left out as asked"
