"""What a machine has, and what of it does not go together: `nvlm-build doctor`. Imports no torch."""

from nvlm_deploy.doctor.facts import gather
from nvlm_deploy.doctor.gpu import gpu_lines
from nvlm_deploy.doctor.jetson import jetson_lines
from nvlm_deploy.doctor.line import Line, Report, ok
from nvlm_deploy.doctor.packages import package_lines
from nvlm_deploy.doctor.resources import resource_lines
from nvlm_deploy.doctor.system import System, ThisMachine
from nvlm_deploy.doctor.target import Wanted, target_lines

__all__ = ["Line", "Report", "System", "ThisMachine", "Wanted", "examine", "gather", "target_lines"]


def examine(system: System, wanted: Wanted | None = None) -> Report:
    """Look at a machine, for a target if there is one; nothing is changed."""
    facts = gather(system)
    return Report.of(
        [ok("machine", f"{facts.architecture}, Python {facts.python}")],
        gpu_lines(facts),
        jetson_lines(facts, system),
        package_lines(facts, system),
        resource_lines(facts, system),
        target_lines(wanted, facts, system),
    )
