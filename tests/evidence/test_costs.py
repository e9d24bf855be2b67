"""What was measured of a study's networks is used again where it can be compared."""

from __future__ import annotations

from pathlib import Path

from lorkd_deploy.evidence import costs
from lorkd_deploy.evidence.costs import Graph, Measured
from lorkd_deploy.machine.packages import software
from lorkd_deploy.machine.processor import cpu_model
from lorkd_deploy.schema import write_part

KNOWN = Measured(
    graphs={"student": Graph(mib=1.5, latency=0.5), "teacher": Graph(mib=9.0, latency=None)},
    created="2026-11-28T00:00:00+00:00",
    processor=cpu_model(),
    software=software(),
)


def test_all_is_measured_again_where_a_network_or_the_machine_is_new(tmp_path: Path) -> None:
    file = tmp_path / "computed" / "costs.json"
    assert costs._read(None, ["student"]) is None
    assert costs._read(file, ["student"]) is None
    write_part(file, KNOWN)
    assert costs._read(file, ["student"]) == KNOWN
    assert costs._read(file, ["student", "teacher"]) == KNOWN
    assert costs._read(file, ["student", "factorised"]) is None
    write_part(file, KNOWN.model_copy(update={"processor": "another"}))
    assert costs._read(file, ["student"]) is None
    write_part(file, KNOWN.model_copy(update={"software": {"onnxruntime": "1"}}))
    assert costs._read(file, ["student"]) is None
    file.write_bytes(b"{")
    assert costs._read(file, ["student"]) is None
