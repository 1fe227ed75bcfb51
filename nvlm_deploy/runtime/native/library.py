"""Which libnvlm is used, and its errors as those of Python."""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import os
import re
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nvlm_deploy import __version__
from nvlm_deploy.errors import (
    CancelledError,
    NvlmError,
    UnsuitableError,
    UsageError,
    VerificationError,
)
from nvlm_deploy.runtime.native import abi

LIBRARY_VARIABLE = "NVLM_LIBRARY"
ONNXRUNTIME_VARIABLE = "NVLM_ONNXRUNTIME_LIBRARY"
LIBRARY_NAME = "libnvlm.so"

_ERRORS: dict[int, type[NvlmError]] = {
    error.exit_code: error
    for error in (NvlmError, UsageError, UnsuitableError, VerificationError, CancelledError)
}


class Library:
    """A loaded libnvlm of this package's version."""

    def __init__(self, path: Path) -> None:
        """Load it.

        Raises:
            UnsuitableError: it cannot be loaded, is no libnvlm, or is of another version.
        """
        self.path = path
        try:
            self.functions = ctypes.CDLL(str(path))
            abi.declare(self.functions)
        except (OSError, AttributeError) as error:
            raise UnsuitableError(
                f"{path} cannot be used as the native runtime: {error}", hint=_WAYS
            ) from None
        self.version = self.functions.nvlm_version().decode()
        if self.version != _release(__version__):
            raise UnsuitableError(
                f"{path} is libnvlm {self.version}, and this is nvlm-deploy {__version__}", hint=_WAYS
            )

    def call(self, name: str, *arguments: Any) -> None:
        """Call a function that returns a status.

        Raises:
            NvlmError: it is another than NVLM_OK; of the class that has this exit code.
        """
        status = getattr(self.functions, name)(*arguments)
        if status != abi.OK:
            message = self.functions.nvlm_last_error().decode(errors="replace")
            hint = self.functions.nvlm_last_hint().decode(errors="replace")
            raise _ERRORS.get(status, NvlmError)(message, hint=hint or None)

    def text(self, name: str, *arguments: Any) -> str:
        """What a function writes that ends with buffer, capacity and length, as nvlm_result_text does."""
        length = ctypes.c_size_t()
        self.call(name, *arguments, None, 0, ctypes.byref(length))
        buffer = ctypes.create_string_buffer(length.value + 1)
        self.call(name, *arguments, buffer, len(buffer), None)
        return buffer.raw[: length.value].decode()


class Opened:
    """An engine that a library has opened; it is closed when nobody holds this any more."""

    def __init__(self, library: Library, directory: Path, options: abi.EngineOptions) -> None:
        """Open it.

        Raises:
            NvlmError: as nvlm_engine_open says.
        """
        self.library = library
        self._handle = ctypes.c_void_p()
        library.call(
            "nvlm_engine_open", path_bytes(directory), ctypes.byref(options), ctypes.byref(self._handle)
        )
        _when_unused(self, library.functions.nvlm_engine_close, self._handle)

    def call(self, name: str, *arguments: Any) -> None:
        """`Library.call` of a function whose first argument is an engine."""
        self.library.call(name, self._handle, *arguments)


class Cancellation:
    """nvlm_cancellation: ends the one request that uses it, from any thread."""

    def __init__(self, library: Library) -> None:
        self.handle = ctypes.c_void_p()
        library.call("nvlm_cancellation_new", ctypes.byref(self.handle))
        self._cancel = library.functions.nvlm_cancel
        _when_unused(self, library.functions.nvlm_cancellation_free, self.handle)

    def cancel(self) -> None:
        self._cancel(self.handle)


def _when_unused(owner: object, free: Callable[[ctypes.c_void_p], None], handle: ctypes.c_void_p) -> None:
    """Free a handle with its owner, but not where a program ends: a stream that was left may still use it."""
    weakref.finalize(owner, free, handle).atexit = False


def path_bytes(path: str | os.PathLike[str]) -> bytes:
    """A path for C.

    Raises:
        UsageError: it has a zero byte, which would end it.
    """
    raw = os.fsencode(path)
    if b"\0" in raw:
        raise UsageError(f"the path {os.fspath(path)!r} has a zero byte")
    return raw


_WAYS = (
    f"in a source tree: make native; or install a wheel that carries {LIBRARY_NAME}; "
    f"or set {LIBRARY_VARIABLE} to one of version {__version__}"
)


def load_library() -> Library:
    """The library that `NVLM_LIBRARY` names, or the one in this package, or the one in the environment's lib.

    Raises:
        UnsuitableError: there is none, or the first one found does not fit.
    """
    named = os.environ.get(LIBRARY_VARIABLE)
    if named:
        return _loaded(Path(named).absolute())
    places = [Path(__file__).parent / LIBRARY_NAME, Path(sys.prefix) / "lib" / LIBRARY_NAME]
    for path in places:
        if path.exists():
            return _loaded(path)
    tried = ", ".join(map(str, places))
    raise UnsuitableError(f"the native runtime is not here: there is no {tried}", hint=_WAYS)


# Never unloaded: threads of ONNX Runtime may outlive the last engine.
_loaded: Callable[[Path], Library] = functools.cache(Library)


def onnxruntime_library() -> bytes | None:
    """ONNX Runtime in the installed wheel; None where another one is named, or it is not there.

    Found and not imported: the native runtime needs none of its Python.
    """
    if os.environ.get(ONNXRUNTIME_VARIABLE):
        return None
    spec = importlib.util.find_spec("onnxruntime")
    if spec is None or spec.origin is None:
        return None
    found = sorted((Path(spec.origin).parent / "capi").glob("libonnxruntime.so.*"))
    return os.fsencode(found[-1]) if found else None


def _release(version: str) -> str:
    """The numbers of a version, which are all that the library has."""
    match = re.match(r"\d+(\.\d+)*", version)
    return match.group() if match else version
