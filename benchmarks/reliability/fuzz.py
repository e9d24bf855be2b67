"""Damaged and hostile files of every kind: a sentence, in bounded time and memory, and nothing run.

    python benchmarks/reliability/fuzz.py --count 10000

A file of the corpus (`inputs.py`) is changed by chance: bytes that are changed, taken out, put in
or repeated, and for JSON and YAML values that are replaced by those that Hypothesis draws, with the
digest made anew. Batches run in processes of their own, whose memory is limited to 1 GiB above what
the imports took, so that a crash is one outcome among others. Writes results/reliability-fuzz.json
and .md; a stopped campaign goes on by the same call.
"""

from __future__ import annotations

import json
import logging
import os
import pickle
import signal
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.reliability.campaign import QUICK, Campaign, arguments
from benchmarks.reliability.children import memory
from benchmarks.reliability.inputs import Kind, kinds
from lorkd_deploy.errors import LorkdError

BATCH = 250  # files of a process
DRAWN = 25  # files by one draw of Hypothesis, each of which takes longer than most files do
SECONDS = 10
BEGUN = "begun"  # the file that was tried last
MEMORY = 1 << 30  # bytes above what the imports took
FINE = ("read", "refused")
PROTOCOL = (
    "Well-formed files are changed by chance (the first 250 of a kind change by change by "
    "Hypothesis, the others with its values), and each is read as the product reads it, in "
    f"processes limited to {MEMORY >> 30} GiB above the imports and {SECONDS} s a file. Read: "
    "accepted. Refused: by a sentence, as the command line prints it. All else is a fault: another "
    "error, more time or memory, a crash, a file written elsewhere, code that was run (pickles are "
    "planted)."
)
_NUMBERS = (0, 1, 2, 127, 128, 255, 256, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1)
_TEXTS = ("", "../../x", "/etc/passwd", "a/b", "\x00", "é", "\ud7ff", "x" * 10_000, "1e999", "~")


def damaged(chance: Random, corpus: tuple[bytes, ...]) -> bytes:
    """One of the files with up to six changes to its bytes."""
    data = bytearray(chance.choice(corpus))
    for _ in range(chance.randint(1, 6)):
        place = chance.randint(0, max(0, len(data) - 1))
        how = chance.choice(("flip", "set", "number", "insert", "cut", "end", "repeat"))
        if how == "flip" and data:
            data[place] ^= 1 << chance.randrange(8)
        elif how == "set":
            data[place : place + 1] = chance.randbytes(1)
        elif how == "number":
            size, order = chance.choice((2, 4, 8)), chance.choice(("little", "big"))
            number = chance.choice(_NUMBERS) % 2 ** (8 * size)
            data[place : place + size] = number.to_bytes(size, order)  # type: ignore[arg-type]
        elif how == "insert":
            data[place:place] = chance.randbytes(chance.randint(1, 40))
        elif how == "cut":
            del data[place : place + chance.randint(1, 64)]
        elif how == "end":
            del data[place:]
        else:
            part = data[place : place + chance.randint(1, 200)]
            data[place:place] = part * chance.choice((1, 2, 50))
    return bytes(data)


_scalars = st.one_of(
    st.none(), st.booleans(), st.sampled_from((*_NUMBERS, -1, -(2**63), 2**70)), st.floats(
        allow_nan=False, allow_infinity=False), st.sampled_from(_TEXTS), st.text(max_size=8),
)  # fmt: skip
_values = st.recursive(
    _scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


def altered(chance: Random, documents: list[Any], values: list[Any]) -> Any:
    """One of the JSON values with up to four places replaced, taken out or added."""
    whole = [_copy(chance.choice(documents))]
    for _ in range(chance.randint(1, 4)):
        places = list(_places(whole[0]))
        if not places:
            break
        holder, key = chance.choice(places)
        how = chance.choice(("replace", "replace", "remove", "add", "double"))
        if how == "replace":
            holder[key] = _copy(chance.choice(values))
        elif how == "remove":
            del holder[key]
        elif how == "add" and isinstance(holder, dict):
            holder[chance.choice(_TEXTS)] = _copy(chance.choice(values))
        elif isinstance(holder, list):
            holder.append(_copy(holder[key]))
    return whole[0]


def _copy(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))  # ten times as fast as deepcopy


def _places(holder: Any) -> Iterator[tuple[Any, Any]]:
    for key in range(len(holder)) if isinstance(holder, list) else list(holder):
        yield holder, key
        if isinstance(holder[key], dict | list):
            yield from _places(holder[key])


def files(kind: Kind, chance: Random, values: list[Any]) -> Iterator[bytes]:
    """`DRAWN` files of a kind."""
    documents = [kind.parse(data) for data in kind.corpus] if kind.document else []
    for _ in range(DRAWN):
        if kind.document and chance.random() < 0.5:
            yield kind.document(altered(chance, documents, values))
        else:
            yield damaged(chance, kind.corpus)


class TooSlowError(Exception):
    """A file took more than its time."""


def tried(read: Callable[[bytes], object], data: bytes, strayed: list[str]) -> tuple[str, str]:
    """The outcome of one file, and what was said."""
    strayed.clear()
    signal.alarm(SECONDS)
    outcome, said = "read", ""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            read(data)
    except (LorkdError, OSError) as exc:  # a system's fault is a sentence of the command line
        outcome, said = "refused", str(exc)
    except MemoryError as exc:
        outcome, said = "too large", _place(exc)
    except TooSlowError:
        outcome = "too slow"
    except Exception as exc:
        outcome, said = "traceback", f"{type(exc).__name__}: {exc} {_place(exc)}"
    finally:
        signal.alarm(0)
    return ("strayed", "; ".join(strayed)) if strayed else (outcome, said)


def _place(exc: BaseException) -> str:
    frames = traceback.extract_tb(exc.__traceback__)[-3:]
    return " < ".join(f"{Path(f.filename).name}:{f.lineno}" for f in reversed(frames))


@contextmanager
def watched(folder: Path) -> Iterator[list[str]]:
    """What is written outside `folder`, and what is run, while the block lasts."""
    strayed: list[str] = []
    active = [True]
    inside = str(folder.resolve())

    def hook(event: str, given_: tuple[Any, ...]) -> None:
        if not active[0]:
            return
        if event in ("os.system", "subprocess.Popen", "os.exec", "os.posix_spawn"):
            strayed.append(f"{event} {given_[0]!r}")
        elif event == "open" and isinstance(given_[0], str):
            writes = given_[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            path = os.path.realpath(given_[0])
            if writes and not path.startswith((inside, "/dev/")):
                strayed.append(f"writes {path}")
        elif event in ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.symlink"):
            path = os.path.realpath(os.fsdecode(given_[0]))
            if not path.startswith(inside):
                strayed.append(f"{event} {path}")

    sys.addaudithook(hook)
    try:
        yield strayed
    finally:
        active[0] = False


def batch(kind: Kind, folder: Path, number: int, count: int, tell: Callable[[Any], None]) -> None:
    """`count` files by the seed `number`, to the next `DRAWN`.

    `tell` gets the outcome, what was said, and a fault's file, in hexadecimal digits.
    """

    def late(*_: object) -> None:
        raise TooSlowError

    signal.signal(signal.SIGALRM, late)
    with watched(folder) as strayed:

        @seed(number)
        @settings(
            max_examples=-(-count // DRAWN), database=None, deadline=None, phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        @given(st.randoms(use_true_random=True), st.lists(_values, min_size=DRAWN, max_size=DRAWN))
        def some(chance: Random, values: list[Any]) -> None:
            for data in files(kind, chance, values):
                (folder / BEGUN).write_bytes(data)  # a crash is this one's
                outcome, said = tried(kind.read, data, strayed)
                tell((outcome, said, "" if outcome in FINE else data.hex()))

        some()


def run(campaign: Campaign, found: dict[str, Kind], folder: Path, count: int) -> None:
    """`count` files of each kind; batches that were done are left out."""
    for upto in (*range(BATCH, count, BATCH), count):  # the kinds in turn
        for name, kind in found.items():
            while (done := campaign.done(name)) < upto:
                for outcome, said, data in _in_a_process(
                    kind, folder, campaign.seed + 1000 * done, upto - done
                ):
                    fault = {"said": said[:500], "file": data[:2000]}
                    campaign.add(name, outcome, None if outcome in FINE else fault)
                campaign.write("Damaged and hostile files", PROTOCOL)


def _in_a_process(
    kind: Kind, folder: Path, number: int, count: int
) -> Iterator[tuple[str, str, str]]:
    """The outcomes of a batch in a child with limited memory; what ends it has crashed."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        status = 1
        try:
            os.close(reading)
            os.chdir(folder)
            logging.disable(logging.WARNING)
            memory(MEMORY >> 20)()
            with os.fdopen(writing, "w", buffering=1) as stream:

                def tell(said: tuple[str, str, str]) -> None:
                    stream.write(json.dumps(said) + "\n")

                batch(kind, folder, number, count, tell)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    os.close(writing)
    with os.fdopen(reading) as stream:
        for line in stream:
            yield tuple(json.loads(line))
    _, status = os.waitpid(child, 0)
    if status:
        data = (folder / BEGUN).read_bytes().hex()
        yield "crashed", f"the process ended with {status}", data


def main() -> int:
    given_ = arguments(__doc__ or "", 10_000)
    campaign = Campaign("fuzz", given_.seed, given_.results)
    with tempfile.TemporaryDirectory(dir=QUICK) as name:
        folder = Path(name)
        os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
        run(campaign, kinds(folder), folder, given_.count)
    return bool(campaign.faults)


if __name__ == "__main__":
    sys.exit(main())
