"""A training whose failure is an answer, so that a study goes on with the others.

`python -m lorkd_deploy.evidence.attempt` is a worker: a `Call` per line on its input, JSON in and
JSON out. It ends with its input, so a study that was killed leaves no worker behind.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import sys
import threading
import traceback
from importlib import import_module
from pathlib import Path
from typing import Any

from lorkd_deploy.errors import LorkdError
from lorkd_deploy.schema import Part

log = logging.getLogger(__name__)


class Call(Part):
    """`function(given, folder)`: a training that a worker anywhere can do, since all of it is JSON.

    `function` is `module:name`, and gives a dictionary; `name` is the training's own.
    """

    name: str
    function: str
    given: dict[str, Any]
    folder: str


class Outcome(Part):
    """What came of the training `name`: what its function gave (`done`), or why it `failed`."""

    name: str
    done: dict[str, Any] | None = None
    failed: str | None = None


def attempt(given: dict[str, Any]) -> dict[str, Any]:
    """Do the `Call` `given`; an error is in the `Outcome`, a fault of our own with its place."""
    call = Call.model_validate(given)
    try:
        module, _, name = call.function.partition(":")
        function = getattr(import_module(module), name)
        outcome = Outcome(name=call.name, done=function(call.given, call.folder))
    except LorkdError as exc:
        outcome = Outcome(name=call.name, failed=str(exc))
    except Exception as exc:
        log.exception("%s failed", call.name)
        last = traceback.extract_tb(exc.__traceback__)[-1]
        where = f"{Path(last.filename).name}, line {last.lineno}"
        outcome = Outcome(name=call.name, failed=f"{type(exc).__name__}: {exc} ({where})")
    return outcome.model_dump(mode="json")


def _serve() -> None:
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what else prints is no answer
    asked: queue.Queue[str] = queue.Queue()

    def listen() -> None:
        for line in sys.stdin:
            asked.put(line)
        os._exit(0)  # a training that is under way is continued from its checkpoint

    threading.Thread(target=listen, daemon=True).start()
    while True:
        print(json.dumps(attempt(json.loads(asked.get()))), file=answers, flush=True)


if __name__ == "__main__":
    _serve()
