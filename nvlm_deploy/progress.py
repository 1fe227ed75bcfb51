"""How long work tells how far it is."""

from __future__ import annotations

from collections.abc import Callable

# Called with the stage's name, the work that is done, and the whole work, in one unit (mostly bytes).
ProgressCallback = Callable[[str, int, int], None]


def no_progress(stage: str, done: int, total: int) -> None:
    """Tell nobody."""
