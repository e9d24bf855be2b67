"""The base of everything that is written as JSON and read back: frozen, unknown keys refused."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Part(BaseModel):
    """A frozen value of a file that lorkd writes; a key that it doesn't know is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)
