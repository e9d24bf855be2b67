"""How long work reports itself: the library calls a `Progress`, the CLI draws it on stderr."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Progress(Protocol):
    """One bar: `start` names it and its total, `advance` moves it, `stop` ends it."""

    def start(self, what: str, total: int) -> None: ...

    def advance(self, steps: int = 1, **shown: str) -> None: ...

    def stop(self) -> None: ...


class Silent:
    """The default: draws nothing."""

    def start(self, what: str, total: int) -> None: ...

    def advance(self, steps: int = 1, **shown: str) -> None: ...

    def stop(self) -> None: ...


@contextmanager
def bar(progress: Progress | None, what: str, total: int) -> Iterator[Progress]:
    """A bar for the length of a `with` block; without a `progress` none is drawn."""
    shown = progress or Silent()
    shown.start(what, total)
    try:
        yield shown
    finally:
        shown.stop()
