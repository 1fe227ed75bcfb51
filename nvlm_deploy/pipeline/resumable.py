"""Write a directory in pieces that survive a kill: a run that starts again continues behind the last one.

The work stays in a hidden directory beside the output until all pieces are there. What a piece depends
on is its key: work of another key is started anew.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nvlm_deploy.errors import UsageError
from nvlm_deploy.pipeline.atomic import check_output, disk_full_error, is_disk_full, publish

_KEY_NAME = "key.json"
# The unit of `st_blocks`, whatever the file system's own is.
_BLOCK_BYTES = 512


@dataclass(frozen=True, slots=True)
class ResumableWork:
    """Unfinished work. `result` becomes the output; what else is in `directory` is thrown away then."""

    directory: Path

    @property
    def result(self) -> Path:
        """What becomes the output."""
        return self.directory / "result"

    def finished(self, piece: int) -> dict[str, Any] | None:
        """What a finished piece noted, or None if it is not finished."""
        path = self._note(piece)
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

    def finish(self, piece: int, note: dict[str, Any]) -> None:
        """Mark a piece whose files are complete as finished; it will not be made again."""
        write_whole(self._note(piece), json.dumps(note).encode())

    def _note(self, piece: int) -> Path:
        return self.directory / "pieces" / f"{piece:05}.json"


def unfinished_directory(output: Path) -> Path:
    """Where the work on `output` stays until it is complete."""
    return output.parent / f".{output.name}.unfinished"


def unfinished_bytes(output: Path) -> int:
    """Bytes on disk of the work on `output` that an earlier run has left."""
    found = [path.stat() for path in unfinished_directory(output).rglob("*") if path.is_file()]
    # A file that got its full size before its contents takes blocks only where something is written.
    return sum(min(stat.st_size, stat.st_blocks * _BLOCK_BYTES) for stat in found)


@contextmanager
def resumable_directory(output: Path, key: dict[str, Any]) -> Iterator[ResumableWork]:
    """Yield the work on `output`, old or new; at the end of the block its result becomes `output`.

    Args:
        key: what the pieces depend on, in plain types. Unfinished work of an equal key is continued.

    Raises:
        UsageError: `output` exists, or another run is writing it now.
        NvlmError: the disk is full. As after any other error, finished pieces stay for the next run.
    """
    check_output(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    directory = unfinished_directory(output)
    directory.mkdir(exist_ok=True)
    lock = os.open(directory, os.O_RDONLY)
    try:
        _lock(lock, output)
        # A run that was killed after its last piece may have published the result already.
        if _read_key(directory) != key or not (directory / "result").is_dir():
            _start_anew(directory, key)
        work = ResumableWork(directory)
        yield work
        publish(work.result, output)
        shutil.rmtree(directory)
    except BaseException as error:
        if is_disk_full(error):
            raise disk_full_error(output.parent) from error
        raise
    finally:
        os.close(lock)


def write_whole(path: Path, data: bytes) -> None:
    """Write a file whole or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _lock(descriptor: int, output: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UsageError(
            f"another run is writing {output} now", hint="wait for it, or choose another output"
        ) from None


def _read_key(directory: Path) -> dict[str, Any] | None:
    try:
        key: dict[str, Any] = json.loads((directory / _KEY_NAME).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return key


def _start_anew(directory: Path, key: dict[str, Any]) -> None:
    for path in directory.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    for name in ("result", "pieces"):
        (directory / name).mkdir()
    write_whole(directory / _KEY_NAME, json.dumps(key).encode())
