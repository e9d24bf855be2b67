"""Low-rank experts for any `nn.Module`: W0 for all tasks, one ΔW for each."""

from lorkd_deploy.experts.heads import ExpertClassifier, Outputs, TaskHeads
from lorkd_deploy.experts.injection import add_experts
from lorkd_deploy.experts.model import BoundLayer, ExpertModel

__all__ = ["BoundLayer", "ExpertClassifier", "ExpertModel", "Outputs", "TaskHeads", "add_experts"]
