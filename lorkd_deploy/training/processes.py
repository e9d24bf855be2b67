"""Several processes, one training: who they are, and what one of them does for all.

They are started by `torchrun` or `accelerate launch`. torch.distributed connects them (by gloo, and
on GPUs by NCCL beside it) and ends what waits too long for one that is dead or hangs.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.elastic.multiprocessing.errors import get_error_handler

from lorkd_deploy.arrays import F32
from lorkd_deploy.errors import LorkdError, TrainingError, UsageError, first_line
from lorkd_deploy.machine.launcher import check_launcher, launch
from lorkd_deploy.recipe import Recipe
from lorkd_deploy.run import Run, claimed

T = TypeVar("T")
TIMEOUT = 120.0  # s for which a process may keep others waiting in a step; LORKD_RANK_TIMEOUT
LONGEST = timedelta(hours=3)  # for which one may work alone: downloads, tests, export
RESUME = "the last checkpoint is whole: start all processes again with --resume"


class StoppedElsewhereError(TrainingError):
    """Process 0 has failed and said why; the others stop with its exit code."""

    reported = True


def best_device() -> torch.device:
    """The GPU if there is one, else the CPU; `accelerate launch --cpu` is asked for the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() and not _cpu_asked() else "cpu")


def _cpu_asked() -> bool:
    return os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true"


@dataclass(frozen=True)
class Processes:
    """This process, `index` of `count`, and what all of them do together.

    Every method is called by all processes alike. For a process alone they do nothing. They raise
    `TrainingError` where another process is lost, which is found out after `timeout` at the latest.
    """

    index: int = 0
    count: int = 1
    device: torch.device = field(default_factory=best_device)
    timeout: timedelta = timedelta(seconds=TIMEOUT)

    @property
    def leads(self) -> bool:
        """The one process that writes."""
        return self.index == 0

    def first(self, make: Callable[[], T]) -> T:
        """What `make` returns in process 0, for all; what it raises there stops all."""
        if self.count == 1:
            return make()
        outcome: list[Any] = [None, None]
        failed: LorkdError | None = None
        if self.leads:
            try:
                outcome[0] = make()
            except LorkdError as exc:
                failed, outcome[1] = exc, (exc.what, exc.exit_code)
        self.wait()
        with self.together():
            dist.broadcast_object_list(outcome, 0)
        if failed is not None:
            raise failed
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
    def one_per_machine_first(self) -> Iterator[None]:
        """A block that one process of each machine runs before the others: downloads."""
        waits = self.count > 1 and os.environ.get("LOCAL_RANK", "0") != "0"
        if waits:
            self.wait()
        yield
        if self.count > 1 and not waits:
            self.wait()

    def wait(self, timeout: timedelta = LONGEST) -> None:
        """Until all are here; process 0 names the one that is lost, or later than `timeout`."""
        if self.count > 1:
            with self.together():
                dist.monitored_barrier(timeout=timeout)

    def meet(self) -> None:
        """Until all are here, in a step, which has no place for one to work alone."""
        self.wait(self.timeout)

    def sum(self, flat: Tensor) -> Tensor:
        """`flat`, which then holds its sum over the processes."""
        if self.count > 1:
            with self.together():
                dist.all_reduce(flat)
        return flat

    def totals(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Numbers by name, each summed over the processes."""
        if self.count == 1:
            return dict(values)
        flat = self.sum(torch.stack([value.double() for value in values.values()]))
        parts = zip(values.items(), flat, strict=True)
        return {name: total.to(value.dtype) for (name, value), total in parts}

    def total_counts(self, counts: list[int]) -> list[int]:
        """Whole numbers, each summed over the processes."""
        if self.count == 1:
            return counts
        return [int(count) for count in self.sum(torch.tensor(counts, device=self.device)).tolist()]

    def total_array(self, array: F32) -> F32:
        """An array of the same shape in every process, summed over them."""
        if self.count == 1:
            return array
        return self.sum(torch.from_numpy(array).to(self.device)).cpu().numpy()

    def most(self, number: int) -> int:
        """The largest of the processes' numbers."""
        if self.count == 1:
            return number
        flat = torch.tensor(number, device=self.device)
        with self.together():
            dist.all_reduce(flat, dist.ReduceOp.MAX)
        return int(flat)

    @contextmanager
    def together(self) -> Iterator[None]:
        """A collective operation: where it breaks, the error says who is lost if torch does."""
        try:
            yield
        except RuntimeError as exc:
            raise self.lost(exc) from exc

    def lost(self, exc: RuntimeError) -> TrainingError:
        """The error for what torch says of a collective operation that broke."""
        named = re.search(r"Rank (\d+) failed to pass monitoredBarrier in (\d+) ms", str(exc))
        return TrainingError(
            f"rank {named[1]} has died, or did not answer for {int(named[2]) / 1000:g} s"
            if named
            else f"another process has died, or did not answer: {first_line(exc)}",
            fix=RESUME,
        )


ALONE = Processes(device=torch.device("cpu"))


@contextmanager
def joined() -> Iterator[Processes]:
    """This process among those it was launched with, for the length of a training.

    Raises `UsageError` where the launcher has started something else than was asked for, and
    `TrainingError` where a process is lost. What fails here is also what `torchrun` tells of this
    process at its end.
    """
    check_launcher()
    launched = launch()
    if launched.count == 1:
        yield Processes()
        return
    _end_with_launcher()
    processes = _join(launched.index, launched.count)
    before: Any = signal.signal(signal.SIGTERM, _terminated)
    try:
        yield processes
        processes.wait()
    except BaseException as exc:
        atexit.unregister(_leave)  # it would wait for those that are lost
        before = signal.SIG_IGN  # the launcher sends it when one has ended: say why, then end too
        fault = processes.lost(exc) if isinstance(exc, dist.DistError) else exc
        get_error_handler().record_exception(fault)
        if fault is not exc:  # inside of a backward: SyncBatchNorm's
            raise fault from exc
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


def _end_with_launcher() -> None:
    """Have the kernel send SIGTERM when the launcher dies; else this process would hold the run."""
    if sys.platform == "linux":
        on_parents_death = 1  # PR_SET_PDEATHSIG
        ctypes.CDLL(None).prctl(on_parents_death, signal.SIGTERM, 0, 0, 0)


def _join(index: int, count: int) -> Processes:
    device, here = best_device(), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    timeout = _timeout()
    if device.type == "cuda":
        if here > torch.cuda.device_count():
            raise UsageError(
                f"{here} processes were started for {torch.cuda.device_count()} GPUs",
                fix="start one process per GPU: --nproc-per-node gpu",
            )
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        backend = "gloo" if device.type == "cpu" else "cpu:gloo,cuda:nccl"
        try:
            dist.init_process_group(backend, timeout=LONGEST)
        except ValueError as exc:  # a variable that a launcher sets
            raise UsageError(
                f"{count} processes were launched and can't meet: {exc}",
                fix="start them by torchrun: torchrun --nproc-per-node N -m lorkd_deploy …",
            ) from exc
        atexit.register(_leave)  # not after one training: a program may have more
    processes = Processes(index, count, device, timeout)
    processes.wait()
    dist.set_timeout(timeout)
    return processes


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def _timeout() -> timedelta:
    text = os.environ.get("LORKD_RANK_TIMEOUT", str(TIMEOUT))
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not seconds > 0:
        raise UsageError(f"LORKD_RANK_TIMEOUT is {text!r}, wanted seconds above 0")
    return timedelta(seconds=seconds)


def _terminated(*_: object) -> None:
    """On what a launcher sends when one process has died, and a cluster to all."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if sys.exc_info()[1] is None:  # else an error is on its way, and says more
        raise TrainingError(
            "the training was asked to stop (SIGTERM), as when the launcher or another has died",
            fix=RESUME,
        )
