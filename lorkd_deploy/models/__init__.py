"""Names → modules that turn images into features, and their weights from files."""

from lorkd_deploy.models.build import build, feature_dim
from lorkd_deploy.models.checkpoint import LoadReport, load_checkpoint
from lorkd_deploy.models.folder import config_of, needs_folder, read_config
from lorkd_deploy.models.published import contradictions

__all__ = [
    "LoadReport",
    "build",
    "config_of",
    "contradictions",
    "feature_dim",
    "load_checkpoint",
    "needs_folder",
    "read_config",
]
