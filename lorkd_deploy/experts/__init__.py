"""Low-rank experts for any `nn.Module`: W0 for all tasks, one ΔW for each."""

from lorkd_deploy.experts.absent import hold_absent
from lorkd_deploy.experts.heads import ExpertClassifier, Outputs, TaskHeads, TaskNetwork
from lorkd_deploy.experts.injection import add_experts
from lorkd_deploy.experts.model import BoundLayer, ExpertModel
from lorkd_deploy.experts.routing import Route, route_of_counts

__all__ = [
    "BoundLayer",
    "ExpertClassifier",
    "ExpertModel",
    "Outputs",
    "Route",
    "TaskHeads",
    "TaskNetwork",
    "add_experts",
    "hold_absent",
    "route_of_counts",
]
