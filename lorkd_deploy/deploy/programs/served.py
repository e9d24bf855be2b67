"""An engine with the bundle that it came from, as a layout is given it."""

from __future__ import annotations

from typing import NamedTuple

from lorkd_deploy.bundle.read import Bundle
from lorkd_deploy.deploy.artifact import Artifact


class ServedModel(NamedTuple):
    """One model of a server; its name there is the engine's."""

    artifact: Artifact
    bundle: Bundle

    @property
    def name(self) -> str:
        return self.artifact.engine

    @property
    def guarded(self) -> bool:
        """Whether the bundle has a guard for it."""
        return self.bundle.engine(self.name)[0].safety.guard is not None
