"""One exception tree. Each error says what happened, where, and what to do next.

The CLI prints `LorkdError`s without a traceback and exits with their `exit_code`:
1 a fault the message explains, 2 wrong usage, 3 a gate (parity, budget, accuracy) failed.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class LorkdError(Exception):
    """Base of every error a user can cause or mend.

    `what` is one sentence; `where` a file, key or layer; `fix` the next thing to do.
    """

    exit_code = 1
    reported = False  # already, by another process of the same training

    def __init__(self, what: str, *, where: object = None, fix: str | None = None) -> None:
        self.what = what
        self.where = None if where is None else str(where)
        self.fix = fix
        super().__init__(what)

    def __str__(self) -> str:
        parts = [self.what]
        if self.where:
            parts.append(f"  where: {self.where}")
        if self.fix:
            parts.append(f"  to do: {self.fix}")
        return "\n".join(parts)


def with_fix(what: str, fix: str | None) -> str:
    """What happened and what to do about it, for a report's one line."""
    return what if fix is None else f"{what}; to do: {fix}"


def first_line(exc: BaseException) -> str:
    """What another package's exception says, short enough for a sentence; else its kind."""
    lines = [line.strip() for line in str(exc).splitlines() if line.strip()]
    return (lines or [type(exc).__name__])[0][:300]


class UsageError(LorkdError):
    """The command or call itself is wrong: an unknown name, options that contradict."""

    exit_code = 2


class RecipeError(LorkdError):
    """A recipe that can't be read or doesn't fit the schema; lists every fault with its place."""


class DataError(LorkdError):
    """Images or labels that are missing, damaged or not what the recipe says."""


class ImageError(DataError):
    """One image that can't be used: no image, 16-bit, transparent, too small."""


class ModelError(LorkdError):
    """A module, architecture or checkpoint that can't be used as asked."""


class TrainingError(LorkdError):
    """Training stopped: a loss that is not finite, a checkpoint that doesn't fit."""


class BundleError(LorkdError):
    """A bundle or run folder that is damaged, of a newer schema or of another run."""


class ArtifactError(LorkdError):
    """An exported engine that is missing, damaged or of another bundle."""


class RuntimeUnavailableError(LorkdError):
    """A target's runtime is not installed or can't do what was asked on this machine."""


class GateError(LorkdError):
    """A check that the user relies on (parity, budget, accuracy) failed."""

    exit_code = 3


def is_out_of_memory(exc: BaseException) -> bool:
    """Whether memory of the machine or the GPU was used up; torch says so in its own ways."""
    full = isinstance(exc, MemoryError) or type(exc).__name__ == "OutOfMemoryError"
    return full or "can't allocate memory" in str(exc)


def unknown_name(
    kind: str, name: str, known: Iterable[str], *, where: object = None, all_of_them: bool = False
) -> UsageError:
    """The error for a name that doesn't exist: lists the nearest names, or all if there are few.

    `all_of_them` lists all in any case: for a pattern, which resembles none of what it is for.
    """
    names = sorted(known)
    near = [] if all_of_them else difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    if near:
        fix = "did you mean " + " or ".join(repr(n) for n in near) + "?"
    elif names:
        shown = names if all_of_them else names[:12]
        fix = f"known: {', '.join(shown)}" + (", …" if len(shown) < len(names) else "")
    else:
        fix = f"there is no {kind} here"
    return UsageError(f"no {kind} is called {name!r}", where=where, fix=fix)
