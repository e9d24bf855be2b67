"""A training whose failure is an answer, so that a study goes on with the others.

`python -m lorkd_deploy.evidence.attempt STUDY` is a worker: a training per line on its input, JSON
in and JSON out. It ends with its input, so a study that was killed leaves no worker behind.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

from lorkd_deploy.errors import LorkdError
from lorkd_deploy.evidence.plan import Training
from lorkd_deploy.evidence.train import Trained, train
from lorkd_deploy.schema import Part

log = logging.getLogger(__name__)


class Outcome(Part):
    """What came of a training: `done`, or why it `failed`."""

    training: Training
    done: Trained | None = None
    failed: str | None = None


def attempt(given: dict[str, Any], study: str) -> dict[str, Any]:
    """`train`, whose error is in the `Outcome` instead; a fault of our own too, with its trace."""
    training = Training.model_validate(given)
    try:
        outcome = Outcome(training=training, done=Trained.model_validate(train(given, study)))
    except LorkdError as exc:
        outcome = Outcome(training=training, failed=str(exc))
    except Exception as exc:
        log.exception("%s failed", training.folder)
        last = traceback.extract_tb(exc.__traceback__)[-1]
        where = f"{Path(last.filename).name}, line {last.lineno}"
        outcome = Outcome(training=training, failed=f"{type(exc).__name__}: {exc} ({where})")
    return outcome.model_dump(mode="json")


def _serve(study: str) -> None:
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what else prints is no answer
    asked: queue.Queue[str] = queue.Queue()

    def listen() -> None:
        for line in sys.stdin:
            asked.put(line)
        os._exit(0)  # a training that is under way is continued from its checkpoint

    threading.Thread(target=listen, daemon=True).start()
    while True:
        outcome = attempt(json.loads(asked.get()), study)
        print(json.dumps(outcome), file=answers, flush=True)


if __name__ == "__main__":
    _serve(sys.argv[1])
