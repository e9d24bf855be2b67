"""JSON files that lorkd writes and reads back: their base, and one way to write and to read them.

Each file holds a digest of itself, the SHA-256 of its bytes with the digest's own 64 characters
set to zeros, so that a single flipped bit anywhere in it is found. It protects against damage, not
against a person who changes a file and computes it anew.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from lorkd_deploy.errors import LorkdError
from lorkd_deploy.storage import ZEROS, as_written, canonical_json, with_digest, write_atomic

DIGEST = "digest"
UPGRADE = "upgrade lorkd-deploy on this machine"
# Keys of the file itself are indented by one space, and no JSON text holds a line break.
_DIGEST_LINE = re.compile(rb'^ "digest": "([0-9a-f]{64})",?$', re.MULTILINE)


class Part(BaseModel):
    """The base of every value that goes into a file or a result: frozen, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


PartT = TypeVar("PartT", bound=Part)


def document_bytes(value: Mapping[str, Any]) -> bytes:
    """`value` as a JSON file with the digest of itself; a digest in `value` is replaced."""
    blank = canonical_json({**value, DIGEST: ZEROS.decode()})
    return with_digest(blank, _DIGEST_LINE.search(blank))


def write_part(path: Path, part: Part) -> None:
    """Write `part` to `path`, atomically and with its digest."""
    write_atomic(path, document_bytes(part.model_dump(mode="json")))


def read_document(path: Path, error: type[LorkdError], again: str) -> dict[str, Any]:
    """What the JSON file at `path` says, without its digest, which is checked.

    Raises `error`, with `again` as what to do, where the file is missing, no JSON object, has no
    digest (or more than one), or is not as it was written.
    """
    try:
        data = path.read_bytes()
        value = json.loads(data.decode())
    except FileNotFoundError:
        raise error(f"{path.name} is missing", where=path, fix=again) from None
    except (ValueError, RecursionError) as exc:
        raise error(f"{path.name} is not valid JSON: {exc}", where=path, fix=again) from exc
    lines = list(_DIGEST_LINE.finditer(data))
    if not isinstance(value, dict) or not lines:
        raise error(
            f"{path.name} holds no digest of itself: an older lorkd-deploy wrote it, or it is "
            "damaged",
            where=path,
            fix=again,
        )
    digest = lines[0]
    right = value.pop(DIGEST, None) == digest[1].decode() and as_written(data, digest)
    if len(lines) > 1 or not right:
        raise error(f"{path.name} has changed since it was written", where=path, fix=again)
    return value


def read_part(path: Path, kind: type[PartT], error: type[LorkdError], again: str) -> PartT:
    """The `kind` that the JSON file at `path` holds.

    Raises `error`, with `again` as what to do, as `read_document` does, and where the file has
    another `schema_version` than `kind` or doesn't fit it.
    """
    value = read_document(path, error, again)
    if field := kind.model_fields.get("schema_version"):
        version = value.get("schema_version")
        if not isinstance(version, int):
            raise error(f"{path.name} has no schema_version", where=path, fix=again)
        if version != field.default:
            raise error(
                f"{path.name} has schema {version}, this version reads {field.default}",
                where=path,
                fix=UPGRADE if version > field.default else again,
            )
    try:
        return kind.model_validate(value)
    except ValidationError as exc:
        faults = exc.errors()
        place = ".".join(str(part) for part in faults[0]["loc"])
        more = f" ({len(faults)} faults in all)" if len(faults) > 1 else ""
        raise error(
            f"{path.name} is not valid at {place}: {faults[0]['msg']}{more}", where=path, fix=again
        ) from exc
