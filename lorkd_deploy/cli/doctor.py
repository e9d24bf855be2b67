"""`lorkd doctor`"""

from __future__ import annotations

from lorkd_deploy.cli.shared.options import Json, Quiet
from lorkd_deploy.cli.shared.render import Output


def doctor(as_json: Json = False, quiet: Quiet = False) -> None:
    """Check which of torch, GPU and runtimes work on this machine, and say how to fix the rest.

    \b
    Examples:
      lorkd doctor
      lorkd doctor --json
    """
    from lorkd_deploy import doctor as check

    output = Output(as_json=as_json, quiet=quiet)
    checks = check()
    output.table(
        "This machine",
        ("what", "status", "found, and what to do"),
        [
            (one.name, one.status, one.found + (f"\n→ {one.fix}" if one.fix else ""))
            for one in checks
        ],
    )
    output.result(checks)
