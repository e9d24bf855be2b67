"""Disturbed rounds: found from the kernel's figures, measured again, the quietest one kept."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from lorkd_deploy.deploy.artifact import Artifact, EngineFile, EngineTask
from lorkd_deploy.machine.gpu import Gpus, GpuState
from lorkd_deploy.machine.power import Power
from lorkd_deploy.preprocess import Preprocess
from lorkd_deploy.profiling.conditions import (
    OTHERS,
    SLOWER,
    THROTTLED,
    Conditions,
    Snapshot,
    conditions,
    snapshot,
    worst,
)
from lorkd_deploy.profiling.planning.protocol import Protocol
from lorkd_deploy.profiling.rounds import round as rounds
from lorkd_deploy.profiling.worker.stages import draw_image

STAT = """\
cpu  400 0 200 9000 50 0 10 40 0 0
cpu0 100 0 100 4000 50 0 10 0 0 0
cpu1 300 0 100 5000 0 0 0 40 300 0
"""


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    for file, text in (
        ("proc/stat", STAT),
        ("proc/self/cgroup", "0::/\n"),
        ("sys/fs/cgroup/cpu.stat", "usage_usec 5\nthrottled_usec 2500000\n"),
        ("sys/devices/system/cpu/cpu1/cpufreq/scaling_cur_freq", "2400000\n"),
        ("sys/class/thermal/thermal_zone0/temp", "41000\n"),
        ("sys/class/thermal/thermal_zone1/temp", "63500\n"),
    ):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(text)
    return tmp_path


def test_a_snapshot_counts_busy_and_stolen_time_of_the_engines_cpus(machine: Path) -> None:
    assert snapshot([1], machine).busy == pytest.approx(4.4)  # 300 + 100 + 40 stolen, no idle
    assert snapshot([0, 1], machine).busy == pytest.approx(2.1 + 4.4)
    assert snapshot([1], machine).throttled == 2.5


@pytest.mark.parametrize(
    ("own", "stats", "seconds"),
    [
        # Version 2, a group in a group: each counts its own limit's stops.
        (
            "0::/box/inner\n",
            {
                "": "usage_usec 5\n",
                "box": "throttled_usec 700000\n",
                "box/inner": "throttled_usec 50000\n",
            },
            0.75,
        ),
        # The limit is the outer group's alone.
        ("0::/box/inner\n", {"box": "nr_throttled 3\nthrottled_usec 700000\n"}, 0.7),
        # In a container: the group's own name isn't mounted, its figures are at the top.
        ("0::/kubepods/pod7\n", {"": "throttled_usec 2500000\n"}, 2.5),
        # Version 1, in nanoseconds, below the name of the controllers.
        (
            "4:memory:/box\n3:cpu,cpuacct:/box\n0::/\n",
            {
                "cpu,cpuacct": "throttled_time 1000\n",
                "cpu,cpuacct/box": "nr_periods 9\nthrottled_time 300000000\n",
            },
            0.300001,
        ),
        ("1:cpu:/\n", {"cpu": "nr_throttled 0\nthrottled_time 0\n"}, 0.0),
        # A neighbour's stops aren't ours.
        ("0::/box\n", {"other": "throttled_usec 700000\n"}, None),
    ],
)
def test_stops_by_every_control_group_above_count(
    tmp_path: Path, own: str, stats: dict[str, str], seconds: float | None
) -> None:
    for file, text in [
        ("proc/self/cgroup", own),
        *((f"sys/fs/cgroup/{group}/cpu.stat", text) for group, text in stats.items()),
    ]:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(text)
    assert snapshot([1], tmp_path).throttled == (
        None if seconds is None else pytest.approx(seconds)
    )


@pytest.mark.parametrize(
    ("busy", "throttled", "others", "disturbed"),
    [
        (10.5, 0.0, 0.05, False),
        (12.0, 0.0, 0.2, True),
        (9.0, 0.0, 0.0, False),  # ticks are coarse: never below nothing
        (10.0, 0.2, 0.0, True),
    ],
)
def test_a_round_is_disturbed_beyond_a_tenth(
    machine: Path, busy: float, throttled: float, others: float, disturbed: bool
) -> None:
    before, after = Snapshot(0, 100, 1), Snapshot(10, 100 + busy, 1 + throttled)
    found = conditions(before, after, 10, [1], machine)
    assert found.others == pytest.approx(others)
    assert found.throttled == pytest.approx(throttled / 10)
    assert found.disturbed is disturbed
    assert (found.mhz, found.celsius) == (2400, 63.5)


def test_heat_disturbs_a_round(machine: Path) -> None:
    for cpu, count in (("cpu0", 3), ("cpu1", 4)):
        file = machine / f"sys/devices/system/cpu/{cpu}/thermal_throttle/core_throttle_count"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{count}\n")
    before = snapshot([1], machine)
    assert before.slowdowns == 7
    assert not conditions(before, before, 0, [1], machine).disturbed
    found = conditions(before, replace(before, slowdowns=9), 0, [1], machine)
    assert (found.slowdowns, found.disturbed) == (2, True)


def test_a_gpu_that_is_slowed_disturbs_a_round(tmp_path: Path) -> None:
    state = snapshot([0], tmp_path)
    seen = GpuState(900, 84, "software thermal slow-down")
    gpu: Any = SimpleNamespace(state=lambda: seen)
    found = conditions(state, state, 0, [0], tmp_path, gpus=gpu)
    assert (found.gpu_mhz, found.gpu_celsius, found.disturbed) == (900, 84, True)
    assert found.gpu_slowed == "software thermal slow-down"


def test_of_the_parts_of_a_round_the_worst_is_kept() -> None:
    quiet = Conditions(others=0.01, throttled=None, mhz=3000, celsius=50, disturbed=False, pace=1.1)
    busy = quiet.model_copy(update={"others": 0.4, "disturbed": True, "slowdowns": 1})
    hot = quiet.model_copy(
        update={"mhz": 1200, "celsius": 93, "pace": None, "slowdowns": 2, "gpu_slowed": "power cap"}
    )
    assert worst([quiet, busy, hot, quiet]) == Conditions(
        others=0.4,
        throttled=None,
        mhz=1200,
        celsius=93,
        disturbed=True,
        pace=1.1,
        slowdowns=3,
        gpu_slowed="power cap",
    )


def test_what_the_kernel_does_not_tell_disturbs_nothing(tmp_path: Path) -> None:
    state = snapshot([0], tmp_path)
    found = conditions(state, state, 0, [0], tmp_path)
    assert (found.others, found.throttled, found.mhz, found.celsius) == (None,) * 4
    assert not found.disturbed


@pytest.mark.parametrize(("pace", "disturbed"), [(1.0, False), (1.19, False), (1.21, True)])
def test_a_machine_below_its_usual_pace_disturbs(
    tmp_path: Path, pace: float, disturbed: bool
) -> None:
    """What no file tells: a slower clock, or a neighbour on the same core or machine."""
    state = snapshot([0], tmp_path)
    found = conditions(state, state, 0, [0], tmp_path, pace=pace)
    assert (found.pace, found.disturbed) == (pace, disturbed)


def test_pace_is_told_beside_the_median_so_far_not_beside_a_single_lucky_one() -> None:
    pace = rounds.Pace()
    assert [pace.of(took) for took in (100.0, 150.0, 50.0, 100.0)] == [1.0, 1.2, 0.5, 1.0]


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("shares", "kept"),
    [
        # What others take in each attempt: at batch 1, at batch 4, and during the stages.
        ([(0, 0.3, 0), (0, 0, 0), (0, 0.5, 0)], (0, 2)),
        ([(0.5, 0, 0), (0, 0, 0.2), (0, 0.3, 0)], (0.2, 3)),
        ([(0, 0.05, 0), (0.9, 0.9, 0.9)], (0.05, 1)),
    ],
)
def test_a_round_is_as_disturbed_as_its_worst_part_and_the_quietest_is_kept(
    trial_engine: Callable[..., tuple[Path, str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    shares: list[tuple[float, ...]],
    kept: tuple[float, int],
) -> None:
    folder, file = trial_engine(tmp_path / "engine")
    engine = Artifact.model_construct(
        engine="warm",
        department="ward",
        tasks=(EngineTask(name="warm", kind="multiclass", classes=("a", "b"), start=0, stop=2),),
        target="trial",
        precision="fp32",
        files=(EngineFile(name=file, sha256="", bytes=0),),
        preprocess=Preprocess(size=16),
        folder=folder,
    )
    protocol = Protocol(
        rounds=1,
        seconds=1e-9,
        iterations=2,
        warmup=0,
        threads=1,
        cpus=None,
        batch_sizes=(1, 4),
        input_shape=(3, 16, 16),
        seed=0,
        order=(),
        margin=0.02,
        clock="",
        repeats=2,
        most_others=OTHERS,
        most_throttled=THROTTLED,
        most_slower=SLOWER,
        largest_batch=0,
        stage_image=512,
        quick=False,
        uncached=False,
    )
    draw_image(tmp_path / "image.png", 0)
    told = itertools.chain.from_iterable(shares)

    def scripted(*_: object, **__: object) -> Conditions:
        share = next(told)
        return Conditions(
            others=share, throttled=None, mhz=None, celsius=None, disturbed=share > 0.1
        )

    monkeypatch.setattr(rounds, "conditions", scripted)
    none = SimpleNamespace(memory=lambda _: None, available=lambda: None, state=GpuState)
    instruments = rounds.Instruments(Power((), 0.0), cast(Gpus, none))
    found = rounds.measure_round(engine, protocol, tmp_path / "image.png", instruments)
    assert (found.conditions.others, found.conditions.attempts) == kept
    assert len(found.batches[1].calls) == 2


def test_the_drawn_image_is_the_same_everywhere_and_no_flat_field(tmp_path: Path) -> None:
    draw_image(tmp_path / "a.png", 3)
    draw_image(tmp_path / "b.png", 3)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert 40_000 < (tmp_path / "a.png").stat().st_size < 512 * 512
