"""A name is imported from the module that defines it: whoever looks for it finds it in one step."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import lorkd_exporters

import lorkd_deploy

PACKAGES = {
    package.__name__: Path(package.__file__).parent  # type: ignore[arg-type]
    for package in (lorkd_deploy, lorkd_exporters)
}


def file_of(module: str) -> Path | None:
    """The file of one of our modules; None for a package, whose `__init__` may gather names."""
    root, _, rest = module.partition(".")
    if root not in PACKAGES or not rest:
        return None
    file = (PACKAGES[root] / rest.replace(".", "/")).with_suffix(".py")
    return file if file.is_file() else None


@cache
def imported_into(file: Path) -> frozenset[str]:
    """The names that a file has from elsewhere."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    return frozenset(alias.asname or alias.name for node in imports for alias in node.names)


def passed_on() -> Iterator[str]:
    for root in PACKAGES.values():
        for file in sorted(root.rglob("*.py")):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if not isinstance(node, ast.ImportFrom) or node.module is None:
                    continue
                home = file_of(node.module)
                for alias in node.names if home else ():
                    assert home is not None
                    if alias.name in imported_into(home):
                        yield f"{file.relative_to(root)}: {node.module} only imports {alias.name}"


def test_no_module_passes_a_name_on() -> None:
    assert list(passed_on()) == []
