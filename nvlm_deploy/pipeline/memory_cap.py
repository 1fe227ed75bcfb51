"""A cap on the memory of child processes, and its peak.

Address space cannot be limited (`RLIMIT_AS`), because CUDA reserves hundreds of gigabytes that it never uses.
So the processes are watched, and ended before the machine has to choose one. What counts is memory that the
kernel cannot take back: anonymous, shared and swapped pages, without mapped files.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from nvlm_deploy.errors import NvlmError, UnsuitableError

_PROC = Path("/proc")
_INTERVAL_S = 0.1
_COUNTED = ("RssAnon:", "RssShmem:", "VmSwap:")


class MemoryWatch:
    """What `memory_cap` has seen. `peak_bytes`: of all child processes together."""

    def __init__(self, limit: int | None) -> None:
        self.limit = limit
        self.peak_bytes = 0
        self.exceeded = False
        self._others = frozenset(_descendants(os.getpid()))
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def stop(self) -> None:
        """Watch no longer."""
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(_INTERVAL_S):
            children = [pid for pid in _descendants(os.getpid()) if pid not in self._others]
            used = {pid: _used_bytes(pid) for pid in children}
            self.peak_bytes = max(self.peak_bytes, sum(used.values()))
            if self.limit is not None and sum(used.values()) > self.limit:
                self.exceeded = True
                for pid in children:
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)


@contextmanager
def memory_cap(limit: int | None, what: str) -> Iterator[MemoryWatch]:
    """Watch the processes that are started inside the block; end them all when they exceed `limit` bytes.

    Args:
        limit: None only measures.
        what: the work, for the error.

    Raises:
        NvlmError: the limit was exceeded.
        UnsuitableError: there is a limit, and this system has no /proc to watch it.
    """
    if limit is not None and not _PROC.is_dir():
        raise UnsuitableError("memory can only be capped on Linux", hint="leave --max-build-memory out")
    watch = MemoryWatch(limit)
    watch.start()
    try:
        yield watch
    except NvlmError as error:
        watch.stop()
        if watch.exceeded:
            raise _exceeded(watch, what) from error
        raise
    finally:
        watch.stop()
    if watch.exceeded:
        raise _exceeded(watch, what)


def available_bytes() -> int | None:
    """Memory that new processes can have; None if the system does not say."""
    try:
        lines = (_PROC / "meminfo").read_text().splitlines()
    except OSError:
        return None
    found = [line.split() for line in lines if line.startswith("MemAvailable:")]
    return int(found[0][1]) * 1024 if found else None


def _exceeded(watch: MemoryWatch, what: str) -> NvlmError:
    assert watch.limit is not None, "nothing is ended without a limit"
    return NvlmError(
        f"{what} took {watch.peak_bytes / 1e9:.2f} GB of memory, more than the {watch.limit / 1e9:.2f} GB "
        "allowed, and was ended",
        hint="raise --max-build-memory, add swap, or build for fewer tokens, tiles or requests; finished "
        "stages are kept",
    )


def _descendants(root: int) -> list[int]:
    """All processes below `root`."""
    children: dict[int, list[int]] = {}
    for entry in _PROC.iterdir() if _PROC.is_dir() else ():
        if entry.name.isdigit():
            with suppress(OSError, ValueError, IndexError):
                # The name, in parentheses, may hold spaces: the parent is the second field behind it.
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(entry.name))
    found, waiting = [], [root]
    while waiting:
        below = children.get(waiting.pop(), [])
        found += below
        waiting += below
    return found


def _used_bytes(pid: int) -> int:
    try:
        lines = (_PROC / str(pid) / "status").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(_COUNTED))
