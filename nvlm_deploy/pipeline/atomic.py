"""Write a directory whole or not at all.

The work goes into a hidden directory beside the output, which is renamed when it is complete and on
disk. The writer holds a lock on it for as long as it lives, so the next run can tell the remains of
a killed one from a build that is still going on.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from nvlm_deploy.errors import NvlmError, UnsuitableError, UsageError

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def atomic_directory(output: Path) -> Iterator[Path]:
    """Yield an empty directory that becomes `output` when the block ends without an error.

    Raises:
        UsageError: `output` exists, or another run is writing it now.
        NvlmError: the disk is full; nothing is left behind, as after any other error.
    """
    check_output(output)
    made_parents = _make_parents(output.parent)
    # Named before it is made, so that an interruption at any moment knows what to remove.
    work = output.parent / (_work_prefix(output) + secrets.token_hex(4))
    lock = None
    try:
        lock = _start(output, work)
        yield work
        publish(work, output)
    except BaseException as error:
        shutil.rmtree(work, ignore_errors=True)
        _remove_empty(made_parents)
        if is_disk_full(error):
            raise disk_full_error(output.parent) from error
        raise
    finally:
        if lock is not None:
            os.close(lock)


def check_output(output: Path) -> None:
    """Raise a UsageError when there is something at `output` already."""
    if os.path.lexists(output):
        raise UsageError(
            f"the output {output} exists already",
            hint=f"choose another place, or remove it first: rm -r {output}",
        )


def is_disk_full(error: BaseException | None) -> bool:
    """Whether `error`, or what caused it, is a full disk, quota or file size limit."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _DISK_FULL:
            return True
        error = error.__cause__ or error.__context__
    return False


def disk_full_error(place: Path) -> NvlmError:
    """Return the error for a disk that filled up while `place` was written to."""
    return NvlmError(
        f"no space left on the disk that holds {place}",
        hint="free some space or choose an output on another disk; --dry-run shows how much is needed",
    )


def require_space(place: Path, needed: int, what: str) -> None:
    """Check that `needed` bytes fit on the disk that will hold `place`.

    Raises:
        UnsuitableError: they do not; says that `what` take them.
    """
    free = free_bytes(place)
    if free < needed:
        raise UnsuitableError(
            f"the disk that holds {place} has {free / 1e9:.2f} GB free, and {what} take "
            f"{needed / 1e9:.2f} GB",
            hint="free some space or choose an output on another disk",
        )


def free_bytes(place: Path) -> int:
    """Free bytes on the disk that will hold `place`."""
    return shutil.disk_usage(next(path for path in (place, *place.absolute().parents) if path.exists())).free


def remove_stale(output: Path) -> None:
    """Remove what killed runs have left beside `output`.

    Raises:
        UsageError: a run that is still alive is writing `output`.
    """
    for path in output.parent.iterdir():
        if not path.name.startswith(_work_prefix(output)):
            continue
        lock = _lock(path)
        if lock is None:
            raise UsageError(
                f"another run is writing {output} now", hint="wait for it, or choose another output"
            )
        try:
            shutil.rmtree(path)
        finally:
            os.close(lock)


def _start(output: Path, work: Path) -> int:
    """Make and lock the working directory, while no other run can look at it half made; return the lock."""
    parent_lock = os.open(output.parent, os.O_RDONLY)
    try:
        fcntl.flock(parent_lock, fcntl.LOCK_EX)
        remove_stale(output)
        work.mkdir()
        lock = _lock(work)
        assert lock is not None, "a directory made under the parent's lock is nobody else's"
        return lock
    finally:
        os.close(parent_lock)


def _work_prefix(output: Path) -> str:
    return f".{output.name}.building-"


def _lock(directory: Path) -> int | None:
    """Return a descriptor that holds the lock of `directory`, or None if a living run holds it."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def publish(work: Path, output: Path) -> None:
    """Make a complete directory `output`, once it is on disk.

    Raises:
        UsageError: there is something at `output` by now.
    """
    _sync_tree(work)
    check_output(output)
    work.rename(output)
    _sync(output.parent)


def _sync_tree(directory: Path) -> None:
    for folder, _, files in os.walk(directory):
        for name in files:
            _sync(Path(folder, name))
        _sync(Path(folder))


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _make_parents(parent: Path) -> list[Path]:
    """Make the missing directories above the output; return them, the deepest first."""
    missing = [path for path in (parent, *parent.parents) if not path.exists()]
    parent.mkdir(parents=True, exist_ok=True)
    return missing


def _remove_empty(directories: list[Path]) -> None:
    for directory in directories:
        with suppress(OSError):
            directory.rmdir()
