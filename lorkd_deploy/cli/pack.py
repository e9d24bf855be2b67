"""`lorkd pack`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lorkd_deploy.cli.shared import parity as proof
from lorkd_deploy.cli.shared.options import Json, Quiet, Run
from lorkd_deploy.cli.shared.render import MIB, Output


def pack(
    run: Run,
    department: Annotated[
        str,
        typer.Option(metavar="D", help="The department to deliver to.", show_default=False),
    ],
    out: Annotated[
        Path,
        typer.Option(metavar="DIR", help="The new folder to write.", show_default=False),
    ],
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Pack one department for delivery: its bundle and engines, and none of the others' experts.

    Every command except training works on the folder, on a device without torch. It contains W0,
    which was trained on every department's images.

    \b
    Examples:
      lorkd pack runs/small --department eye-clinic --out eye-clinic
    """
    from lorkd_deploy import pack as deliver

    output = Output(as_json=as_json, quiet=quiet)
    made = deliver(run, department, out)
    if made.engines:
        output.table(
            "Engines",
            ("engine", "MiB", *proof.COLUMNS),
            [(e.name, e.bytes / MIB, *proof.cells(e.parity)) for e in made.engines],
        )
    output.text(
        f"wrote {made.folder}: {', '.join(made.tasks)}, {len(made.engines)} engines, "
        f"{made.bytes / MIB:.1f} MiB"
    )
    output.text(f"bundle sha256 {made.bundle_sha256}, a part of {made.packed_from}")
    output.text(f"next, on the device: lorkd {'verify' if made.engines else 'export'} {out}")
    output.result(
        made.model_dump(mode="json", exclude={"engines"})
        | {"engines": [e.name for e in made.engines]}
    )
