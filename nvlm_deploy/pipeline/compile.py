"""Stage: build kit -> engine bundle, on the device that the kit is for. Not yet run on a GPU.

Every part is compiled in a process of its own, whose memory is watched. A run that was stopped goes on
behind its last finished stage, if the files of that stage are still what they were.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from nvlm_deploy.backends.tensorrt.compile import CompileJob, compile_graph
from nvlm_deploy.backends.tensorrt_llm import rank as rank_process
from nvlm_deploy.backends.tensorrt_llm.build_config import check_engine_config
from nvlm_deploy.config.kit import KIT_NAME, BuildKit, check_files
from nvlm_deploy.config.machine import Machine
from nvlm_deploy.config.manifest import EngineManifest, FileEntry, collect_files, file_sha256
from nvlm_deploy.config.strict_json import from_json, to_json
from nvlm_deploy.errors import NvlmError, UnsuitableError
from nvlm_deploy.pipeline.compile_plan import PLAN_KEY, CompilePlan, Stage, preflight
from nvlm_deploy.pipeline.engine import BuildResult
from nvlm_deploy.pipeline.measured import PREDICTION_KEY, pair
from nvlm_deploy.pipeline.memory_cap import memory_cap
from nvlm_deploy.pipeline.resumable import ResumableWork, resumable_directory
from nvlm_deploy.progress import ProgressCallback, no_progress

logger = logging.getLogger(__name__)

STAGE = "compile"
_LAST_LINES = 12

Runner = Callable[[CompilePlan, Stage, Path], dict[str, Any]]


def compile_kit(plan: CompilePlan, progress: ProgressCallback = no_progress) -> BuildResult:
    """Compile a kit. The bundle appears at the output whole or not at all; it is not verified here.

    Raises:
        UnsuitableError: this machine lacks something; names all of it.
        VerificationError: a file of the kit has changed.
        NvlmError: a compiler failed, or took too much memory; finished stages are kept.
    """
    preflight(plan)
    machine = Machine.here()
    versions = {**machine.versions, **({} if machine.cuda is None else {"cuda": machine.cuda})}
    return run_stages(plan, compile_stage, versions, progress)


def run_stages(
    plan: CompilePlan,
    run: Runner,
    versions: Mapping[str, str],
    progress: ProgressCallback = no_progress,
) -> BuildResult:
    """Run all stages that are not finished with `run`, and publish the bundle.

    Args:
        versions: of the engine makers and of CUDA here; stages made with others are done again.
    """
    start = time.perf_counter()
    request, kit = plan.request, plan.kit
    check_files(request.kit, kit.files, progress)
    key = {
        "kit": kit.digest,
        "versions": dict(versions),
        "arguments": plan.arguments and plan.arguments.to_dict(),
    }
    with resumable_directory(request.output, key) as work:
        _copy_files(request.kit, kit, work.result)
        notes = _run_all(plan, run, work, progress)
        _remove_remains(plan, notes, work.result)
        manifest = _manifest(plan, notes, work.result, dict(versions), time.perf_counter() - start, progress)
        manifest.write(work.result)
    return BuildResult(request.output, manifest, time.perf_counter() - start)


def compile_stage(plan: CompilePlan, stage: Stage, output: Path) -> dict[str, Any]:
    """Compile one stage into `output`; return what it took."""
    part, source = stage.part, plan.request.kit / stage.part.source
    target = output / part.output
    target.parent.mkdir(parents=True, exist_ok=True)
    if stage.rank is None:
        job = CompileJob(**{**part.job, "graph": str(source), "plan": str(target)})
        return {"version": compile_graph(job).version}
    assert plan.arguments is not None, "a stage with a rank is TensorRT-LLM's"
    with tempfile.TemporaryDirectory(prefix="nvlm-compile-") as work:
        job_path = Path(work) / "job.json"
        rank_process.write_job(job_path, source.absolute(), stage.rank, plan.arguments, target.absolute())
        run_process(rank_process.command(job_path), stage.name, Path(work), _gpu_of(plan, stage.rank))
    return {"version": plan.release}


def run_process(
    command: Sequence[str], what: str, folder: Path, environment: dict[str, str] | None = None
) -> None:
    """Run a compiler in `folder`; its output is in the error if it fails.

    Raises:
        UnsuitableError, NvlmError: it failed; the last lines that it printed are in the message.
    """
    done = subprocess.run(
        command,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        env=environment,
    )
    logger.debug("%s", done.stdout)
    if done.returncode == 0:
        return
    said = "\n".join(done.stdout.splitlines()[-_LAST_LINES:]) or "it said nothing"
    if done.returncode < 0:
        raise NvlmError(
            f"the process of {what} was ended by signal {-done.returncode}: {said}",
            hint="signal 9 often means too little memory: see --max-build-memory, or add swap",
        )
    kind = UnsuitableError if done.returncode == UnsuitableError.exit_code else NvlmError
    raise kind(f"{what} could not be compiled (exit code {done.returncode}):\n{said}")


def _gpu_of(plan: CompilePlan, rank: int) -> dict[str, str] | None:
    if plan.request.workers == 1:
        return None
    return {**os.environ, "CUDA_VISIBLE_DEVICES": str(rank % plan.request.workers)}


def _run_all(
    plan: CompilePlan, run: Runner, work: ResumableWork, progress: ProgressCallback
) -> list[dict[str, Any]]:
    notes: dict[int, dict[str, Any]] = {}
    waiting = []
    for number in range(len(plan.stages)):
        note = work.finished(number)
        if note is not None and _unchanged(work.result, note):
            notes[number] = note
        else:
            waiting.append(number)
    progress(STAGE, len(notes), len(plan.stages))

    def one(number: int) -> None:
        notes[number] = _run_stage(plan, run, number, work)
        progress(STAGE, len(notes), len(plan.stages))

    with memory_cap(plan.memory_limit, "compiling") as watch:
        # Only ranks can be built side by side: they are the language model's, after the vision engine.
        single = [number for number in waiting if plan.stages[number].rank is None]
        ranks = [number for number in waiting if plan.stages[number].rank is not None]
        for number in single:
            one(number)
        with ThreadPoolExecutor(max_workers=max(1, plan.request.workers)) as pool:
            for _ in pool.map(one, ranks):
                pass
    logger.info("peak memory of the compilers: %.2f GB", watch.peak_bytes / 1e9)
    return [notes[number] for number in range(len(plan.stages))]


def _run_stage(plan: CompilePlan, run: Runner, number: int, work: ResumableWork) -> dict[str, Any]:
    stage, start = plan.stages[number], time.perf_counter()
    logger.info("compiling %s", stage.name)
    with memory_cap(None, stage.name) as watch:
        took = run(plan, stage, work.result)
    paths = _outputs(work.result, stage)
    if not paths:
        raise NvlmError(f"{stage.name}: the compiler ended without an engine")
    entries = [
        FileEntry(path.relative_to(work.result).as_posix(), path.stat().st_size, file_sha256(path))
        for path in paths
    ]
    note = {
        "stage": stage.name,
        "seconds": round(time.perf_counter() - start, 3),
        "peak_bytes": watch.peak_bytes,
        "files": [to_json(entry) for entry in entries],
        **took,
    }
    work.finish(number, note)
    return note


def _outputs(result: Path, stage: Stage) -> list[Path]:
    path = result / stage.part.output
    if stage.rank is None:
        return [path] if path.is_file() else []
    engine = path / f"rank{stage.rank}.engine"
    config = path / "config.json"
    wanted = [engine, config] if stage.rank == 0 else [engine]
    return wanted if all(each.is_file() for each in wanted) else []


def _unchanged(result: Path, note: dict[str, Any]) -> bool:
    for raw in note["files"]:
        entry = from_json(FileEntry, raw, "a finished stage")
        path = result / entry.path
        if not path.is_file() or path.stat().st_size != entry.size or file_sha256(path) != entry.sha256:
            return False
    return True


def _remove_remains(plan: CompilePlan, notes: list[dict[str, Any]], result: Path) -> None:
    """Remove what compilers that were killed have left beside the engines."""
    kept = {result / entry["path"] for note in notes for entry in note["files"]}
    for folder in {(result / part.output).parts[len(result.parts)] for part in plan.kit.parts}:
        for path in (result / folder).rglob("*"):
            if path.is_file() and path not in kept:
                path.unlink()


def _copy_files(directory: Path, kit: BuildKit, result: Path) -> None:
    """Copy what a bundle has of its kit: the files that lie in no folder, and not the page for people."""
    for entry in kit.files:
        if "/" not in entry.path and entry.path not in (KIT_NAME, "README.md"):
            shutil.copyfile(directory / entry.path, result / entry.path)


def _manifest(
    plan: CompilePlan,
    notes: list[dict[str, Any]],
    result: Path,
    versions: dict[str, str],
    seconds: float,
    progress: ProgressCallback,
) -> EngineManifest:
    bundle = plan.kit.bundle
    makers = {"cuda", *(part.maker for part in plan.kit.parts)}
    sections = {part.part: _section(plan, part.part, result) for part in plan.kit.parts}
    used = {maker: versions[maker] for maker in sorted(makers) if maker in versions}
    stages = [{name: note[name] for name in ("stage", "seconds", "peak_bytes")} for note in notes]
    return replace(
        bundle,
        tool_versions={**bundle.tool_versions, **used},
        vision=sections["vision"],
        llm=sections["llm"],
        files=collect_files(result, progress),
        results={
            **bundle.results,
            PREDICTION_KEY: _side_by_side(bundle.results.get(PLAN_KEY), stages, result, seconds),
            "compile": {"seconds": round(seconds, 3), "stages": stages},
        },
    )


def _side_by_side(
    predicted: dict[str, Any] | None, stages: Sequence[Mapping[str, Any]], result: Path, seconds: float
) -> dict[str, Any]:
    """What the planner has predicted, and what the compilers took."""
    files = (predicted or {}).get("files_bytes", {})
    build = (predicted or {}).get("build", {})
    sizes = {
        part: sum(path.stat().st_size for path in (result / part).rglob("*") if path.is_file())
        for part in ("vision", "llm")
    }
    peak = max(int(stage["peak_bytes"]) for stage in stages)
    return {
        **{f"{part}_bytes": pair(files.get(part), size) for part, size in sizes.items()},
        "build_host_bytes": pair(build.get("host_bytes"), peak),
        "build_s": pair(None, round(seconds, 3)),
    }


def _section(plan: CompilePlan, name: str, result: Path) -> dict[str, Any]:
    part = plan.kit.part(name)
    if part.maker != "tensorrt_llm":
        return part.section
    assert plan.settings is not None, "a kit with a TensorRT-LLM part has settings"
    settings = plan.settings
    config = json.loads((result / part.output / "config.json").read_text(encoding="utf-8"))
    check_engine_config(config, settings)
    return {
        **part.section,
        "dtype": settings.dtype,
        "tp": settings.tp,
        "pp": settings.pp,
        "max_batch_size": settings.max_batch_size,
        "max_num_tokens": settings.max_num_tokens,
        "max_prompt_embedding_table_size": settings.max_prompt_embedding_table_size,
        "paged_context_fmha": settings.paged_context_fmha,
    }
