"""Trainings that stop midway, by the progress they report or by what they do to the disk."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest

from lorkd_deploy.progress import Silent

CHANGES = ("mkdir", "rename", "replace", "unlink", "rmdir")  # of the file system, by `os`


class KilledError(Exception):
    """In place of kill -9: nothing is saved after it."""


def killed_when(due: Callable[[str, tuple[Any, ...]], bool], patch: pytest.MonkeyPatch) -> None:
    """Stop before the first change for which `due(name, arguments)`, and allow none after it, as
    kill -9 does.
    """
    dead = False

    def before(name: str, change: Callable[..., Any]) -> Callable[..., Any]:
        def checked(*arguments: Any, **options: Any) -> Any:
            nonlocal dead
            dead = dead or due(name, arguments)
            if dead:
                raise KilledError
            return change(*arguments, **options)

        return checked

    for name in CHANGES:
        patch.setattr(os, name, before(name, getattr(os, name)))


class StopAt(Silent):
    """Stops the training when its step `last` is done, before its checkpoint is written."""

    def __init__(self, last: int) -> None:
        self.left = last

    def advance(self, steps: int = 1, **shown: str) -> None:
        self.left -= steps
        if self.left <= 0:
            raise KilledError


class Interrupted(Silent):
    """Ctrl-C after `steps` steps of training; what else is waited for doesn't count."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def advance(self, steps: int = 1, **facts: str) -> None:
        self.left -= steps if facts else 0
        if self.left < 0:
            raise KeyboardInterrupt
