"""A file of predictions that survives a kill: lines are appended in the order of the data set, and synced.

Beside `FILE` stands `FILE.settings.json`: what the predictions depend on. A run goes on behind the last
whole line of a file with equal settings, and refuses any other.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from nvlm_deploy.config.mismatch import differences, refuse
from nvlm_deploy.errors import NvlmError, UsageError
from nvlm_deploy.eval.records import Record, parse_line, read_json
from nvlm_deploy.pipeline.resumable import write_whole


class PredictionFile:
    """Lines that are there, and the place to add more. Made by `open_predictions`."""

    def __init__(self, path: Path, file: BinaryIO, lines: list[Record]) -> None:
        self.path, self.lines, self._file = path, lines, file

    def append(self, line: Mapping[str, Any]) -> None:
        """Add one line and wait until it is on disk."""
        text = json.dumps(line, ensure_ascii=False, separators=(", ", ": "))
        self._file.write(text.encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self.lines.append(Record(dict(line), f"{self.path}:{len(self.lines) + 1}"))


def settings_path(output: Path) -> Path:
    """Where the settings of a file of predictions are."""
    return output.with_name(output.name + ".settings.json")


@contextmanager
def open_predictions(output: Path, settings: dict[str, Any], ids: Sequence[str]) -> Iterator[PredictionFile]:
    """Yield the predictions in `output`, those that are there and room for the rest.

    Args:
        settings: what predictions depend on, in plain types.
        ids: of the whole data set, in its order.

    Raises:
        UsageError: the file is of other settings, of no run at all, or another run is writing it now.
        NvlmError: a line is malformed, or is not the one that the data set has there.
    """
    if not output.exists():
        output.parent.mkdir(parents=True, exist_ok=True)
        write_whole(settings_path(output), json.dumps(settings, indent=2).encode() + b"\n")
    _check_settings(output, settings)
    with output.open("a+b") as file:
        _lock(file, output)
        yield PredictionFile(output, file, _read_whole_lines(file, output, ids))


def _check_settings(output: Path, settings: dict[str, Any]) -> None:
    path = settings_path(output)
    if not path.exists():
        raise UsageError(
            f"the output {output} exists already, and has no {path.name} beside it",
            hint="choose another output; nvlm-eval run goes on with its own files alone",
        )
    refuse(
        differences(read_json(path), json.loads(json.dumps(settings)), "now it is"),
        f"{output} holds predictions of other settings",
        f"choose another output, or start anew: rm {output} {path}",
        UsageError,
    )


def _lock(file: BinaryIO, output: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UsageError(
            f"another run is writing {output} now", hint="wait for it, or choose another output"
        ) from None


def _read_whole_lines(file: BinaryIO, output: Path, ids: Sequence[str]) -> list[Record]:
    file.seek(0)
    data = file.read()
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        # A kill fell into the writing of the last line.
        file.truncate(whole)
    texts = data[:whole].split(b"\n")[:-1]
    lines = [parse_line(text, f"{output}:{i}") for i, text in enumerate(texts, start=1)]
    for i, line in enumerate(lines):
        expected = ids[i] if i < len(ids) else None
        if line.name("id") != expected:
            raise NvlmError(
                f"{line.where}: the id is '{line.name('id')}', and the data set has {expected!r} there",
                hint=f"start anew: rm {output} {settings_path(output)}",
            )
    return lines
