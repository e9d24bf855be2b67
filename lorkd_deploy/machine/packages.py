"""The packages that this one can use, as its installed metadata lists them."""

from __future__ import annotations

import platform
import re
from contextlib import suppress
from functools import cache
from importlib import metadata

from lorkd_deploy._version import __version__

NAME = "lorkd-deploy"
STAND_INS = ("onnxruntime-gpu",)  # installed in place of a requirement: onnxruntime
_NOT_USED = {"all", "dev"}  # extras of other extras, and of tools
_REQUIREMENT = re.compile(r"([A-Za-z0-9._-]+)(?:.*\bextra\s*==\s*['\"]([\w-]+)['\"])?")


def versions() -> dict[str, str]:
    """This package's version, and those of its requirements and extras that are installed."""
    found = {NAME: __version__}
    for name in sorted({*STAND_INS, *(name for name, _ in _requirements())}):
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def software() -> dict[str, str]:
    """What something was made with: Python's version and `versions`."""
    return {"python": platform.python_version(), **versions()}


def extra_with(module: str) -> str | None:
    """The smallest extra that installs a module (they are called as their packages are)."""
    package = module.replace("_", "-").lower()
    bring = [extra for name, extra in _requirements() if name == package and extra]
    sizes = [extra for _, extra in _requirements()]
    return min(bring, key=sizes.count, default=None)


@cache
def _requirements() -> tuple[tuple[str, str | None], ...]:
    """Package and extra (None: always installed); nothing where lorkd-deploy isn't installed."""
    try:
        listed = metadata.requires(NAME) or ()
    except metadata.PackageNotFoundError:  # a copied folder
        return ()
    found = [match.groups() for line in listed if (match := _REQUIREMENT.match(line))]
    return tuple((name.lower(), extra) for name, extra in found if extra not in _NOT_USED)
