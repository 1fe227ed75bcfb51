"""Stage: checkpoint -> engine bundle through a kit, where it can be compiled. Not yet run on a GPU."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from nvlm_deploy.config.kit import BuildKit
from nvlm_deploy.pipeline.atomic import check_output
from nvlm_deploy.pipeline.compile import compile_kit
from nvlm_deploy.pipeline.compile_plan import CompileRequest, plan_compile
from nvlm_deploy.pipeline.engine import BuildResult
from nvlm_deploy.pipeline.kit import KitOptions, write_kit
from nvlm_deploy.pipeline.plan import EnginePlan
from nvlm_deploy.pipeline.verify_kit import verify_with_kit
from nvlm_deploy.progress import ProgressCallback, no_progress
from nvlm_deploy.verify.report import VerifyReport


def build_through_kit(
    plan: EnginePlan, options: KitOptions, progress: ProgressCallback = no_progress
) -> tuple[BuildResult, VerifyReport | None]:
    """Write a kit beside the output, compile it, ask its probes, and remove it.

    A kit that an earlier run has left, because its compilation failed, is not written again. The report is
    None without probes, and for engines of several ranks, which need as many processes.

    Raises:
        UsageError, UnsuitableError, NvlmError: see `write_kit` and `compile_kit`.
    """
    check_output(plan.output)
    directory = plan.output.with_name(f".{plan.output.name}.kit")
    if not _is_for(directory, plan):
        shutil.rmtree(directory, ignore_errors=True)
        write_kit(replace(plan, output=directory), options, progress)
    compiling = plan_compile(CompileRequest(directory, plan.output))
    result = compile_kit(compiling, progress)
    report = None
    if compiling.kit.probes and plan.device.parallel.ranks == 1:
        report = verify_with_kit(result.bundle, directory)
    shutil.rmtree(directory)
    return result, report


def _is_for(directory: Path, plan: EnginePlan) -> bool:
    if not directory.exists():
        return False
    made = BuildKit.read(directory).bundle
    recipe, target = plan.recipe.model_dump(mode="json"), plan.target.model_dump(mode="json")
    return (made.recipe, made.target, made.context) == (recipe, target, plan.context)
