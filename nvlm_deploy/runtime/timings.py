"""A stopwatch with named stages."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class StageTimer:
    """Milliseconds by stage; a stage that is entered twice adds up."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self.stages_ms: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time the block as `name`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            elapsed = (time.perf_counter() - start) * 1000
            self.stages_ms[name] = self.stages_ms.get(name, 0.0) + elapsed

    def elapsed_ms(self) -> float:
        """Milliseconds since the timer was made."""
        return (time.perf_counter() - self._began) * 1000
