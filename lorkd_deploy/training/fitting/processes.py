"""Several processes, one training: the same global batches, whatever their number.

Accelerate gives the process group and the device. Each process takes its share of every batch;
the gradients are summed after the backward in one flat buffer, so an expert whose task is absent
on one process gets the others' gradient, and one that is absent everywhere gets none.
"""

from __future__ import annotations

import atexit
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor, nn

from lorkd_deploy.errors import LorkdError, TrainingError, UsageError
from lorkd_deploy.machine.launcher import Launch, check_launcher, launch
from lorkd_deploy.recipe import Recipe
from lorkd_deploy.run import Run, claimed
from lorkd_deploy.training.fitting.pulse import Pulse

T = TypeVar("T")
F32 = npt.NDArray[np.float32]
TIMEOUT = 120.0  # s of silence after which a process counts as dead; LORKD_RANK_TIMEOUT
LONGEST = timedelta(hours=3)  # that one process may work alone (tests, export) while others wait


class StoppedElsewhereError(TrainingError):
    """Process 0 has failed and said why; the others stop with its exit code."""

    told = True


def best_device() -> torch.device:
    """The GPU if there is one, else the CPU; `accelerate launch --cpu` is asked for the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() and not _cpu_asked() else "cpu")


def _cpu_asked() -> bool:
    return os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true"


@dataclass(frozen=True)
class Processes:
    """This process, `index` of `count`, and what all of them do together.

    Every method is called by all processes alike. For a process alone they do nothing.
    """

    index: int = 0
    count: int = 1
    device: torch.device = field(default_factory=best_device)
    pulse: Pulse | None = None
    state: Any = None

    @property
    def leads(self) -> bool:
        """The one process that writes."""
        return self.index == 0

    def first(self, make: Callable[[], T]) -> T:
        """What `make` returns in process 0, for all; what it raises there stops all."""
        if self.count == 1:
            return make()
        outcome: list[Any] = [None, None]
        if self.leads:
            try:
                outcome[0] = make()
            except LorkdError as exc:
                self._broadcast([None, (exc.what, exc.exit_code)])
                raise
        self._broadcast(outcome)
        if outcome[1] is not None:
            stopped = StoppedElsewhereError(f"rank 0 stopped: {outcome[1][0]}")
            stopped.exit_code = outcome[1][1]
            raise stopped
        made: T = outcome[0]
        return made

    @contextmanager
    def claimed(self, out: str | Path, recipe: Recipe, doing: str) -> Iterator[Run]:
        """`run.claimed` by process 0, for all."""
        with ExitStack() as stack:
            yield self.first(lambda: stack.enter_context(claimed(out, recipe, doing)))

    @contextmanager
    def one_a_machine_first(self) -> Iterator[None]:
        """A block that one process of each machine runs before the others: downloads."""
        if self.count == 1:
            yield
        else:
            with self.state.local_main_process_first():
                yield

    def share_state(self, model: nn.Module) -> None:
        """Give all processes the weights and buffers of process 0."""
        if self.count > 1:
            with self._together():
                for tensor in model.state_dict().values():
                    whole = tensor.contiguous()
                    dist.broadcast(whole, 0)
                    tensor.copy_(whole)

    def total(self, number: float, values: dict[str, Tensor]) -> tuple[float, dict[str, Tensor]]:
        """A number and tensors by name, each summed over the processes."""
        if self.count == 1:
            return number, values
        flat = torch.stack([v.double() for v in values.values()] + [_scalar(number, self.device)])
        self._sum(flat)
        parts = zip(values.items(), flat[:-1], strict=True)
        return float(flat[-1]), {name: total.to(v.dtype) for (name, v), total in parts}

    def total_counts(self, counts: list[int]) -> list[int]:
        """Counts, each summed over the processes."""
        flat = torch.tensor(counts, device=self.device)
        self._sum(flat)
        return [int(count) for count in flat.tolist()]

    def most(self, number: int) -> int:
        """The largest of the processes' numbers."""
        if self.count == 1:
            return number
        flat = _scalar(number, self.device)
        with self._together():
            dist.all_reduce(flat, dist.ReduceOp.MAX)
        return int(flat)

    def total_array(self, array: F32) -> F32:
        """An array of the same shape in every process, summed over them."""
        if self.count == 1:
            return array
        flat = torch.from_numpy(array).to(self.device)
        self._sum(flat)
        return flat.cpu().numpy()

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Sum each parameter's gradient; one that has none in any process keeps none."""
        if self.count == 1:
            return
        kinds: dict[torch.dtype, list[nn.Parameter]] = {}
        for parameter in parameters:
            if parameter.requires_grad:
                kinds.setdefault(parameter.dtype, []).append(parameter)
        for group in kinds.values():
            has = group[0].new_tensor([p.grad is not None for p in group])
            parts = [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in group]
            flat = torch.cat([has, *parts])
            self._sum(flat)
            totals = torch.split(flat[len(group) :], [p.numel() for p in group])
            for parameter, owners, total in zip(group, flat[: len(group)].tolist(), totals,
                                                strict=True):  # fmt: skip
                if owners and parameter.grad is None:
                    parameter.grad = torch.empty_like(parameter)
                if parameter.grad is not None:
                    parameter.grad.copy_(total.view_as(parameter))

    def buffers(self, model: nn.Module) -> list[Tensor]:
        """The buffers as they are before a step, for `merge_buffers`."""
        return [] if self.count == 1 else [b.clone() for b in model.buffers()]

    def merge_buffers(self, model: nn.Module, before: list[Tensor]) -> None:
        """Move each buffer by the mean of what moved it in the processes that moved it.

        So running statistics of batch norms are the same everywhere, and a task that was absent
        on one process does not hold back its own.
        """
        kinds: dict[torch.dtype, list[tuple[Tensor, Tensor]]] = {}
        for buffer, old in zip(model.buffers(), before, strict=True) if before else ():
            if buffer.dtype != torch.bool:
                kinds.setdefault(buffer.dtype, []).append((buffer, old))
        for kind, group in kinds.items():
            moves = [(buffer - old).flatten() for buffer, old in group]
            moved = torch.stack([move.any() for move in moves]).to(kind)
            flat = torch.cat([moved, *moves])
            self._sum(flat)
            owners = flat[: len(group)].clamp_(min=1)
            totals = torch.split(flat[len(group) :], [old.numel() for _, old in group])
            for (buffer, old), total, count in zip(group, totals, owners, strict=True):
                mean = total / count if kind.is_floating_point else total // count
                buffer.copy_(old + mean.view_as(old))

    def _sum(self, flat: Tensor) -> None:
        with self._together():
            dist.all_reduce(flat)

    def _broadcast(self, outcome: list[Any]) -> None:
        with self._together():
            dist.broadcast_object_list(outcome, 0)

    @contextmanager
    def _together(self) -> Iterator[None]:
        """A collective operation: where it breaks, the error says who is lost."""
        try:
            yield
        except RuntimeError as exc:
            raise self._lost(str(exc)) from exc

    def _lost(self, said: str) -> TrainingError:
        who = self.pulse.lost() if self.pulse else None
        return TrainingError(
            who or f"the connection to another process broke: {said.splitlines()[0]}",
            fix="the last checkpoint is whole: start all processes again with --resume",
        )


def _scalar(number: float, device: torch.device) -> Tensor:
    return torch.tensor(number, dtype=torch.float64, device=device)


ALONE = Processes(device=torch.device("cpu"))


@contextmanager
def joined() -> Iterator[Processes]:
    """This process among those it was launched with, for the length of a training.

    Raises `UsageError` where the launcher has started something else than was asked for, and
    `TrainingError` naming the process that was lost.
    """
    check_launcher()
    launched = launch()
    if launched.count == 1:
        yield Processes()
        return
    processes = _join(launched)
    pulse = processes.pulse
    assert pulse is not None
    before = signal.signal(signal.SIGTERM, lambda *_: _terminated(processes))
    failed: str | None = "it ended early"
    try:
        yield processes
        with processes._together():
            dist.barrier()
        failed = None
    except LorkdError as exc:
        failed = exc.what
        raise
    except RuntimeError as exc:
        failed = f"{type(exc).__name__}: {exc}".splitlines()[0]
        if isinstance(exc, dist.DistError):  # inside of a backward: SyncBatchNorm's
            raise processes._lost(str(exc)) from exc
        raise
    except Exception as exc:
        failed = f"{type(exc).__name__}: {exc}".splitlines()[0]
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
        pulse.end(failed)
        if failed is not None:
            atexit.unregister(_leave)  # it would wait for those that are lost


def _join(launched: Launch) -> Processes:
    from accelerate import PartialState  # type: ignore[import-untyped]

    cpu = best_device().type == "cpu"
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if not cpu and here > torch.cuda.device_count():
        raise UsageError(
            f"{here} processes were started for {torch.cuda.device_count()} GPUs",
            fix="start one process a GPU: --nproc-per-node gpu",
        )
    state = PartialState(cpu=cpu, timeout=LONGEST)
    if state.num_processes != launched.count:
        raise UsageError(
            f"{launched.count} processes were launched, accelerate finds {state.num_processes}",
            fix="start them by torchrun: torchrun --nproc-per-node N -m lorkd_deploy …",
        )
    atexit.unregister(_leave)
    atexit.register(_leave)  # not after one training: a program may have more
    store = dist.TCPStore(  # type: ignore[attr-defined]
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        is_master=False,
        wait_for_workers=False,
        timeout=timedelta(seconds=30),
    )
    pulse = Pulse(store, launched.index, launched.count, _timeout())
    pulse.start()
    dist.barrier()
    pulse.watch()
    return Processes(launched.index, launched.count, state.device, pulse, state)


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def _timeout() -> float:
    text = os.environ.get("LORKD_RANK_TIMEOUT", str(TIMEOUT))
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not seconds > 0:
        raise UsageError(f"LORKD_RANK_TIMEOUT is {text!r}, wanted seconds above 0")
    return seconds


def _terminated(processes: Processes) -> NoReturn:
    """What a launcher does to the others when one process has died, and a cluster to all."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    who = processes.pulse.lost() if processes.pulse else None
    raise TrainingError(
        who or "the training was told to stop (SIGTERM)",
        fix="the last checkpoint is whole: start all processes again with --resume",
    )
