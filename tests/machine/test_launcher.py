"""Which of how many processes this one is, by what launchers leave in the environment."""

from __future__ import annotations

import pytest

from lorkd_deploy.errors import UsageError
from lorkd_deploy.machine.launcher import Launch, check_launcher, launch

# What `accelerate launch --cpu` sets; the address only where it was asked for several processes.
BY_ACCELERATE = {"ACCELERATE_USE_CPU": "True", "ACCELERATE_MIXED_PRECISION": "no"}
ASKED_FOR_TWO = BY_ACCELERATE | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, Launch(0, 1)),
        ({"RANK": "0", "WORLD_SIZE": "1"}, Launch(0, 1)),
        ({"RANK": "3", "WORLD_SIZE": "8"}, Launch(3, 8)),
        ({"RANK": "", "WORLD_SIZE": "8"}, Launch(0, 1)),
    ],
)
def test_what_the_launcher_says(environment: dict[str, str], expected: Launch) -> None:
    assert launch(environment) == expected
    assert expected.leads == (expected.index == 0)


def test_one_process_where_several_were_asked_for_is_an_error() -> None:
    with pytest.raises(UsageError, match="started one") as caught:
        check_launcher(ASKED_FOR_TWO)
    assert "torchrun" in (caught.value.fix or "")
    check_launcher(BY_ACCELERATE)
    check_launcher({"MASTER_ADDR": "ws1"})
    check_launcher(ASKED_FOR_TWO | {"RANK": "1", "WORLD_SIZE": "2"})
