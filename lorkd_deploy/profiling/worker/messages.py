"""What the benchmark and its worker say to each other: one line of JSON, then raw bytes if any.

    {"do": "infer", "shape": [8, 3, 64, 64], "bytes": 393216}\\n<393216 bytes of float32>

Arrays travel as raw bytes, so that neither side spends time on text.
"""

from __future__ import annotations

import json
from typing import IO, Any


def send(stream: IO[bytes], message: dict[str, Any], payload: bytes | memoryview = b"") -> None:
    """Write one message and its payload, and flush."""
    stream.write(json.dumps({**message, "bytes": len(payload)}).encode() + b"\n")
    stream.write(payload)
    stream.flush()


def receive(stream: IO[bytes]) -> tuple[dict[str, Any], bytes]:
    """Read one message and its payload; raises `EOFError` where the other side has ended."""
    line = stream.readline()
    if not line.endswith(b"\n"):
        raise EOFError
    message: dict[str, Any] = json.loads(line)
    size = message.pop("bytes")
    payload = stream.read(size)
    if len(payload) < size:
        raise EOFError
    return message, payload
