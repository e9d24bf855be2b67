"""What scripts may rely on: commands, arguments, options, the keys of `--json`, and exit codes.

`contract.txt` beside this file has a line for each, from 0.1.0 on; `removals.json` says which are
gone since, and why. What is new is added to the first by

    python tests/cli/contract.py
"""

from __future__ import annotations

import json
import types
import typing
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import typer
from pydantic import BaseModel

import lorkd_deploy
from lorkd_deploy import cli
from lorkd_deploy.cli.app import command_line
from lorkd_deploy.errors import LorkdError
from lorkd_deploy.recipe import Recipe

CONTRACT = Path(__file__).with_name("contract.txt")
REMOVALS = CONTRACT.with_name("removals.json")

NEEDS_TORCH = ("init", "teacher", "decompose", "extract", "compress")
# The library's function whose value a command prints.
RETURNED = {
    name: name
    for name in (
        "demo", *NEEDS_TORCH, "export", "verify", "benchmark", "report", "compare", "pack",
        "predict", "listen", "inspect", "doctor",
    )
} | {"benchmark --scenario": "benchmark_scenarios"}  # fmt: skip
# What a command writes itself: instead of a function's value, or beside it.
WRITTEN = {
    "export": ["[].folder"],
    "fuse": ["task", "file", "bytes"],
    "recipe list": ["[].name", "[].description", "[].departments", "[].tasks"],
    "recipe validate": ["valid", "name", "sha256", "images", "unused"],
}
ERROR = ["error", *(f"error.{key}" for key in ("kind", "what", "where", "fix", "exit_code"))]
DOCUMENTS = sorted({*RETURNED, *WRITTEN, "recipe show"})


def options() -> Iterator[str]:
    """`lorkd export --max-drop: float = null`: each command's arguments and options.

    An option is named with all its names, an argument by its position; behind a colon stand type,
    limits and default, and `...` where it may be repeated.
    """
    open_groups: list[tuple[str, Any]] = [("lorkd", typer.main.get_command(command_line()))]
    while open_groups:
        path, command = open_groups.pop()
        yield path
        kinds = typing.get_type_hints(command.callback) if command.callback else {}
        arguments = 0
        for parameter in command.params:
            name = "/".join([*parameter.opts, *parameter.secondary_opts])
            if not name.startswith("-"):
                arguments += 1
                name = f"argument {arguments}"
            yield f"{path} {name}: {_described(parameter, kinds[parameter.name])}"
        for name, child in getattr(command, "commands", {}).items():
            open_groups.append((f"{path} {name}", child))


def _described(parameter: Any, kind: Any) -> str:
    limits = [getattr(parameter, "min", None), getattr(parameter, "max", None)]
    low, high = ("" if limit is None else str(limit) for limit in limits)
    bounds = f" {low}..{high}" if low or high else ""
    repeated = getattr(parameter, "multiple", False) or parameter.nargs != 1
    default = json.dumps(parameter.default, default=str)
    value = ", required" if parameter.required else f" = {default}"
    return f"{_type_name(kind)}{bounds}{'...' if repeated else ''}{value}"


def _type_name(kind: Any) -> str:
    """`int` for `Annotated[list[int] | None, …]`: what one value is."""
    inner = [one for one in typing.get_args(kind) if one is not type(None)]
    return _type_name(inner[0]) if inner else str(kind.__name__)


def keys(document: str) -> list[str]:
    """The paths of all keys that a command's document can have, as `[].parity.links[].before`.

    `[]` is an element of a list, `{}` a value of a mapping whose keys are data. Imports torch for
    a command in `NEEDS_TORCH`.
    """
    found = set(WRITTEN.get(document, ()))
    if document in RETURNED:
        function = getattr(lorkd_deploy, RETURNED[document])
        found.update(_paths(typing.get_type_hints(function)["return"], ""))
    elif document == "recipe show":
        found.update(_paths(Recipe, ""))
    if document == "pack":  # the engines' names stand for their records
        found = {path for path in found if not path.startswith("engines[].")}
    return sorted(found)


def _paths(kind: Any, path: str) -> Iterator[str]:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        for one in arguments:
            yield from _paths(one, path)
    elif origin is typing.Annotated:
        yield from _paths(arguments[0], path)
    elif origin in (tuple, list, Sequence):
        for one in arguments:
            yield from _paths(one, f"{path}[]")
    elif origin in (dict, Mapping):
        yield from _paths(arguments[1], f"{path}{{}}")
    elif isinstance(kind, type) and issubclass(kind, BaseModel):
        for name, field in kind.model_fields.items():
            if not field.exclude:
                key = f"{path}.{name}".lstrip(".")
                yield key
                yield from _paths(field.annotation, key)


def printed(value: object, known: Collection[str], path: str = "") -> Iterator[str]:
    """The paths of the keys in a printed document; `known` paths say which keys are data."""
    if isinstance(value, list):
        for item in value:
            yield from printed(item, known, f"{path}[]")
    elif isinstance(value, dict):
        data = path and not any(name.startswith(f"{path}.") for name in known)
        for key, item in value.items():
            below = f"{path}{{}}" if data else f"{path}.{key}".lstrip(".")
            if not data:
                yield below
            yield from printed(item, known, below)


def exit_codes() -> Iterator[str]:
    """`exit 2: UsageError`: each error's code by its class, which `error.kind` names."""
    yield "exit 0: done"
    yield f"exit {cli.STOPPED}: Ctrl-C"
    classes = [LorkdError]
    for error in classes:
        classes += error.__subclasses__()
        if error.__module__ == LorkdError.__module__:
            yield f"exit {error.exit_code}: {error.__name__}"


def key_lines(document: str) -> Iterator[str]:
    """`lorkd fuse --json > bytes`: the lines of a document's keys in the contract."""
    return (f"lorkd {document} --json > {path}" for path in keys(document))


def promised() -> set[str]:
    """The lines of the contract, less the removals."""
    lines = CONTRACT.read_text(encoding="utf-8").splitlines()
    return {line for line in lines if not any(covers(removal, line) for removal in removals())}


def removals() -> dict[str, str]:
    """What was removed → why. A removal covers the lines that begin with it."""
    found: dict[str, str] = json.loads(REMOVALS.read_text(encoding="utf-8"))
    return found


def covers(removal: str, line: str) -> bool:
    """Whether `line` of the contract is what `removal` names, or lies below it."""
    return line == removal or line.startswith(tuple(removal + sign for sign in ":.[{/ "))


def _now() -> Iterator[str]:
    yield from options()
    yield from exit_codes()
    for document in DOCUMENTS:
        yield from key_lines(document)


if __name__ == "__main__":
    before = CONTRACT.read_text(encoding="utf-8").splitlines() if CONTRACT.exists() else ()
    CONTRACT.write_text("".join(f"{x}\n" for x in sorted({*before, *_now()})), encoding="utf-8")
