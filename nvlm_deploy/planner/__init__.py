"""The planner: what an engine needs and reaches on a device, from the model's config alone."""

from nvlm_deploy.planner.alternatives import with_hints
from nvlm_deploy.planner.device_plan import DevicePlan, plan_on_device
from nvlm_deploy.planner.ranking import Ranking, rank_recipes
from nvlm_deploy.planner.request import PlanRequest, Question, read_question, read_recipe, tokenizer_bytes
from nvlm_deploy.planner.shards import Parallel
from nvlm_deploy.planner.workload import Workload

__all__ = [
    "DevicePlan",
    "Parallel",
    "PlanRequest",
    "Question",
    "Ranking",
    "Workload",
    "plan_on_device",
    "rank_recipes",
    "read_question",
    "read_recipe",
    "tokenizer_bytes",
    "with_hints",
]
