"""`pkg.module:function`: a network of the user's own."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

from torch import nn

from lorkd_deploy.errors import ModelError, UsageError, unknown_name


def from_function(source: str, name: str, forms: str) -> nn.Module:
    """What `source.name()` returns; `forms` are the architectures that there are.

    Raises `UsageError` for an unknown name, `ModelError` where the function fails.
    """
    where = f"{source}:{name}"
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, "")  # as `python -m` does: a module of the user's lies where they are
    try:
        module = import_module(source)
    except ModuleNotFoundError as exc:
        if exc.name and (source == exc.name or source.startswith(exc.name + ".")):
            raise UsageError(
                f"there is no Python module {exc.name!r}",
                where=where,
                fix=f"install it or put its folder on PYTHONPATH; or write {forms}",
            ) from exc
        raise ModelError(f"importing {source!r} failed: {exc}", where=where) from exc
    except Exception as exc:
        raise ModelError(f"importing {source!r} failed: {exc}", where=where) from exc
    function = getattr(module, name, None)
    if not callable(function):
        callables = [n for n in dir(module) if callable(getattr(module, n)) and n[0] != "_"]
        raise unknown_name("function", name, callables, where=source)
    try:
        made = function()
    except Exception as exc:
        raise ModelError(f"{where}() failed: {exc}", where=where) from exc
    if not isinstance(made, nn.Module):
        raise ModelError(f"{where}() gave a {type(made).__name__}, wanted an nn.Module")
    return made
