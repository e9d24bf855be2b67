"""A recipe's preprocessing beside what a model hub's folder says of its network's inputs."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from lorkd_deploy.models import contradictions
from lorkd_deploy.preprocess import Preprocess

CLIP = {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.2686, 0.2613, 0.2758]}
OWN = Preprocess(size=224, mean=(0.4815, 0.4578, 0.4082), std=(0.2686, 0.2613, 0.2758))


@pytest.mark.parametrize(
    "said",
    [
        CLIP | {"size": {"height": 224, "width": 224}},
        CLIP | {"size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224}},
        CLIP | {"size": 224},
        CLIP | {"size": {"shortest_edge": 224}, "do_center_crop": False, "crop_size": 160},
        {"do_resize": True},
        # (x / 127.5 - 2 m) / 2 s is the same of the same images.
        {"rescale_factor": 2 / 255, **{k: [2 * x for x in v] for k, v in CLIP.items()}},
    ],
)
def test_what_agrees_is_not_told(tmp_path: Path, said: dict[str, Any]) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(said))
    assert contradictions(tmp_path, OWN) == ()


def test_each_value_that_differs_is_told_beside_the_files(tmp_path: Path) -> None:
    said = CLIP | {"image_std": [0.5, 0.5, 0.5], "size": {"height": 518, "width": 518}}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(said))
    std, size = contradictions(tmp_path, OWN)
    where = "where its preprocessor_config.json says"
    assert std == f"std [0.2686, 0.2613, 0.2758], {where} [0.5, 0.5, 0.5]"
    assert size == f"size 224 px, {where} 518 px"
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"do_normalize": False}))
    assert [line.partition(" ")[0] for line in contradictions(tmp_path, OWN)] == ["mean", "std"]


def test_open_clips_own_file_is_read_too(tmp_path: Path) -> None:
    said = {"preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "std": CLIP["image_std"]}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(said))
    (mean,) = contradictions(tmp_path, OWN)
    assert mean.endswith("where its open_clip_config.json says [0.5, 0.5, 0.5]")


def test_a_file_that_cannot_be_read_is_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert contradictions(tmp_path, OWN) == ()
    (tmp_path / "preprocessor_config.json").write_text("{")
    with caplog.at_level(logging.WARNING):
        assert contradictions(tmp_path, OWN) == ()
    assert "nothing is compared" in caplog.text
    for odd in ("[1]", '{"size": {}, "image_mean": ["a"], "crop_size": null}'):
        (tmp_path / "preprocessor_config.json").write_text(odd)
        assert contradictions(tmp_path, OWN) == ()
