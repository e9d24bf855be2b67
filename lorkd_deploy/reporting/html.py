"""The page as HTML: one file that needs no network; style, script and plots are in it."""

from __future__ import annotations

import base64
import hashlib
from importlib import resources
from typing import Any

from lorkd_deploy._version import __version__
from lorkd_deploy.errors import RuntimeUnavailableError
from lorkd_deploy.reporting.plots.figure import Figure
from lorkd_deploy.reporting.table import Table
from lorkd_deploy.reporting.words import COMMAND


def document(template: str, page: Any) -> str:
    """`page` by one of the templates, as one self-contained HTML document.

    Every text is escaped. The browser is told to run the page's own script and no other, and to
    load nothing. Raises `RuntimeUnavailableError` where jinja2 is missing.
    """
    try:
        import jinja2
        from markupsafe import Markup, escape
    except ImportError as exc:
        raise RuntimeUnavailableError(
            f"the report needs {exc.name}, which is not installed",
            fix="install lorkd-deploy[report]",
        ) from exc
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_template),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["commands"] = lambda text: Markup(
        COMMAND.sub(r"<code>\1</code>", str(escape(text)))
    )
    script = _template("report.js")
    return environment.get_template(template).render(
        page=page,
        version=__version__,
        css=Markup(_template("report.css")),
        script=Markup(script),
        script_hash=Markup(_allowed(script)),
        downloads=_downloads,
    )


def _template(name: str) -> str:
    folder = resources.files("lorkd_deploy.reporting") / "templates"
    return (folder / name).read_text(encoding="utf-8")


def _allowed(script: str) -> str:
    """The hash by which the page's content security policy knows a script."""
    digest = hashlib.sha256(script.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def _downloads(shown: Table | Figure) -> dict[str, str]:
    """Links that hold the values themselves: they work offline and without a script."""
    table = shown.data if isinstance(shown, Figure) else shown
    return {
        "csv": _data_url("text/csv;charset=utf-8", table.csv()),
        "json": _data_url("application/json", table.json()),
    }


def _data_url(kind: str, text: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(text.encode()).decode()}"
