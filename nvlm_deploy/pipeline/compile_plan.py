"""The plan of compiling a kit on its device: stages, the very arguments, and what this machine lacks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nvlm_deploy.backends.tensorrt_llm.adapter import installed_version
from nvlm_deploy.backends.tensorrt_llm.build_config import (
    BuildArguments,
    EngineLimits,
    LlmBuildSettings,
    arguments,
    settle,
)
from nvlm_deploy.backends.tensorrt_llm.interface import Interface, interface_of
from nvlm_deploy.config.kit import BuildKit, KitPart, check_files
from nvlm_deploy.doctor import System, ThisMachine, Wanted, gather, target_lines
from nvlm_deploy.errors import NvlmError, UnsuitableError
from nvlm_deploy.pipeline.atomic import check_output, free_bytes
from nvlm_deploy.pipeline.memory_cap import available_bytes

CHECKPOINT_CONFIG = "config.json"
# What the planner has predicted, in the results of a kit's manifest.
PLAN_KEY = "plan"


@dataclass(frozen=True, slots=True)
class CompileRequest:
    """What a user asks for.

    max_build_memory: bytes that the compilers may take together; None: what the machine has available.
    workers: ranks that are built side by side, each on a GPU of its own.
    """

    kit: Path
    output: Path
    max_build_memory: int | None = None
    workers: int = 1


@dataclass(frozen=True, slots=True)
class Stage:
    """One piece of work that is not done twice. rank: of a part that is built rank by rank."""

    name: str
    part: KitPart
    rank: int | None = None


@dataclass(frozen=True, slots=True)
class CompilePlan:
    """A kit, what is compiled of it and how.

    release: the TensorRT-LLM that the arguments are for: the installed one, or the target's if there is none.
    """

    request: CompileRequest
    kit: BuildKit
    stages: tuple[Stage, ...]
    release: str | None
    settings: LlmBuildSettings | None
    arguments: BuildArguments | None
    memory_limit: int | None

    @property
    def disk_needed(self) -> int:
        """Bytes of the bundle: engines are about as large as what they are made from."""
        return sum(entry.size for entry in self.kit.files)

    def to_dict(self) -> dict[str, Any]:
        """A structure of plain types for JSON."""
        return {
            "kit": str(self.request.kit),
            "output": str(self.request.output),
            "target": self.kit.bundle.target["name"],
            "recipe": self.kit.bundle.recipe["name"],
            "release": self.release,
            "stages": [
                {"name": stage.name, "maker": stage.part.maker, **_job(stage)} for stage in self.stages
            ],
            "settings": None if self.settings is None else asdict(self.settings),
            "arguments": None if self.arguments is None else self.arguments.to_dict(),
            "memory_limit": self.memory_limit,
            "workers": self.request.workers,
            "disk_needed": self.disk_needed,
            "probes": self.kit.probes,
            "missing": missing_here(self),
        }


def plan_compile(request: CompileRequest) -> CompilePlan:
    """Read a kit and settle how it is compiled; writes nothing.

    Raises:
        UsageError: the output exists.
        UnsuitableError: the installed TensorRT-LLM cannot build it.
        NvlmError: the kit is not in order.
        VerificationError: a file of the kit is missing or has another size.
    """
    check_output(request.output)
    kit = BuildKit.read(request.kit)
    check_files(request.kit, kit.files, digests=False)
    release, settings, built = language_settings(request.kit, kit)
    limit = request.max_build_memory
    if limit is None:
        limit = available_bytes()
    return CompilePlan(request, kit, tuple(_stages(kit, settings)), release, settings, built, limit)


def preflight(plan: CompilePlan, system: System | None = None) -> None:
    """Refuse to begin what cannot end.

    Raises:
        UnsuitableError: names everything that this machine lacks.
    """
    missing = missing_here(plan, system)
    if missing:
        target = plan.kit.bundle.target["name"]
        raise UnsuitableError(
            f"{plan.request.kit} cannot be compiled here:" + "".join(f"\n  - {each}" for each in missing),
            hint=f"compile it on the device, {target}, in the environment of its page in docs/targets/; "
            f"nvlm-build doctor --target {target} says more",
        )


def missing_here(plan: CompilePlan, system: System | None = None) -> list[str]:
    """What this machine lacks to compile the kit, in words: the doctor's errors, disk and memory."""
    return [*doctor_errors(plan.kit.bundle.target, system), *_too_large(plan), *_no_room(plan)]


def doctor_errors(target: dict[str, Any], system: System | None = None) -> list[str]:
    """What the doctor finds missing for a target, with its advice."""
    system = system or ThisMachine()
    wanted = Wanted(
        target["name"], target["backend"], target["architecture"], target["sm"], target["versions"]
    )
    lines = target_lines(wanted, gather(system), system)
    return [f"{line.found}: {line.advice}" for line in lines if line.status == "error"]


def _too_large(plan: CompilePlan) -> Iterator[str]:
    """A build that the device's own memory is predicted not to hold; a cap of the user's overrules it."""
    build = plan.kit.bundle.results.get(PLAN_KEY, {}).get("build", {})
    if build.get("on_target") is False and plan.request.max_build_memory is None:
        yield f"{build['reason']}; --max-build-memory tries all the same"


def _no_room(plan: CompilePlan) -> Iterator[str]:
    free = free_bytes(plan.request.output)
    if free < plan.disk_needed:
        yield (
            f"the disk has {free / 1e9:.2f} GB free, and the bundle takes about "
            f"{plan.disk_needed / 1e9:.2f} GB"
        )
    there = available_bytes()
    asked = plan.request.max_build_memory
    if asked is not None and there is not None and asked > there:
        yield f"--max-build-memory is {asked / 1e9:.2f} GB, and {there / 1e9:.2f} GB are available"


def language_settings(
    directory: Path, kit: BuildKit
) -> tuple[str | None, LlmBuildSettings | None, BuildArguments | None]:
    """The release of TensorRT-LLM that builds a kit's language model, and how; None for other makers.

    Raises:
        UnsuitableError: the installed one cannot, or the context is too short.
        NvlmError: the checkpoint's config cannot be read.
    """
    part = kit.part("llm")
    if part.maker != "tensorrt_llm":
        return None, None, None
    release = installed_version() or str(kit.bundle.target["versions"]["tensorrt_llm"])
    interface = interface_of(release)
    _check_release(interface, part, release)
    path = directory / part.source / CHECKPOINT_CONFIG
    try:
        checkpoint = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise NvlmError(f"{path} cannot be read: {error}", hint="copy the kit again") from None
    settings = settle(checkpoint, EngineLimits(**part.job["limits"]), interface)
    return release, settings, arguments(settings, interface)


def _check_release(interface: Interface, part: KitPart, installed: str) -> None:
    wanted = interface_of(part.job["version"])
    if interface is not wanted:
        raise UnsuitableError(
            f"the kit's checkpoint is for TensorRT-LLM {wanted.name}, and {installed} is installed here",
            hint="use the environment of the target's page in docs/targets/, or write the kit for this "
            f"release: --set target.versions.tensorrt_llm={installed}",
        )


def _stages(kit: BuildKit, settings: LlmBuildSettings | None) -> Iterator[Stage]:
    for part in kit.parts:
        if part.maker == "tensorrt_llm":
            assert settings is not None, "a kit with a TensorRT-LLM part has settings"
            for rank in range(settings.world_size):
                yield Stage(f"{part.part}, rank {rank}", part, rank)
        else:
            yield Stage(part.part, part)


def _job(stage: Stage) -> dict[str, Any]:
    source = {"source": stage.part.source, "output": stage.part.output}
    return source if stage.rank is None else {**source, "rank": stage.rank}
