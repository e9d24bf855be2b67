"""Trainings that stop midway, by the progress they report."""

from __future__ import annotations

from lorkd_deploy.progress import Silent


class KilledError(Exception):
    """In place of kill -9: nothing is saved after it."""


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
