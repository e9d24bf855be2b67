"""JSON schemas of the files that lorkd writes, from the models that write them.

    python docs/schemas.py

writes them to docs/schemas; a test fails where one of them is not what the models say.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema

from lorkd_deploy.bundle.manifest import Manifest
from lorkd_deploy.datacheck.result import DataCheck
from lorkd_deploy.deploy.answers.model_step import Step
from lorkd_deploy.deploy.artifact import Artifact
from lorkd_deploy.profiling.mlperf.profile import ScenarioProfile
from lorkd_deploy.profiling.profile import Profile
from lorkd_deploy.recipe import Recipe
from lorkd_deploy.run import RunRecord
from lorkd_deploy.schema import DIGEST

FOLDER = Path(__file__).with_name("schemas")
FILES: dict[str, type[BaseModel]] = {
    "artifact": Artifact,
    "data-check": DataCheck,
    "manifest": Manifest,
    "profile": Profile,
    "recipe": Recipe,
    "run": RunRecord,
    "scenarios": ScenarioProfile,
    "step": Step,
}
# A recipe is written by hand, and a manifest leaves out what has its default.
WITHOUT_DEFAULTS = {"manifest", "recipe"}
OWN_DIGEST = {
    "type": "string",
    "pattern": "^[0-9a-f]{64}$",
    "description": "SHA-256 of the file's bytes with these 64 characters as zeros",
}


class Untitled(GenerateJsonSchema):
    """Without the titles that pydantic makes of the names."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def schema(name: str) -> str:
    """The schema of one of `FILES`, as JSON text."""
    mode: Literal["validation", "serialization"]
    mode = "validation" if name in WITHOUT_DEFAULTS else "serialization"
    model = FILES[name]
    found: dict[str, Any] = model.model_json_schema(mode=mode, schema_generator=Untitled)
    if name != "recipe":
        version = model.model_fields["schema_version"].default
        found["properties"] |= {DIGEST: OWN_DIGEST, "schema_version": {"const": version}}
        found["required"] = sorted({*found.get("required", ()), DIGEST, "schema_version"})
    found["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    return json.dumps(found, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    for name in FILES:
        (FOLDER / f"{name}.json").write_text(schema(name), encoding="utf-8")
