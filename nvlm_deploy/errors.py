"""The errors that users see: a sentence, a hint, and the exit code that the command line returns."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class NvlmError(Exception):
    """A failure with a way out.

    `message` says what is wrong and where (file, key or tensor); `hint` says what to do about it.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(NvlmError):
    """The request itself is wrong: an unknown name, a bad option, an output that exists."""

    exit_code = 2


class UnsuitableError(NvlmError):
    """This machine or device cannot do what was asked."""

    exit_code = 3


class VerificationError(NvlmError):
    """A result does not hold what was promised for it."""

    exit_code = 4


class CancelledError(NvlmError):
    """A request was ended from outside before it was answered."""

    exit_code = 130


def did_you_mean(name: str, known: Iterable[str]) -> str | None:
    """Return a hint that names the known alternatives nearest to `name`, or all of them when few."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.6)
    if close:
        return "did you mean " + " or ".join(f"'{c}'" for c in close) + "?"
    if 0 < len(names) <= 20:
        return "known: " + ", ".join(names)
    return None
