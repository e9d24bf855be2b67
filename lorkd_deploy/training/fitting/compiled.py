"""`train.compile`: torch.compile of a network's parts, in steps of training.

A layer with experts groups the rows of a batch by task (`experts/routing.py`), and no two batches
are grouped alike: compiled, it would be compiled anew for each. So it stays as it is, and what is
compiled are the parts without experts: a teacher's whole backbone, and of a student the layers that
follow one another between those with experts. No tensor gets another name, and scores, logits and
copies of the network are of the plain one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from inspect import signature
from itertools import groupby
from typing import Any, cast

import torch
from torch import nn

from lorkd_deploy.errors import RuntimeUnavailableError, TrainingError, UsageError, first_line
from lorkd_deploy.experts import ExpertModel
from lorkd_deploy.experts.layers import ExpertLayer
from lorkd_deploy.experts.norms import PerTaskNorm
from lorkd_deploy.recipe import TrainSpec

log = logging.getLogger(__name__)
Forward = Callable[..., Any]
# Layers of one class would use up each other's number of compilations. An older torch, under
# which benchmarks/on_gpu.py runs too, can't isolate them.
_KEY = "isolate_recompiles"
_ISOLATED = {_KEY: True} if _KEY in signature(torch.compile).parameters else {}
# Rows by task, and statistics by way of other processes.
_AS_THEY_ARE = (ExpertLayer, PerTaskNorm, nn.SyncBatchNorm)


def check_compiler(device: torch.device, *specs: TrainSpec) -> None:
    """Where one of `specs` asks for it, compile something: raises `RuntimeUnavailableError`.

    Before any training, since a teacher's may take hours.
    """
    if not any(spec.compile for spec in specs):
        return
    try:
        _compiled(_trial)(torch.ones(8, device=device))
    except (RuntimeError, ImportError, OSError) as exc:  # torch's, Triton's, the compiler's
        raise RuntimeUnavailableError(
            f"torch.compile doesn't work on this machine: {first_line(exc)}",
            where="train.compile",
            fix="install a C++ compiler (apt install g++, or name one in CXX), or set compile to "
            "false",
        ) from exc
    log.info("torch.compile: the first steps take minutes")


def _trial(x: torch.Tensor) -> torch.Tensor:
    return torch.relu(x + 1)


@contextmanager
def compiled(model: nn.Module, spec: TrainSpec) -> Iterator[None]:
    """For the length of a block, `model` (a teacher or student) trains by compiled parts.

    Raises `UsageError` where it has none, and `TrainingError` where torch can't compile one.
    """
    if not spec.compile:
        yield
        return
    from torch._dynamo.exc import BackendCompilerFailed  # loads the whole compiler

    parts = dict(_parts(_backbone(model)))
    if not parts:
        raise UsageError(
            "there is nothing to compile: no two layers without experts follow one another",
            where="train.compile",
            fix="set compile to false",
        )
    before = {module: module.__dict__.get("forward") for module in parts}
    for module, forward in parts.items():
        module.forward = _in_steps(forward, module.forward)
    try:
        yield
    except BackendCompilerFailed as exc:
        raise TrainingError(
            f"torch can't compile a part of the network: {first_line(exc)}",
            where="train.compile",
            fix="set compile to false",
        ) from exc
    finally:
        for module, own in before.items():
            del module.forward
            if own is not None:
                module.forward = own


def _backbone(model: nn.Module) -> nn.Module:
    students = [m.module for m in model.modules() if isinstance(m, ExpertModel)]
    return students[0] if students else cast(nn.Module, model.backbone)


def _parts(module: nn.Module) -> Iterator[tuple[nn.Module, Forward]]:
    """Modules and what they shall compute by, the largest ones."""
    if not _has_any_as_it_is(module):
        if _is_worth(module):
            yield module, _compiled(module.forward)
        return
    if type(module).forward is nn.Sequential.forward:
        if runs := _run_by_run(cast(nn.Sequential, module)):
            yield module, runs
        children = [child for child in module.children() if _has_any_as_it_is(child)]
    else:
        children = list(module.children())
    for child in children:
        yield from _parts(child)


def _run_by_run(layers: nn.Sequential) -> Forward | None:
    """The same, with each run of layers without experts compiled as one; None if there is none."""
    calls: list[Forward] = []
    found = False
    for as_it_is, run in groupby(layers, key=_has_any_as_it_is):
        together = nn.Sequential(*run)
        if not as_it_is and _is_worth(together):
            calls.append(_compiled(together.forward))
            found = True
        else:
            calls += list(together)

    def forward(x: Any) -> Any:
        for call in calls:
            x = call(x)
        return x

    return forward if found else None


def _has_any_as_it_is(module: nn.Module) -> bool:
    return any(isinstance(m, _AS_THEY_ARE) for m in module.modules())


def _is_worth(module: nn.Module) -> bool:
    """More than one layer: one alone is one call already."""
    return sum(1 for m in module.modules() if not list(m.children())) > 1


def _compiled(forward: Forward) -> Forward:
    # Static: kernels that turn dynamic at the second size would make a resumed training differ.
    torch_compile: Any = torch.compile  # whose overloads lack what it takes
    made: Forward = torch_compile(forward, dynamic=False, **_ISOLATED)
    return made


def _in_steps(compiled_one: Forward, plain: Forward) -> Forward:
    """The compiled one where gradients are wanted; validations have other sizes, and are plain."""

    def forward(*args: Any, **kwargs: Any) -> Any:
        return (compiled_one if torch.is_grad_enabled() else plain)(*args, **kwargs)

    return forward
