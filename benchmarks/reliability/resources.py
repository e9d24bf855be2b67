"""Too little of everything: a sentence, nothing lost, and it works once there is more.

    python benchmarks/reliability/resources.py

On a run of the tests' tiny network, each command under each condition: a disk that fills (a tmpfs
with N KiB left), one that can only be read, 64 file handles, too little memory (N MiB above what
the imports took, with a picture of 32 megapixels among those to predict; and a whole process under
`ulimit -v`), a clock that was set back by 400 days (files of the future, and libfaketime), two runs
into one folder at once, 64 processes that read one run at once. Disks are mounted where that is
allowed, and libfaketime is used where it is installed, else the condition is left out and said to
be.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.reliability.campaign import Campaign, arguments
from benchmarks.reliability.children import Child, Ended, limited, memory
from benchmarks.reliability.kill import contents
from benchmarks.reliability.stages import SHORT, material
from lorkd_deploy.errors import LorkdError

ROOM = (0, 8, 32, 96)  # KiB free on the disk that fills
MEMORY = (0, 2, 16)  # MiB above what the imports took
ADDRESSES = (96, 128, 160, 192, 256)  # MiB of a whole process, `ulimit -v`
DAYS = 400  # by which the clock is set back
LARGE = (4000, 8000)  # pixels of a picture that memory has no room for
PROTOCOL = (
    "Each command under each condition, in a forked process. Worked: exit code 0. A sentence: exit "
    "code 1 and no traceback, the former results whole. Wrong: all else. Not here: the condition "
    "can't be made on this machine."
)


@contextmanager
def disk(at: Path, kibibytes: int) -> Iterator[bool]:
    """A small disk at `at`; False where none can be mounted."""
    at.mkdir(parents=True)
    options = f"size={kibibytes}k"
    call = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(at)]
    done = (
        os.geteuid() == 0 and not subprocess.run(call, check=False, capture_output=True).returncode
    )
    try:
        yield done
    finally:
        if done:
            subprocess.run(["umount", str(at)], check=True, capture_output=True)
        shutil.rmtree(at)


class Trials:
    """The commands by name, under whatever condition."""

    def __init__(self, campaign: Campaign, start: Path, folder: Path) -> None:
        self.campaign, self.start, self.folder = campaign, start, folder

    def under(self, condition: str, at: Path, limit: Callable[[], None] | None = None) -> None:
        """Each command on the run at `at`."""
        for name, stage in SHORT.items():
            shutil.rmtree(at / "delivered", ignore_errors=True)  # `pack` never writes over a folder
            before = contents(at, stage.results)
            ended = Child(stage.command(at), limit).wait()
            wrong = judged(ended)
            if not wrong and ended.code:
                after = contents(at, stage.results)
                lost = [file for file, data in before.items() if after.get(file) != data]
                wrong = f"lost or changed: {', '.join(lost)}" if lost else ""
            self.count(f"{name}, {condition}", wrong, ended)

    def count(self, part: str, wrong: str, ended: Ended) -> None:
        outcome = "wrong" if wrong else ("worked" if not ended.code else "a sentence")
        fault = {"what": wrong, "said": ended.said[-600:]} if wrong else None
        self.campaign.add(part, outcome, fault)

    def fresh(self, at: Path) -> Path:
        shutil.copytree(self.start, at, dirs_exist_ok=True)
        return at


def judged(ended: Ended) -> str:
    """What is wrong with how a command ended; nothing if all is well."""
    if not ended.is_sentence:
        return "a traceback" if ended.code >= 0 else f"ended by signal {-ended.code}"
    if ended.code not in (0, 1):
        return f"exit code {ended.code}"
    return "" if not ended.code or ended.said.strip() else "no word"


def run(campaign: Campaign, folder: Path, room: tuple[int, ...] = ROOM) -> None:
    """All conditions, once."""
    trials = Trials(campaign, material(folder), folder)
    files = limited(resource.RLIMIT_NOFILE, 64)
    trials.under("64 file handles", trials.fresh(folder / "handles"), files)
    _little_memory(trials)
    _clock_set_back(trials)
    _small_disks(trials, room)
    _at_once(trials)
    campaign.write("Too little of everything", PROTOCOL)


def _little_memory(trials: Trials) -> None:
    for amount in MEMORY:
        at = trials.fresh(trials.folder / f"memory{amount}")
        Image.new("L", LARGE).save(at / "pictures" / "large.png")
        trials.under(f"{amount} MiB of memory", at, memory(amount))
        trials.under("afterwards, with all of it", at)
    at = trials.fresh(trials.folder / "addresses")
    for amount in ADDRESSES:
        limit = limited(resource.RLIMIT_AS, amount << 20)
        ended = anew(SHORT["predict"].command(at), limit)
        trials.count("predict, under `ulimit -v`", judged(ended), ended)


def _clock_set_back(trials: Trials) -> None:
    at = trials.fresh(trials.folder / "future")
    in_the_future(at, DAYS)
    trials.under("files of the future", at)
    faketime = shutil.which("faketime")
    if faketime is None:
        trials.campaign.add("a clock set back", "not here")
        return
    at = trials.fresh(trials.folder / "clock")
    for name, stage in SHORT.items():
        prefix = (faketime, "-f", f"-{DAYS}d")
        ended = anew(stage.command(at), prefix=prefix)
        wrong = judged(ended) or ("fails" if ended.code else "")
        trials.count(f"{name}, a clock set back", wrong, ended)
    again = Child(SHORT["predict"].command(at)).wait()  # the log goes on with the right time
    checked = Child(["audit", "verify", f"{at}/log.jsonl"]).wait()
    for what, one in (("predict", again), ("audit verify", checked)):
        trials.count(f"{what}, after it", judged(one) or ("fails" if one.code else ""), one)


def in_the_future(folder: Path, days: int) -> None:
    """Give every file below it a time to come, as those of a clock that is set back later have."""
    when = time.time() + 86400 * days
    for file in (folder, *folder.rglob("*")):
        os.utime(file, (when, when))


def anew(
    command: Sequence[str], limit: Callable[[], None] | None = None, prefix: Sequence[str] = ()
) -> Ended:
    """A command in an interpreter of its own."""
    began = time.monotonic()
    whole = [*prefix, sys.executable, "-m", "lorkd_deploy", *command]
    ended = subprocess.run(
        whole, check=False, capture_output=True, text=True, errors="replace", preexec_fn=limit
    )
    return Ended(ended.returncode, ended.stdout + ended.stderr, 0.0, time.monotonic() - began)


def _small_disks(trials: Trials, room: tuple[int, ...]) -> None:
    campaign, folder = trials.campaign, trials.folder
    size = sum(f.stat().st_blocks // 2 for f in trials.start.rglob("*") if f.is_file())
    for free in room:
        at = folder / "disk"
        with disk(at, size + 256 + free) as mounted:
            if not mounted:
                campaign.add("a full disk", "not here")
                continue
            trials.fresh(at)
            taken = shutil.disk_usage(at).free - (free << 10)
            if taken > 0:
                (at / "filler").write_bytes(bytes(taken))
            trials.under("a full disk", at)
            (at / "filler").unlink(missing_ok=True)
    with disk(folder / "disk", size + 1024) as mounted:
        if mounted:
            at = trials.fresh(folder / "disk")
            subprocess.run(["mount", "-o", "remount,ro", str(at)], check=True, capture_output=True)
            trials.under("a disk that can only be read", at)
        else:
            campaign.add("a disk that can only be read", "not here")


def _at_once(trials: Trials) -> None:
    """Two writers of one folder, and many readers."""
    at = trials.fresh(trials.folder / "two")
    command = SHORT["export"].command(at)
    pair = [Child(command) for n in range(2)]
    ended = [child.wait() for child in pair]
    for one in ended:
        trials.count("export, twice at once", judged(one), one)
    if all(one.code for one in ended):
        trials.count("export, twice at once", "neither did it", ended[0])
    checked = Child(["verify", f"{at}/run", "--quiet"]).wait()
    trials.count("verify, after two exports at once", judged(checked), checked)
    many = [Child(["inspect", f"{at}/run", "--json"]) for n in range(64)]
    for child in many:
        one = child.wait()
        trials.count("inspect, 64 at once", judged(one) or ("fails" if one.code else ""), one)


def main() -> int:
    given = arguments(__doc__ or "", 1)
    campaign = Campaign("resources", given.seed, given.results)
    campaign.counts, campaign.faults = {}, []  # a few minutes: always anew
    with tempfile.TemporaryDirectory() as name:
        try:
            run(campaign, Path(name))
        except LorkdError as exc:
            print(exc)
            return 1
    print(json.dumps(campaign.faults, indent=1))
    return bool(campaign.faults)


if __name__ == "__main__":
    sys.exit(main())
