"""A module whose layers have experts: one forward for a mixed batch, a dense module per task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_flatten, tree_unflatten

from lorkd_deploy.errors import ModelError, UsageError
from lorkd_deploy.experts.copies import copy_of
from lorkd_deploy.experts.layers import ExpertLayer
from lorkd_deploy.experts.norms import PerTaskNorm
from lorkd_deploy.experts.probe import IMAGES, check_separation
from lorkd_deploy.experts.ranks import wasteful_layers
from lorkd_deploy.experts.routing import Census, Route, Router, plan_route
from lorkd_deploy.experts.uses import COUNTER, own_state
from lorkd_deploy.lowrank.delta import LayerKind, NormKind


@dataclass(frozen=True)
class BoundLayer:
    """A layer with experts: its name in the plain module, and its weight's shape."""

    name: str
    kind: LayerKind
    shape: tuple[int, ...]


class ExpertModel(nn.Module):
    """What `add_experts` returns: `student(x, task=ids)`.

    `module` is the module that was given, its layers replaced in place, so W0 is the module's own
    weight. `layers` have experts; `skipped` are (name, reason) of weights that have none.
    `overrides` are, for each task, tensors that it has instead of the shared ones of the same name
    (`override`). The first forward tries on a copy of the model, by some samples, whether a mixed
    batch gives what `dense` does, and raises `ModelError` with the layer where it doesn't; `probed`
    says that this is known already.
    """

    def __init__(
        self,
        module: nn.Module,
        tasks: int,
        router: Router,
        skipped: tuple[tuple[str, str], ...],
    ) -> None:
        super().__init__()
        self.module = module
        self.tasks = tasks
        self.skipped = skipped
        self.overrides: list[dict[str, Tensor]] = [{} for _ in range(tasks)]
        self._router = router

    @property
    def probed(self) -> bool:
        """Whether a trial has shown that a mixed batch gives what `dense` does."""
        return self._router.probed

    @probed.setter
    def probed(self, known: bool) -> None:
        self._router.probed = known

    @property
    def layers(self) -> tuple[BoundLayer, ...]:
        """Every layer with experts, in the module's order."""
        return tuple(
            BoundLayer(name, layer.kind, tuple(layer.weight.shape))
            for name, layer in self._experts()
        )

    @property
    def norm(self) -> NormKind:
        """Whose its norm layers are: of all tasks, or of each."""
        own = any(isinstance(module, PerTaskNorm) for module in self.module.modules())
        return "per_task" if own else "shared"

    @property
    def wasteful(self) -> tuple[tuple[str, int], ...]:
        """(name, largest sensible rank) of layers whose rank is above it."""
        known = self._experts()
        return wasteful_layers(
            {name: layer.ranks for name, layer in known},
            {name: tuple(layer.weight.shape) for name, layer in known},
            known[0][1].factorisation,
        )

    def ranks_of(self, task: int) -> dict[str, int]:
        """The rank of one task's expert on every layer, 0 where it has none there."""
        self._check_task(task)
        return {name: layer.ranks[task] for name, layer in self._experts()}

    def forward(self, x: Tensor, task: Tensor | int | Route) -> Any:
        """The module's output for `x` `(N, …)`, each sample by the expert of its own task.

        `task` is int64 `(N,)` in any order, one int for all, or, where the batch is in task order
        and its counts are known, `route_of_counts`: then a GPU isn't waited for. The samples pass
        the module sorted by task; outputs are put back in the batch's order.

        Raises `UsageError` for wrong ids, and `ModelError` naming a layer whose input's leading
        dimension isn't the batch (or k times it, with k windows of each sample in turn), or which
        has experts but was never called.
        """
        route = plan_route(task, x.shape[0], self.tasks, x.device)
        if not self.probed and not torch.compiler.is_compiling():
            self._probe(x)
        return self._forward(x, route)

    @torch.no_grad()
    def _probe(self, x: Tensor) -> None:
        # Of a batch as large as a sequence is long, a layer that has its input sequence first takes
        # tokens for samples: a few samples show it.
        rows = x.detach()[:IMAGES]
        if len(rows) < IMAGES:
            rows = torch.cat([rows, rows.flip(-1), rows.roll(1, -1)])[:IMAGES]
        trial = self._trial()
        gpu = [x.device] if x.is_cuda else []
        with torch.random.fork_rng(gpu), torch.autocast(x.device.type, enabled=False):
            check_separation(trial, trial.dense, [layer for _, layer in trial._experts()], rows)
        self.probed = True

    def _trial(self) -> ExpertModel:
        """A copy in evaluation mode of the two tasks with the most rank, their factors zero.

        It shares the parameters, which a forward only reads.
        """
        every = range(self.tasks)
        tasks = sorted(every, key=lambda task: -sum(self.ranks_of(task).values()))[:2]
        trial = copy_of(self, self.parameters()).eval()
        trial.probed, trial.tasks = True, len(tasks)
        trial.overrides = [trial.overrides[task] for task in tasks]
        for module in trial.modules():
            if isinstance(module, ExpertLayer):
                module.keep(tasks)
            elif isinstance(module, PerTaskNorm):
                module.tasks = nn.ModuleList(module.tasks[task] for task in tasks)
        return trial

    def _forward(self, x: Tensor, route: Route) -> Any:
        x = route.sort(x)
        if not any(self.overrides):
            return route.restore(self._through(route, x, {}))
        # A tensor that isn't the same for all samples: one forward per task.
        parts = []
        for one, own in route.segments():
            alone = plan_route(one, x[own].shape[0], self.tasks, x.device)
            parts.append(self._through(alone, x[own], self.overrides[one]))
        return route.restore(_joined(parts))

    def _through(self, route: Route, x: Tensor, own: dict[str, Tensor]) -> Any:
        """The module's output for `x` in the order of `route`, with `own` tensors in its place."""
        router = self._router
        if router.route is not None:
            raise ModelError("an ExpertModel can't be called from inside its own forward")
        router.route = route
        router.called.clear()
        router.count(self.tasks, self.training)
        try:
            output = functional_call(self.module, own, (x,)) if own else self.module(x)
            kinds = (ExpertLayer, PerTaskNorm)
            router.check_called(m.name for m in self.module.modules() if isinstance(m, kinds))
            router.recompute(output)
            return output
        finally:
            router.route = None

    def count_with(self, census: Census | None) -> None:
        """Share training batches with other processes: `census` sums counts per task over all.

        It is called once per forward. Per-task `SyncBatchNorm`s need it to know, in a process where
        a task is absent, that the others wait there for it.
        """
        self._router.census = census

    def base_state(self) -> dict[str, Tensor]:
        """What all tasks share, under the plain module's names, detached."""
        own = set()
        for name, module in self.module.named_modules():
            if isinstance(module, ExpertLayer):
                own |= {_join(name, "A"), _join(name, "B")}
            elif isinstance(module, PerTaskNorm):
                own |= {_join(name, key) for key in module.state_dict()}
        return {k: v for k, v in own_state(self.module).items() if k not in own}

    def expert_state(self, task: int) -> dict[str, Tensor]:
        """One expert: `LAYER.A`, `LAYER.B`, and a per-task norm's tensors under plain names.

        A layer on which its rank is 0 has no factors. What overrides a shared tensor is there too.
        """
        return self._own_state(task) | self.overrides[task]

    def _own_state(self, task: int) -> dict[str, Tensor]:
        self._check_task(task)
        state = {}
        for name, layer in self._experts():
            if not layer.ranks[task]:
                continue
            a, b = layer.factors(task)
            state[_join(name, "A")], state[_join(name, "B")] = a.detach(), b.detach()
        for name, module in self.module.named_modules():
            if isinstance(module, PerTaskNorm):
                own = module.tasks[task].state_dict()
                state |= {_join(name, k): v for k, v in own.items() if k != COUNTER}
        return state

    def load_base(self, state: Mapping[str, Tensor]) -> None:
        """Take what all tasks share from `base_state` of an equal model."""
        _copy(self.base_state(), state, "the base")

    def load_expert(self, task: int, state: Mapping[str, Tensor]) -> None:
        """Take one expert from `expert_state` of an equal model; other tasks stay as they are."""
        shared = self.base_state()
        own = {name: value for name, value in state.items() if name not in shared}
        _copy(self._own_state(task), own, f"the expert of task {task}")
        self.override(task, {name: state[name] for name in state.keys() & shared.keys()})

    def override(self, task: int, state: Mapping[str, Tensor]) -> None:
        """Let a task have `state` instead of the shared tensors of these names; copies.

        For what no expert holds: biases, grouped convolutions, tokens. It is no parameter, and a
        mixed batch then passes one task after another. Raises `ModelError` for a name that isn't
        shared, another shape, or the weight of a layer with experts, which has ΔW for that.
        """
        self._check_task(task)
        bound = {_join(layer.name, "weight") for layer in self.layers}
        shared = {n: v for n, v in self.base_state().items() if n not in bound}
        fresh = {name: shared[name].clone() for name in state if name in shared}
        _copy(fresh, state, f"what task {task} has instead of shared tensors")
        first: dict[int, str] = {}  # of names that are one tensor: it is given once
        for name, tensor in self.module.state_dict(keep_vars=True).items():
            if name in fresh:
                first.setdefault(id(tensor), name)
        self.overrides[task] = {name: fresh[name] for name in first.values()}

    def _apply(self, fn: Any, recurse: bool = True) -> ExpertModel:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.overrides = [{n: fn(v) for n, v in own.items()} for own in self.overrides]
        return self

    def set_factors(self, experts: Sequence[Mapping[str, Tensor]]) -> None:
        """Give every task other factors, of any rank: one mapping each of `LAYER.A` and `LAYER.B`.

        A layer that a task's mapping lacks gets rank 0. All else of the experts stays.
        """
        if len(experts) != self.tasks:
            raise UsageError(f"{len(experts)} experts were given for {self.tasks} tasks")
        for name, layer in self._experts():
            a, b = _join(name, "A"), _join(name, "B")
            layer.set_factors([(own[a], own[b]) if a in own else None for own in experts])

    def dense(self, task: int) -> nn.Module:
        """A plain copy of the module that was given, with W_t and the task's norms, in eval mode.

        Its norms are not folded; nothing of it is shared with this model.
        """
        self._check_task(task)
        module = copy_of(self.module)

        def plain(old: nn.Module) -> nn.Module:
            if isinstance(old, ExpertLayer):
                fused = old.dense_weight(task).detach()
                layer = old.plain()
                layer.weight = nn.Parameter(fused, requires_grad=old.weight.requires_grad)
                return layer
            return old.tasks[task] if isinstance(old, PerTaskNorm) else old

        made = replace_modules(module, plain).eval()
        made.load_state_dict(self.overrides[task], strict=False)
        return made

    def _experts(self) -> list[tuple[str, ExpertLayer]]:
        modules = self.module.named_modules()
        return [(n, m) for n, m in modules if isinstance(m, ExpertLayer)]

    def _check_task(self, task: int) -> None:
        if not 0 <= task < self.tasks:
            raise UsageError(f"there is no task {task}: the model has tasks 0 to {self.tasks - 1}")


def replace_modules(root: nn.Module, change: Any) -> nn.Module:
    """`root` with `change(module)` in every place where a module stands, parents first."""
    return _replaced(root, change, {})


def _replaced(module: nn.Module, change: Any, made: dict[nn.Module, nn.Module]) -> nn.Module:
    # Not a function in that one: it would know itself, and keep `made` with all its weights until
    # Python's next collection of cycles.
    if module not in made:
        made[module] = made_here = change(module)
        if made_here is module:
            for name, child in module._modules.items():  # twice if registered twice
                if child is not None:
                    setattr(module, name, _replaced(child, change, made))
    return made[module]


def _joined(parts: Sequence[Any]) -> Any:
    """Outputs of one structure (a tensor, or tuples, lists and mappings of them) as of one batch.

    Raises `ModelError` for a value over a batch (a mean), which a sum of tasks doesn't have.
    """
    leaves, forms = zip(*map(tree_flatten, parts), strict=True)
    together = []
    for values in zip(*leaves, strict=True):
        if not isinstance(values[0], Tensor):
            together.append(values[0])
        elif values[0].dim():
            together.append(torch.cat(values))
        else:
            raise ModelError(
                "the module gives a value over its whole batch, and these tasks pass one by one, "
                "since some have tensors of their own (`override`)",
                fix="compute it from the outputs instead",
            )
    return tree_unflatten(together, forms[0])


def _copy(own: Mapping[str, Tensor], given: Mapping[str, Tensor], what: str) -> None:
    """Copy `given` into `own`, views of a model's tensors; nothing is changed if they differ."""
    wrong = sorted(own.keys() ^ given.keys())
    wrong = wrong or [name for name, value in own.items() if value.shape != given[name].shape]
    if wrong:
        raise ModelError(f"{what} doesn't fit this model: {', '.join(wrong[:5])}")
    for name, value in own.items():
        value.copy_(given[name])


def _join(name: str, key: str) -> str:
    return f"{name}.{key}" if name else key
