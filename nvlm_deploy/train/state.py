"""Checkpoints of a run: what is trained and the optimizer's state, sharded, and where the data stands.

A checkpoint is written into `checkpoint-N.tmp` and renamed when all of it is on disk, so one that is there is
whole. What is frozen is not in it: it is still in the checkpoint that training started from.
"""

from __future__ import annotations

import base64
import json
import re
import shutil
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from nvlm_deploy.config.training import TrainingConfig
from nvlm_deploy.errors import NvlmError, UsageError
from nvlm_deploy.pipeline.atomic import publish
from nvlm_deploy.train.data.stream import resume_state
from nvlm_deploy.train.parallel import Processes

_NAME = re.compile(r"checkpoint-(\d+)")
_TRAINED = StateDictOptions(ignore_frozen_params=True, strict=False)
# What may change between the parts of one run: it moves no number.
_FREE = (
    "description",
    "output_dir",
    "logging_steps",
    "save_steps",
    "save_total_limit",
    "report_to",
    "dataloader_num_workers",
    "resume_from_checkpoint",
    "peak_tflops",
)


def save_checkpoint(
    output: Path,
    step: int,
    objective: nn.Module,
    optimizer: torch.optim.Optimizer,
    data: dict[str, Any],
    config: TrainingConfig,
    processes: Processes,
) -> Path:
    """Write `checkpoint-STEP` in `output`; every process calls this. Then remove those beyond the limit."""
    final = output / f"checkpoint-{step}"
    work = output / f"{final.name}.tmp"
    if processes.main:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
    processes.wait()
    model, moments = get_state_dict(objective, optimizer, options=_TRAINED)
    with _quiet():
        save({"model": model, "optimizer": moments}, checkpoint_id=work)
    process = {"data": data, "random": _random_state()}
    (work / f"process-{processes.rank}.json").write_text(json.dumps(process), encoding="utf-8")
    processes.wait()
    if processes.main:
        run = {"step": step, "world": processes.world, "config": config.to_dict()}
        (work / "run.json").write_text(json.dumps(run, indent=2) + "\n", encoding="utf-8")
        if final.exists():
            # Another way on from an older checkpoint has come as far before.
            shutil.rmtree(final.rename(output / f"{final.name}.old.tmp"))
        publish(work, final)
        for old in _checkpoints(output)[: -(config.save_total_limit or len(_checkpoints(output)))]:
            # A kill in between leaves what the next start removes, and not half a checkpoint.
            shutil.rmtree(old.rename(old.with_name(f"{old.name}.tmp")))
    processes.wait()
    return final


def load_checkpoint(
    directory: Path,
    objective: nn.Module,
    optimizer: torch.optim.Optimizer,
    config: TrainingConfig,
    processes: Processes,
) -> tuple[int, dict[str, Any]]:
    """Read a checkpoint in place; return its step, and the state of this process's data.

    Raises:
        UsageError: it belongs to a run with other settings; names the first that differs.
        NvlmError: a file of it is missing.
    """
    run = _read(directory / "run.json")
    _check_config(run["config"], config, directory)
    model, moments = get_state_dict(objective, optimizer, options=_TRAINED)
    state: dict[str, Any] = {"model": model, "optimizer": moments}
    with _quiet():
        load(state, checkpoint_id=directory)
    set_state_dict(
        objective,
        optimizer,
        model_state_dict=state["model"],
        optim_state_dict=state["optimizer"],
        options=_TRAINED,
    )
    groups = range(0, run["world"], run["config"]["tensor_parallel_size"])
    every = [_read(directory / f"process-{rank}.json") for rank in range(run["world"])]
    if run["world"] == processes.world:
        _restore_random(every[processes.rank]["random"])
    return run["step"], resume_state([every[rank]["data"] for rank in groups], processes.share)


def find_checkpoint(output: Path, config: TrainingConfig) -> Path | None:
    """The checkpoint to go on from: the newest whole one, the one that the config names, or none.

    Raises:
        UsageError: the named one is not there, or there are checkpoints and going on is switched off.
    """
    wanted = config.resume_from_checkpoint
    if isinstance(wanted, str):
        if not (Path(wanted) / "run.json").is_file():
            raise UsageError(f"resume_from_checkpoint: {wanted} is no checkpoint of a run")
        return Path(wanted)
    found = _checkpoints(output)
    if found and not wanted:
        raise UsageError(
            f"{output} has checkpoints, and resume_from_checkpoint is false",
            hint=f"choose another output_dir, or remove it first: rm -r {output}",
        )
    return found[-1] if found else None


def finished_run(config: TrainingConfig, total_steps: int) -> Path:
    """What a run has exported: a checkpoint, or adapters.

    Raises:
        UsageError: there is no such run, it is not finished, or it had other settings; names what differs.
    """
    if config.output_dir is None:
        raise UsageError("the config names no output_dir", hint="--set output_dir=DIRECTORY")
    output = Path(config.output_dir).expanduser()
    exported = output / ("final" if config.lora is None else "adapter")
    found = _checkpoints(output)
    if not found or not exported.is_dir():
        raise UsageError(f"{output} holds no finished run", hint="train it first: nvlm-train run CONFIG")
    run = _read(found[-1] / "run.json")
    _check_config(run["config"], config, found[-1])
    if run["step"] != total_steps:
        raise UsageError(
            f"{output} has come to step {run['step']:,} of {total_steps:,}",
            hint="the same nvlm-train run goes on",
        )
    return exported


def remove_remains(output: Path) -> None:
    """Remove what a killed run has left half written."""
    for path in output.glob("checkpoint-*.tmp"):
        shutil.rmtree(path)


def _checkpoints(output: Path) -> list[Path]:
    """Whole checkpoints, the oldest first."""
    found = [(int(match[1]), path) for path in output.glob("*") if (match := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found)]


def _check_config(before: dict[str, Any], config: TrainingConfig, directory: Path) -> None:
    now = config.to_dict()
    changed: Sequence[str] = [key for key in now if key not in _FREE and before.get(key) != now[key]]
    if changed:
        key = changed[0]
        raise UsageError(
            f"{directory} was trained with {key} {before.get(key)!r}, and the config has {now[key]!r}",
            hint="choose another output_dir for another run",
        )


def _random_state() -> dict[str, str]:
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return {name: base64.b64encode(bytes(state.tolist())).decode() for name, state in states.items()}


def _restore_random(states: dict[str, str]) -> None:
    decoded = {
        name: torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)
        for name, text in states.items()
    }
    torch.set_rng_state(decoded["cpu"])
    if "cuda" in decoded and torch.cuda.is_available():
        torch.cuda.set_rng_state(decoded["cuda"])


def _read(path: Path) -> dict[str, Any]:
    try:
        data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise NvlmError(
            f"{path} cannot be read: {error}", hint="remove this checkpoint; the one before it counts"
        ) from None
    return data


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        # Said of every run of one process, and of every sharded tensor on a CPU.
        warnings.simplefilter("ignore")
        yield
