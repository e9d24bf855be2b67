"""Reference pages written from the code: commands from the CLI, recipes from pydantic."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from typing import Any

import typer

from docs.schemas import Untitled
from lorkd_deploy.cli.app import command_line
from lorkd_deploy.recipe import Recipe


def commands_page() -> str:
    """Every command with its help, arguments, options and examples."""
    parts = [
        "# Commands",
        "Written from the command line itself. Exit codes: 0 done, 1 a fault that the message "
        "explains, 2 wrong usage, 3 a check failed, 130 stopped by Ctrl-C. Each command is a "
        "function of the same name in [`lorkd_deploy`](api.md).",
    ]
    for path, command in _leaves("lorkd", typer.main.get_command(command_line())):
        parts += [f"## {path}", *_help(command.help or ""), *_parameters(command)]
    return "\n\n".join(parts) + "\n"


def _leaves(path: str, command: Any) -> Iterator[tuple[str, Any]]:
    children = getattr(command, "commands", None)
    if children is None:
        yield path, command
        return
    for name, child in children.items():
        yield from _leaves(f"{path} {name}", child)


def _help(text: str) -> Iterator[str]:
    """The help's paragraphs; its examples, which begin with a backspace, as a block."""
    for paragraph in inspect.cleandoc(text).split("\n\n"):
        if paragraph.startswith("\b"):
            title, *lines = paragraph.removeprefix("\b").strip().splitlines()
            body = "\n".join(line.strip() for line in lines)
            yield f"```bash\n{body}\n```" if title == "Examples:" else f"{title}\n\n    {body}"
        else:
            yield " ".join(paragraph.split())


def _parameters(command: Any) -> Iterator[str]:
    rows = [_parameter(one) for one in command.params if not getattr(one, "hidden", False)]
    if rows:
        yield "\n".join(["| | meaning | default |", "|---|---|---|", *rows])


def _parameter(parameter: Any) -> str:
    names = [name for name in [*parameter.opts, *parameter.secondary_opts] if name[:1] == "-"]
    word = parameter.metavar or ""
    shown = ", ".join(f"`{name}`" for name in names) + (f" `{word}`" if names and word else "")
    default = parameter.show_default if isinstance(parameter.show_default, str) else ""
    if not default and parameter.default not in (None, False, [], ()) and names:
        default = f"`{parameter.default}`"
    if parameter.required:
        default = "required"
    shown = shown or f"`{word or parameter.human_readable_name}`"
    return f"| {shown} | {_cell(parameter.help)} | {default} |"


def recipes_page() -> str:
    """Every key of a recipe, section by section, from its JSON schema."""
    whole = Recipe.model_json_schema(schema_generator=Untitled)
    parts = [
        "# Recipes",
        "Every key, written from the models that check a recipe. Unknown keys are refused, and all "
        "faults are reported at once. `lorkd recipe show medmnist-small` is a recipe with "
        "comments, and an editor can check one by its [JSON schema](../schemas/recipe.json).",
    ]
    for path, section in _sections(whole):
        parts.append(f"## {path or 'the top'}")
        if path and section.get("description"):
            parts.append(" ".join(section["description"].split()))
        parts.append(_keys(section))
    return "\n\n".join(parts) + "\n"


def _sections(whole: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(path, schema) of each object, the top first; one that several keys have, at the first."""
    waiting: list[tuple[str, dict[str, Any]]] = [("", whole)]
    seen: set[str] = set()
    while waiting:
        path, section = waiting.pop(0)
        yield path, section
        found = []
        for key, value in section.get("properties", {}).items():
            for name, repeated in _references(value):
                if name not in seen:
                    seen.add(name)
                    child = whole["$defs"][name]
                    where = f"{path}.{key}" if path else key
                    found.append((where + "[]" * repeated + _kind(child), child))
        waiting = found + waiting


def _references(value: Any, repeated: int = 0) -> Iterator[tuple[str, int]]:
    """The objects that a key may hold, and how many lists, or keys of one's own, deep."""
    if "$ref" in value:
        yield value["$ref"].rpartition("/")[2], repeated
    for choice in _choices(value):
        yield from _references(choice, repeated)
    for deeper in (value.get("items"), value.get("additionalProperties")):
        if isinstance(deeper, dict):
            yield from _references(deeper, repeated + 1)


def _choices(value: dict[str, Any]) -> list[dict[str, Any]]:
    """The schemas of a key that may hold one of several."""
    return [*value.get("anyOf", ()), *value.get("oneOf", ()), *value.get("allOf", ())]


def _kind(section: dict[str, Any]) -> str:
    """` (source: csv)` of an object that is one of several."""
    for key in ("source", "kind"):
        if "const" in section.get("properties", {}).get(key, {}):
            return f" ({key}: {section['properties'][key]['const']})"
    return ""


def _keys(section: dict[str, Any]) -> str:
    required = section.get("required", ())
    rows = ["| key | value | default | meaning |", "|---|---|---|---|"]
    for key, value in section.get("properties", {}).items():
        shown = "required" if key in required else _default(value.get("default"))
        meaning = _cell(value.get("description"))
        rows.append(f"| `{key}` | {_type(value)} | {shown} | {meaning} |")
    return "\n".join(rows)


def _default(value: Any) -> str:
    if value is None or isinstance(value, dict):  # a section's keys have their own
        return ""
    return f"`{json.dumps(value, ensure_ascii=False)}`"


def _type(value: dict[str, Any]) -> str:
    """What may stand there, in words: `integer, 1 or more`."""
    if "const" in value:
        return f"`{value['const']}`"
    if "enum" in value:
        return " or ".join(f"`{one}`" for one in value["enum"])
    if "$ref" in value:
        return "a section"
    if choices := _choices(value):
        return " or ".join(
            dict.fromkeys(_type(one) for one in choices if one.get("type") != "null")
        )
    if value.get("type") == "array":
        items = value.get("items")
        return f"list of: {_type(items)}" if isinstance(items, dict) else "list"
    return str(value.get("type", "any")) + _limits(value)


def _limits(value: dict[str, Any]) -> str:
    words = {
        "minimum": "{} or more",
        "exclusiveMinimum": "above {}",
        "maximum": "{} or less",
        "exclusiveMaximum": "below {}",
    }
    said = [text.format(value[key]) for key, text in words.items() if key in value]
    return f", {', '.join(said)}" if said else ""


def _cell(text: str | None) -> str:
    return " ".join((text or "").split()).replace("|", "\\|")
