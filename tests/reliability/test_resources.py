"""Too little of everything, in the short form of `benchmarks/reliability/resources.py`."""

from __future__ import annotations

import resource
import shutil
import time
from pathlib import Path

import pytest
from PIL import Image

from benchmarks.reliability import resources
from benchmarks.reliability.campaign import Campaign
from benchmarks.reliability.children import Child, Ended, apart, limited, memory
from benchmarks.reliability.stages import IMAGES
from lorkd_deploy import cli
from lorkd_deploy.clinic.audit import verify_log


@pytest.mark.slow
def test_too_little_is_a_sentence_and_works_afterwards(start: Path, tmp_path: Path) -> None:
    campaign = Campaign("resources", seed=0, folder=tmp_path)
    trials = resources.Trials(campaign, start, tmp_path)
    at = trials.fresh(tmp_path / "at")
    trials.under("no disk", at, limited(resource.RLIMIT_FSIZE, 512))
    trials.under("afterwards", at)
    assert campaign.faults == []
    for name in resources.SHORT:
        assert campaign.counts[f"{name}, no disk"] == {"a sentence": 1}
        assert campaign.counts[f"{name}, afterwards"] == {"worked": 1}


def test_a_picture_that_memory_has_no_room_for(start: Path, tmp_path: Path) -> None:
    at = shutil.copytree(start, tmp_path / "at")
    Image.new("L", resources.LARGE).save(at / "large.png")
    ended = apart(_predicted, at)  # what this process has freed before would be room enough
    assert ended.code == 1 and not resources.judged(ended), ended
    assert "not enough memory for the image" in ended.said and "large.png" in ended.said
    assert not (at / "eye.csv").exists()


def _predicted(at: Path) -> Ended:
    assert not cli.main(resources.SHORT["predict"].command(at))  # what it loads is there then
    (at / "eye.csv").unlink()
    (at / "large.png").rename(at / "pictures" / "large.png")
    return Child(resources.SHORT["predict"].command(at), memory(16)).wait()


def test_files_of_the_future_are_files(start: Path, tmp_path: Path) -> None:
    """As they are once a clock was set back."""
    at = shutil.copytree(start, tmp_path / "at")
    assert Child(resources.SHORT["predict"].command(at)).wait().code == 0
    resources.in_the_future(at, resources.DAYS)
    assert (at / "eye.csv").stat().st_mtime > time.time() + 86400
    for name in ("export", "predict"):
        ended = Child(resources.SHORT[name].command(at)).wait()
        assert ended.code == 0, ended.said
    assert verify_log(at / "log.jsonl").lines == 2 * IMAGES


@pytest.mark.parametrize(
    ("ended", "wrong"),
    [
        (Ended(0, "", 1, 1), ""),
        (Ended(1, "error: the disk is full", 1, 1), ""),
        (Ended(1, "Traceback (most recent call last)", 1, 1), "a traceback"),
        (Ended(-11, "", 1, 1), "ended by signal 11"),
        (Ended(70, "x", 1, 1), "exit code 70"),
        (Ended(1, "", 1, 1), "no word"),
    ],
)
def test_how_an_end_is_judged(ended: Ended, wrong: str) -> None:
    assert resources.judged(ended) == wrong
