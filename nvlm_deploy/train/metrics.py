"""What a run tells: one JSON object a line in `metrics.jsonl`, and TensorBoard if asked."""

from __future__ import annotations

import json
import resource
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from nvlm_deploy.errors import UnsuitableError

SKIPPED = "skipped.jsonl"


class MetricsLog:
    """Appends rows, each with its `step`; going on at a step drops what a killed run wrote beyond it."""

    def __init__(self, output: Path, step: int, report_to: Sequence[str] = ()) -> None:
        """Raises UnsuitableError if TensorBoard is asked for and not installed."""
        self._path = output / "metrics.jsonl"
        for path in (self._path, output / SKIPPED):
            _keep_until(path, step)
        self._board = _open_board(output / "tensorboard", step) if "tensorboard" in report_to else None

    def write(self, row: Mapping[str, Any]) -> None:
        """Append a row of metrics."""
        append_row(self._path, row)
        if self._board is not None:
            for name, value in row.items():
                for part, number in value.items() if isinstance(value, dict) else [("", value)]:
                    if isinstance(number, (int, float)):
                        self._board.add_scalar(f"{name}/{part}" if part else name, number, row["step"])
            self._board.flush()


def peak_memory(device: torch.device) -> int:
    """Most bytes in use so far: of the GPU's memory, or of this process."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def append_row(path: Path, row: Mapping[str, Any]) -> None:
    """Append one line; processes that share a file do not cut each other's lines."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _keep_until(path: Path, step: int) -> None:
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (ValueError, KeyError):
            continue  # The half of a line that a kill left.
    work = path.with_suffix(".tmp")
    work.write_text("".join(kept), encoding="utf-8")
    work.replace(path)


def _open_board(directory: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UnsuitableError(
            "report_to: tensorboard is not installed", hint="pip install tensorboard, or --set report_to=[]"
        ) from None
    return SummaryWriter(str(directory), purge_step=step + 1)
